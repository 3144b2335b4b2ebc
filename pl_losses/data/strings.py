"""Strings of real handwritten digits, joined on the fly: overlapping, touching, slanted, with clutter."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, radians
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pl_losses.core.rng import fold_in, keyed_generator
from pl_losses.core.validation import check_counts, check_init, check_not_negative
from pl_losses.data.digits import Digits
from pl_losses.data.images import ImageDataModule
from pl_losses.data.lines import DIGITS, Characters, Lines
from pl_losses.data.loader import Batch, BatchLoader
from pl_losses.data.mnist import MNIST
from pl_losses.data.module import Resident, TensorDataModule
from pl_losses.data.transforms import smooth_field, warp

INK = 0.2  # Pixels darker than this are ink, as a share of full ink.
MARGIN = 4  # Empty columns before and after a string.
NODES = 5  # Points along each axis at which elastic displacements are drawn, 8 pixels apart.
SPECKS, SPECK = 2, 5  # Most pieces of clutter, and their side in pixels.


class DigitStrings(TensorDataModule):
    """Strings of scikit-learn's packaged digits, which need no download, or of MNIST's.

    A string depends only on the seed, the epoch and its number. It is the same, up to rounding, for any batch
    size, number of ranks and order. Each epoch of training has new strings. Validation and test strings stay
    the same, and have digits of their own: from MNIST these are the 10 000 of the test set. If there are
    enough digits, none occurs twice in an epoch.

    To take other characters, override :meth:`configure_digits` and ``class_names``.

    Args:
        source: "digits" for the packaged ones, "mnist" for MNIST.
        root: Folder of MNIST's files, see :class:`~pl_losses.data.MNIST`.
        download: Whether to download what is missing of MNIST.
        val_size: Number of training digits kept for validation strings. Default: 300, of MNIST 5000.
        test_size: Number of packaged digits kept for test strings; of MNIST it is all 10 000.
        length: Digits of a string; two numbers for a range.
        strings: Training strings per epoch. Default: as many as use each digit once.
        eval_strings: Validation strings, and test strings. Default: as many as use each digit once.
        isolated_epochs: In this many epochs at first the digits of each batch come as isolated
            ``Characters``, distorted as in strings, to train a recogniser before it sees strings.
        gap: Range of the number of columns between the ink of neighbours. Below 0 their boxes overlap, by a
            third of the narrower one at most.
        slant: Range of the horizontal shear that a string's digits share, in pixels per row.
        shear: Range of each digit's own shear, in pixels per row.
        scale: Range of the logarithm of each digit's scale factor.
        squeeze: Range of the logarithm of the factor that widens a digit and flattens it as much.
        rotate: Range of each digit's rotation, in degrees.
        rise: Range of each digit's vertical shift, in pixels.
        elastic: Range of the displacement of each training digit's ink along each axis, in pixels, drawn at
            points 8 pixels apart with cubic interpolation between them (after Simard, Steinkraus and Platt
            2003). Evaluation does without: it is there to have more kinds of digits to train on.
        clutter: Probability of each of two pieces of clutter, scraps of other digits.
        batch_size: Training strings per step and rank.
        eval_batch_size: Strings per step and rank in evaluation.
        seed: Seed of the strings, the split and the order.
        resident: Where the digits lie, see :class:`~pl_losses.data.module.TensorDataModule`.

    Raises:
        TypeError: If an argument that counts is no integer.
        ValueError: If an argument is out of range or none of its choices.

    Example:
        >>> data = DigitStrings(length=(2, 4), batch_size=8)
        >>> data.setup("fit")
        >>> lines = next(iter(data.train_dataloader()))
        >>> lines.images.shape[:3], lines.targets.shape
        (torch.Size([8, 1, 32]), torch.Size([8, 4]))
    """

    class_names = DIGITS

    def __init__(
        self,
        source: Literal["digits", "mnist"] = "digits",
        root: str | Path | None = None,
        download: bool = True,
        *,
        val_size: int | None = None,
        test_size: int = 400,
        length: int | tuple[int, int] = 5,
        strings: int | None = None,
        eval_strings: int | None = None,
        isolated_epochs: int = 0,
        gap: tuple[int, int] = (-1, 4),
        slant: float = 0.2,
        shear: float = 0.05,
        scale: float = 0.1,
        squeeze: float = 0.05,
        rotate: float = 3.0,
        rise: float = 2.0,
        elastic: float = 0.0,
        clutter: float = 0.1,
        batch_size: int = 64,
        eval_batch_size: int | None = 250,
        seed: int = 0,
        resident: Resident = "auto",
    ) -> None:
        check_init(locals())
        super().__init__(batch_size, eval_batch_size=eval_batch_size, seed=seed, resident=resident)
        self.source, self.root, self.download = source, root, download
        self.val_size = {"digits": 300, "mnist": 5000}[source] if val_size is None else val_size
        self.test_size = test_size
        self.shortest, self.longest = (length, length) if isinstance(length, int) else length
        check_counts(length=self.shortest)
        if self.shortest > self.longest:
            raise ValueError(f"Expected `length` to be a range but got {[self.shortest, self.longest]}")
        check_counts(strings=strings, eval_strings=eval_strings)
        check_counts(0, isolated_epochs=isolated_epochs)
        if gap[0] > gap[1]:
            raise ValueError(f"Expected `gap` to be a range but got {list(gap)}")
        check_not_negative(rise=rise, scale=scale, squeeze=squeeze, shear=shear, rotate=rotate)
        check_not_negative(slant=slant, elastic=elastic)
        if not 0 <= clutter <= 1:
            raise ValueError(f"Expected `clutter` in [0, 1] but got {clutter}")
        self.strings, self.eval_strings, self.isolated_epochs = strings, eval_strings, isolated_epochs
        self.gap, self.slant, self.elastic, self.clutter = gap, slant, elastic, clutter
        self.ranges = (0.0, rise, scale, squeeze, shear, radians(rotate))
        self.digits: dict[str, tuple[Tensor, Tensor]] = {}
        self._drawn: tuple[tuple[str, int], Tensor] | None = None

    def configure_digits(self) -> ImageDataModule:
        """Build the source of isolated digits: its ``load`` returns bytes [N, 1, 32, 32] and labels [N]."""
        if self.source == "mnist":
            return MNIST(self.root, self.download, self.val_size, seed=self.seed)
        return Digits(self.val_size, self.test_size, seed=self.seed)

    def prepare_data(self) -> None:
        """Find the digits, and download MNIST's files if they are missing."""
        self.configure_digits().prepare_data()

    def load(self, stage: str) -> dict[str, Batch]:
        """Load the digits; the tensors that batches are made of are the strings' numbers."""
        found = {split: (rows[0], rows[1]) for split, rows in self.configure_digits().load(stage).items()}
        self.digits.update(found)
        counts = {split: self.strings if split == "train" else self.eval_strings for split in found}
        return {
            split: (torch.arange(counts[split] or max(1, len(labels) // self.longest)),)
            for split, (_, labels) in found.items()
        }

    def compose(self, split: str, epoch: int, numbers: Tensor) -> Lines:
        """Compose strings.

        Args:
            split: The split whose digits to take.
            epoch: The epoch, from which the digits and all random numbers are drawn.
            numbers: Numbers of the strings in the epoch, [B].
        """
        digits, labels, lengths, draws = self._digits(split, epoch, numbers)
        gaps = self.gap[0] + (draws[..., -1] * (self.gap[1] - self.gap[0] + 1)).long()
        images, widths, boundaries = join(digits, lengths, gaps)
        if self.clutter:
            images = self._cluttered(images, widths, split, epoch, numbers)
        return Lines(images, widths, labels, lengths, boundaries)

    def isolated(self, split: str, epoch: int, numbers: Tensor) -> Characters:
        """Return the digits of the same strings one by one."""
        digits, labels, lengths, _ = self._digits(split, epoch, numbers)
        present = _below(lengths, self.longest)
        return Characters(digits[present][:, None], labels[present])

    def _digits(self, split: str, epoch: int, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw distorted digits [B, L, 32, 32], labels [B, L], lengths [B] and random numbers [B, L, 7]."""
        images, labels = self._bank(split, numbers.device)
        draws = uniform(fold_in(self.seed, split, epoch), numbers, 2 + 7 * self.longest)
        lengths = self.shortest + (draws[:, 0] * (self.longest - self.shortest + 1)).long()
        slots = numbers[:, None] * self.longest + torch.arange(self.longest, device=numbers.device)
        chosen = self._order(split, epoch, numbers.device)[slots].flatten()
        each = draws[:, 2:].view(*slots.shape, 7)
        parameters = (2 * each[..., :6] - 1) * torch.tensor(self.ranges, device=numbers.device)
        parameters[..., 4] += self.slant * (2 * draws[:, 1:2] - 1)
        field = self._displacement(epoch, numbers) if self.elastic and split == "train" else None
        warped = warp(images[chosen].float() / 255, parameters.flatten(0, 1), displacement=field)
        present = _below(lengths, self.longest)
        return warped.view(*slots.shape, 32, 32), labels[chosen].view_as(slots) * present, lengths, each

    def _displacement(self, epoch: int, numbers: Tensor) -> Tensor:
        """Draw smooth displacements of the training digits of strings, [B * L, 2, 32, 32]."""
        draws = uniform(fold_in(self.seed, "train", epoch, 2), numbers, self.longest * 2 * NODES**2)
        return smooth_field(self.elastic * (2 * draws - 1).view(-1, 2, NODES, NODES), 32, 32)

    def _cluttered(self, images: Tensor, widths: Tensor, split: str, epoch: int, numbers: Tensor) -> Tensor:
        """Paste scraps of digits from the string's own slots in a second, independent draw."""
        bank, _ = self._bank(split, numbers.device)
        draws = uniform(fold_in(self.seed, split, epoch, 1), numbers, 6 * SPECKS).view(-1, SPECKS, 6)
        chosen = (draws[..., 0] * len(bank)).long()
        room = bank.shape[-1] - 16 - SPECK  # The middle of the image, where the ink is.
        corners = 8 + (draws[..., 1:3] * (room + 1)).long()
        side = torch.arange(SPECK, device=numbers.device)
        rows, columns = corners[..., 0, None, None] + side[:, None], corners[..., 1, None, None] + side
        scraps = bank[chosen[..., None, None], 0, rows, columns].float() / 255
        scraps = scraps * (draws[..., 3] < self.clutter)[..., None, None]
        x = (draws[..., 4] * (widths[:, None] - SPECK)).long()
        y = (draws[..., 5] * (images.shape[2] - SPECK + 1)).long()
        return paste(images[:, 0], scraps, x=x, y=y)[:, None]

    def _bank(self, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the digits of a split, moved once to the device of the strings."""
        images, labels = self.digits[split]
        if images.device != device:
            self.digits[split] = images.to(device), labels.to(device)
        return self.digits[split]

    def _order(self, split: str, epoch: int, device: torch.device) -> Tensor:
        """Draw which digit stands in which slot of the epoch's strings: passes over all digits."""
        if self._drawn is None or self._drawn[0] != (split, epoch):
            count = len(self.digits[split][1])
            passes = ceil(len(self.tensors[split][0]) * self.longest / count)
            generator = keyed_generator(self.seed, split, epoch)
            order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
            self._drawn = (split, epoch), order.to(device)
        return self._drawn[1].to(device)

    def loader_of(self, split: str, *, shuffle: bool = False, pad: bool = False) -> BatchLoader:
        """Return the batches of a split; those of strings are composed anew in each epoch."""
        base = super().loader_of(split, shuffle=shuffle, pad=pad)

        def transform(batch: Batch, generator: torch.Generator) -> Batch:
            epoch = loader.epoch if split == "train" else 0
            if split == "train" and epoch < self.isolated_epochs:
                return self.isolated(split, epoch, *batch)
            return self.compose(split, epoch, *batch)

        options = {name: getattr(base, name) for name in ("shuffle", "seed", "pad", "rank", "world_size")}
        loader = _EpochLoader(base.tensors, base.batch_size, transform=transform, **options)
        return loader


class _EpochLoader(BatchLoader):
    """Sets the epoch that a batch belongs to."""

    epoch = 0

    def __iter__(self) -> Iterator[Batch]:
        self.epoch = self._start[0]
        yield from super().__iter__()


def join(digits: Tensor, lengths: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put digits side by side.

    Args:
        digits: Ink in [0, 1], [B, L, H, W].
        lengths: Number of digits in each string, [B].
        gaps: Columns between a digit's ink and the next one's, [B, L]; below 0 their boxes overlap, by a
            third of the narrower one at most.

    Returns:
        Images [B, 1, H, W'], widths [B], and boundaries [B, L - 1] (padded with -1): the middle between a
        digit's last column of ink and the next one's first.
    """
    longest, width = digits.shape[1], digits.shape[-1]
    present = _below(lengths, longest)
    inked = digits.amax(dim=2) > INK
    columns = torch.arange(width, device=digits.device)
    first = torch.where(inked, columns, width).amin(dim=-1)
    extent = (torch.where(inked, columns, -1).amax(dim=-1) - first + 1).clamp(min=0)
    narrower = torch.minimum(extent, extent.roll(-1, dims=1))
    steps = torch.where(present, extent + torch.maximum(gaps, -(narrower // 3)), 0)
    start = MARGIN + steps.cumsum(dim=1) - steps
    stop = start + extent
    widths = torch.where(present, stop, 0).amax(dim=1) + MARGIN
    canvas = digits.new_zeros(len(digits), digits.shape[2], int(widths.max()))
    images = paste(canvas, digits * present[..., None, None], x=start - first, y=torch.zeros_like(start))
    boundaries = torch.where(present[:, 1:], (stop[:, :-1] + start[:, 1:]) // 2, -1)
    return images[:, None], widths, boundaries


def paste(canvas: Tensor, patches: Tensor, *, x: Tensor, y: Tensor) -> Tensor:
    """Paste patches where they are darker than the canvas.

    Args:
        canvas: Ink in [0, 1], [B, H, W].
        patches: Ink in [0, 1], [B, P, h, w].
        x: Column of each patch's left edge, [B, P]; parts beyond the canvas are lost.
        y: Row of each patch's upper edge, [B, P].

    Returns:
        [B, H, W].
    """
    height, width = canvas.shape[1:]
    rows = torch.arange(patches.shape[2], device=canvas.device)[:, None] + y[..., None, None]
    columns = torch.arange(patches.shape[3], device=canvas.device) + x[..., None, None]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    places = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    values = torch.where(inside, patches, 0.0)
    flat = canvas.flatten(1).scatter_reduce(1, places.flatten(1), values.flatten(1), "amax")
    return flat.view_as(canvas)


def uniform(seed: int, numbers: Tensor, count: int) -> Tensor:
    """Draw numbers in [0, 1) that depend only on the seed and their own number, not on the rest of the batch.

    Args:
        seed: At least 0.
        numbers: Integers of at least 0, [B].
        count: Random numbers for each.

    Returns:
        float32, [B, count]: the same on every device.

    Example:
        >>> both = uniform(7, torch.tensor([3, 5]), 2)
        >>> torch.equal(both[1:], uniform(7, torch.tensor([5]), 2))
        True
    """
    counter = numbers[:, None] * count + torch.arange(count, device=numbers.device)
    # SplitMix64 (Steele, Lea, Flood 2014) in wrapping 64 bit arithmetic; torch shifts keep the sign.
    bits = counter * -0x61C8864680B583EB + seed
    bits = (bits ^ _shifted(bits, 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ _shifted(bits, 27)) * -0x6B2FB644ECCEEE15
    bits = bits ^ _shifted(bits, 31)
    return _shifted(bits, 40).float() / 2**24


def _shifted(bits: Tensor, by: int) -> Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _below(lengths: Tensor, longest: int) -> Tensor:
    """Mark which of ``longest`` places are filled, [B, longest]."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]
