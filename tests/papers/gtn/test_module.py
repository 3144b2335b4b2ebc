"""The readers: training, decoding, confidence, errors. The lattices have tests of their own."""

import itertools
import math
import re
from math import exp
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from pl_losses import SDNN, LatticeReader, LeNet5
from pl_losses.callbacks import ReadingReport
from pl_losses.data import Characters, DigitStrings, Lines
from pl_losses.papers.gtn import SegmentLattice, lexicon
from pl_losses.papers.gtn.lattice_reader import _greedy
from pl_losses.papers.gtn.lattices.frames import FrameLattice
from pl_losses.papers.gtn.metrics import (
    ErrorReject,
    StringErrors,
    count_edits,
    edit_distance,
    error_reject_curve,
)
from pl_losses.papers.gtn.segmentation import candidate_cuts, cut_segments

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")
ADAM = lambda p: torch.optim.Adam(p, 3e-3)  # noqa: E731
CRITERIA = ["viterbi", "discriminative_viterbi", "forward", "discriminative_forward"]


def trainer(folder, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **quiet | options)


@pytest.fixture(scope="module")
def lines():
    data = DigitStrings(length=(1, 3))
    data.setup("test")
    return data.compose("test", 0, torch.arange(6))


class Sums(nn.Module):
    """A recogniser that is easily computed: class c's penalty is |ink - 20 c|."""

    def forward(self, images):
        ink = ((images + 0.1) / 1.275).sum(dim=(1, 2, 3))
        return (ink[:, None] - 20 * torch.arange(3)).abs()


@pytest.mark.parametrize("deslant", [False, True])
def test_the_lattice_holds_the_recognisers_penalties(deslant, lines):
    model = LatticeReader(
        alphabet="abc", recogniser=Sums(), penalty_scale=0.5, segment_penalty=2.0, deslant=deslant
    )
    lattice = model(lines.images)
    segments = cut_segments(lines.images, candidate_cuts(lines.images), deslant=deslant)
    expected = torch.full_like(lattice.penalties, float("inf"))
    for image, line, last, extra in zip(*segments, strict=True):
        expected[line, last, extra] = (image.sum() - 20 * torch.arange(3)).abs() / 2 + 2
    torch.testing.assert_close(lattice.penalties, expected, rtol=1e-4, atol=1e-3)


def test_every_segment_is_seen_in_one_pass(lines):
    passes = []
    model = LatticeReader()
    model.recogniser.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    model(lines.images)
    assert len(passes) == 1


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("reader", [LatticeReader, SDNN])
def test_criteria_reach_the_recogniser(reader, criterion, lines):
    pl.seed_everything(0)
    model = reader(criterion=criterion)
    loss = model.training_step(lines, 0)
    loss.backward()
    assert loss > 0
    network = model.recogniser.network if reader is LatticeReader else model.network
    assert network.c1.weight.grad.isfinite().all()
    assert network.c1.weight.grad.any()


def test_isolated_characters_are_trained_by_eq_9():
    model = LatticeReader(rubbish_penalty=2.0)
    images, labels = torch.zeros(3, 1, 32, 40), torch.tensor([1, 0, 2])
    images[:, :, 10:20, 5:9] = torch.rand(3, 1, 10, 4)
    penalties = model.character_penalties(images).double()
    rubbish = torch.logaddexp((-penalties).logsumexp(1), torch.tensor(-2.0).double())
    expected = (penalties[range(3), labels] + rubbish).mean()
    found = model.training_step(Characters(images, labels), 0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_strings_without_a_path_are_left_out_of_the_loss(lines):
    model = LatticeReader()
    ones = torch.ones(2, 30, dtype=torch.long)
    long = Lines(lines.images[:2], lines.widths[:2], ones, torch.tensor([30, 1]), -ones[:, 1:])
    alone = Lines(*(part[1:2] for part in long))
    torch.testing.assert_close(model.training_step(long, 0), model.training_step(alone, 0))


def test_confidence_is_the_posterior_of_the_answer():
    """Against the sum over all strings, written out."""
    torch.manual_seed(0)
    penalties = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    lattice = SegmentLattice(penalties)
    reading = LatticeReader(max_pieces=2).read(lattice)
    strings = [s for n in (1, 2, 3) for s in itertools.product(range(2), repeat=n)]
    weights = {}
    for string in strings:
        paths = itertools.combinations((1, 2), len(string) - 1)
        total = 0.0
        for inner in paths:
            cuts = (0, *inner, 3)
            spans = list(itertools.pairwise(cuts))
            if all(b - a <= 2 for a, b in spans):
                total += exp(
                    -sum(
                        float(penalties[0, b - 1, b - a - 1, c])
                        for (a, b), c in zip(spans, string, strict=True)
                    )
                )
        weights[string] = total
    answer = reading.paths[0].labels
    assert float(reading.confidence) == pytest.approx(weights[answer] / sum(weights.values()), abs=1e-6)


def test_a_lexicon_keeps_to_its_words(lines):
    pl.seed_everything(0)
    free, bound = LatticeReader(), LatticeReader(lexicon=["12", "7", "905"])
    bound.load_state_dict(free.state_dict())
    with torch.no_grad():
        lattice = free(lines.images)
        words = [(1, 2), (7,), (9, 0, 5)]
        penalties = torch.stack(
            [
                lattice.constrain(torch.tensor([word] * 6), torch.tensor([len(word)] * 6)).viterbi_penalty()
                for word in words
            ],
            dim=1,
        )
        found = bound.predict_step(lines, 0)
        expected = [("12", "7", "905")[i] for i in penalties.argmin(dim=1)]
        possible = penalties.isfinite().any(dim=1)
    kept = [s for s, ok in zip(found["strings"], possible, strict=True) if ok]
    assert kept == [s for s, ok in zip(expected, possible, strict=True) if ok]
    assert ((found["confidence"] > 0) == possible).all()


def test_greedy_takes_the_best_segment_that_leaves_a_way_on():
    inf = float("inf")
    # Three pieces: the best first segment (penalty 1) has no successor.
    best = [[1.0, inf], [inf, 5.0], [2.0, inf]]
    assert _greedy(best, [[3, 0], [0, 4], [5, 0]], 3, 2) == (7.0, (4, 5), (0, 2, 3))
    assert _greedy([[1.0], [inf]], [[0], [0]], 2, 1).labels == ()


def test_greedy_is_not_better_than_viterbi(lines):
    pl.seed_everything(0)
    model = LatticeReader()
    with torch.no_grad():
        lattice = model(lines.images)
        for greedy, best in zip(model.greedy_paths(lattice), lattice.best_path(), strict=True):
            assert greedy.penalty >= best.penalty - 1e-3
            ends = [b - 1 for b in greedy.cuts[1:]]
            assert ends[-1] == best.cuts[-1] - 1


def test_frame_lattice_against_all_sequences():
    torch.manual_seed(0)
    penalties = torch.rand(2, 4, 3, dtype=torch.float64)
    lengths = torch.tensor([4, 3])
    lattice = FrameLattice(penalties, lengths)

    def spelt(symbols):
        return tuple(s for s, _ in itertools.groupby(symbols) if s != 2)

    totals = [{}, {}]
    for b, length in enumerate(lengths.tolist()):
        for symbols in itertools.product(range(3), repeat=length):
            cost = sum(float(penalties[b, t, s]) for t, s in enumerate(symbols))
            totals[b].setdefault(spelt(symbols), []).append(cost)
    targets, target_lengths = torch.tensor([[0, 0], [1, 0]]), torch.tensor([2, 1])
    constrained = lattice.constrain(targets, target_lengths)
    for b, word in enumerate([(0, 0), (1,)]):
        every = [cost for costs in totals[b].values() for cost in costs]
        log_sum = lambda costs: -torch.tensor(costs).double().neg().logsumexp(0)  # noqa: E731
        torch.testing.assert_close(lattice.forward_penalty()[b], log_sum(every), atol=1e-6, rtol=0)
        assert lattice.viterbi_penalty()[b] == pytest.approx(min(every))
        torch.testing.assert_close(
            constrained.forward_penalty()[b], log_sum(totals[b][word]), atol=1e-5, rtol=0
        )
        assert constrained.viterbi_penalty()[b] == pytest.approx(min(totals[b][word]))
        best = min(totals[b], key=lambda w, b=b: min(totals[b][w]))
        assert lattice.best_path()[b].labels == best
    word = lattice.constrain(lexicon([(0, 0)]))
    torch.testing.assert_close(word.forward_penalty()[0], constrained.forward_penalty()[0], atol=1e-5, rtol=0)
    assert word.best_path()[0].penalty == pytest.approx(float(constrained.viterbi_penalty()[0]))
    none = lattice.constrain(torch.tensor([[0, 0, 0], [1, 1, 1]]), torch.tensor([3, 3]))
    assert not none.feasible.any()
    assert none.forward_penalty().isinf().all()
    assert none.viterbi_penalty().isinf().all()


def test_sdnn_reads_words_of_a_lexicon(lines):
    pl.seed_everything(0)
    found = SDNN(lexicon=["12", "7"]).predict_step(lines, 0)
    assert set(found["strings"]) <= {"12", "7"}
    assert ((found["confidence"] > 0) & (found["confidence"] <= 1)).all()


def test_sdnn_sees_a_line_alone_as_in_its_batch(lines):
    pl.seed_everything(0)
    model = SDNN()
    with torch.no_grad():
        together = model(lines.images)
        for i in (0, 3):
            alone = model(lines.images[i : i + 1, ..., : lines.widths[i]])
            length = int(alone.lengths)
            assert length == together.lengths[i]
            torch.testing.assert_close(
                alone.penalties[0, :length], together.penalties[i, :length], rtol=1e-4, atol=1e-4
            )


def test_edit_distance_against_its_definition():
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    words = [w for n in range(4) for w in itertools.product((0, 1), repeat=n)]
    for a, b in itertools.product(words, words):
        assert edit_distance(a, b) == slow(a, b)


def test_strings_without_characters_have_no_character_error():
    errors = StringErrors()
    errors.update(torch.tensor([0, 2]), torch.tensor([0, 0]))
    assert errors.compute()[0] == 0.5
    assert [math.isnan(end) for end in errors.intervals()] == [False, False, True, True]


def test_string_errors_and_their_intervals():
    edits, lengths = torch.tensor([0, 1, 0, 4, 0, 0]), torch.tensor([5, 5, 3, 4, 5, 2])
    errors = StringErrors()
    for part in (slice(0, 4), slice(4, 6)):
        errors.update(edits[part], lengths[part])
    torch.testing.assert_close(errors.compute(), torch.tensor([2 / 6, 5 / 24]))
    low, high, character_low, character_high = errors.intervals()
    assert (low, high) == pytest.approx((0.04327, 0.77722), abs=1e-5)  # Tables of Clopper and Pearson.
    residuals = edits.double() - 5 / 24 * lengths
    half = 1.96 * (6 * residuals.var()).sqrt() / 24
    assert character_high - 5 / 24 == pytest.approx(float(half) * (1 + 0), rel=1e-2)
    assert character_low == max(0, 5 / 24 - (character_high - 5 / 24))


def test_count_edits_looks_at_the_lengths():
    found = count_edits([(1,), ()], torch.tensor([[1, 9], [3, 4]]), torch.tensor([1, 2]))
    assert found.tolist() == [0, 2]


def test_error_reject_curve_against_its_definition():
    torch.manual_seed(0)
    confidence = torch.randint(5, (40,)) / 4
    wrong = torch.rand(40) > confidence
    metric = ErrorReject()
    metric.update(confidence[:13], wrong[:13])
    metric.update(confidence[13:], wrong[13:])
    for curve in (error_reject_curve(confidence, wrong), metric.compute()):
        for threshold, rejected, error in zip(*curve, strict=True):
            kept = confidence >= threshold
            assert rejected == pytest.approx(1 - kept.float().mean().item(), abs=1e-6)
            assert error == pytest.approx(wrong[kept].float().mean().item(), abs=1e-6)


def test_a_run_learns_logs_its_keys_and_its_checkpoint_loads(tmp_path):
    pl.seed_everything(0)
    data = DigitStrings(length=2, strings=480, eval_strings=60, isolated_epochs=5, batch_size=16)
    schedule = lambda o, **k: torch.optim.lr_scheduler.OneCycleLR(o, 5e-3, **k)  # noqa: E731
    model = LatticeReader(optimizer=ADAM, lr_scheduler=schedule)
    fit = trainer(tmp_path, max_epochs=8)
    fit.fit(model, data)
    logged = set(fit.logged_metrics)
    (result,) = fit.test(model, data, verbose=False)
    # 0.08 to 0.13 for six seeds; 0.99 by chance.
    assert result["test/error"] < 0.5
    assert result["test/error_low"] <= result["test/error"] <= result["test/error_high"]
    assert result["test/character_error"] < result["test/error"]
    assert logged | set(result) == set(LatticeReader.KEYS)
    again = LatticeReader.load_from_checkpoint(fit.checkpoint_callback.best_model_path, weights_only=True)
    images = next(iter(data.test_dataloader())).images[:3]
    torch.testing.assert_close(again(images).penalties, model(images).penalties)


def test_a_fit_can_start_from_lenet_5(tmp_path):
    source = LeNet5(optimizer=ADAM)
    fit = trainer(tmp_path, max_steps=0)
    fit.strategy.connect(source)
    fit.save_checkpoint(tmp_path / "lenet.ckpt")
    model = LatticeReader(start_from=str(tmp_path / "lenet.ckpt"))
    model.setup("test")
    assert not torch.equal(model.recogniser.network.c5.weight, source.network.c5.weight)
    model.setup("fit")
    assert torch.equal(model.recogniser.network.c5.weight, source.network.c5.weight)


def test_what_does_not_fit_is_refused_before_training(tmp_path):
    class Narrow(LatticeReader):
        def segment_penalties(self, segments):
            return super().segment_penalties(segments)[:, :7]

    data, fit = DigitStrings(length=2, eval_strings=8), trainer(tmp_path, max_steps=1)
    with pytest.raises(
        ValueError, match="`alphabet` to be that of the data, '0123456789', but got '1023456789'"
    ):
        fit.fit(LatticeReader(alphabet="1023456789"), data)
    with pytest.raises(
        ValueError, match=r"`start_from` to be a checkpoint but of none\.ckpt got FileNotFound"
    ):
        fit.fit(LatticeReader(start_from="none.ckpt"), data)
    with pytest.raises(ValueError, match=r"to give \[M, 10\], a penalty for each character .* \[\d+, 7\]"):
        fit.fit(Narrow(), data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"criterion": "mle"}, "`criterion` to be .viterbi., .*'mle'"),
        ({"decoder": "beam"}, "`decoder` to be .viterbi. or .greedy."),
        ({"alphabet": "00"}, "`alphabet` of different characters"),
        ({"reject_below": 1.5}, r"`reject_below` in \[0, 1\]"),
        ({"penalty_scale": 0.0}, "`penalty_scale` to be positive"),
        ({"max_pieces": 0}, "`max_pieces` to be at least 1"),
        ({"lexicon": ["12", "1x"]}, "`lexicon` of strings in `alphabet` '0123456789' but got 'x'"),
        ({"lexicon": ["1"], "decoder": "greedy"}, "`lexicon` .* 'viterbi'"),
        (
            {"alphabet": "abc"},
            'a `recogniser`, or `centres` "random", for an `alphabet` of 3 characters but got .fixed.',
        ),
        ({"max_ink": 0.0}, "`max_ink` to be positive but got 0"),
    ],
)
def test_refused_arguments(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        LatticeReader(**options)


def test_random_centres_are_of_any_alphabet():
    assert LatticeReader(alphabet="abc", centres="random").segment_penalties(
        torch.rand(2, 1, 32, 32)
    ).shape == (2, 3)


def test_the_key_table_is_the_modules():
    section = (Path(__file__).parents[3] / "docs/gtn.md").read_text().partition("## LatticeReader\n")[2]
    assert dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", section, re.M)) == LatticeReader.KEYS


def test_the_report_draws_graph_errors_and_curve(tmp_path, monkeypatch):
    pl.seed_everything(0)
    data = DigitStrings(length=2, eval_strings=8)
    tables = []
    monkeypatch.setattr(
        "pl_losses.papers.gtn.report.log_samples", lambda *table, **rows: tables.append((*table, rows))
    )
    report, logger = ReadingReport(lines=2, errors=3, rows=4), pl.loggers.CSVLogger(tmp_path)
    fit = trainer(tmp_path, logger=logger, callbacks=[report])
    fit.test(LatticeReader(), data, verbose=False)
    names = {path.stem for path in tmp_path.rglob("*.png")}
    assert names == {"test-segmentation", "test-errors", "test-error_reject"}
    first, worst, _ = report._parts[0]
    assert len(first) == 4
    assert len(worst) == 4
    ((_, key, columns, parts),) = tables
    images, rows = parts.values()
    assert (key, columns) == ("test/strings_table", ("right", "read", "confidence"))
    assert len(images) == len(rows) == 4
    assert [row[:2] for row in rows] == [[line.right, line.answer] for line in worst]
    assert all(line.answer != line.right for line in worst)
    for line in first:
        assert set(line.columns) <= set(line.candidates)
        assert len(line.columns) == len(line.answer) + 1
