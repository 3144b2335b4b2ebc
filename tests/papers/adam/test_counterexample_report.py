import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from pl_losses import AMSGradCounterexample
from pl_losses.callbacks import CounterexampleReport
from pl_losses.papers.adam import Adam, InverseSqrtLR, counterexample_report


@pytest.mark.parametrize("amsgrad", [False, True])
def test_it_draws_where_the_coordinate_goes(tmp_path, monkeypatch, amsgrad):
    drawn = []
    draw = counterexample_report.draw_path
    monkeypatch.setattr(
        counterexample_report, "draw_path", lambda *found: drawn.append(found) or draw(*found)
    )
    monkeypatch.setattr(counterexample_report, "MOST", 100)

    def optimizer(parameters):
        return Adam(parameters, lr=0.5, betas=(0.0, 0.1), eps=0.0, amsgrad=amsgrad)

    model = AMSGradCounterexample(3.0, 600, optimizer=optimizer, lr_scheduler=InverseSqrtLR)
    report = CounterexampleReport()
    trainer = pl.Trainer(
        max_epochs=1, logger=CSVLogger(tmp_path), callbacks=[report], accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model)
    ((rows, name),) = drawn
    assert name == f"Adam, amsgrad={amsgrad}"
    step, regret, place = rows[-1]
    assert (regret, place) == (model.regret / step, pytest.approx(float(model.x.detach()), abs=0.05))
    assert (place < -0.9) == amsgrad
    assert len(rows) <= 200
    assert all(-1 <= row[2] <= 1 for row in rows)
    assert torch.tensor([row[0] for row in rows]).diff().min() > 0
    again = CounterexampleReport()
    again.load_state_dict(report.state_dict())
    assert again._rows == rows
    assert len(list(tmp_path.glob("lightning_logs/version_0/pictures/*.png"))) == 1
