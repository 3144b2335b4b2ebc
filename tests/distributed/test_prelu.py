import pytest
import torch

from pl_losses import RectifierNet
from pl_losses.data import Digits


class Recorded(RectifierNet):
    """Writes down its gradients, its weights, and what was counted."""

    def __init__(self, path):
        torch.manual_seed(3)
        super().__init__(
            architecture="E",
            stem="small",
            width=0.03,
            hidden_size=12,
            p=0.0,
            slope_momentum=0.5,
            test_views="ten",
            test_crop=30,
            optimizer=lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=5e-4),
        )
        self.path, self.gradients = path, []

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append([p.grad.clone() for p in self.parameters()])

    def on_fit_end(self):
        if self.global_rank == 0:
            torch.save((self.gradients, [p.detach() for p in self.parameters()]), self.path)

    def on_test_epoch_end(self):
        super().on_test_epoch_end()
        self.test_error_top5.compute()
        if self.global_rank == 0:
            torch.save((self.test_error.counted, self.test_error_top5.counted), f"{self.path}.counted")


def train(make_trainer, path, ranks):
    trainer = make_trainer(ranks, max_steps=3, limit_val_batches=0, precision="64-true")
    # 301 test samples do not share out evenly between two ranks.
    model, data = Recorded(path), Digits(batch_size=16 // ranks, test_size=301)
    trainer.fit(model, data)
    results = trainer.test(model, data, verbose=False)
    return *torch.load(path), torch.load(f"{path}.counted"), results[0]


def test_two_ranks_equal_one_process_on_the_joined_batch(make_trainer, tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        one, two = (train(make_trainer, tmp_path / f"{ranks}.pt", ranks) for ranks in (1, 2))
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(one[0]) == len(two[0]) == 3
    for first, second in zip(one[0], two[0], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(one[1], two[1], rtol=1e-6, atol=1e-9)
    assert one[2] == two[2]
    assert one[2][0][1] == one[2][1][1] == 301
    assert one[3] == pytest.approx(two[3], rel=1e-6)
