"""He, Zhang, Ren and Sun 2015, Delving Deep into Rectifiers: PReLU and He initialisation."""

from typing import TYPE_CHECKING

from pl_losses._lazy import lazy

if TYPE_CHECKING:
    from pl_losses.papers.prelu.module import RectifierNet as RectifierNet
    from pl_losses.papers.prelu.monitor import PReLUSlopeMonitor as PReLUSlopeMonitor

__getattr__, __dir__ = lazy(
    __name__,
    {
        "PReLUSlopeMonitor": "pl_losses.papers.prelu.monitor",
        "RectifierNet": "pl_losses.papers.prelu.module",
    },
)
__all__ = [
    "PReLUSlopeMonitor",
    "RectifierNet",
]
