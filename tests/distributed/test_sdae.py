import pytest
import torch

from pl_losses import StackedDenoisingAutoencoder
from pl_losses.data import Digits


class Recorded(StackedDenoisingAutoencoder):
    """Writes down its weights, whole, when the fit is over."""

    def __init__(self, path):
        torch.manual_seed(3)
        super().__init__(1024, [12, 10, 8], pretrain_epochs=1)
        self.path = path

    def on_fit_end(self):
        weights = [parameter.detach() for parameter in self.parameters()]
        if self.global_rank == 0:
            torch.save((weights, self.lowest_error), self.path)


def fit(trainer, path, **options):
    # 301 validation samples do not share out evenly between two ranks.
    data = Digits(301, 300, low=0.0, high=1.0, batch_size=300 // trainer.world_size)
    trainer.fit(Recorded(path), data, **options)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check(path, one, **tolerance):
    weights, lowest = torch.load(path)
    whole, wanted = torch.load(one)
    torch.testing.assert_close(weights, whole, **tolerance)
    assert lowest == wanted


@pytest.mark.usefixtures("double")
def test_ddp_equals_one_process_on_the_joined_batch(make_trainer, tmp_path):
    for ranks in (1, 2):
        fit(make_trainer(ranks, max_epochs=5, precision="64-true"), tmp_path / f"{ranks}.pt")
    check(tmp_path / "2.pt", tmp_path / "1.pt", rtol=1e-6, atol=1e-9)
