import pytest
import torch

from pl_losses.data import DigitStrings
from pl_losses.papers.gtn.segmentation import (
    INK,
    candidate_cuts,
    centred,
    cut_segments,
    cutting_costs,
)


@pytest.fixture(scope="module")
def lines():
    data = DigitStrings(length=(2, 5), clutter=0.5)
    data.setup("test")
    return data.compose("test", 0, torch.arange(24))


def test_costs_are_projection_and_distance_of_contours():
    images = torch.zeros(1, 1, 8, 6)
    images[0, 0, 1, 1] = images[0, 0, 6, 1] = images[0, 0, 3, 2] = images[0, 0, 2, 5] = 1.0
    projection, distance = cutting_costs(images)
    # Before column 4 is the middle of the gap: one column from the ink on either side.
    assert projection[0].tolist() == [0 - 1, 1.0, 1.5, 0.5, -1.0, 0.5]
    assert distance[0, 2].item() == (6 + 1) / 2


def brute_force_cuts(image, radius, projection_radius, max_ink):
    """The definition in loops."""
    columns = [image[:, x] for x in range(image.shape[1])]
    inked = [bool((column > INK).any()) for column in columns]
    if not any(inked):
        return []
    first, stop = inked.index(True), len(inked) - inked[::-1].index(True)
    projection, distance = (cost[0].tolist() for cost in cutting_costs(image[None, None]))

    def lowest(cost, among, reach):
        return {
            x
            for x in among
            if all((cost[x] + 1e-4 * x, x) <= (cost[y] + 1e-4 * y, y) for y in among if abs(x - y) <= reach)
        }

    everywhere = range(len(columns))
    found = lowest(distance, everywhere, radius) | lowest(projection, everywhere, projection_radius)
    both = [p + d / 2 for p, d in zip(projection, distance, strict=True)]
    found = {x for x in lowest(both, sorted(found), radius) if projection[x] <= max_ink}
    return [first, *sorted(x for x in found if first + 1 < x < stop - 1), stop]


def test_candidates_are_the_minima(lines):
    for options in ((1, 9, 12.0), (2, 3, 12.0), (3, 4, 5.0)):
        radius, projection_radius, max_ink = options
        cuts = candidate_cuts(
            lines.images, radius=radius, projection_radius=projection_radius, max_ink=max_ink
        )
        for image, row, length in zip(
            lines.images, cuts.columns.tolist(), cuts.lengths.tolist(), strict=True
        ):
            assert row[: length + 1] == brute_force_cuts(image[0], *options)
            assert set(row[length:]) == {row[length]}


def test_a_line_does_not_depend_on_its_batch(lines):
    cuts = candidate_cuts(lines.images)
    segments = cut_segments(lines.images, cuts)
    for i in (0, 7):
        image = lines.images[i : i + 1, ..., : lines.widths[i]]
        alone = candidate_cuts(image)
        pieces = int(alone.lengths)
        assert torch.equal(alone.columns[0], cuts.columns[i, : pieces + 1])
        own = cut_segments(image, alone)
        chosen = segments.line == i
        assert torch.equal(own.last, segments.last[chosen])
        assert torch.equal(own.extra, segments.extra[chosen])
        torch.testing.assert_close(own.images, segments.images[chosen])


def test_segments_are_the_ink_between_their_cuts_in_the_middle(lines):
    cuts = candidate_cuts(lines.images)
    found = cut_segments(lines.images, cuts, max_pieces=3, max_width=26)
    for image, line, last, extra in zip(*found, strict=True):
        start, stop = cuts.columns[line, last - extra], cuts.columns[line, last + 1]
        own = lines.images[line, 0, :, start:stop]
        if stop - start < 20:
            # Faint ink may lie beyond the window, above or below a small piece.
            torch.testing.assert_close(image.sum(), own.sum(), rtol=2e-2, atol=0)
            places = torch.arange(32.0)
            for axis in (0, 1):
                centre = (image[0].sum(dim=1 - axis) * places).sum() / image.sum()
                assert abs(centre - 15.5) <= 0.55
    expected = {
        (b, j, k)
        for b in range(24)
        for j in range(int(cuts.lengths[b]))
        for k in range(min(3, j + 1))
        if k == 0
        or (
            cuts.columns[b, j + 1] - cuts.columns[b, j - k] <= 26
            and lines.images[b, ..., cuts.columns[b, j - k] : cuts.columns[b, j + 1]].sum() >= 2
        )
    }
    assert set(zip(*(part.tolist() for part in found[1:]), strict=True)) == expected


def slant(image):
    """Slope of the least-squares line from rows to columns of the ink: [32, 32] -> number."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    rows, columns = (places - (image * places).sum() / image.sum() for places in (rows, columns))
    return float((image * rows * columns).sum() / (image * rows * rows).sum())


def test_the_slant_of_each_segment_is_removed():
    image = torch.zeros(1, 1, 32, 60)
    for row in range(20):
        image[0, 0, 6 + row, 10 + row // 2 : 14 + row // 2] = 1.0  # Leans by half a pixel per row.
        image[0, 0, 6 + row, 40:44] = 1.0
    cuts = candidate_cuts(image)
    assert cuts.lengths.tolist() == [2]
    leaning, upright = cut_segments(image, cuts, max_pieces=1).images[:, 0]
    assert slant(leaning) == pytest.approx(0.5, abs=0.02)
    straight, unchanged = cut_segments(image, cuts, max_pieces=1, deslant=True).images[:, 0]
    assert slant(straight) == pytest.approx(0.0, abs=0.02)
    torch.testing.assert_close(straight.sum(dim=1), leaning.sum(dim=1))
    rows = straight[straight.sum(dim=1) > 0]
    middles = (rows * torch.arange(32.0)).sum(dim=1) / rows.sum(dim=1)
    # The bar leans in steps of whole pixels.
    assert middles.max() - middles.min() < 0.6
    torch.testing.assert_close(unchanged, upright, atol=1e-4, rtol=0)


def test_segments_of_real_digits_are_deslanted(lines):
    cuts = candidate_cuts(lines.images)
    slanted, straight = (cut_segments(lines.images, cuts, deslant=deslant) for deslant in (False, True))
    before, after = (
        torch.tensor([abs(slant(image[0])) for image in segments.images]) for segments in (slanted, straight)
    )
    assert torch.equal(slanted.line, straight.line)
    assert after.median() < before.median() / 10


def test_centred_moves_whole_images():
    images = torch.zeros(2, 1, 32, 40)
    images[0, 0, 2:4, 30:34] = 1.0
    found = centred(images)
    expected = torch.zeros(32, 32)
    expected[15:17, 14:18] = 1.0
    assert torch.equal(found[0, 0], expected)
    assert not found[1].any()


def test_lines_without_ink_have_no_pieces():
    cuts = candidate_cuts(torch.zeros(2, 1, 32, 20))
    assert cuts.lengths.tolist() == [0, 0]
    assert len(cut_segments(torch.zeros(2, 1, 32, 20), cuts).images) == 0


def cut_recall(cuts, boundaries):
    """Which lines have a cut within two columns of each true boundary; -1 is padding."""
    distance = (boundaries[:, :, None] - cuts.columns[:, None, :]).abs().amin(dim=2)
    return ((distance <= 2) | (boundaries < 0)).all(dim=1)


def test_recall_of_true_boundaries_on_real_digits():
    data = DigitStrings(length=5)
    data.setup("test")
    strings = data.compose("test", 0, torch.arange(80))
    for radius, projection_radius in ((2, 3), (1, 9)):
        cuts = candidate_cuts(strings.images, radius=radius, projection_radius=projection_radius)
        assert cut_recall(cuts, strings.boundaries).float().mean() > 0.9
        assert cuts.lengths.sum() / strings.target_lengths.sum() < 2.5


@pytest.mark.parametrize(
    ("images", "options", "error", "words"),
    [
        (torch.zeros(1, 32, 40), {}, ValueError, r"`images` of shape \[B, 1, H, W\] but got \[1, 32, 40\]"),
        (torch.zeros(1, 1, 32, 40, dtype=torch.uint8), {}, TypeError, "`images` of a floating point type"),
        (torch.zeros(1, 1, 32, 40), {"radius": 0}, ValueError, "`radius` to be at least 1"),
        (torch.zeros(1, 1, 32, 40), {"projection_radius": 0}, ValueError, "`projection_radius` to be at"),
    ],
)
def test_refused_arguments(images, options, error, words):
    with pytest.raises(error, match=words):
        candidate_cuts(images, **options)
