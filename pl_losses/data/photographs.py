"""A small data set in folders, made of the photographs that come with the packages."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from random import Random

from PIL import Image

from pl_losses.data.image_files import read_image
from pl_losses.data.image_folders import ImageFolders
from pl_losses.data.pictures import PACKAGED, packaged

SIZES = {"train": 40, "val": 10}  # Images of each class.


class Photographs(ImageFolders):
    """As :class:`~pl_losses.data.ImageFolders`, of crops of four packaged pictures, a class for each half.

    With them you can try out what is made for many images. Crops of training and validation overlap, so the
    errors say little. If there is no folder ``root``, ``prepare_data`` makes it: 400 files, 3 MB. By default
    it is ``runs/photographs``.
    """

    default_root = "runs/photographs"

    def prepare_data(self) -> None:
        """Write the files, unless they are there."""
        if not self.root.exists():
            self.root.parent.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(dir=self.root.parent))
            write_crops(made)
            made.chmod(0o755)
            os.rename(made, self.root)


def write_crops(folder: Path) -> None:
    """Write JPEG files of 80 to 160 pixels a side into ``folder/train/CLASS`` and ``folder/val/CLASS``."""
    for name in PACKAGED:
        picture = read_image(packaged(name))
        picture.thumbnail((480, 480), Image.Resampling.LANCZOS)
        width, height = picture.size
        for half, left in (("left", 0), ("right", width // 2)):
            draw = Random(f"{name} {half}")
            for split, count in SIZES.items():
                place = folder / split / f"{name}-{half}"
                place.mkdir(parents=True)
                for number in range(count):
                    wide, high = (draw.randint(80, min(160, side)) for side in (width // 2, height))
                    x, y = left + draw.randint(0, width // 2 - wide), draw.randint(0, height - high)
                    picture.crop((x, y, x + wide, y + high)).save(place / f"{number}.jpg", quality=90)
