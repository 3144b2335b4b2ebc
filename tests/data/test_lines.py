import numpy as np
import pytest
import torch
from PIL import Image

from pl_losses.data import DigitStrings, LineImages
from pl_losses.data.lines import character_height, ink_of, normalised, spelled


def written(folder, rows, header="file,label"):
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def picture(folder, name, height=50, width=90, dark=True):
    """A rectangle of ink, twice as wide as it is high."""
    ink = np.zeros((height, width), dtype=np.uint8)
    ink[10:30, 20:60] = 255
    Image.fromarray(255 - ink if dark else ink).save(folder / name)


def test_lines_of_a_folder(tmp_path):
    for i in range(10):
        picture(tmp_path, f"{i}.png", dark=i % 2 == 0)
    data = LineImages(str(written(tmp_path, [f"{i}.png,{'7' * (1 + i % 3)}" for i in range(10)])))
    data.setup()
    assert {split: len(rows[0]) for split, rows in data.tensors.items()} == {"train": 8, "val": 1, "test": 1}
    lines = next(iter(data.train_dataloader()))
    assert lines.images.shape[1:3] == (1, 32)
    ink = lines.images > 0.5
    # 20 rows of ink in the middle, columns in proportion, whether ink is dark or bright in the file.
    assert ink.any(dim=3).sum(dim=2).unique().item() in range(18, 21)
    assert ink.any(dim=2).sum(dim=2).unique().item() in range(35, 41)
    for target, length in zip(lines.targets, lines.target_lengths, strict=True):
        assert target.tolist() == [7] * length + [0] * (len(target) - length)


def test_the_column_split_decides(tmp_path):
    for i in range(3):
        picture(tmp_path, f"{i}.png")
    rows = ["0.png,12,train", "1.png,3,test", "2.png,,predict"]
    data = LineImages(str(written(tmp_path, rows, "file,label,split")))
    data.setup()
    assert {split: rows[2].tolist() for split, rows in data.tensors.items()} == {
        "train": [[1, 2]],
        "test": [[3]],
        "predict": [[0]],
    }
    assert next(iter(data.predict_dataloader())).target_lengths.tolist() == [0]


@pytest.mark.parametrize("header", ["file,label,split ", "File, LABEL ,Split"])
def test_columns_are_named_in_any_case_with_any_blanks(tmp_path, header):
    for name in "abc":
        picture(tmp_path, f"{name}.png")
    data = LineImages(str(written(tmp_path, ["a.png,1,test", "b.png,2,train", "c.png,3,val"], header)))
    data.setup()
    assert data.files == {"train": ["b.png"], "val": ["c.png"], "test": ["a.png"], "predict": []}


def test_lines_to_predict_need_no_labels_and_keep_their_names(tmp_path):
    for name in ("b.png", "a.png"):
        picture(tmp_path, name)
    data = LineImages(str(written(tmp_path, ["b.png,predict", "a.png,predict"], "file,split")))
    data.setup("predict")
    assert data.predict_names() == ["b.png", "a.png"]
    data.setup("fit")
    with pytest.raises(ValueError, match="samples of the 'train' split but there is predict"):
        data.train_dataloader()


def test_exported_strings_come_back_at_the_size_that_readers_know(tmp_path):
    data = DigitStrings(eval_strings=24, batch_size=8, clutter=0.5)
    data.setup("test")
    lines = next(iter(data.test_dataloader()))
    for i, (image, width) in enumerate(zip(lines.images[:, 0], lines.widths.tolist(), strict=True)):
        paper = (255 * (1 - image[:, :width])).byte().numpy()
        Image.fromarray(paper).resize((3 * width, 96)).save(tmp_path / f"{i}.png")
    rows = [f"{i}.png, {text}" for i, text in enumerate(spelled(lines.targets, lines.target_lengths))]
    back = LineImages(str(written(tmp_path, rows)), ink_height=24, val_share=0, test_share=0)
    back.setup("fit")
    images, widths, *_ = back.tensors["train"]
    found = sorted(
        character_height(image[0, :, :width] > 64) for image, width in zip(images, widths, strict=True)
    )
    wanted = sorted(character_height(image[0] > 0.25) for image in lines.images)
    assert np.mean(found) == pytest.approx(24, abs=0.7)
    assert np.mean(found) == pytest.approx(np.mean(wanted), abs=1)


def test_transparent_paper_is_white(tmp_path):
    ink = np.zeros((40, 40, 4), dtype=np.uint8)
    ink[10:30, 15:25, 3] = 255  # black ink, all else clear
    Image.fromarray(ink).save(tmp_path / "clear.png")
    data = LineImages(str(written(tmp_path, ["clear.png,1"])), val_share=0, test_share=0)
    assert int((data.load("fit")["train"][0] > 128).sum()) in range(180, 221)


def drawn(height=60, width=150):
    """A line of soft strokes, in [0, 1]."""
    ink = np.zeros((height, width))
    for left in (15, 50, 95):
        ink[14:44, left : left + 7] = 1.0
        ink[14:19, left : left + 22] = 0.8
        ink[29:32, left : left + 18] = 0.6
    return ink


def line(folder, name, values, mode="L", **options):
    Image.fromarray(values.round().astype(np.uint8)).convert(mode).save(folder / name, **options)
    data = LineImages(str(written(folder, [f"{name},1"])), val_share=0, test_share=0)
    return data.load("fit")["train"][0][0, 0].int()


@pytest.mark.filterwarnings("ignore:.*does not name")
@pytest.mark.parametrize(
    ("paper", "ink"),
    [
        (255, 0),
        (220, 0),
        (190, 20),
        (150, 0),
        (150, 100),
        (40, 10),
        (0, 255),
        (30, 220),
        (90, 140),
        (200, 255),
    ],
)
def test_a_line_is_the_same_on_any_paper_in_any_ink(tmp_path, paper, ink):
    wanted = line(tmp_path, "white.png", 255 - 255 * drawn())
    found = line(tmp_path, "other.png", paper + (ink - paper) * drawn())
    # Half a level of the file, stretched, and half of the result.
    assert (found - wanted).abs().max() <= 255 / abs(ink - paper) + 1
    assert found[0].max() == 0
    assert found[:, :4].max() == 0


@pytest.mark.filterwarnings("ignore:.*does not name")
def test_a_line_is_the_same_in_a_file_of_any_kind(tmp_path):
    ink = drawn() > 0.5
    wanted = line(tmp_path, "grey.png", 255.0 - 255 * ink)
    clear = np.zeros((*ink.shape, 4))
    clear[..., :3], clear[..., 3] = 60, 255 * ink
    for name, values, options in (
        ("1.png", 255.0 - 255 * ink, {"mode": "1"}),
        ("palette.gif", 255.0 - 255 * ink, {"mode": "P"}),
        ("clear.png", clear, {"mode": "RGBA"}),
        ("colours.png", np.where(ink[..., None], (20, 40, 120), (240, 225, 180)), {"mode": "RGB"}),
        ("chalk.png", np.where(ink[..., None], (250, 240, 150), (20, 70, 40)), {"mode": "RGB"}),
    ):
        assert (line(tmp_path, name, values, **options) - wanted).abs().max() <= 1, name
    # 16 bits of which few are used: in 8 bits there were but two shades of ink.
    deep = (4000 - 3000 * drawn()).round().astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    wanted = line(tmp_path, "white.png", 255 - 255 * drawn())
    data = LineImages(str(written(tmp_path, ["deep.png,1"])), val_share=0, test_share=0)
    found = data.load("fit")["train"][0][0, 0].int()
    assert (found - wanted).abs().max() <= 2


def test_ink_of_is_equivariant_and_finds_ink_in_grain():
    generator = torch.Generator().manual_seed(0)
    light = torch.from_numpy(1 - drawn()).double()
    light = light + 0.02 * torch.randn(light.shape, generator=generator, dtype=torch.float64)
    wanted = ink_of(light)
    for a, b in ((0.3, 0.1), (-1.0, 1.0), (-0.2, 0.9), (2.0, -5.0)):
        torch.testing.assert_close(ink_of(a * light + b), wanted)
        torch.testing.assert_close(
            ink_of(a * light + b, "dark" if a > 0 else "bright"), ink_of(light, "dark")
        )
    for empty in (
        light[:10],
        torch.full((40, 200), 0.7),
        0.7 + 0.03 * torch.randn(300, 3000, generator=generator),
    ):
        for ink in ("auto", "dark", "bright"):
            with pytest.raises(ValueError, match="none stands out from the paper"):
                ink_of(empty, ink)
    # Cut out tightly: much of the border, or most of it, is ink.
    tight = torch.from_numpy(drawn()[14:44, 15:117])
    torch.testing.assert_close(ink_of(0.8 - 0.5 * tight), tight.float())
    torch.testing.assert_close(ink_of(0.8 - 0.5 * tight[:, :22], "dark"), tight[:, :22].float())


def test_csv_files_as_programs_write_them(tmp_path):
    for name in ("a.png", "b,c.png", "d.png"):
        picture(tmp_path, name)
    text = '\ufefffile,label\r\na.png,1\r\n\r\n"b,c.png","2"\r\n'
    (tmp_path / "labels.csv").write_bytes(text.encode())
    data = LineImages(str(tmp_path), val_share=0, test_share=0)
    with pytest.warns(UserWarning, match=r"1 images are not read, as .* does not name them: .*d\.png"):
        data.setup("fit")
    assert sorted(data.files["train"]) == ["a.png", "b,c.png"]


@pytest.mark.parametrize(("alphabet", "skipped"), [("0123456789", True), ("0123456789 ", False)])
def test_a_leading_blank_is_a_character_where_the_alphabet_has_it(tmp_path, alphabet, skipped):
    picture(tmp_path, "a.png")
    data = LineImages(str(written(tmp_path, ["a.png, 12"])), alphabet=alphabet, val_share=0, test_share=0)
    data.setup("fit")
    assert data.tensors["train"][2].tolist() == [[1, 2] if skipped else [10, 1, 2]]
    written(tmp_path, ["a.png, 12"], "file, label")
    if skipped:
        data.load("fit")
    else:  # Is it a character here, or a habit?
        with pytest.raises(ValueError, match="columns file and label but got file,  label"):
            data.load("fit")


def test_normalised_is_free_of_margins():
    ink = torch.zeros(60, 200)
    ink[20:40, 50:90] = 1.0
    assert torch.equal(normalised(ink), normalised(ink[15:60, 30:120]))


@pytest.mark.filterwarnings("ignore:.*does not name")
@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (["0.png,1"], "name,label", "columns file and label but got name, label"),
        (["0.png,1x"], "file,label", "`alphabet` '0123456789' but line 2 of .* has 'x'"),
        (["0.png,"], "file,label", "a label but line 2"),
        ([",7"], "file,label", "a file but line 2"),
        (["0.png,train"], "file,split,label", "a label but line 2"),
        (["0.png,train"], "file,split", "a label but line 2"),
        (["0.png,1,training", "0.png,1"], "file,label,split", "but line 2 of .* has 'training'"),
        (
            ["0.png,1,dev"],
            "file,label,split",
            "`split` to be one of train, val, test, predict but line 2 of .* has 'dev'",
        ),
        (
            ["blank.png,1,test"],
            "file,label,split",
            r"blank\.png: Expected an image with ink of at least `threshold`",
        ),
        (["0.png,1", "./0.png,2"], "file,label", r"each file once but lines 2 and 3 of .* have \./0\.png"),
        (["0.png,1,2"], "file,label", "Expected 2 columns but line 2 of .* has more"),
        (["0.png,1,2"], "file,label,label", "but got one twice: file, label, label"),
        (["0.png,1,test,test"], "file,label,split,Split ", "but got one twice: file, label, split, split"),
        (["0.png;1"], "file;label", "columns file and label but got file;label"),
        ([], "file,label", "rows with the columns file and label but got nothing"),
        (["", "0.png,7.0"], "file,label", r"line 3 of .* has '\.'"),
        (['0.png,"1'], "file,label", "to be a CSV file but got: unexpected end of data"),
        (["text.png,1,test"], "file,label,split", "`file` to be an image file but .*text.png"),
    ],
)
def test_refused_folders(tmp_path, rows, header, words):
    picture(tmp_path, "0.png")
    Image.fromarray(np.full((9, 9), 255, dtype=np.uint8)).save(tmp_path / "blank.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=words):
        LineImages(str(written(tmp_path, rows, header))).load("fit")


def test_a_missing_file_and_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"labels\.csv"):
        LineImages(str(tmp_path)).load("fit")
    (tmp_path / "labels.csv").write_bytes("file,label\nä.png,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"labels\.csv to be a text in UTF-8, save it so, but got"):
        LineImages(str(tmp_path)).load("fit")
    written(tmp_path, ["none.png,1"])
    with pytest.raises(FileNotFoundError, match=r"no .*none\.png"):
        LineImages(str(tmp_path)).load("fit")
    with pytest.raises(ValueError, match="`alphabet` of different characters"):
        LineImages(str(tmp_path), alphabet="aa")
    with pytest.raises(ValueError, match="`val_share` and `test_share`"):
        LineImages(str(tmp_path), val_share=0.6, test_share=0.5)
