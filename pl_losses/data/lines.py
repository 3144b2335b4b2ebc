"""Lines of characters: what a batch of them is, and a user's own line images from a folder and a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate, pad

from pl_losses.core.validation import check_init, check_integer
from pl_losses.data.image_files import read_grey
from pl_losses.data.loader import Batch
from pl_losses.data.module import Resident, TensorDataModule

DIGITS = tuple("0123456789")
PARTS = ("train", "val", "test", "predict")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Ink differs from its paper by at least this share of the range from black to white, and by this many
# standard deviations of the paper's grain; a page of a million pixels reaches 5 of them without ink.
CONTRAST, GRAINS = 10 / 255, 6


class Lines(NamedTuple):
    """A batch of lines, the shorter ones padded.

    Attributes:
        images: Ink in [0, 1] on background 0, [B, 1, H, W]; columns beyond a line's width are 0.
        widths: Width of each line in columns, [B].
        targets: Classes of its characters, [B, L], padded with 0.
        target_lengths: Number of its characters, [B].
        boundaries: Columns where a character ends and the next one begins, [B, L - 1]; column x is the cut
            between pixels x - 1 and x. It is -1 for padding, and if unknown.
    """

    images: Tensor
    widths: Tensor
    targets: Tensor
    target_lengths: Tensor
    boundaries: Tensor


class Characters(NamedTuple):
    """A batch of isolated characters.

    Attributes:
        images: Ink in [0, 1] on background 0, [B, 1, H, W].
        labels: Classes, [B].
    """

    images: Tensor
    labels: Tensor


class LineImages(TensorDataModule):
    """Your own line images: a folder of pictures and a CSV file with the columns ``file`` and ``label``.

    A third column, ``split``, may say "train", "val", "test" or "predict". Labels of "predict" may be empty.
    Without this column ``seed`` draws the parts. Spaces after commas are skipped, unless ``alphabet`` has the
    space. Images are read as grey, white where they are transparent, and upright by their EXIF data. Their
    paper becomes 0 and their fullest ink 1. They are cropped to their ink and scaled: a character is
    ``ink_height`` pixels high, in the middle of ``height`` rows. The paper is the shade of most of the
    border. It must be evenly lit.

    Args:
        root: Folder with the images and the CSV file.
        labels: Name of the CSV file.
        alphabet: The characters, in the order of the classes.
        ink: Whether ink is "dark" or "bright" in the files, or, with "auto", what differs from the border.
        threshold: What counts as ink when cropping, as a share of full ink.
        height: Rows of a line.
        ink_height: Rows of a character: 20 for MNIST's, 24 for readers of the packaged digits.
        val_share: Share of the lines for validation, without a column ``split``.
        test_share: Share of the lines for the test, without a column ``split``.
        batch_size: Training lines per step and rank.
        eval_batch_size: Lines per step and rank in evaluation.
        seed: Seed of the split and the order.
        resident: Where the lines lie, see :class:`~pl_losses.data.module.TensorDataModule`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        labels: str | Path = "labels.csv",
        *,
        alphabet: str = "0123456789",
        ink: Literal["auto", "dark", "bright"] = "auto",
        threshold: float = 0.25,
        height: int = 32,
        ink_height: int = 20,
        val_share: float = 0.1,
        test_share: float = 0.1,
        batch_size: int = 64,
        eval_batch_size: int | None = 250,
        seed: int = 0,
        resident: Resident = "auto",
    ) -> None:
        check_init(locals())
        super().__init__(batch_size, eval_batch_size=eval_batch_size, seed=seed, resident=resident)
        if not alphabet or len(set(alphabet)) < len(alphabet):
            raise ValueError(f"Expected `alphabet` of different characters but got {alphabet!r}")
        check_integer("height", height, 1)
        check_integer("ink_height", ink_height, 1, most=height)
        if not 0 < threshold < 1:
            raise ValueError(f"Expected `threshold` in (0, 1) but got {threshold}")
        if min(val_share, test_share) < 0 or val_share + test_share >= 1:
            raise ValueError(
                "Expected `val_share` and `test_share` to be at least 0 and their sum below 1 but got"
                f" {val_share} and {test_share}"
            )
        self.root, self.labels, self.ink = Path(root).expanduser(), labels, ink
        self.class_names = tuple(alphabet)
        self.threshold, self.height, self.ink_height = threshold, height, ink_height
        self.val_share, self.test_share = val_share, test_share
        self.files: dict[str, list[str]] = {}

    def load(self, stage: str) -> dict[str, Batch]:
        """Return images (uint8), widths, targets and their lengths of every part.

        Raises:
            FileNotFoundError: If the CSV file or an image is missing.
            ValueError: If the CSV file lacks a column, or a label or an image cannot be used.

        Warns:
            UserWarning: If there are images beside the others that the CSV file does not name.
        """
        rows = self._rows()
        parts = self._parts(rows)
        self.files = {part: [rows[i]["file"] for i in chosen] for part, chosen in parts.items()}
        return {part: self._tensors([rows[i] for i in chosen]) for part, chosen in parts.items() if chosen}

    def predict_names(self) -> list[str]:
        """Return the files of the lines to predict."""
        return self.files["predict" if "predict" in self.tensors else "test"]

    def eval_transform(self, batch: Batch, generator: torch.Generator) -> Lines:
        """Cut the padding that no line of the batch needs, and scale ink to [0, 1]."""
        images, widths, targets, lengths = batch
        widest, longest = int(widths.max()), int(lengths.max())
        unknown = torch.full_like(targets[:, 1:longest], -1)
        return Lines(images[..., :widest].float() / 255, widths, targets[:, :longest], lengths, unknown)

    def _rows(self) -> list[dict[str, str]]:
        path = self.root / self.labels
        if not path.is_file():
            raise FileNotFoundError(f"Expected {path}, a CSV file with the columns file and label")
        rows: list[dict[str, str]] = []
        lines: dict[str, int] = {}
        for number, row in _table(path, skip=" " not in self.class_names):
            rows.append(row)
            row["label"] = row.get("label") or ""
            if not row["file"]:
                raise ValueError(f"Expected a file but line {number} of {path} has none")
            first = lines.setdefault(os.path.normpath(self.root / row["file"]), number)
            if first != number:
                raise ValueError(
                    f"Expected each file once but lines {first} and {number} of {path} have {row['file']}"
                )
            if "split" in row and row["split"] not in PARTS:
                raise ValueError(
                    f"Expected `split` to be one of {', '.join(PARTS)} but line {number} of {path} has"
                    f" {row['split'] or ''!r}"
                )
            if strange := set(row["label"]) - set(self.class_names):
                raise ValueError(
                    f"Expected labels of characters in `alphabet` {''.join(self.class_names)!r} but line"
                    f" {number} of {path} has {''.join(sorted(strange))!r}"
                )
            if not row["label"] and row.get("split") != "predict":
                raise ValueError(f"Expected a label but line {number} of {path} has none")
        folders = {Path(file).parent for file in lines}
        there = {str(file) for folder in folders if folder.is_dir() for file in folder.iterdir()}
        if left := sorted(file for file in there - lines.keys() if file.lower().endswith(SUFFIXES)):
            rank_zero_warn(f"{len(left)} images are not read, as {path} does not name them: {left[0]}, ...")
        return rows

    def _parts(self, rows: Sequence[dict[str, str]]) -> dict[str, list[int]]:
        if "split" in rows[0]:
            return {part: [i for i, row in enumerate(rows) if row["split"] == part] for part in PARTS}
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed)).tolist()
        test, val = (round(share * len(rows)) for share in (self.test_share, self.val_share))
        return {"test": order[:test], "val": order[test : test + val], "train": order[test + val :]}

    def _tensors(self, rows: Sequence[dict[str, str]]) -> Batch:
        images = [self._read(self.root / row["file"]) for row in rows]
        widths = torch.tensor([image.shape[1] for image in images])
        lengths = torch.tensor([len(row["label"]) for row in rows])
        canvas = torch.zeros(len(rows), 1, self.height, int(widths.max()), dtype=torch.uint8)
        targets = torch.zeros(len(rows), max(1, int(lengths.max())), dtype=torch.long)
        for i, (image, row) in enumerate(zip(images, rows, strict=True)):
            canvas[i, 0, :, : image.shape[1]] = image
            classes = [self.class_names.index(character) for character in row["label"]]
            targets[i, : len(classes)] = torch.tensor(classes, dtype=torch.long)
        return canvas, widths, targets, lengths

    def _read(self, path: Path) -> Tensor:
        light = read_grey(path, "file")
        try:
            return normalised(
                ink_of(light, self.ink), self.height, ink_height=self.ink_height, threshold=self.threshold
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _table(path: Path, skip: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV file with their line numbers; ``skip`` leaves out blanks after commas."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=skip, strict=True)
            reader.fieldnames = names = [name.rstrip().lower() for name in reader.fieldnames or ()]
            wanted = f"Expected {path} to have rows with the columns file and label but got"
            blanks = any(name.startswith(" ") for name in names)
            if blanks or "file" not in names or not {"label", "split"} & {*names}:
                raise ValueError(f"{wanted} {', '.join(names) or 'nothing'}")
            if len({*names}) < len(names):
                raise ValueError(f"{wanted} one twice: {', '.join(names)}")
            empty = True
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"Expected {len(names)} columns but line {reader.line_num} of {path} has more: put"
                        " what has a comma into quotation marks"
                    )
                yield reader.line_num, row
                empty = False
            if empty:
                raise ValueError(f"{wanted} nothing")
    except UnicodeDecodeError as error:
        raise ValueError(f"Expected {path} to be a text in UTF-8, save it so, but got: {error}") from None
    except csv.Error as error:
        raise ValueError(f"Expected {path} to be a CSV file but got: {error}") from None


def ink_of(light: Tensor, ink: Literal["auto", "dark", "bright"] = "auto") -> Tensor:
    """Measure ink in [0, 1] on background 0: the same for ``light`` and ``a * light + b``, a != 0.

    Args:
        light: How light the image is, [H, W].
        ink: Whether the ink is "dark" or "bright"; with "auto" whatever differs from the border.

    Raises:
        ValueError: If no ink stands out from the paper.

    Example:
        >>> ink_of(torch.tensor([[0.6, 0.6, 0.6], [0.6, 0.2, 0.5], [0.6, 0.6, 0.6]]))
        tensor([[0.0000, 0.0000, 0.0000],
                [0.0000, 1.0000, 0.2500],
                [0.0000, 0.0000, 0.0000]])
    """
    light = light.double()
    border = torch.cat([light[0], light[-1], light[1:-1, 0], light[1:-1, -1]])
    dark = ink == "dark" or (ink == "auto" and (light - border.quantile(0.5)).pow(3).sum() < 0)
    # If a line is cut out tightly, its ends are ink and soft edges of ink.
    paper = border.quantile(0.75 if dark else 0.25)
    stroke = paper - light if dark else light - paper
    full = stroke.max()
    # A quarter of normal deviations is below 0.3186 standard deviations; ink on the border is above.
    grain = (border - paper).abs().quantile(0.25) / 0.3186
    if full < max(CONTRAST, float(GRAINS * grain)):
        raise ValueError(
            "Expected an image with ink of at least `threshold` but none stands out from the paper"
        )
    return (stroke / full).clamp(min=0).float()


def normalised(ink: Tensor, height: int = 32, *, ink_height: int = 20, threshold: float = 0.25) -> Tensor:
    """Crop a line to its ink and scale it: characters of ``ink_height`` in the middle of ``height`` rows.

    Args:
        ink: Ink in [0, 1], [H, W].
        height: Rows of the result.
        ink_height: Rows of a character, as :func:`character_height` measures it; fewer if the line would not
            fit. Columns are scaled by the same factor.
        threshold: What counts as ink when cropping.

    Returns:
        Bytes, [height, W'], with 4 empty columns on both sides.

    Raises:
        ValueError: If there is no ink.
    """
    inked = ink >= threshold
    rows, columns = (inked.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        raise ValueError(f"Expected an image with ink of at least `threshold` {threshold} but it has none")
    # Include one more pixel on each side: the grey edges of the ink above the threshold.
    box = ink[max(0, rows[0] - 1) : rows[-1] + 2, max(0, columns[0] - 1) : columns[-1] + 2]
    scale = min(ink_height / character_height(inked), height / len(box))
    size = [max(1, round(side * scale)) for side in box.shape]
    scaled = interpolate(box[None, None], size, mode="bilinear", antialias=True)[0, 0]
    above = (height - size[0]) // 2
    framed = pad(scaled, (4, 4, above, height - size[0] - above))
    return (framed.clamp(0, 1) * 255).round().to(torch.uint8)


def character_height(inked: Tensor) -> float:
    """Measure the height of a line's characters: the median of connected parts without specks and fragments.

    Args:
        inked: Where there is ink, bool, [H, W].

    Example:
        >>> inked = torch.zeros(32, 40, dtype=torch.bool)
        >>> inked[4:24, 2:9] = inked[8:28, 12:19] = inked[30, 22] = True
        >>> character_height(inked)
        20.0
    """
    parts, _ = ndimage.label(inked.numpy(), structure=np.ones((3, 3)))
    heights = np.array([rows.stop - rows.start for rows, _ in ndimage.find_objects(parts)])
    return float(np.median(heights[heights > heights.max() / 2]))


def spelled(targets: Tensor, lengths: Tensor, names: Sequence[str] = DIGITS) -> Iterator[str]:
    """Yield targets [B, L] of lengths [B] as strings.

    >>> list(spelled(torch.tensor([[4, 2, 0], [7, 0, 0]]), torch.tensor([3, 1])))
    ['420', '7']
    """
    for row, length in zip(targets.tolist(), lengths.tolist(), strict=True):
        yield "".join(names[label] for label in row[:length])
