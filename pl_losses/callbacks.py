"""Every callback of the suite by its name."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.core.random_state import RandomState as RandomState
    from pl_losses.monitoring.pictures import ClassifierReport as ClassifierReport
    from pl_losses.papers.adam.averaging import TemporalAveraging as TemporalAveraging
    from pl_losses.papers.adam.monitor.monitor import AdamBiasCorrectionMonitor as AdamBiasCorrectionMonitor
    from pl_losses.papers.dropout.monitor import DropoutUncertaintyMonitor as DropoutUncertaintyMonitor
    from pl_losses.papers.dropout.reports import ExtrapolationReport as ExtrapolationReport
    from pl_losses.papers.dropout.reports import RotationReport as RotationReport
    from pl_losses.papers.gan.report import GANReport as GANReport
    from pl_losses.papers.gtn.report import ReadingReport as ReadingReport
    from pl_losses.papers.prelu.monitor import PReLUSlopeMonitor as PReLUSlopeMonitor
    from pl_losses.papers.sdae.report import AutoencoderReport as AutoencoderReport
    from pl_losses.papers.style.report import StyleReport as StyleReport

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AdamBiasCorrectionMonitor": "pl_losses.papers.adam.monitor.monitor",
        "AutoencoderReport": "pl_losses.papers.sdae.report",
        "ClassifierReport": "pl_losses.monitoring.pictures",
        "DropoutUncertaintyMonitor": "pl_losses.papers.dropout.monitor",
        "ExtrapolationReport": "pl_losses.papers.dropout.reports",
        "GANReport": "pl_losses.papers.gan.report",
        "PReLUSlopeMonitor": "pl_losses.papers.prelu.monitor",
        "RandomState": "pl_losses.core.random_state",
        "ReadingReport": "pl_losses.papers.gtn.report",
        "RotationReport": "pl_losses.papers.dropout.reports",
        "StyleReport": "pl_losses.papers.style.report",
        "TemporalAveraging": "pl_losses.papers.adam.averaging",
    },
)
__all__ = [
    "AdamBiasCorrectionMonitor",
    "AutoencoderReport",
    "ClassifierReport",
    "DropoutUncertaintyMonitor",
    "ExtrapolationReport",
    "GANReport",
    "PReLUSlopeMonitor",
    "RandomState",
    "ReadingReport",
    "RotationReport",
    "StyleReport",
    "TemporalAveraging",
]
