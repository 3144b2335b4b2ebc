"""Two ranks train each of Adam's experiments as one process does on the joined batch."""

import pytest
import torch

from pl_losses.data import Digits
from pl_losses.papers.adam import (
    MLP,
    VAE,
    AMSGradCounterexample,
    ConvNet,
    InverseSqrtLR,
    LogisticRegression,
    TemporalAveraging as Average,
)

# Dropout draws on each rank: it is off.
MODULES = {
    "logistic": lambda **k: LogisticRegression(in_features=1024, **k),
    "mlp": lambda **k: MLP(in_features=1024, hidden=[8], p=0.0, **k),
    "cnn": lambda **k: ConvNet(in_channels=1, out_channels=[2, 2, 3], hidden_size=8, input_p=0.0, p=0.0, **k),
    "vae": lambda **k: VAE(in_features=1024, hidden_size=8, latent_size=3, **k),
}


def recorded(base, path):
    class Recorded(base):
        def on_fit_end(self):
            if self.global_rank == 0:
                torch.save([parameter.detach() for parameter in self.parameters()], path)

    return Recorded


def train(make_trainer, path, ranks, make):
    torch.manual_seed(3)
    model = make(lr_scheduler=InverseSqrtLR)
    model.__class__ = recorded(type(model), path)
    trainer = make_trainer(
        ranks, max_steps=3, limit_val_batches=0, precision="64-true", callbacks=[Average(0.9)]
    )
    # 301 test samples do not share out evenly between two ranks.
    data = Digits(batch_size=32 // ranks, eval_batch_size=200 // ranks, test_size=301)
    trainer.fit(model, data)
    return torch.load(path), trainer.test(model, data, verbose=False)[0]


@pytest.mark.parametrize("name", MODULES)
def test_two_ranks_equal_one_process_on_the_joined_batch(make_trainer, tmp_path, name):
    torch.set_default_dtype(torch.float64)
    try:
        one = train(make_trainer, tmp_path / "1.pt", 1, MODULES[name])
        two = train(make_trainer, tmp_path / "2.pt", 2, MODULES[name])
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(two[0], one[0], rtol=1e-6, atol=1e-9)
    assert two[1] == pytest.approx(one[1], rel=1e-6)


def test_the_counterexample_on_two_ranks(make_trainer, tmp_path):
    ends = []
    for ranks in (1, 2):
        path = tmp_path / f"{ranks}.pt"
        model = recorded(AMSGradCounterexample, path)(steps=4)
        trainer = make_trainer(ranks, max_epochs=1)
        trainer.fit(model)
        ends.append((torch.load(path), trainer.test(model, verbose=False)))
    torch.testing.assert_close(*(weights for weights, _ in ends))
    assert ends[0][1] == ends[1][1]
    assert ends[0][0][0] != 0
