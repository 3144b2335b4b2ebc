import pytest
import torch

from pl_losses import LeNet5
from pl_losses.callbacks import ClassifierReport
from pl_losses.data import Digits


class Recorded(LeNet5):
    """Writes down the gradients of each step and what the test found."""

    def __init__(self, path, **options):
        torch.manual_seed(3)
        super().__init__(**options)
        self.path = path
        self.gradients = []

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append([p.grad.clone() for p in self.parameters()])

    def on_fit_end(self):
        if self.global_rank == 0:
            torch.save((self.gradients, [p.detach() for p in self.parameters()]), self.path)

    def on_test_epoch_end(self):
        super().on_test_epoch_end()
        if self.global_rank == 0:
            torch.save(self.test_error.counted, f"{self.path}.counted")


def train(make_trainer, tmp_path, ranks, optimizer, **options):
    path = tmp_path / f"{ranks}.pt"
    model = Recorded(path, **({} if optimizer is None else {"optimizer": optimizer}), **options)
    trainer = make_trainer(ranks, max_steps=4, callbacks=[ClassifierReport()], limit_val_batches=0)
    # 101 test samples do not share out evenly between two ranks.
    data = Digits(batch_size=32 // ranks, test_size=101, limit=96)
    trainer.fit(model, data)
    results = trainer.test(model, data, verbose=False)
    gradients, weights = torch.load(path)
    return gradients, weights, torch.load(f"{path}.counted"), results[0]


@pytest.mark.parametrize(
    "optimizer", [lambda p: torch.optim.SGD(p, 1e-3), None], ids=["sgd", "levenberg-marquardt"]
)
@pytest.mark.parametrize("centres", ["fixed", "adaptable"])
def test_two_ranks_equal_one_process_on_the_joined_batch(make_trainer, tmp_path, optimizer, centres):
    torch.set_default_dtype(torch.float64)
    try:
        options = {"optimizer": optimizer, "centres": centres}
        one = train(lambda n, **k: make_trainer(n, precision="64-true", **k), tmp_path, 1, **options)
        two = train(lambda n, **k: make_trainer(n, precision="64-true", **k), tmp_path, 2, **options)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(one[0]) == len(two[0]) == 4
    for first, second in zip(one[0], two[0], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(one[1], two[1], rtol=1e-6, atol=1e-9)
    assert one[2] == two[2]
    assert one[2][1] == 101
    assert one[3] == pytest.approx(two[3], rel=1e-6, nan_ok=True)


def test_what_a_distributed_sampler_repeats_is_not_counted(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    rows = torch.utils.data.TensorDataset(torch.randn(17, 1, 32, 32), torch.randint(10, (17,)))
    found = []
    for ranks in (1, 2):
        model = Recorded(tmp_path / f"{ranks}.pt", rubbish_penalty=1.0, criterion="map")
        trainer = make_trainer(ranks, callbacks=[ClassifierReport()])
        # Lightning gives the ranks 9 rows each, in batches of 4: rank 1 ends with a mere repetition.
        results = trainer.test(model, torch.utils.data.DataLoader(rows, 4), verbose=False)
        found.append((torch.load(f"{model.path}.counted"), results[0]))
    (counted, one), (counted_two, two) = found
    assert counted == counted_two
    assert counted[1] == 17
    assert two == pytest.approx(one, rel=1e-5)
