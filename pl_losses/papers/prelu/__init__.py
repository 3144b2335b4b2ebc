"""He, Zhang, Ren and Sun 2015, Delving Deep into Rectifiers: PReLU and He initialisation."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.prelu.init import (
        he_init_ as he_init_,
        he_normal_ as he_normal_,
        he_uniform_ as he_uniform_,
    )
    from pl_losses.papers.prelu.layers import PReLU as PReLU
    from pl_losses.papers.prelu.module import RectifierNet as RectifierNet
    from pl_losses.papers.prelu.monitor import PReLUSlopeMonitor as PReLUSlopeMonitor
    from pl_losses.papers.prelu.parameter_groups import param_groups as param_groups

__getattr__, __dir__, __all__ = lazy(__name__)
