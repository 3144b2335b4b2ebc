"""Every callback of the suite by its name."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.core.activation_checkpointing import ActivationCheckpointing as ActivationCheckpointing
    from pl_losses.core.random_state import RandomState as RandomState
    from pl_losses.monitoring.artifacts import ArtifactRecord as ArtifactRecord
    from pl_losses.monitoring.pictures import ClassifierReport as ClassifierReport
    from pl_losses.monitoring.speed import SpeedMonitor as SpeedMonitor
    from pl_losses.papers.adam.averaging import TemporalAveraging as TemporalAveraging
    from pl_losses.papers.adam.counterexample_report import CounterexampleReport as CounterexampleReport
    from pl_losses.papers.adam.monitor.monitor import AdamBiasCorrectionMonitor as AdamBiasCorrectionMonitor
    from pl_losses.papers.dropout.monitor import DropoutUncertaintyMonitor as DropoutUncertaintyMonitor
    from pl_losses.papers.dropout.regression_report import RegressionReport as RegressionReport
    from pl_losses.papers.dropout.reports import (
        ExtrapolationReport as ExtrapolationReport,
        RotationReport as RotationReport,
    )
    from pl_losses.papers.gan.report import GANReport as GANReport
    from pl_losses.papers.gtn.report import ReadingReport as ReadingReport
    from pl_losses.papers.prelu.imagenet import ImageNetReport as ImageNetReport
    from pl_losses.papers.prelu.monitor import PReLUSlopeMonitor as PReLUSlopeMonitor
    from pl_losses.papers.prelu.report import SignalReport as SignalReport
    from pl_losses.papers.sdae.report import AutoencoderReport as AutoencoderReport
    from pl_losses.papers.style.report import StyleReport as StyleReport

__getattr__, __dir__, __all__ = lazy(__name__)
