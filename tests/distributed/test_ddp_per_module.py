"""Two ranks under ``ddp_per_module`` equal one process on the joined batch, whatever the order of updates."""

import csv
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from pl_losses import GAN
from pl_losses.data import Digits
from pl_losses.papers.gan.losses import discriminator_loss, generator_loss
from pl_losses.strategies import DDPPerModule, step_uncounted


def per_module(**options):
    options = {"start_method": "fork", "process_group_backend": "gloo"} | options
    return DDPPerModule(timeout=timedelta(seconds=20), **options)


@pytest.fixture
def make_trainer(tmp_path):
    """A quiet Trainer on the CPU, with the strategy under test where there are two ranks."""

    def make(ranks, **options):
        quiet = ("enable_progress_bar", "enable_model_summary", "logger", "enable_checkpointing")
        options = {"strategy": per_module() if ranks > 1 else "auto", **dict.fromkeys(quiet, False)} | options
        return pl.Trainer(accelerator="cpu", devices=ranks, default_root_dir=tmp_path, **options)

    return make


def train(make_trainer, model, path, ranks, batch=16, steps=3, **options):
    """Weights by name, and how far the ranks are apart."""
    model.path = path
    trainer = make_trainer(ranks, max_steps=steps, limit_val_batches=0, callbacks=[Saver()], **options)
    trainer.fit(model, Digits(batch_size=batch // ranks, low=-1.0, high=1.0))
    return torch.load(path)


class Saver(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        weights = dict(pl_module.named_parameters())
        joined = torch.cat([weight.detach().flatten() for weight in weights.values()])
        gathered = pl_module.all_gather(joined).view(-1, len(joined))
        if trainer.is_global_zero:
            state = {key: value.detach().clone() for key, value in pl_module.state_dict().items()}
            gap = float((gathered - gathered[:1]).abs().max())
            torch.save({"state": state, "gap": gap, "steps": trainer.global_step}, pl_module.path)


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.05)


def assert_equal(one, two):
    assert two["gap"] == 0
    assert one["steps"] == two["steps"]
    assert one["state"].keys() == two["state"].keys()
    for key, value in one["state"].items():
        torch.testing.assert_close(two["state"][key], value, rtol=1e-6, atol=1e-6, msg=key)


class Orders(pl.LightningModule):
    """A GAN of two perceptrons whose step is one of several, written with Lightning's own means."""

    def __init__(self, order):
        super().__init__()
        torch.manual_seed(5)
        self.automatic_optimization = False
        self.order = order
        self.generator = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1024), nn.Tanh())
        self.discriminator = nn.ModuleList([nn.Linear(1024, 16), nn.Linear(16, 1)])
        self.temperature = nn.Parameter(torch.ones(()))
        self.unused = nn.Linear(2, 2).requires_grad_(False)

    def configure_optimizers(self):
        return [sgd(self.generator.parameters()), sgd([*self.discriminator.parameters(), self.temperature])]

    def judge(self, images):
        return self.discriminator[1](F.relu(self.discriminator[0](images))) * self.temperature

    def training_step(self, batch, batch_idx):
        real = batch[0].flatten(1)
        ranks = self.trainer.world_size
        rows = torch.randn(len(real) * ranks, 8, generator=torch.Generator().manual_seed(batch_idx))
        self.noise = rows[self.global_rank :: ranks]
        getattr(self, self.order)(real, *self.optimizers())

    def backward_and_step(self, optimizer, *losses):
        optimizer.zero_grad()
        for loss in losses:
            self.manual_backward(loss)
        optimizer.step()

    def listing(self, real, g, d):
        fake = self.generator(self.noise)
        self.backward_and_step(d, discriminator_loss(self.judge(real), self.judge(fake.detach())))
        self.backward_and_step(g, generator_loss(self.judge(fake)))

    def separate_passes(self, real, g, d):
        # Both forward passes, then two backward passes.
        fake = self.generator(self.noise)
        errors = F.softplus(-self.judge(real)).mean(), F.softplus(self.judge(fake.detach())).mean()
        self.backward_and_step(d, *errors)
        self.backward_and_step(g, generator_loss(self.judge(fake)))

    def discriminator_first(self, real, g, d):
        for optimizer in (d, g):
            self.toggle_optimizer(optimizer)
            fake = self.generator(self.noise)
            loss = generator_loss(self.judge(fake)) if optimizer is g else None
            if loss is None:
                loss = discriminator_loss(self.judge(real), self.judge(fake))
            self.backward_and_step(optimizer, loss)
            self.untoggle_optimizer(optimizer)

    def generator_first(self, real, g, d):
        self.backward_and_step(g, generator_loss(self.judge(self.generator(self.noise))))
        fake = self.generator(self.noise).detach()
        self.backward_and_step(d, discriminator_loss(self.judge(real), self.judge(fake)))

    def generator_every_second(self, real, g, d):
        fake = self.generator(self.noise)
        self.backward_and_step(d, discriminator_loss(self.judge(real), self.judge(fake.detach())))
        if self.global_step % 2:
            self.backward_and_step(g, generator_loss(self.judge(fake)))

    def part_of_the_generator(self, real, g, d):
        # Only a part of a child is trained in some passes.
        self.generator[0].requires_grad_(self.global_step % 4 < 2)
        self.listing(real, g, d)

    def accumulated(self, real, g, d):
        half = len(real) // 2
        fake = self.generator(self.noise)
        d.zero_grad()
        for part, last in ((slice(half), False), (slice(half, None), True)):
            with d.toggle_model(sync_grad=last):
                loss = discriminator_loss(self.judge(real[part]), self.judge(fake[part].detach()))
                self.manual_backward(loss / 2)
        d.step()
        self.backward_and_step(g, generator_loss(self.judge(fake)))


ORDERS = [
    "listing",
    "separate_passes",
    "discriminator_first",
    "generator_first",
    "generator_every_second",
    "part_of_the_generator",
    "accumulated",
]


@pytest.mark.parametrize("order", ORDERS)
def test_two_ranks_equal_one_process_in_any_order(make_trainer, tmp_path, order):
    one = train(make_trainer, Orders(order), tmp_path / "1.pt", 1, steps=5)
    two = train(make_trainer, Orders(order), tmp_path / "2.pt", 2, steps=5)
    assert_equal(one, two)
    start = Orders(order).state_dict()
    for name in ("generator.2.weight", "discriminator.0.weight", "temperature"):
        assert not torch.equal(two["state"][name], start[name])


class Three(pl.LightningModule):
    """Three networks, each with an optimizer, of which one counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.automatic_optimization = False
        self.networks = nn.ModuleList([nn.Linear(1024, 2) for _ in range(3)])
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))

    def configure_optimizers(self):
        return [sgd(network.parameters()) for network in self.networks]

    def training_step(self, batch, batch_idx):
        self.counts[0] += 1
        first, *others = self.optimizers()
        for optimizer, network in zip((first, *others), self.networks, strict=True):
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(network(batch[0].flatten(1)), batch[1] % 2))
        first.step()
        for optimizer in others:
            step_uncounted(self, optimizer)

    def on_before_optimizer_step(self, optimizer):
        self.counts[1] += 1


def test_a_batch_of_three_optimizers_counts_once(make_trainer, tmp_path):
    one = train(make_trainer, Three(), tmp_path / "1.pt", 1, steps=4)
    two = train(make_trainer, Three(), tmp_path / "2.pt", 2, steps=4)
    assert_equal(one, two)
    assert two["steps"] == 4
    assert two["state"]["counts"].tolist() == [4, 12]
    start = Three().state_dict()
    assert not any(
        torch.equal(start[f"networks.{i}.weight"], two["state"][f"networks.{i}.weight"]) for i in range(3)
    )


class Unsynchronised(DDPPerModule):
    def pre_backward(self, closure_loss):
        pass


def unsynchronised():
    return Unsynchronised(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=20))


def test_without_averaging_the_ranks_diverge(make_trainer, tmp_path):
    two = train(make_trainer, Orders("listing"), tmp_path / "2.pt", 2, strategy=unsynchronised())
    assert two["gap"] > 1e-4


def gan(kind=GAN, **options):
    torch.manual_seed(3)
    options = {"architecture": "mlp", "width": 8, "latent_size": 8} | options
    return kind(generator_optimizer=sgd, discriminator_optimizer=sgd, **options)


@pytest.mark.parametrize(
    "options",
    [{"ema": 0.9, "smoothing": 0.1}, {"discriminator_steps": 2, "gradient_clip": 0.05}, {"accumulate": 2}],
    ids=str,
)
def test_gan_on_two_ranks_equals_one_process(make_trainer, tmp_path, options):
    one = train(make_trainer, gan(**options), tmp_path / "1.pt", 1, precision="64-true")
    two = train(make_trainer, gan(**options), tmp_path / "2.pt", 2, precision="64-true")
    assert_equal(one, two)
    assert two["steps"] == 3


def test_gan_without_averaging_diverges(make_trainer, tmp_path):
    two = train(make_trainer, gan(), tmp_path / "2.pt", 2, strategy=unsynchronised(), precision="64-true")
    assert two["gap"] > 1e-4


def test_running_statistics_are_the_same_on_all_ranks(make_trainer, tmp_path):
    def statistics(pl_module):
        return torch.cat([b.flatten().float() for b in pl_module.buffers()])

    class Compare(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            gathered = pl_module.all_gather(statistics(pl_module))
            assert torch.equal(gathered[0], gathered[1])

    model = GAN(width=2, latent_size=4)
    before = statistics(model)
    trainer = make_trainer(2, max_steps=2, limit_val_batches=0, callbacks=[Compare()])
    trainer.fit(model, Digits(batch_size=8, low=-1.0, high=1.0))
    assert not torch.equal(before, statistics(model))


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1)], ids=str)
def test_checkpoints_are_interchangeable_and_runs_resumed(make_trainer, tmp_path, ranks):
    whole = train(make_trainer, gan(ema=0.9), tmp_path / "whole.pt", 1, steps=4)
    first, then = ranks

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    def fit(count, steps, callback, **resume):
        model = gan(ema=0.9)
        model.path = tmp_path / "resumed.pt"
        trainer = make_trainer(count, max_steps=steps, limit_val_batches=0, callbacks=[callback])
        trainer.fit(model, Digits(batch_size=16 // count, low=-1.0, high=1.0), **resume)

    fit(first, 3, Save())
    fit(then, 4, Saver(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert_equal(whole, torch.load(tmp_path / "resumed.pt"))


def test_gradients_of_plain_backward_are_refused(make_trainer, tmp_path):
    class Plain(Orders):
        def manual_backward(self, loss):
            loss.backward()

    with pytest.raises(Exception, match=r"Expected `self.manual_backward\(loss\)`"):
        train(make_trainer, Plain("listing"), tmp_path / "2.pt", 2, steps=1)


def test_a_communication_hook_for_each_child(make_trainer, tmp_path):
    class State:
        pass

    def doubled(state, bucket):
        assert isinstance(state, State)
        whole = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
        # The sum of two ranks' gradients is twice their mean.
        return whole.then(lambda done: done.value()[0] / 2)

    strategy = per_module(ddp_comm_hook=doubled, ddp_comm_state=State)
    one = train(make_trainer, Orders("listing"), tmp_path / "1.pt", 1)
    two = train(make_trainer, Orders("listing"), tmp_path / "2.pt", 2, strategy=strategy)
    assert_equal(one, two)


def test_automatic_optimisation_works_too(make_trainer, tmp_path):
    from pl_losses import FullBasicModel

    def model():
        torch.manual_seed(1)
        return FullBasicModel(optimizer=sgd)

    one = train(make_trainer, model(), tmp_path / "1.pt", 1, batch=8, steps=2, accumulate_grad_batches=2)
    two = train(make_trainer, model(), tmp_path / "2.pt", 2, batch=8, steps=2, accumulate_grad_batches=2)
    assert_equal(one, two)


@pytest.mark.parametrize("sampled", [True, False], ids=["DistributedSampler", "BatchLoader"])
def test_the_report_is_that_of_one_process(make_trainer, sampled):
    from pl_losses import PretrainedLeNet5
    from pl_losses.callbacks import GANReport

    # 21 test images do not share out evenly: a DistributedSampler ends with one of the first again.
    data = Digits(low=-1.0, high=1.0, test_size=21, eval_batch_size=21)
    data.setup("test")
    (images, _), *_ = data.test_dataloader()
    results = []
    for ranks in (1, 2):
        trainer = make_trainer(ranks, callbacks=[GANReport(PretrainedLeNet5)])
        batched = Digits(low=-1.0, high=1.0, test_size=21, eval_batch_size=8 // ranks)
        source = DataLoader(images, 8 // ranks) if sampled else batched
        results.append(trainer.test(gan(ema=0.9), source, verbose=False)[0])
    assert "test/lenet_recall" in results[0]
    assert results[1] == pytest.approx(results[0], rel=1e-5)


def test_the_report_judges_each_dataloader_by_itself(make_trainer, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    from pl_losses import PretrainedLeNet5
    from pl_losses.callbacks import GANReport

    class Stream(torch.utils.data.IterableDataset):  # All of it on each rank.
        def __iter__(self):
            return iter(images[:9])

    class Several(GAN):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return super().validation_step(batch, batch_idx)

    data = Digits(low=-1.0, high=1.0, test_size=30, eval_batch_size=30)
    data.setup("test")
    (images, _), *_ = data.test_dataloader()
    results = []
    for ranks in (1, 2):
        logger = CSVLogger(tmp_path, version=ranks)
        trainer = make_trainer(ranks, callbacks=[GANReport(PretrainedLeNet5)], logger=logger)
        loaders = [DataLoader(images[9:], 8 // ranks), DataLoader(Stream(), 4)]
        trainer.validate(gan(Several, ema=0.9), loaders, verbose=False)
        rows = csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines())
        results.append({key: float(value) for row in rows for key, value in row.items() if value})
    assert {"val/lenet_recall", "val/real_output_q50"} < results[0].keys()
    assert results[1] == pytest.approx(results[0], rel=1e-5)


def test_plain_ddp_is_refused_by_name(make_trainer):
    with pytest.raises(Exception, match='Expected `strategy="ddp_per_module"`'):
        make_trainer(2, max_steps=1, strategy="ddp_fork").fit(gan(), Digits(low=-1.0, high=1.0))


def test_a_static_graph_is_refused():
    with pytest.raises(ValueError, match="static_graph"):
        DDPPerModule(static_graph=True)
