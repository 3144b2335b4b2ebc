import numpy as np
import pytest
import torch
from PIL import Image

from pl_losses.data import DigitStrings, LineImages
from pl_losses.data.lines import character_height, normalised, spelled


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


def test_normalised_is_free_of_margins():
    ink = torch.zeros(60, 200)
    ink[20:40, 50:90] = 1.0
    assert torch.equal(normalised(ink), normalised(ink[15:60, 30:120]))


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
    with pytest.raises(ValueError, match="`alphabet` of different characters"):
        LineImages(str(tmp_path), alphabet="aa")
    with pytest.raises(ValueError, match="`val_share` and `test_share`"):
        LineImages(str(tmp_path), val_share=0.6, test_share=0.5)
