"""Image files to tensors and back: any size and mode, upright, without alpha, in the colours of sRGB."""

from __future__ import annotations

import warnings
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from pl_losses.core.files import written_whole

# For each colour space of a profile, the modes of Pillow it suits and the one to convert to.
GREY = ("1", "L", "LA")
KINDS = {
    "GRAY": (GREY, "L"),
    "RGB": ((*GREY, "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"), "RGB"),
    "CMYK": (("CMYK",), "CMYK"),
    "Lab": (("LAB",), "LAB"),
}
# Formats of which a file may hold several pictures; in other formats further ones are layers and previews.
SEQUENCES = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
# Tags of TIFF files, and PNG's kinds of grey below 8 bits with the factors of their shades.
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
FEW_BITS = {"L;2": 85, "L;4": 17}
# How light red, green and blue are in a photograph (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)


def read_image(
    file: str | Path | BytesIO, name: str = "path", label: str = "", least: int = 0
) -> Image.Image:
    """Read an image file as 8-bit sRGB: upright by its EXIF data, out of its colour profile, on white.

    In TIFF files of 32 bits, or of 16 with a sign, the largest value decides what white is: 1 (of floats),
    255, or the most that 16 bits hold.

    Args:
        file: The file, or what is in it.
        name: Name of the argument, for the errors.
        label: Name of the file in the errors. Default: its path.
        least: Pixels of the shorter side that suffice: a JPEG file that has twice as many or more is decoded
            at a half, a quarter or an eighth of its size, which is faster. 0 for all pixels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, too large to be genuine, no image or several, or has pixels beyond
            the range of its kind.

    Warns:
        UserWarning: If the file's colour profile cannot be used.
    """
    image = _read(file, name, label or str(file), least)
    if image.mode == "F":
        image = Image.fromarray((np.asarray(image) * 255).round().astype(np.uint8))
    return _rgb(image)


def read_grey(file: str | Path, name: str = "path") -> Tensor:
    """Read how light an image file is: [H, W] in [0, 1], as :func:`read_image` does, not rounded to 8 bits.

    Raises:
        FileNotFoundError: As :func:`read_image`.
        ValueError: As :func:`read_image`.
    """
    values = to_tensor(_read(file, name, str(file)))
    return values[0] if len(values) == 1 else torch.tensordot(torch.tensor(LUMA), values, 1)


def _read(file: str | Path | BytesIO, name: str, label: str, least: int = 0) -> Image.Image:
    """Read an image in mode "RGB", or grey of more than 8 bits in mode "F" in [0, 1]."""
    if not isinstance(file, BytesIO) and not Path(file).is_file():
        raise FileNotFoundError(f"Expected `{name}` to be an image file but there is no {file}")
    try:
        with Image.open(file) as image:
            if image.format in SEQUENCES and (count := getattr(image, "n_frames", 1)) > 1:
                raise ValueError(f"it holds {count} pictures, save the wanted one alone")
            kind = image.tile[0][3] if image.format == "PNG" and image.tile else None
            if kind in FEW_BITS and "transparency" in image.info:
                # Pillow scales the pixels, but not the transparent shade.
                image.info["transparency"] *= FEW_BITS[kind]
            if least:
                width, height = (ceil(side * least / min(image.size)) for side in image.size)
                image.draft(None, (width, height))
            ImageOps.exif_transpose(image, in_place=True)
            return _as_seen(image, getattr(image, "tag_v2", {}), label)
    except UnidentifiedImageError:
        raise ValueError(f"Expected `{name}` to be an image file but {label} is damaged or none") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, Image.DecompressionBombError) as error:
        raise ValueError(f"Expected `{name}` to be a whole image file but {label}: {error}") from None


def _as_seen(image: Image.Image, tags: Any, label: str) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        # Pillow would clip 16 bits to the lowest 8.
        values = np.asarray(image, dtype=np.float64)
        clear = values == image.info.get("transparency")
        top = _white(image.mode, values.max(), tags)
        if not (values.min() >= 0 and values.max() <= top):
            raise ValueError(f"its pixels lie in {values.min():g}..{values.max():g}, not in 0..{top}")
        values = 1 - values / top if tags.get(PHOTOMETRIC) == 0 else values / top
        if profile:
            steps = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
            curve = np.asarray(_in_srgb(steps, profile, label))[0, :, 1] / 255
            values = np.interp(values, np.linspace(0, 1, 256), curve)
        values[clear] = 1
        return Image.fromarray(values.astype(np.float32))
    alpha = None
    if "A" in image.getbands() or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
    coloured = _in_srgb(image, profile, label) if profile else _rgb(image)
    if alpha is None:
        return coloured
    return Image.composite(coloured, Image.new("RGB", image.size, (255, 255, 255)), alpha)


def _white(mode: str, largest: float, tags: Any) -> int:
    """Return the largest value that grey of more than 8 bits may have."""
    if mode == "F":
        return 1 if largest <= 1 else 255
    if tags and mode == "I" and largest <= 255:
        return 255
    bits, signed = int(tags.get(BITS, (16,))[0]), tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    return 65535 if bits > 16 else (1 << bits - signed) - 1


def _in_srgb(image: Image.Image, profile: bytes, label: str) -> Image.Image:
    """Convert an image from its colour profile to 8-bit sRGB."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        kind = source.profile.xcolor_space.strip()
        modes, wanted = KINDS.get(kind, ((), ""))
        if image.mode not in modes:
            raise ValueError(f"it is for {kind}, the pixels are {image.mode}")
        converted = ImageCms.profileToProfile(image.convert(wanted), source, _srgb(), outputMode="RGB")
        return converted or image.convert("RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        warnings.warn(f"{label}: its colour profile is not used ({error}) but sRGB", stacklevel=5)
        return image.convert("RGB")


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to mode "RGB", without the copy that Pillow makes of an image that has it."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def resized(image: Image.Image, size: int | tuple[int, int] | None) -> Image.Image:
    """Resize an image.

    Args:
        image: The image.
        size: Pixels of the longest side; or height and width, to which the image is scaled and then cropped
            around its middle; None to leave it.
    """
    if size is None:
        return image
    if isinstance(size, int):
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an image in mode "RGB", "L" or "F" to [C, H, W] in [0, 1]: 3 channels, or 1 for grey."""
    values = torch.from_numpy(np.array(image)).float() / (1 if image.mode == "F" else 255)
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def to_image(values: Tensor) -> Image.Image:
    """Convert [3, H, W] to an image; values beyond [0, 1] are clamped."""
    bytes_ = (values.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(bytes_.permute(1, 2, 0).contiguous().numpy())


def image_format(path: str | Path) -> str:
    """Return Pillow's name of the format that a file's suffix stands for.

    Raises:
        ValueError: If no colour format that can be written has this suffix.
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
    """Write [3, H, W] in [0, 1] to a file in the format of its suffix, with the colour profile of sRGB.

    The file appears whole or not at all.

    Raises:
        ValueError: If no format has this suffix.
    """
    path, kind = Path(path), image_format(path)
    profile = bytearray(_srgb().tobytes())
    profile[24:36] = bytes(
        [7, 208, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]
    )  # Not the current date: the same image always makes the same file.
    with written_whole(path) as file:
        to_image(values).save(file, kind, quality=95, icc_profile=bytes(profile))
