"""Content and style images for style transfer."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from pl_losses.core.compat.of_lightning import OfLightning
from pl_losses.core.hparams import save_plain_hyperparameters
from pl_losses.core.names import distinct
from pl_losses.core.validation import check_counts, check_init, check_integer
from pl_losses.data.image_files import read_image, resized, to_tensor
from pl_losses.data.loader import BatchLoader
from pl_losses.data.module import identity_of

# Images that are installed with the suite or with scikit-learn, by name.
PACKAGED = {
    "china": ("sklearn.datasets", "images/china.jpg"),
    "flower": ("sklearn.datasets", "images/flower.jpg"),
    "grace-hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "starry-night": ("pl_losses.data", "starry-night.jpg"),
}


def packaged(name: str) -> Path:
    """Return the path of a packaged image."""
    package, file = PACKAGED[name]
    spec = importlib.util.find_spec(package)
    return Path(str(spec.origin if spec else "")).parent / file


@dataclass
class PictureSet:
    """One rank's images: B contents, each with K styles.

    Attributes:
        contents: [B, 3, H, W], red, green, blue in [0, 1].
        styles: For each content K images [3, h, w].
        shares: Weights of the K styles; None for even ones.
        masks: [K, H, W] in [0, 1], where each style is wanted; None for everywhere.
        names: A name for each content with its styles.
    """

    contents: Tensor
    styles: list[list[Tensor]]
    shares: list[float] | None = None
    masks: Tensor | None = None
    names: list[str] = field(default_factory=list)


class Pictures(OfLightning, LightningDataModule):
    """Content and style images, read from files, for :class:`~pl_losses.StyleTransfer`.

    The files may be of any size and kind that Pillow reads. Images are turned upright (EXIF) and converted
    from their colour profiles to sRGB. Transparent parts become white. Grey images get three channels. A name
    is looked for in the current folder, then in ``root`` and its folder ``images``. "china" and "flower" are
    scikit-learn's photographs, "grace-hopper" is Matplotlib's. "starry-night" is a small copy of van Gogh's
    painting, which is in the package.

    Args:
        content: Content image, or a list of several of one size, which are worked on together; or a folder
            of photographs, at any depth.
        style: Style image, or a list of several, which are blended.
        size: Pixels of the content's longest side; or [height, width], to which it is cropped; None to leave
            it as it is.
        style_size: Pixels of the style images' longest side. Default: the longest of the content.
        style_weights: How much of each style. Default: even shares. With ``masks`` weights of the regions.
        masks: For each style an image that is white where the style is wanted and black elsewhere, in the
            proportions of the content.
        paired: Take the first style for the first content, the second for the second, instead of blending.
        steps: Optimizer steps per epoch.
        root: Folder with images, and with weights of VGG-19. Default: the one PL_LOSSES_DATA names, if any.

    Raises:
        TypeError: If an argument that counts is no integer.
        ValueError: If an argument is out of range, or the lists do not fit together.

    Example:
        >>> data = Pictures("china", "starry-night", size=64)
        >>> data.pictures().contents.shape, data.pictures().names
        (torch.Size([1, 3, 43, 64]), ['china-starry-night'])
    """

    def __init__(
        self,
        content: str | Path | list[str | Path],
        style: str | Path | list[str | Path],
        size: int | list[int] | None = 512,
        *,
        style_size: int | None = None,
        style_weights: list[float] | None = None,
        masks: list[str | Path] | None = None,
        paired: bool = False,
        steps: int = 25,
        root: str | Path | None = None,
    ) -> None:
        check_init(locals())
        super().__init__()
        self.root = root or os.environ.get("PL_LOSSES_DATA")
        self.content = [name for one in _names(content) for name in self._files(one)]
        self.style = _names(style)
        if not self.content or not self.style:
            raise ValueError("Expected `content` and `style` to name at least one image each")
        check_integer("steps", steps, 1)
        _check_size(size)
        check_counts(16, style_size=style_size)
        for name, given in (("style_weights", style_weights), ("masks", masks)):
            if given is not None and (paired or len(given) != len(self.style)):
                only = "without `paired`, " if paired else ""
                raise ValueError(
                    f"Expected `{name}` {only}for {len(self.style)} style images but got {given}"
                )
        if style_weights is not None and (min(style_weights) < 0 or not sum(style_weights) > 0):
            raise ValueError(f"Expected `style_weights` to be at least 0 but got {style_weights}")
        if paired and len(self.style) != len(self.content):
            raise ValueError(
                f"Expected one `style` for each of {len(self.content)} contents but got {len(self.style)}"
            )
        save_plain_hyperparameters(self, logger=False)
        self.size, self.style_size, self.style_weights = size, style_size, style_weights
        self.masks = None if masks is None else _names(masks)
        self.paired, self.steps = paired, steps

    def pictures(self, rank: int = 0, ranks: int = 1) -> PictureSet:
        """Open the images of one rank: every ``ranks``-th content, starting with its own, with the styles.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged, sizes differ, or there are fewer contents than ranks.
        """
        chosen = range(rank, len(self.content), ranks)
        if len(self.content) < ranks:
            raise ValueError(f"Expected at least {ranks} images in `content` for as many ranks")
        contents = [self.open("content", self.content[index], self._size()) for index in chosen]
        if len({content.shape for content in contents}) > 1:
            shapes = [list(content.shape[1:]) for content in contents]
            raise ValueError(f"Expected contents of one size but got {shapes}: set `size` to [height, width]")
        height, width = contents[0].shape[1:]
        wanted = self.style_size or max(height, width)
        lists = [[self.style[index]] if self.paired else self.style for index in range(len(self.content))]
        # Distinct over all ranks, which write to one folder.
        names = distinct([_name([content, *own]) for content, own in zip(self.content, lists, strict=True)])
        lists = [lists[index] for index in chosen]
        opened = {name: self.open("style", name, wanted) for own in lists for name in own}
        masks = None
        if self.masks is not None:
            self._check_masks(self.masks, height, width)
            grey = [self.open("masks", name, (height, width)).mean(0) for name in self.masks]
            masks = torch.stack(grey)
        return PictureSet(
            torch.stack(contents),
            [[opened[name] for name in own] for own in lists],
            self._shares(),
            masks,
            [names[index] for index in chosen],
        )

    def identity(self) -> dict[str, dict[str, Any]]:
        """Return what the images are, plain data: as :meth:`~pl_losses.data.TensorDataModule.identity`.

        Returns:
            "train" to the same entries; a sample is a content, and the "shapes" are those of the first
            content, its styles and the masks, as they are worked on.
        """
        sets = [self.pictures(index, len(self.content)) for index in range(len(self.content))]
        masks = [one.masks for one in sets[:1] if one.masks is not None]
        tensors = [image for one in sets for image in (one.contents[0], *one.styles[0])] + masks
        shapes = [list(image.shape) for image in (sets[0].contents[0], *sets[0].styles[0], *masks)]
        return {"train": identity_of(self, len(sets), shapes, tuple(tensors))}

    def open(self, argument: str, name: str, size: int | tuple[int, int] | None) -> Tensor:
        """Open an image by name, as [3, H, W] in [0, 1]; override it for images from elsewhere.

        Args:
            argument: Which of ``content``, ``style`` and ``masks`` named it, for the errors.
            name: Path, or name of a packaged image.
            size: See :func:`~pl_losses.data.image_files.resized`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, or the image too small.
        """
        path = self.find(name)
        if not path.is_file():
            there = f"nor in {self.root}" if self.root else "and PL_LOSSES_DATA names no folder to look in"
            raise FileNotFoundError(
                f"Expected `{argument}` to be an image file but there is no {name} here, {there}"
            )
        image = to_tensor(resized(read_image(path, argument), size))
        if min(image.shape[1:]) < 16:
            raise ValueError(
                f"Expected `{argument}` of at least 16 pixels each way for VGG-19's layers but {name} becomes"
                f" {image.shape[2]} x {image.shape[1]}: set a larger `size`"
            )
        return image

    def find(self, name: str) -> Path:
        """Find an image's path; return the path as given if there is none."""
        if name in PACKAGED:
            return packaged(name)
        path = Path(name).expanduser()
        folders = [Path(self.root).expanduser(), Path(self.root, "images").expanduser()] if self.root else []
        return next((one for one in (path, *(folder / name for folder in folders)) if one.exists()), path)

    def _files(self, name: str) -> list[str]:
        """Return the images in a folder of this name, sorted; the name itself if there is no such folder."""
        if not (folder := self.find(name)).is_dir():
            return [name]
        files = sorted(str(one) for one in folder.rglob("*") if one.suffix.lower() in IMG_EXTENSIONS)
        if not files:
            raise ValueError(f"Expected images in the folder {folder} of `content` but there are none")
        return files

    def train_dataloader(self) -> BatchLoader:
        """Return one batch per step, which holds the step's number; images are in :meth:`pictures`."""
        return BatchLoader((torch.arange(self.steps),), 1)

    def test_dataloader(self) -> BatchLoader:
        """Return one batch."""
        return BatchLoader((torch.arange(1),), 1)

    predict_dataloader = test_dataloader

    def _check_masks(self, names: list[str], height: int, width: int) -> None:
        """Refuse masks of other proportions than the content's, as they would be cropped differently."""
        fitting = [(height, width)]
        if isinstance(self.size, list):
            whole = {self.open("content", name, None).shape[1:] for name in self.content}
            fitting += [(height, width) for height, width in whole if len(whole) == 1]
        for name in names:
            h, w = self.open("masks", name, None).shape[1:]
            # In proportion, except for a pixel of rounding.
            if not any(abs(h * width - w * height) <= max(h, w, height, width) for height, width in fitting):
                wanted = " or ".join(f"{width} x {height}" for height, width in dict.fromkeys(fitting))
                raise ValueError(
                    f"Expected `masks` in the proportions of the content, {wanted}, but {name} is {w} x {h}"
                )

    def _size(self) -> int | tuple[int, int] | None:
        return (self.size[0], self.size[1]) if isinstance(self.size, list) else self.size

    def _shares(self) -> list[float] | None:
        """Scale the weights to sum to 1; leave weights of regions as they are."""
        if self.style_weights is None or self.masks is not None:
            return self.style_weights
        return [weight / sum(self.style_weights) for weight in self.style_weights]


def _check_size(size: int | list[int] | None) -> None:
    sides = size if isinstance(size, list) else [] if size is None else [size]
    for side in sides:
        check_integer("size", side, 16)
    if isinstance(size, list) and len(size) != 2:
        raise ValueError(f"Expected `size` to be a number or [height, width] but got {size}")


def _names(given: str | Path | Sequence[str | Path]) -> list[str]:
    return list(map(str, [given] if isinstance(given, (str, Path)) else given))


def _name(names: Sequence[str]) -> str:
    return "-".join(Path(name).stem for name in names)[:100]
