import pytest
import torch

from pl_losses.data import Characters, DigitStrings, Lines
from pl_losses.data.strings import join, paste, uniform


def loaded(**options):
    data = DigitStrings(**{"length": (2, 4), "batch_size": 8, "clutter": 1.0} | options)
    data.setup()
    return data


@pytest.fixture(scope="module")
def data():
    return loaded()


def test_join_places_digits_by_their_ink():
    digits = torch.zeros(2, 3, 4, 10)
    for i, (first, extent) in enumerate([(2, 4), (5, 2), (0, 6)]):
        digits[:, i, 1:3, first : first + extent] = (i + 1) / 3
    images, widths, boundaries = join(digits, torch.tensor([3, 2]), torch.tensor([[2, -5, 0]] * 2))
    # Margin 4, ink 4, gap 2, ink 2; the overlap of 5 is cut down to a third of the narrower one, 0 columns.
    assert widths.tolist() == [4 + 4 + 2 + 2 + 6 + 4, 4 + 4 + 2 + 2 + 4]
    assert boundaries.tolist() == [[9, 12], [9, -1]]
    inks = (images[:, 0, 1] * 3).round().int().tolist()
    assert inks[0] == [0] * 4 + [1] * 4 + [0] * 2 + [2] * 2 + [3] * 6 + [0] * 4
    assert inks[1] == [0] * 4 + [1] * 4 + [0] * 2 + [2] * 2 + [0] * 10


def test_overlap_shows_the_darker_digit():
    canvas = torch.full((1, 2, 4), 0.5)
    patches = torch.tensor([[[[0.2, 0.9], [0.7, 0.1]]]])
    found = paste(canvas, patches, x=torch.tensor([[3]]), y=torch.tensor([[0]]))
    torch.testing.assert_close(found, torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.7]]]))


def test_random_numbers_depend_on_seed_and_number_only():
    numbers = torch.arange(4000)
    drawn = uniform(3, numbers, 5)
    assert torch.equal(uniform(3, numbers[[7, 2]], 5), drawn[[7, 2]])
    assert not torch.equal(uniform(4, numbers, 5), drawn)
    assert 0 <= drawn.min() < 0.001
    assert 0.999 < drawn.max() < 1
    torch.testing.assert_close(drawn.mean(0), torch.full((5,), 0.5), atol=0.02, rtol=0)
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.06
    assert abs(torch.corrcoef(torch.stack([drawn[1:, 0], drawn[:-1, 0]]))[0, 1]) < 0.06


def numbered(loader, transform):
    """Each string of an epoch by its number, without the padding that its neighbours ask for."""
    loader.transform = lambda batch, generator: (*batch, *transform(batch, generator))
    for batch in loader:
        for number, image, width, target, length, _ in zip(*batch, strict=True):
            yield int(number), (target[:length].tolist(), image[..., :width])


@pytest.mark.parametrize("elastic", [0.0, 2.0])
def test_strings_are_the_same_on_any_number_of_ranks(elastic):
    data = loaded(elastic=elastic)
    loader = data.train_dataloader()
    transform = loader.transform
    whole = dict(numbered(loader, transform))
    parts = {}
    for rank in range(2):
        share = {"rank": rank, "world_size": 2, "shuffle": True, "seed": data.seed}
        own = type(loader)(loader.tensors, 5, **share)
        loader.epoch = 0
        parts |= numbered(own, transform)
    assert sorted(parts) == sorted(whole) == list(range(len(loader.tensors[0])))
    for number, (target, image) in whole.items():
        assert parts[number][0] == target
        torch.testing.assert_close(parts[number][1], image, rtol=0, atol=1e-5)


def test_epochs_differ_and_evaluation_stays_the_same(data):
    loader = data.train_dataloader()
    first, second = next(iter(loader)), next(iter(loader))
    assert first.targets.tolist() != second.targets.tolist()
    loader.set_epoch(0)
    assert torch.equal(next(iter(loader)).images, first.images)
    test = data.test_dataloader()
    assert torch.equal(next(iter(test)).images, next(iter(test)).images)


def test_splits_hold_digits_of_their_own_each_at_most_once(data):
    digits = {split: {image.numpy().tobytes() for image in rows[0]} for split, rows in data.digits.items()}
    assert len(set.union(*digits.values())) == sum(map(len, digits.values())) == 1797
    for split in data.digits:
        order = data._order(split, 0, torch.device("cpu"))[: len(data.tensors[split][0]) * 4]
        assert len(order.unique()) == len(order)


def test_batches_of_lines(data):
    lines = next(iter(data.train_dataloader()))
    assert isinstance(lines, Lines)
    assert set(lines.target_lengths.tolist()) <= {2, 3, 4}
    assert 0 <= lines.images.min() <= lines.images.max() <= 1
    assert lines.images.shape[-1] == lines.widths.max()
    for image, width in zip(lines.images, lines.widths, strict=True):
        assert not image[..., width:].any()
    present = torch.arange(3) < lines.target_lengths[:, None] - 1
    assert torch.equal(lines.boundaries >= 0, present)
    assert (lines.boundaries.diff(dim=1)[present[:, 1:]] > 0).all()


def test_isolated_epochs_show_the_digits_of_the_strings():
    data = loaded(isolated_epochs=1, slant=0.0, shear=0.0, scale=0.0, squeeze=0.0, rotate=0.0, rise=0.0)
    loader = data.train_dataloader()
    characters, lines = next(iter(loader)), next(iter(loader))
    assert isinstance(characters, Characters)
    assert isinstance(lines, Lines)
    numbers = loader.tensors[0][loader._order(0)[:8]]
    strings = data.compose("train", 0, numbers)
    assert characters.labels.tolist() == [
        label
        for row, n in zip(strings.targets.tolist(), strings.target_lengths.tolist(), strict=True)
        for label in row[:n]
    ]
    known = {image.numpy().tobytes() for image in data.digits["train"][0]}
    assert all((image * 255).round().byte().numpy().tobytes() in known for image in characters.images)


def test_elastic_displacements_are_smooth_and_of_training_alone():
    still = dict.fromkeys(("slant", "shear", "scale", "squeeze", "rotate", "rise"), 0.0)
    plain, elastic = (loaded(elastic=pixels, **still) for pixels in (0.0, 2.0))
    numbers = torch.arange(20)
    for split in ("val", "test"):
        assert torch.equal(plain.compose(split, 0, numbers).images, elastic.compose(split, 0, numbers).images)
    before, after = (data.isolated("train", 0, numbers) for data in (plain, elastic))
    assert torch.equal(after.labels, before.labels)
    assert (after.images != before.images).flatten(1).any(dim=1).all()
    fields = [elastic._displacement(epoch, numbers) for epoch in (0, 1)]
    assert not torch.equal(*fields)
    assert 1.7 < fields[0].abs().max() < 2.8  # Cubic interpolation overshoots by up to 40 %.
    assert abs(fields[0].mean()) < 0.05
    # Smooth: no fold, that is neighbours keep their order.
    assert max(fields[0].diff(dim=d).abs().max() for d in (2, 3)) < 1


def test_clutter_adds_ink():
    with_, without = (loaded(clutter=share).compose("test", 0, torch.arange(20)) for share in (1.0, 0.0))
    assert torch.equal(with_.targets, without.targets)
    assert (with_.images >= without.images).all()
    assert (with_.images > without.images).flatten(1).any(dim=1).float().mean() > 0.8


def test_mnist_keeps_the_split_of_the_writers(mnist_root):
    data = DigitStrings(source="mnist", val_size=0, eval_strings=3)
    data.setup("fit")
    data.setup("test")
    assert {split: len(rows[1]) for split, rows in data.digits.items()} == {"train": 60_000, "test": 10_000}
    assert {split: len(rows[0]) for split, rows in data.tensors.items()} == {"train": 12_000, "test": 3}


@pytest.mark.parametrize("gap", [3, (1, 2, 3), (0.5, 1.5)])
def test_a_gap_is_two_integers(gap):
    with pytest.raises((TypeError, ValueError), match=r"`gap` to be 2 in a sequence .* but got"):
        DigitStrings(gap=gap)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"elastic": "1"}, "`elastic` to be a .*number but got '1'"),
        ({"source": "letters"}, '`source` to be "digits" or "mnist" but got \'letters\''),
        ({"length": (3, 2)}, r"`length` to be a range but got \[3, 2\]"),
        ({"gap": (2, 1)}, r"`gap` to be a range but got \[2, 1\]"),
        ({"slant": -0.1}, "`slant`"),
        ({"elastic": float("nan")}, "`elastic` to be a .*number but got nan"),
        ({"clutter": 2.0}, r"`clutter` in \[0, 1\]"),
        ({"strings": 0}, "`strings` to be at least 1"),
    ],
)
def test_refused_arguments(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        DigitStrings(**options)
