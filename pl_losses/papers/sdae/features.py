"""Vincent et al. 2010, section 6.6: the frozen encoder as a feature extractor; support vector machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pl_losses.core.validation import check_integer, typed
from pl_losses.data.module import TensorDataModule
from pl_losses.papers.sdae.denoising import Denoising

C_VALUES = (1.0, 10.0, 100.0)


class FrozenEncoder(nn.Module):
    """The encoders of a (stacked) denoising autoencoder as a fixed network: inputs [B, ...] -> codes [B, H].

    Its weights are not trained, not even as a part of another model:
    ``nn.Sequential(FrozenEncoder(model), nn.Linear(1000, 10))``.

    Args:
        model: The autoencoder, which is not copied.
        depth: Number of layers to pass. Default: all.

    Raises:
        ValueError: If the model has fewer layers.

    Example:
        >>> from pl_losses import DenoisingAutoencoder
        >>> encoder = FrozenEncoder(DenoisingAutoencoder(16, 8))
        >>> encoder(torch.rand(3, 1, 4, 4)).shape, any(p.requires_grad for p in encoder.parameters())
        (torch.Size([3, 8]), False)
    """

    def __init__(self, model: Denoising, depth: int | None = None) -> None:
        super().__init__()
        self.depth = len(model.layers) if depth is None else depth
        check_integer("depth", self.depth, 0, most=len(model.layers))
        self.layers = model.layers.requires_grad_(False)
        self._codes = [model.codes]  # In a list, so that the model is not a submodule.

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode inputs without gradients."""
        return self._codes[0](inputs, self.depth)


def encode_split(
    model: Denoising, data: TensorDataModule, split: str, *, depth: int
) -> tuple[Tensor, Tensor]:
    """Encode a split of a DataModule that is set up: codes [N, H] and labels [N], on the host."""
    loader = data.loader_of(split)
    device = next(model.parameters()).device
    parts = [(model.codes(batch[0].to(device), depth).cpu(), batch[1].cpu()) for batch in loader]
    codes, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return codes, labels


@typed
def svm_errors(
    model: Denoising,
    data: TensorDataModule,
    *,
    kernel: Literal["linear", "rbf"] = "linear",
    depths: Sequence[int] | None = None,
    c_values: Sequence[float] = C_VALUES,
) -> dict[int, dict[str, float]]:
    """Test support vector machines on the codes of each depth; depth 0 are the inputs.

    C is chosen on the validation split; gamma of an RBF kernel is 1 / (number of elements times their
    variance).

    Args:
        model: A trained autoencoder.
        data: Its data, with a validation split.
        kernel: "linear" or "rbf".
        depths: Which depths. Default: from 0 to all layers.
        c_values: Values of C to choose from.

    Returns:
        Depth to ``error`` (share of the test samples), ``val_error`` and ``C``.

    Raises:
        ValueError: If ``kernel`` is none of the two, ``depths`` are not the model's, or there is no
            ``c_values`` or no validation split.
    """
    from sklearn.svm import SVC, LinearSVC

    if not c_values:
        raise ValueError("Expected `c_values` to choose from but got none")
    chosen = range(len(model.layers) + 1) if depths is None else depths
    for depth in chosen:
        check_integer("depths", depth, 0, most=len(model.layers))
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    if "val" not in data.tensors:
        raise ValueError("Expected `data` with a validation split, on which C is chosen")
    found = {}
    for depth in chosen:
        splits: Any = {
            split: encode_split(model, data, split, depth=depth) for split in ("train", "val", "test")
        }
        best: tuple[float, float, Any] | None = None
        for value in c_values:
            machine = LinearSVC(C=value / 100, dual="auto") if kernel == "linear" else SVC(C=value)
            machine.fit(*(part.numpy() for part in splits["train"]))
            error = _error(machine, *splits["val"])
            if best is None or error < best[0]:
                best = (error, value / 100 if kernel == "linear" else value, machine)
        assert best is not None
        error = _error(best[2], *splits["test"])
        found[depth] = {"error": error, "val_error": best[0], "C": best[1]}
    return found


def _error(machine: Any, codes: Tensor, labels: Tensor) -> float:
    return float((torch.from_numpy(machine.predict(codes.numpy())) != labels).float().mean())
