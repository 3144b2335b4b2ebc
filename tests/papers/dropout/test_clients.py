"""Batches and networks as others have them: mappings, packed sequences, BCE, timm, transformers."""

from collections import OrderedDict, UserDict, namedtuple

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader

from pl_losses.papers.dropout.metrics import ClassificationScores, ClassificationUncertainty, EntropyHistogram
from pl_losses.papers.dropout.monitor import DropoutUncertaintyMonitor
from pl_losses.papers.dropout.sampling.sampling import mc_samples

P = 0.3
GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randint(1, 20, (12, 5), generator=GENERATOR)
LABELS = torch.randint(3, (12,), generator=GENERATOR)
LENGTHS = torch.randint(1, 6, (12,), generator=GENERATOR)
Text = namedtuple("Text", "tokens lengths label")


class Encoding(UserDict):
    """As a tokenizer gives it: attributes for its items."""

    def __getattr__(self, name):
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


class Output(OrderedDict):
    """As transformers' ModelOutput."""


class Network(pl.LightningModule):
    def __init__(self, outputs=3, form=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.dropout = nn.Embedding(20, 8), nn.Dropout(P)
        self.last, self.form = nn.Linear(8, outputs), form

    def forward(self, tokens, lengths=None):
        if isinstance(tokens, PackedSequence):
            data, sizes = nn.utils.rnn.pad_packed_sequence(tokens, batch_first=True)
            tokens = data * (torch.arange(data.shape[1]) < sizes[:, None])
        used = (
            (tokens > 0)[..., None] if lengths is None else torch.arange(5)[:, None] < lengths[:, None, None]
        )
        return self.form(self.last(self.dropout((self.table(tokens) * used).mean(dim=1))))

    def validation_step(self, batch):
        pass

    predict_step = validation_step


class Whole(torch.utils.data.Dataset):
    """One batch as it is."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch


def look(network, batch, stage="validate", **options):
    """What the monitor logs of one batch."""
    logged = {}

    class Logger(pl.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            logged.update(metrics)

    run = pl.Trainer(
        accelerator="cpu", logger=Logger("."), enable_progress_bar=False, enable_model_summary=False,
        callbacks=[DropoutUncertaintyMonitor(**{"samples": 4, "pictures": 0, "max_batches": 8} | options)],
    )  # fmt: skip
    getattr(run, stage)(network, DataLoader(Whole(batch), batch_size=None))
    return {key.split("/", 2)[2]: value for key, value in logged.items() if "dropout/" in key}


@pytest.fixture(scope="module")
def expected():
    return look(Network(), (TOKENS, LABELS)), look(Network(), (TOKENS, LABELS), "predict")


BATCHES = {
    "dict": ({"tokens": TOKENS, "labels": LABELS}, {}),
    "dict with a named target": ({"tokens": TOKENS, "y": LABELS}, {"target": "y"}),
    "tokenizer": (Encoding(tokens=TOKENS, labels=LABELS), {}),
    "tokenizer and labels": ((Encoding(tokens=TOKENS), LABELS), {}),
    "dict and labels": ([{"tokens": TOKENS}, LABELS], {}),
    "weights last": ((TOKENS, LABELS, torch.ones(12)), {"target": 1}),
    "label first": ((LABELS, TOKENS), {"target": 0}),
    "packed": ((pack_sequence(list(TOKENS)), LABELS), {}),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_all_kinds_give_the_same_numbers(kind, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch, options = BATCHES[kind]
    assert look(Network(), batch, **options) == pytest.approx(expected[0])
    assert look(Network(), batch, "predict", **options) == pytest.approx(expected[1])


def test_the_target_of_three_is_told_and_never_guessed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = look(Network(), {"tokens": TOKENS, "lengths": LENGTHS, "labels": LABELS})
    for batch, target in (
        ((TOKENS, LENGTHS, LABELS), 2),
        ([TOKENS, LENGTHS, LABELS], -1),
        (Text(TOKENS, LENGTHS, LABELS), "label"),
        ({"tokens": TOKENS, "lengths": LENGTHS, "y": LABELS}, "y"),
    ):
        assert look(Network(), batch, target=target) == pytest.approx(expected)
    assert look(Network(), (TOKENS, LENGTHS), "predict", target=2)["inputs"] == 12
    for batch, words in (
        (
            (TOKENS, LENGTHS, LABELS),
            r"a list of Tensor, Tensor, Tensor: .*or set `target` to its place, 0 to 2",
        ),
        ({"tokens": TOKENS, "y": LABELS}, r"got a dict of .*or set `target` to one of \['tokens', 'y'\]"),
        (
            Encoding(tokens=TOKENS, y=LABELS),
            r"got an Encoding of .*: .*or set `target` to one of \['tokens', 'y'\]",
        ),
    ):
        with pytest.raises(TypeError, match=words):
            look(Network(), batch)
    with pytest.raises(TypeError, match=r"\(inputs, target\).*0 to 1"):
        look(Network(), (TOKENS, LABELS), target=5)
    with pytest.raises(TypeError, match=r"`target` to be an integer, a text or None but got 1\.0"):
        DropoutUncertaintyMonitor(target=1.0)


@pytest.mark.parametrize("kind", [dict, Output, UserDict])
def test_outputs_with_logits(kind, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = Network(form=lambda logits: kind(logits=logits, states=None))
    assert look(network, (TOKENS, LABELS)) == pytest.approx(expected[0])
    samples = mc_samples(network, Encoding(tokens=TOKENS), 3, seed=0)
    assert samples["states"] is None
    plain = mc_samples(Network(), TOKENS, 3, seed=0)
    torch.testing.assert_close(samples["logits"], plain)
    with pytest.raises(TypeError, match=r"got .*: override `to_probabilities`.*class_probabilities"):
        look(Network(form=lambda logits: kind(scores=logits)), (TOKENS, LABELS))


def test_inputs_in_a_mapping_are_copied():
    class Inplace(nn.Module):
        def forward(self, x):
            return F.dropout(x.sub_(1), P, self.training)

    batch = Encoding(x=torch.full((3, 4), 2.0))
    samples = mc_samples(Inplace(), batch, 20, seed=0)
    assert samples.max().item() == pytest.approx(1 / (1 - P), rel=1e-5)
    assert (batch.x == 2).all()
    assert mc_samples(Inplace(), Encoding(x=torch.ones(3, 4)), 2, masks="shared").shape == (2, 3, 4)


def test_a_packed_output_is_refused_in_a_sentence():
    network = nn.GRU(5, 4, 2, dropout=P)
    batch = pack_sequence([torch.randn(n, 5) for n in (4, 3, 1)])
    with pytest.raises(TypeError, match="got a PackedSequence in it: pass a `forward` that returns tensors"):
        mc_samples(network, batch, 3)
    data = mc_samples(network, batch, 3, seed=0, forward=lambda rows: network(rows)[0].data)
    assert data.shape == (3, 8, 4)
    assert (data != data[0]).any()


ZEROS = (LABELS > 0).long()
BINARY = {
    "float": ZEROS.float(),
    "double": ZEROS.double(),
    "bool": ZEROS.bool(),
    "column": ZEROS[:, None],
    "float column": ZEROS[:, None].float(),
}


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("flat", [False, True])
def test_targets_of_bce_with_one_logit(kind, flat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = Network(1, (lambda logits: logits[:, 0]) if flat else (lambda logits: logits))
    found = look(network, (TOKENS, BINARY[kind]))
    assert found == pytest.approx(look(network, (TOKENS, ZEROS)))
    with torch.no_grad():
        logits = network.eval()(TOKENS).flatten()
    nll = F.binary_cross_entropy_with_logits(logits, ZEROS.float()).item()
    assert found["nll_deterministic"] == pytest.approx(nll, abs=1e-6)


def test_no_targets_of_bce_are_refused():
    rows = torch.tensor([[0.3, 0.7], [0.6, 0.4]])
    for target in ([0.0, 0.4], [1.0, 2.0], [1.0, float("nan")], [-1.0, 0.0]):
        with pytest.raises(ValueError, match=r"class indices in 0\.\.1 but got"):
            ClassificationScores().update(rows, torch.tensor(target))
    with pytest.raises(ValueError, match=r"class indices but got torch\.bool"):
        ClassificationScores().update(rows.repeat(1, 2) / 2, torch.tensor([True, False]))


def test_ignored_rows_do_not_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(4, 30, 5, generator=generator).softmax(dim=-1)
    target = torch.randint(5, (30,), generator=generator)
    counted = torch.arange(30) % 3 > 0
    for ignored in (-100, 255):
        masked = target.where(counted, ignored)
        padded = samples.clone()
        padded[:, ~counted] = torch.nan  # such as the rows of padding
        scores, only = ClassificationScores(ignore_index=ignored), ClassificationScores()
        scores.update(padded.mean(dim=0), masked)
        only.update(samples.mean(dim=0)[counted], target[counted])
        torch.testing.assert_close(scores.compute(), only.compute())
        histogram, expected = EntropyHistogram(ignore_index=ignored), EntropyHistogram()
        histogram.update(padded.nan_to_num(0.2), masked)
        expected.update(samples[:, counted], target[counted])
        assert torch.equal(histogram.compute(), expected.compute())
    uncertainty, only = ClassificationUncertainty(), ClassificationUncertainty()
    uncertainty.update(padded, counted)
    only.update(samples[:, counted])
    torch.testing.assert_close(uncertainty.compute(), only.compute())

    class Fixed(Network):
        def forward(self, rows):
            return F.dropout(rows, 1e-9)  # what is dropped is one in a billion

    logits = samples[0].log()
    found = look(Fixed(), (logits, target.where(counted, -100)))
    assert found == pytest.approx(look(Fixed(), (logits[counted], target[counted])), abs=1e-6)
    assert found["inputs"] == 20
    assert found == pytest.approx(look(Fixed(), (logits, target.where(counted, 9)), ignore_index=9), abs=1e-6)
    with pytest.raises(ValueError, match=r"`target` in 0\.\.4 but got -100"):
        look(Fixed(), (logits, target.where(counted, -100)), ignore_index=9)


def test_vision_networks_of_timm(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", reason="needs timm, of the dependency group clients")
    monkeypatch.chdir(tmp_path)
    images, target = torch.randn(4, 3, 32, 32, generator=GENERATOR), torch.arange(4)

    class Module(pl.LightningModule):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x)

        def validation_step(self, batch):
            pass

    for name, options in (
        ("vit_tiny_patch16_224", {"img_size": 32, "drop_path_rate": 0.5, "depth": 3}),
        ("vit_tiny_patch16_224", {"img_size": 32, "attn_drop_rate": 0.5, "depth": 3}),
        ("resnet10t", {"drop_path_rate": 0.5}),
        ("resnet10t", {"drop_block_rate": 0.5}),
    ):
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=4, **options)
        for parameter in network.parameters():  # the last normalisation of a block starts at 0
            if parameter.ndim == 1 and not parameter.any():
                nn.init.ones_(parameter)
        samples = mc_samples(network, images, 6, seed=0)
        assert (samples != samples[0]).any(), (name, options)
        with torch.no_grad():
            nll = F.cross_entropy(network.eval()(images), target).item()
        found = look(Module(network), (images, target))
        assert found["nll_deterministic"] == pytest.approx(nll, abs=1e-5)


def test_language_models_of_transformers(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="needs transformers, of the group clients")
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}

    class Module(pl.LightningModule):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, **inputs):
            return self.network(**inputs)

        def validation_step(self, batch):
            pass

    encoding = transformers.BatchEncoding(
        {"input_ids": TOKENS, "attention_mask": (torch.arange(5) < LENGTHS[:, None]).long(), "labels": LABELS}
    )
    inputs = {key: value for key, value in encoding.items() if key != "labels"}
    for attention in ("eager", "sdpa"):
        for dropped in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            settings = transformers.BertConfig(
                vocab_size=20, num_labels=3, attn_implementation=attention, initializer_range=1.0,
                classifier_dropout=0.0, **sizes, **none | {dropped: 0.3},
            )  # fmt: skip
            torch.manual_seed(0)
            network = transformers.BertForSequenceClassification(settings)
            samples = mc_samples(network, encoding, 3, seed=0)
            assert samples.logits.shape == (3, 12, 3)
            assert (samples.logits != samples.logits[0]).any(), (attention, dropped)
            with torch.no_grad():
                logits = network.eval()(**inputs).logits
            found = look(Module(network), encoding)
            assert found["nll_deterministic"] == pytest.approx(
                F.cross_entropy(logits, LABELS).item(), abs=1e-5
            )
            assert found["mutual_information"] > 1e-4
