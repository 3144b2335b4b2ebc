import numpy as np
import pytest
import torch

from pl_losses.data import BagOfWords
from pl_losses.data.bag_of_words import generate

TRAIN = "9 0:1 2:5\n1 1:3 2:1\n10 2:1\n4 7:1 0:1\n"
TEST = "7 7:2 3:1\n2 1:1\n"


@pytest.fixture
def imdb(tmp_path):
    for part, text in (("train", TRAIN), ("test", TEST)):
        folder = tmp_path / "aclImdb" / part
        folder.mkdir(parents=True)
        (folder / "labeledBow.feat").write_text(text)
    return tmp_path


def everything(loader):
    words, labels = zip(*loader, strict=True)
    return torch.cat(words), torch.cat(labels)


def test_imdb_is_read_and_its_most_frequent_words_are_kept(imdb):
    data = BagOfWords(root=str(imdb), vocabulary=3, batch_size=10)
    assert data.found == "imdb"
    data.prepare_data()
    data.setup("fit")
    # By frequency: word 2 (7 times), 1 (3 times), 0 (twice); 7, once, is cut off.
    rows = {tuple(map(int, row)) for row in everything(data.train_dataloader())[0]}
    assert rows == {(1, 0, 1), (1, 1, 0), (1, 0, 0), (0, 0, 1)}
    words, labels = everything(data.test_dataloader())
    assert words.tolist() == [[0, 0, 0], [0, 1, 0]]
    assert labels.tolist() == [1, 0]


def test_a_vocabulary_larger_than_the_language_leaves_columns_empty(imdb):
    data = BagOfWords("imdb", root=str(imdb), vocabulary=9)
    data.setup("fit")
    words, _ = everything(data.train_dataloader())
    assert words.shape == (4, 9)
    assert words.sum(0).tolist() == [3, 1, 2, 1, 0, 0, 0, 0, 0]


def test_missing_and_damaged_files_are_named(imdb, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`root` to hold aclImdb.train.labeledBow.feat"):
        BagOfWords("imdb", root=str(tmp_path / "nowhere")).prepare_data()
    assert BagOfWords(root=str(tmp_path / "nowhere")).found == "synthetic"
    file = imdb / "aclImdb/test/labeledBow.feat"
    file.write_text("7 1:1\n8 1:1 5\n")
    with pytest.raises(ValueError, match=r"line 2 of .*labeledBow.feat .* got '8 1:1 5'"):
        BagOfWords("imdb", root=str(imdb)).setup("fit")
    for line in ("1 3", "0 1:1", "-1 1:1", "11 1:1", "8 -1:2", "8 1:0", "8 1:1.5", "8 1 1:2"):
        file.write_text(f"3 1:1\n{line}\n")
        with pytest.raises(ValueError, match=f"line 2 of .*rating of 1 to 10 .* got '{line}'"):
            BagOfWords("imdb", root=str(imdb)).setup("fit")
    # Labels of 0 and 1 are no ratings: all of these would be negative.
    file.write_text("1 1:1\n2 1:1\n")
    with pytest.raises(ValueError, match=r"ratings of both classes, up to 5 and above, .* all are of one"):
        BagOfWords("imdb", root=str(imdb)).setup("fit")
    file.write_text("")
    with pytest.raises(ValueError, match="empty"):
        BagOfWords("imdb", root=str(imdb)).setup("fit")
    file.unlink()
    # A file of another folder does not fill the gap.
    (imdb / "test").mkdir()
    (imdb / "test/labeledBow.feat").write_text(TEST)
    data = BagOfWords(root=str(imdb))
    assert data.found == "imdb"
    with pytest.raises(FileNotFoundError, match=r"aclImdb.test.labeledBow.feat"):
        data.prepare_data()


def test_generated_frequencies_follow_zipfs_law():
    counts, labels = generate(2000, 1000, seed=0)
    frequency = counts.sum(axis=0) / counts.sum()
    law = 1 / (np.arange(1, 1001) + 2.7)
    law /= law.sum()
    # exp(+-s) of both classes together is cosh(s), 1.03 on average.
    assert frequency[:10].sum() == pytest.approx(law[:10].sum(), rel=0.1)
    assert frequency[100:].sum() == pytest.approx(law[100:].sum(), rel=0.1)
    assert counts.count_nonzero() / 2000 < 120
    assert counts.sum() / 2000 == pytest.approx(120, abs=1)
    assert labels.mean() == 0.5


def test_the_classes_of_the_generated_set_can_be_told_apart_but_not_by_a_word():
    data = BagOfWords("synthetic", vocabulary=2000)
    data.setup("fit")
    words, labels = everything(data.train_dataloader())
    assert words.shape == (4000, 2000)
    assert words.mean() < 0.05
    means = torch.stack([words[labels == label].mean(0) for label in (0, 1)])
    assert (means[1] - means[0]).abs().max() < 0.5
    weights = (means[1] + 1e-3).log() - (means[0] + 1e-3).log()
    test_words, test_labels = everything(data.test_dataloader())
    error = ((test_words @ weights > 0) != test_labels).double().mean()
    assert 0.01 < error < 0.3
    again = BagOfWords("synthetic", vocabulary=2000, seed=5)
    again.setup("fit")
    assert torch.equal(again.tensors["train"][0], data.tensors["train"][0])


@pytest.mark.parametrize("wrong", [{"source": "reviews"}, {"vocabulary": 0}, {"val_size": -1}])
def test_bad_arguments_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}`"):
        BagOfWords(**wrong)


def test_documents_are_kept_for_validation():
    whole, part = (BagOfWords("synthetic", vocabulary=100, val_size=size, seed=2) for size in (0, 1000))
    for data in (whole, part):
        data.setup()
    assert "val" not in whole.tensors
    sizes = {split: len(labels) for split, (_, labels) in part.tensors.items()}
    assert sizes == {"train": 3000, "val": 1000, "test": 1000}
    assert part.tensors["val"][1].double().mean() == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match="`val_size` below 4000, all documents, but got 4000"):
        BagOfWords("synthetic", val_size=4000).setup("fit")
