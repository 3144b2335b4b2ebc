"""Image files to tensors and back: any size and kind, upright, without alpha, in red, green and blue."""

from __future__ import annotations

import os
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


def read_image(path: str | Path, name: str = "path") -> Image.Image:
    """An image file as 8-bit RGB: turned as its EXIF data say, three channels, white where clear.

    Args:
        path: The file.
        name: Of the argument, for the errors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, too large to be genuine, or no image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected `{name}` to be an image file but there is no {path}")
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image) or image
    except UnidentifiedImageError:
        raise ValueError(f"Expected `{name}` to be an image file but {path} is damaged or none") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, Image.DecompressionBombError) as error:
        raise ValueError(f"Expected `{name}` to be a whole image file but {path}: {error}") from None
    return to_rgb(upright)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image in any mode of Pillow's."""
    if image.mode.startswith(("I", "F")):
        # Pillow would clip 16 bits to the lowest 8 of them.
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max()))
        return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def resized(image: Image.Image, size: int | tuple[int, int] | None) -> Image.Image:
    """An image of another size.

    Args:
        image: What to resize.
        size: Of the longest side, in pixels; or height and width, to which the image is enlarged or reduced
            and then cropped in its middle; None to leave it.
    """
    if size is None:
        return image
    if isinstance(size, int):
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """An image as [C, H, W] in [0, 1]: 3 channels, or 1 of a grey one."""
    values = torch.from_numpy(np.array(image)).float() / 255
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def to_image(values: Tensor) -> Image.Image:
    """[3, H, W] as an image; what is beyond [0, 1] is clamped."""
    bytes_ = (values.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(bytes_.permute(1, 2, 0).contiguous().numpy())


def image_format(path: str | Path) -> str:
    """Pillow's name of the format that a file's name tells.

    Raises:
        ValueError: If no format that can be written in colours has the name's suffix.
    """
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    try:
        Image.new("RGB", (16, 16)).save(BytesIO(), kind or "")
    except (KeyError, OSError, ValueError):
        raise ValueError(
            f"Expected `output` to end in .png, .jpg or another image format but got {path}"
        ) from None
    return kind or ""


def write_image(values: Tensor, path: str | Path) -> None:
    """Write [3, H, W] in [0, 1] to a file whose name tells the format; the file appears whole or not at all.

    Raises:
        ValueError: If no format has the name's suffix.
    """
    path, kind = Path(path), image_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            to_image(values).save(file, kind, quality=95)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
