"""What `pl-losses predict` writes is in the order of the samples, each once, on any number of ranks."""

import lightning.pytorch as pl
import pytest
import torch

from pl_losses.data import TensorDataModule
from pl_losses.predictions import joined, of_all_ranks, write_predictions


class Numbers(TensorDataModule):
    def load(self, stage):
        return {"predict": (torch.arange(7),)}


class Echo(pl.LightningModule):
    """Answers with the samples and writes what all ranks answered."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.seen = folder, []

    def predict_step(self, batch, batch_idx):
        self.seen.append({"x": batch[0], "s": [str(int(x)) for x in batch[0]]})

    def on_predict_end(self):
        answers = of_all_ranks(joined(self.seen), self.trainer)
        if self.trainer.is_global_zero:
            write_predictions(answers, self.folder)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_sample_once_and_in_order(make_trainer, tmp_path, ranks, shared, monkeypatch):
    trainer = make_trainer(ranks)
    if shared:  # As by a strategy whose ranks hold parts of one model.
        alone = property(lambda self: {"num_replicas": 1, "rank": 0})
        monkeypatch.setattr(type(trainer.strategy), "distributed_sampler_kwargs", alone, raising=False)
    trainer.predict(Echo(tmp_path), Numbers(eval_batch_size=2), return_predictions=False)
    lines = (tmp_path / "predictions.csv").read_text().split()
    assert lines == ["sample,x,s", *(f"{i},{i},{i}" for i in range(7))]
