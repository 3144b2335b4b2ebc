import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pl_losses.callbacks import SignalReport
from pl_losses.papers.prelu import report
from pl_losses.papers.prelu.imagenet import draw_errors


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.first, self.unused, self.last = nn.Linear(3, 5), nn.Linear(2, 2), nn.Linear(5, 1)

    def training_step(self, batch, batch_idx):
        return self.last(self.first(batch[0]).relu()).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_it_draws_what_the_first_step_and_the_last_epoch_compute(tmp_path, monkeypatch):
    drawn = []
    draw = report.draw_signal
    monkeypatch.setattr(report, "draw_signal", lambda *found: drawn.append(found) or draw(*found))
    torch.manual_seed(0)
    net = Net()
    inputs = torch.randn(8, 3)
    hidden = net.first(inputs)
    hidden.retain_grad()
    outputs = net.last(hidden.relu())
    outputs.retain_grad()
    outputs.square().mean().backward()
    expected = {
        "first": [hidden, hidden.grad],
        "unused": [torch.zeros(2), torch.zeros(2)],
        "last": [outputs, outputs.grad],
    }
    net.zero_grad()
    trainer = pl.Trainer(
        max_epochs=3, logger=CSVLogger(tmp_path), callbacks=[SignalReport()], accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(net, DataLoader(TensorDataset(inputs), batch_size=8))
    ((first, last),) = drawn
    for path, pair in expected.items():
        torch.testing.assert_close(first[path], [float(one.detach().std(correction=0)) for one in pair])
    assert first["last"] != last["last"]
    assert not net.first._forward_hooks
    assert len(list(tmp_path.glob("lightning_logs/version_0/pictures/prelu-signal.png"))) == 1


def test_the_first_step_is_remembered_by_a_fit_that_resumes():
    before = SignalReport()
    before._found = [{"a": [1.0, 2.0]}, {"a": [3.0, 4.0]}]
    after = SignalReport()
    after.load_state_dict(before.state_dict())
    assert after._found == [{"a": [1.0, 2.0]}]


def test_errors_are_drawn_beside_the_published_ones():
    ends = {"_low": -0.01, "": 0.0, "_high": 0.02}
    values = {f"test/error{end}": 0.3 + shift for end, shift in ends.items()}
    values |= {f"test/error_top5{end}": 0.1 + shift for end, shift in ends.items()}
    top1, top5 = draw_errors(values).axes
    assert top1.lines[0].get_xdata().tolist()[:2] == [33.82, 32.71]
    assert top5.lines[0].get_xdata().tolist()[-1] == 5.71
    for axes, error in ((top1, 30.0), (top5, 10.0)):
        (segment,) = axes.collections[0].get_segments()
        assert segment[:, 0].tolist() == pytest.approx([error - 1, error + 2])
    assert top1.get_yticklabels()[-1].get_text() == "this run, on its own data"
