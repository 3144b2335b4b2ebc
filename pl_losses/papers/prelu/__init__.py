"""He, Zhang, Ren and Sun 2015, Delving Deep into Rectifiers: PReLU and He initialisation."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.prelu.groups import param_groups as param_groups
    from pl_losses.papers.prelu.init import he_init_ as he_init_
    from pl_losses.papers.prelu.init import he_normal_ as he_normal_
    from pl_losses.papers.prelu.init import he_uniform_ as he_uniform_
    from pl_losses.papers.prelu.layers import PReLU as PReLU
    from pl_losses.papers.prelu.module import RectifierNet as RectifierNet
    from pl_losses.papers.prelu.monitor import PReLUSlopeMonitor as PReLUSlopeMonitor

__getattr__, __dir__ = lazy(
    __name__,
    {
        "PReLU": "pl_losses.papers.prelu.layers",
        "PReLUSlopeMonitor": "pl_losses.papers.prelu.monitor",
        "RectifierNet": "pl_losses.papers.prelu.module",
        "he_init_": "pl_losses.papers.prelu.init",
        "he_normal_": "pl_losses.papers.prelu.init",
        "he_uniform_": "pl_losses.papers.prelu.init",
        "param_groups": "pl_losses.papers.prelu.groups",
    },
)
__all__ = [
    "PReLU",
    "PReLUSlopeMonitor",
    "RectifierNet",
    "he_init_",
    "he_normal_",
    "he_uniform_",
    "param_groups",
]
