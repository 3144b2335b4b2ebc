"""Two ranks read the same strings, learn the same and count the same errors as one process does."""

import pytest
import torch

from pl_losses import LatticeReader
from pl_losses.data import DigitStrings


class Written(LatticeReader):
    """Writes down its weights at the end."""

    def on_train_end(self):
        torch.save(self.state_dict(), f"{self.folder}/{self.global_rank}.pt")


def outcome(make_trainer, folder, ranks):
    folder = folder / f"{ranks}"
    folder.mkdir()
    torch.manual_seed(0)
    model = Written(optimizer=lambda p: torch.optim.SGD(p, 1e-4))
    model.folder = folder
    options = {"strings": 16, "val_size": 300, "isolated_epochs": 1, "eval_strings": 13}
    # In the first epoch ranks have unequally many isolated digits.
    data = DigitStrings(length=(1, 3), batch_size=8 // ranks, eval_batch_size=8 // ranks, **options)
    trainer = make_trainer(ranks, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(model, data)
    scores = dict(trainer.callback_metrics)
    (result,) = trainer.test(model, data, verbose=False)
    weights = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    return weights, {key: float(value) for key, value in (scores | result).items()}


def test_two_ranks_are_one_process(make_trainer, tmp_path):
    (alone,), single = outcome(make_trainer, tmp_path, 1)
    both, double = outcome(make_trainer, tmp_path, 2)
    for weights in both:
        for name, value in alone.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
    assert single.keys() == double.keys()
    for key in single:
        if not key.startswith("train/"):  # Those are of rank zero's own batch.
            assert double[key] == pytest.approx(single[key], rel=1e-3, abs=1e-5), key
