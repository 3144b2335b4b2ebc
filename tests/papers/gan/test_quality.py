import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from scipy.linalg import sqrtm
from torch import nn

from pl_losses import GAN, PretrainedLeNet5
from pl_losses.callbacks import GANReport
from pl_losses.data import MNIST, Digits
from pl_losses.papers.gan import frechet_distance, precision_recall
from pl_losses.papers.gan.drawing import draw_samples
from pl_losses.papers.gan.noise import spherical
from pl_losses.papers.gan.quality import ClassShares, FrechetDistance, PrecisionRecall
from pl_losses.papers.lenet.features import WEIGHTS, package


def covariance(rank, generator, size=6):
    factor = torch.randn(size, rank, dtype=torch.float64, generator=generator)
    return factor @ factor.T


@pytest.mark.parametrize("rank", [6, 3])
def test_frechet_distance_by_the_matrix_root(rank):
    generator = torch.Generator().manual_seed(0)
    first, second = covariance(6, generator), covariance(rank, generator)
    means = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    root = torch.from_numpy(sqrtm((first @ second).numpy()).real)
    expected = (means[0] - means[1]).square().sum() + (first + second - 2 * root).trace()
    found = frechet_distance(means[0], first, means[1], second)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(frechet_distance(means[1], second, means[0], first), found)
    same = frechet_distance(means[0], second, means[0], second)
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-6)


def test_frechet_distance_of_diagonal_gaussians():
    a, b = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([9.0, 4.0, 2.0])
    found = frechet_distance(torch.zeros(3), a.diag(), torch.ones(3), b.diag())
    torch.testing.assert_close(found, 3 + (a.sqrt() - b.sqrt()).square().sum().double())
    with pytest.raises(ValueError, match=r"`fake_covariance` of shape \[3, 3\] but got \[2, 2\]"):
        frechet_distance(torch.zeros(3), a.diag(), torch.zeros(3), torch.eye(2))


def test_the_metric_is_that_of_the_joined_samples():
    generator = torch.Generator().manual_seed(1)
    real = torch.randn(50, 4, generator=generator) + 100
    fake = 2 * torch.randn(40, 4, generator=generator) + 101
    metric = FrechetDistance(4)
    for part in real.split(20):
        metric.update(part, real=True)
    for part in fake.split(15):
        metric.update(part, real=False)
    expected = frechet_distance(
        real.double().mean(0), real.double().T.cov(), fake.double().mean(0), fake.double().T.cov()
    )
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-8, atol=1e-8)
    metric.reset()
    metric.update(real[:1], real=True)
    assert metric.compute().isnan()


def by_hand(samples, members, k):
    """Share of the samples inside the ball around a member to its k-th neighbour."""
    inside = 0
    for sample in samples:
        for member in members:
            radius = sorted(float((member - other).norm()) for other in members)[k]
            if float((sample - member).norm()) <= radius:
                inside += 1
                break
    return inside / len(samples)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_in_loops(k):
    generator = torch.Generator().manual_seed(2)
    real = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    fake = 0.5 * torch.randn(15, 3, generator=generator, dtype=torch.float64) + 0.8
    found = precision_recall(real, fake, k)
    expected = by_hand(fake, real, k), by_hand(real, fake, k)
    assert tuple(map(float, found)) == pytest.approx(expected)
    assert 0 < expected[1] < expected[0]
    metric = PrecisionRecall(real.shape[1], k)
    for part in (slice(8), slice(8, None)):
        metric.update(real[part], real=True)
        metric.update(fake[part], real=False)
    assert [float(value) for value in metric.compute()] == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"`fake` of shape \[more than 3, 3\] but got \[3, 3\]"):
        precision_recall(real, fake[:3], 3)


def test_a_large_mean_of_the_features_does_no_harm():
    generator = torch.Generator().manual_seed(4)
    # What float32 keeps of features that are 1000 and more.
    real, fake = (1000 + spread * torch.randn(40, 84, generator=generator) for spread in (1.0, 0.95))
    expected = by_hand(fake.double(), real.double(), 3), by_hand(real.double(), fake.double(), 3)
    assert 0 < expected[1] < expected[0] < 1
    assert tuple(map(float, precision_recall(real, fake))) == pytest.approx(expected)


def test_features_that_are_not_finite_have_no_figures():
    samples = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    broken = samples.clone()
    broken[3, 1] = torch.nan
    assert all(value.isnan() for value in precision_recall(samples, broken))
    metric = FrechetDistance(2)
    metric.update(samples, real=True)
    metric.update(broken, real=False)
    assert metric.compute().isnan()


@pytest.mark.parametrize("neighbours", [0, -1, 1.5])
def test_neighbours_are_counted(neighbours):
    for make in (
        lambda: precision_recall(torch.rand(9, 2), torch.rand(9, 2), neighbours),
        lambda: PrecisionRecall(2, neighbours),
    ):
        with pytest.raises(
            (TypeError, ValueError), match=f"`neighbours` to be (an integer|at least 1) but got {neighbours}"
        ):
            make()


def test_class_shares():
    shares = ClassShares(3)
    shares.update(torch.eye(3)[[0, 0, 2]])
    shares.update(torch.eye(3)[[2]])
    assert shares.compute().tolist() == [0.5, 0, 0.5]


def test_spherical_interpolation_keeps_the_length():
    ends = torch.randn(2, 3, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = ends / ends.norm(dim=2, keepdim=True)
    points = spherical(unit[0], unit[1], 5)
    torch.testing.assert_close(points.norm(dim=2), torch.ones(3, 5, dtype=torch.float64))
    torch.testing.assert_close(points[:, 0], unit[0])
    torch.testing.assert_close(points[:, -1], unit[1])


def test_samples_are_drawn_in_reading_order():
    images = torch.arange(5.0)[:, None, None, None].expand(5, 1, 2, 2) / 5
    grid = torch.as_tensor(draw_samples(images, 3).axes[0].images[0].get_array())
    assert grid.shape == (7, 10, 3)
    assert (grid == grid[..., :1]).all()
    torch.testing.assert_close(grid[1, 1::3, 0], (torch.tensor([0, 0.2, 0.4]) + 1) / 2)
    torch.testing.assert_close(grid[4, 1:7:3, 0], (torch.tensor([0.6, 0.8]) + 1) / 2)


def test_pretrained_lenet_reads_mnist(mnist_root):
    data = MNIST(pad=0, low=-1.0, high=1.0)
    data.setup("test")
    features = PretrainedLeNet5()
    wrong = 0
    for images, target in data.test_dataloader():
        found = features(images)
        assert found.shape == (len(images), 84)
        wrong += int((features.scores(found).argmax(dim=1) != target).sum())
    assert wrong <= 100


def test_pretrained_lenet_is_the_same_for_all_ranges_and_sizes():
    assert WEIGHTS.stat().st_size < 300_000
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = PretrainedLeNet5(0.0, 1.0)(images)
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    torch.testing.assert_close(PretrainedLeNet5(0.0, 1.0)(padded), found)
    torch.testing.assert_close(PretrainedLeNet5()(2 * images - 1), found)
    with pytest.raises(ValueError, match=r"\[B, 1, 32, 32\] but got \[3, 3, 28, 28\]"):
        PretrainedLeNet5()(images.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="`low` to be less than `high`"):
        PretrainedLeNet5(1.0, 0.0)


def test_packaging_a_checkpoint(tmp_path):
    from pl_losses import LeNet5

    model = LeNet5()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "x.ckpt")
    package(str(tmp_path / "x.ckpt"), tmp_path / "x.pt")
    packed = torch.load(tmp_path / "x.pt", weights_only=True)
    torch.testing.assert_close(packed["network.c1.weight"], model.network.c1.weight.half())


class Mean(nn.Module):
    """Features that are the mean and deviation of the pixels; bright or dark are the classes."""

    name = "pixel"

    def forward(self, images):
        return torch.stack([images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3))], dim=1)

    def scores(self, features):
        return torch.stack([features[:, 0], -features[:, 0]], dim=1)


class Wide(nn.Module):
    """What torchmetrics takes for Inception."""

    num_features = 2

    def forward(self, images):
        return Mean()(images.float() / 255)


def test_report_logs_and_draws(tmp_path):
    from torchmetrics.image.fid import FrechetInceptionDistance

    def inception():
        return FrechetInceptionDistance(feature=Wide(), normalize=True)

    report = GANReport(features=Mean, metric=inception, samples=9)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=2,
        log_every_n_steps=1,
        logger=CSVLogger(tmp_path),
        callbacks=[report],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(0)
    model = GAN(architecture="mlp", width=4, latent_size=4)
    data = Digits(batch_size=16, low=-1.0, high=1.0, eval_batch_size=100)
    trainer.fit(model, data)
    classes = {"classes_covered", "smallest_class", "largest_class"}
    figures = {"frechet_distance", "precision", "recall"} | classes | {f"real_{key}" for key in classes}
    assert figures == {key.removeprefix("<name>_") for key in GANReport.KEYS if key.startswith("<name>_")}
    wanted = {f"val/pixel_{key}" for key in figures} | {"val/frechet_inception_distance"}
    assert wanted <= set(trainer.logged_metrics)
    tested = trainer.test(model, data, verbose=False)[0]
    # The figures are those of the test images and as many generated ones, the same noise as in the step.
    real = torch.cat([batch[0] for batch in data.test_dataloader()])
    noise = torch.cat([model.fixed_noise(64, model.seed, "test", block) for block in range(5)])
    fake = model.generate(noise[: len(real)])
    first, second = Mean()(real).double(), Mean()(fake).double()
    by_hand = frechet_distance(first.mean(0), first.T.cov(), second.mean(0), second.T.cov())
    assert tested["test/pixel_frechet_distance"] == pytest.approx(float(by_hand), rel=1e-4)
    for prefix, samples in (("", fake), ("real_", real)):
        bright = float((Mean()(samples)[:, 0] > 0).float().mean())
        found = [tested[f"test/pixel_{prefix}{key}_class"] for key in ("smallest", "largest")]
        assert found == pytest.approx(sorted((bright, 1 - bright)))
    pictures = {path.stem for path in tmp_path.rglob("pictures/*.png")}
    assert pictures == {
        *("train-samples", "test-samples", "test-interpolation", "test-outputs", "test-classes"),
    }
    rows = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    assert {"val/real_output_q05", "val/fake_output_q95"} <= set(rows[0].split(","))


def test_report_without_features_draws_only(tmp_path):
    report = GANReport()
    trainer = pl.Trainer(
        accelerator="cpu", logger=CSVLogger(tmp_path), callbacks=[report], enable_progress_bar=False
    )
    tested = trainer.test(GAN(architecture="mlp", width=2, latent_size=2), Digits(low=-1.0), verbose=False)
    assert set(tested[0]) == {"test/loss", "test/real_output", "test/fake_output"}
    assert not list(tmp_path.rglob("test-classes.png"))
    assert list(tmp_path.rglob("test-samples.png"))


def test_report_refuses():
    with pytest.raises((TypeError, ValueError), match="`samples` to be at least 1 but got 0"):
        GANReport(samples=0)
    with pytest.raises(TypeError, match="`features` to be a function that makes a module"):
        GANReport(features=Mean())
    trainer, model = pl.Trainer(logger=False, accelerator="cpu"), GAN(width=2, latent_size=2)
    with pytest.raises(TypeError, match=r"`features` to make a torch.nn.Module but got 3"):
        GANReport(features=lambda: 3).setup(trainer, model, "fit")
    with pytest.raises(TypeError, match="Expected a GAN to report on but got LightningModule"):
        GANReport().setup(trainer, pl.LightningModule(), "fit")
