"""Classic papers as PyTorch Lightning modules: models, losses, callbacks and recipes.

Names are loaded on first use: ``import pl_losses`` imports no torch.
"""

from typing import TYPE_CHECKING

from pl_losses._lazy import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pl_losses.papers.dropout.classifier import DropoutClassifier as DropoutClassifier
    from pl_losses.papers.dropout.regressor import DropoutRegressor as DropoutRegressor
    from pl_losses.papers.lenet.module import LeNet5 as LeNet5
    from pl_losses.papers.prelu.module import RectifierNet as RectifierNet

__getattr__, __dir__ = lazy(
    __name__,
    {
        "DropoutClassifier": "pl_losses.papers.dropout.classifier",
        "DropoutRegressor": "pl_losses.papers.dropout.regressor",
        "LeNet5": "pl_losses.papers.lenet.module",
        "RectifierNet": "pl_losses.papers.prelu.module",
    },
)
__all__ = ["DropoutClassifier", "DropoutRegressor", "LeNet5", "RectifierNet", "__version__"]
