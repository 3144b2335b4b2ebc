"""Images of all kinds are read as they are to be seen, and what cannot be is refused."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from pl_losses.data import Pictures
from pl_losses.data.image_files import image_format, read_image, resized, to_tensor, write_image


def two_colours(width=40, height=20):
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image


def read(path):
    return to_tensor(read_image(path))


def test_a_round_trip(tmp_path):
    values = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    write_image(values, tmp_path / "new" / "image.png")
    torch.testing.assert_close(read(tmp_path / "new" / "image.png"), values, rtol=0, atol=0.5 / 255 + 1e-6)
    write_image(values * 3 - 1, tmp_path / "image.jpg")
    assert read(tmp_path / "image.jpg").shape == (3, 20, 30)
    assert not list(tmp_path.glob("**/*.part"))
    with pytest.raises(ValueError, match=r"`output` to end in .png, .jpg or another image format but got"):
        write_image(values, tmp_path / "image.txt")
    # Pillow knows these, but cannot write colours to them.
    for name in ("image.psd", "image.xbm", "folder"):
        with pytest.raises(ValueError, match=r"`output` to end in \.png"):
            image_format(tmp_path / name)


@pytest.mark.parametrize(("orientation", "red"), [(1, "left"), (3, "right"), (6, "top"), (8, "bottom")])
def test_turned_as_the_camera_says(tmp_path, orientation, red):
    exif = Image.Exif()
    exif[0x0112] = orientation
    two_colours().save(tmp_path / "photo.png", exif=exif)
    image = read(tmp_path / "photo.png")
    assert image.shape[1:] == ((20, 40) if red in ("left", "right") else (40, 20))
    halves = {
        "left": image[0, :, :5],
        "right": image[0, :, -5:],
        "top": image[0, :5],
        "bottom": image[0, -5:],
    }
    assert {side for side, part in halves.items() if part.min() == 1} == {red}


def test_transparent_is_white(tmp_path):
    image = two_colours().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.paste((0, 255, 0, 255), (0, 0, 10, 20))
    image.save(tmp_path / "clear.png")
    values = read(tmp_path / "clear.png")
    assert values[:, :, 10:].min() == 1
    assert values[:, :, :10].mean((1, 2)).tolist() == [0, 1, 0]
    Image.new("LA", (20, 20), (0, 0)).save(tmp_path / "grey-clear.png")
    assert read(tmp_path / "grey-clear.png").min() == 1
    palette = two_colours().quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    palette.save(tmp_path / "palette.gif")
    values = read(tmp_path / "palette.gif")
    assert values[:, 5, 5].tolist() == [1, 1, 1]
    assert values[:, 5, 35].tolist() == [0, 0, 1]


def test_grey_of_8_and_16_bits_and_print_colours(tmp_path):
    Image.new("L", (20, 20), 51).save(tmp_path / "8.png")
    Image.fromarray((torch.full((20, 20), 13107).numpy()).astype("uint16")).save(tmp_path / "16.png")
    Image.new("1", (20, 20), 1).save(tmp_path / "1.png")
    two_colours().convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    for name in ("8.png", "16.png"):
        torch.testing.assert_close(read(tmp_path / name), torch.full((3, 20, 20), 0.2), rtol=0, atol=1e-6)
    assert read(tmp_path / "1.png").min() == 1
    assert (read(tmp_path / "print.jpg")[:, 5, 5] - torch.tensor([1.0, 0, 0])).abs().max() < 0.1


def png_of_few_bits(path):
    """Four pixels of 4 bits, 0, 5, 10 and 15, of which 10 is clear."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 4, 0, 0, 0, 0)) + chunk(b"tRNS", b"\0\x0a")
    pixels = chunk(b"IDAT", zlib.compress(b"\0\x05\xaf"))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b""))


def tiff(path, bits, data, white_is_zero=False):
    """One row of four grey pixels."""
    values = {256: 4, 257: 1, 258: bits, 259: 1, 262: not white_is_zero, 273: 8, 278: 1, 279: len(data)}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    start = struct.pack("<I", 8 + len(data))
    path.write_bytes(b"II*\0" + start + data + struct.pack("<H", len(values)) + tags + bytes(4))


def test_grey_of_any_depth(tmp_path):
    shades = np.array([[0, 85, 170, 255]])
    deep = Image.fromarray((257 * shades).astype(np.uint16))
    deep.save(tmp_path / "16.png")
    deep.save(tmp_path / "16-clear.png", transparency=257 * 170)
    png_of_few_bits(tmp_path / "4-clear.png")
    for kind, scale in (
        (np.int16, 1),
        (np.int32, 1),
        (np.int32, 257),
        (np.float32, 1),
        (np.float32, 1 / 255),
    ):
        name = f"{np.dtype(kind)}-{scale:.1g}.tif"
        Image.fromarray((shades * scale).astype(kind)).save(tmp_path / name)
    tiff(tmp_path / "12.tif", 12, bytes.fromhex("000555aaafff"))
    tiff(tmp_path / "16.tif", 16, (257 * shades).astype("<u2").tobytes())
    tiff(tmp_path / "16-white-is-zero.tif", 16, (257 * (255 - shades)).astype("<u2").tobytes(), True)
    (tmp_path / "dark.pgm").write_bytes(b"P5 4 1 65535\n" + (257 * shades).astype(">u2").tobytes())
    for file in tmp_path.iterdir():
        wanted = [0, 85, 255 if "clear" in file.name else 170, 255]
        assert np.asarray(read_image(file))[0].tolist() == [[shade] * 3 for shade in wanted], file.name
    # Not stretched: of 16 bits all count.
    (tmp_path / "dark.pgm").write_bytes(b"P5 4 1 65535\n" + shades.astype(">u2").tobytes())
    assert np.asarray(read_image(tmp_path / "dark.pgm")).max() == 1


def icc(kind, gamma, primaries=()):
    """A colour profile: values to the power of ``gamma``, and full colours in XYZ, in columns."""
    tags = {
        b"wtpt": fixed(b"XYZ ", 0.9642, 1.0, 0.8249),
        b"desc": b"desc" + bytes(4) + b"\0\0\0\2x" + bytes(80),
    }
    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big") + bytes(2)
    if kind == b"GRAY":
        tags[b"kTRC"] = curve
    for colour, column in zip(b"rgb", np.transpose(primaries), strict=False):
        tags[bytes([colour]) + b"TRC"] = curve
        tags[bytes([colour]) + b"XYZ"] = fixed(b"XYZ ", *column)
    table, body = len(tags).to_bytes(4, "big"), b""
    for name, data in tags.items():
        place = 128 + 4 + 12 * len(tags) + len(body)
        table += name + place.to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data + bytes(-len(data) % 4)
    head = b"\2\x20\0\0" + b"mntr" + kind + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head = head + fixed(b"", 0.9642, 1.0, 0.8249)[4:] + bytes(48)
    return (132 + len(table) - 4 + len(body)).to_bytes(4, "big") + bytes(4) + head + table + body


def fixed(kind, *values):
    return (
        kind + bytes(4) + b"".join(round(value * 65536).to_bytes(4, "big", signed=True) for value in values)
    )


def encoded(linear):
    """Linear light as sRGB (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)


# Full red, green and blue in XYZ under D50, in columns: of sRGB and of Display P3.
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_colour_profiles_are_converted_to_srgb(tmp_path, suffix):
    colours = np.array([[200, 120, 90], [90, 160, 140], [128, 128, 128], [250, 240, 235]], dtype=np.uint8)
    pixels = np.repeat(np.repeat(colours[None], 16, axis=1), 16, axis=0)
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", icc_profile=icc(b"RGB ", 1.8, P3), **options)
    linear = (colours / 255.0) ** 1.8
    wanted = encoded(linear @ P3.T @ np.linalg.inv(SRGB).T)
    assert np.abs(wanted - colours / 255).max() > 20 / 255  # As it was read before.
    found = read(tmp_path / f"a.{suffix}")[:, 8, 8::16].T
    assert np.abs(found.numpy() - wanted).max() < 3 / 255


def test_grey_profiles_alpha_and_profiles_that_do_not_fit(tmp_path):
    linear = icc(b"GRAY", 1.0)
    Image.new("L", (20, 20), 51).save(tmp_path / "8.png", icc_profile=linear)
    Image.fromarray(np.full((20, 20), 13107, dtype=np.uint16)).save(tmp_path / "16.tif", icc_profile=linear)
    for name in ("8.png", "16.tif"):
        assert float(read(tmp_path / name)[1, 5, 5]) == pytest.approx(float(encoded(0.2)), abs=2 / 255)
    half = Image.new("RGBA", (20, 20), (100, 100, 100, 128))
    half.save(tmp_path / "half.png", icc_profile=icc(b"RGB ", 1.0, SRGB))
    wanted = 1 + (float(encoded(100 / 255)) - 1) * 128 / 255
    assert float(read(tmp_path / "half.png")[1, 5, 5]) == pytest.approx(wanted, abs=2 / 255)
    for profile in (linear, b"no profile"):
        two_colours().save(tmp_path / "unfit.png", icc_profile=profile)
        with pytest.warns(UserWarning, match=r"unfit\.png: its colour profile is not used"):
            assert read(tmp_path / "unfit.png")[:, 5, 5].tolist() == [1, 0, 0]


def test_what_is_written_says_that_it_is_srgb(tmp_path):
    values = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    for name in ("a.png", "b.png", "a.tif"):
        write_image(values, tmp_path / name)
        profile = ImageCms.ImageCmsProfile(io.BytesIO(Image.open(tmp_path / name).info["icc_profile"]))
        assert "sRGB" in profile.profile.profile_description
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_several_pictures_and_pixels_out_of_range_are_refused(tmp_path):
    frames = [Image.new("L", (20, 20), level) for level in (0, 100, 200)]
    for name in ("pages.tif", "moving.gif", "moving.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(ValueError, match=rf"{name}: it holds 3 pictures"):
            read_image(tmp_path / name)
    for name, pixels, words in (
        ("32.tif", np.full((20, 20), 70_000, dtype=np.int32), r"70000\.\.70000, not in 0\.\.65535"),
        ("negative.tif", np.full((20, 20), -0.5, dtype=np.float32), r"-0\.5\.\.-0\.5, not in 0\.\.1"),
        ("large.tif", np.full((20, 20), 300, dtype=np.float32), r"300\.\.300, not in 0\.\.255"),
        ("nan.tif", np.full((20, 20), np.nan, dtype=np.float32), "nan"),
    ):
        Image.fromarray(pixels).save(tmp_path / name)
        with pytest.raises(ValueError, match=words):
            read_image(tmp_path / name)
    for level in (0.2, 51.0):
        Image.fromarray(np.full((20, 20), level, dtype=np.float32)).save(tmp_path / "float.tif")
        assert float(read(tmp_path / "float.tif")[0, 5, 5]) == pytest.approx(0.2)


def test_damaged_files_are_refused(tmp_path):
    two_colours(200, 200).save(tmp_path / "photo.jpg")
    whole = (tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    two_colours().save(tmp_path / "photo.png")
    png = bytearray((tmp_path / "photo.png").read_bytes())
    png[45:60] = b"x" * 15
    (tmp_path / "broken.png").write_bytes(bytes(png))
    for name in ("cut.jpg", "text.png", "empty.png", "broken.png"):
        with pytest.raises(ValueError, match=rf"Expected `content` to be an? .*image file but .*{name}"):
            read_image(tmp_path / name, "content")
    with pytest.raises(FileNotFoundError, match="`content` to be an image file but there is no"):
        read_image(tmp_path / "none.png", "content")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "tiff", "avif"])
def test_whatever_is_wrong_in_a_file_it_is_read_or_refused(tmp_path, kind):
    if kind in ("webp", "avif") and not features.check(kind):
        pytest.skip(f"this Pillow has no {kind}")
    buffer, path, rng = io.BytesIO(), tmp_path / f"photo.{kind}", random.Random(0)
    two_colours().save(buffer, kind)
    messages = []
    for _ in range(150):
        content = bytearray(buffer.getvalue())
        for _ in range(rng.choice([1, 3, 20])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([None, rng.randrange(len(content))])])
        try:
            assert read_image(path).mode == "RGB"
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all(message.startswith("Expected `path` to be a") for message in messages)


def test_sizes():
    image = two_colours(200, 100)
    assert resized(image, None).size == (200, 100)
    assert resized(image, 50).size == (50, 25)
    square = resized(image, (60, 60))
    assert square.size == (60, 60)
    # Cropped in the middle, not squeezed.
    assert square.getpixel((25, 30))[0] > 250
    assert square.getpixel((35, 30))[2] > 250


def save(folder, **images):
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in images}


def test_pictures_of_the_ranks(tmp_path):
    names = save(tmp_path, a=two_colours(), b=two_colours().rotate(180), c=two_colours())
    data = Pictures(
        [names["a"], names["b"], names["c"]], [names["b"], names["a"], names["c"]], 32, paired=True
    )
    whole, second = data.pictures(), data.pictures(1, 2)
    assert whole.contents.shape == (3, 3, 16, 32)
    assert whole.names == ["a-b", "b-a", "c-c"]
    assert second.names == ["b-a"]
    assert torch.equal(second.contents[0], whole.contents[1])
    assert torch.equal(second.styles[0][0], whole.styles[1][0])
    again = Pictures([names["a"]] * 3, names["b"], 32)
    assert [again.pictures(rank, 2).names for rank in (0, 1)] == [["a-b", "a-b-3"], ["a-b-2"]]
    with pytest.raises(ValueError, match="at least 4 images in `content`"):
        data.pictures(0, 4)


def test_blends_masks_and_steps(tmp_path):
    mask = Image.new("L", (80, 40), 0)
    mask.paste(255, (0, 0, 40, 40))
    names = save(tmp_path, a=two_colours(), b=two_colours(60, 60), mask=mask)
    data = Pictures(names["a"], [names["a"], names["b"]], 32, style_weights=[1, 3], style_size=36, steps=7)
    shown = data.pictures()
    assert shown.shares == [0.25, 0.75]
    assert [list(style.shape) for style in shown.styles[0]] == [[3, 18, 36], [3, 36, 36]]
    assert len(data.train_dataloader()) == 7
    masked = Pictures(names["a"], [names["a"], names["b"]], [16, 32], masks=[names["mask"]] * 2).pictures()
    assert masked.masks.shape == (2, 16, 32)
    assert masked.masks[0, :, :12].min() == 1
    assert masked.masks[0, :, 20:].max() == 0


def test_masks_are_cropped_as_the_content_is_or_refused(tmp_path):
    names = save(tmp_path, a=two_colours(80, 40), same=two_colours(160, 80), square=two_colours(40, 40))
    options = {"content": names["a"], "style": [names["a"]]}
    for size, masks in ((64, "same"), (None, "same"), ([32, 32], "square"), ([32, 32], "same")):
        assert Pictures(**options, size=size, masks=[names[masks]]).pictures().masks is not None
    for size, masks in ((64, "square"), (None, "square"), ([24, 64], "square")):
        with pytest.raises(
            ValueError, match=r"`masks` in the proportions of the content, .*square.png is 40 x 40"
        ):
            Pictures(**options, size=size, masks=[names[masks]]).pictures()


def test_found_in_the_data_folder_and_among_the_packaged(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    two_colours().save(tmp_path / "images" / "photo.png")
    monkeypatch.setenv("PL_LOSSES_DATA", str(tmp_path))
    assert Pictures("photo.png", "flower", 32).pictures().names == ["photo-flower"]
    assert Pictures("china", "starry-night", [32, 48]).pictures().contents.shape == (1, 3, 32, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"content": []}, "`content` and `style` to name at least one image"),
        ({"steps": 0}, "`steps` to be at least 1"),
        ({"size": 8}, "`size` to be at least 16"),
        ({"size": [32]}, r"`size` to be a number or \[height, width\]"),
        ({"style_weights": [1.0, 2.0]}, "`style_weights` for 1 style images"),
        ({"style_weights": [0.0]}, "`style_weights` to be at least 0"),
        ({"masks": []}, "`masks` for 1 style images"),
        ({"content": ["china", "flower"], "paired": True}, "one `style` for each of 2 contents"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Pictures(**{"content": "china", "style": "starry-night"} | options)


def test_sizes_that_do_not_go_together(tmp_path):
    names = save(tmp_path, a=two_colours(), b=two_colours(40, 40), strip=two_colours(400, 20))
    with pytest.raises(ValueError, match=r"contents of one size but got .*set `size` to \[height, width\]"):
        Pictures([names["a"], names["b"]], "starry-night", 32).pictures()
    with pytest.raises(
        ValueError, match=r"`content` of at least 16 pixels each way .*strip.png becomes 64 x 3"
    ):
        Pictures(names["strip"], "starry-night", 64).pictures()


def test_an_identity_tells_pictures_apart():
    given = ["china", "starry-night", 32]
    one = Pictures(*given).identity()["train"]
    assert (one["name"], one["samples"]) == ("Pictures", 1)
    assert one["shapes"] == [[3, 21, 32], [3, 25, 32]]
    assert Pictures(*given, steps=3).identity()["train"] == one
    two = Pictures(["china", "flower"], "starry-night", [32, 32], masks=["china"]).identity()["train"]
    assert (two["samples"], len(two["shapes"])) == (2, 3)
    for other in (Pictures("flower", *given[1:]), Pictures(*given[:2], 40), Pictures(*given, style_size=20)):
        assert other.identity()["train"]["checksum"] != one["checksum"]
