"""Classic papers as PyTorch Lightning modules: models, losses, callbacks and recipes.

Names are loaded on first use: ``import pl_losses`` imports no torch.
"""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.core.version import __version__ as __version__
    from pl_losses.papers.adam.counterexample import AMSGradCounterexample as AMSGradCounterexample
    from pl_losses.papers.adam.modules import (
        MLP as MLP,
        ConvNet as ConvNet,
        LogisticRegression as LogisticRegression,
    )
    from pl_losses.papers.adam.vae import VAE as VAE
    from pl_losses.papers.dropout.classifier import DropoutClassifier as DropoutClassifier
    from pl_losses.papers.dropout.regressor import DropoutRegressor as DropoutRegressor
    from pl_losses.papers.gan.basic import FullBasicModel as FullBasicModel
    from pl_losses.papers.gan.module import GAN as GAN
    from pl_losses.papers.gtn.lattice_reader import LatticeReader as LatticeReader
    from pl_losses.papers.gtn.sdnn import SDNN as SDNN
    from pl_losses.papers.lenet.features import PretrainedLeNet5 as PretrainedLeNet5
    from pl_losses.papers.lenet.module import LeNet5 as LeNet5
    from pl_losses.papers.prelu.module import RectifierNet as RectifierNet
    from pl_losses.papers.sdae.denoising import DenoisingAutoencoder as DenoisingAutoencoder
    from pl_losses.papers.sdae.module import StackedDenoisingAutoencoder as StackedDenoisingAutoencoder
    from pl_losses.papers.style.module import StyleTransfer as StyleTransfer

__getattr__, __dir__, __all__ = lazy(__name__)
