"""How good generated samples are, by features of a classifier: Heusel et al. 2017, Kynkäänniemi et al. 2019.

The numbers depend on the features, and can be compared only with numbers by the same features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from pl_losses.core.compat import of_lightning
from pl_losses.core.metrics import ListMetric
from pl_losses.core.precision import has_float64, in_float64
from pl_losses.core.validation import check_counts, check_shape, typed


@typed
def frechet_distance(
    real_mean: Tensor, real_covariance: Tensor, fake_mean: Tensor, fake_covariance: Tensor
) -> Tensor:
    r"""Compute the squared Fréchet distance of two Gaussians (Dowson and Landau 1982).

    .. math:: |\mu_r - \mu_f|^2 + \mathrm{tr}(C_r + C_f - 2 (C_r C_f)^{1/2})

    The root's trace is that of :math:`(C_r^{1/2} C_f C_r^{1/2})^{1/2}`, which is symmetric: its eigenvalues
    are real, and covariances may be singular.

    Args:
        real_mean: Shape [F].
        real_covariance: Shape [F, F].
        fake_mean: Shape [F].
        fake_covariance: Shape [F, F].

    Returns:
        Scalar, float64; NaN if a mean or a covariance is not finite.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> one, identity = torch.ones(3), torch.eye(3)
        >>> frechet_distance(0 * one, identity, one, 4 * identity)  # 3 * 1 + 3 * (1 - 2)^2
        tensor(6., dtype=torch.float64)
    """
    features = real_mean.numel()
    for name, tensor, shape in (
        ("real_mean", real_mean, (features,)),
        ("fake_mean", fake_mean, (features,)),
        ("real_covariance", real_covariance, (features, features)),
        ("fake_covariance", fake_covariance, (features, features)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"Expected `{name}` of shape {list(shape)} but got {list(tensor.shape)}")
    real, fake = in_float64(real_covariance), in_float64(fake_covariance)
    if not all(part.isfinite().all() for part in (real, fake, real_mean, fake_mean)):
        return real.new_tensor(torch.nan)
    values, vectors = torch.linalg.eigh(real)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    trace = torch.linalg.eigvalsh(root @ fake @ root).clamp_min(0).sqrt().sum()
    shift = (in_float64(real_mean) - in_float64(fake_mean)).square().sum()
    distance: Tensor = shift + real.trace() + fake.trace() - 2 * trace
    return distance


@typed
def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> tuple[Tensor, Tensor]:
    """Compute precision and recall of samples by nearest neighbours (Kynkäänniemi et al. 2019, eqs. 1, 2).

    A sample counts as one of the other set's distribution if it is near a member of that set: at most as far
    away as the k-th nearest neighbour of this member within the set.

    Args:
        real: Features of real samples, [N, F].
        fake: Features of generated samples, [M, F].
        neighbours: k.

    Returns:
        Share of the generated samples that are of the real distribution, and share of the real ones that are
        of the generated distribution; scalars in [0, 1], NaN if a feature is not finite.

    Raises:
        ValueError: If ``neighbours`` is no positive integer, a set has at most k samples, or the sets have
            different numbers of features.

    Example:
        >>> real = torch.arange(8.0)[:, None]
        >>> precision_recall(real, torch.tensor([[0.05], [0.25], [30.0], [30.1]]), neighbours=1)
        (tensor(0.5000), tensor(0.1250))
    """
    check_counts(neighbours=neighbours)
    for name, samples in (("real", real), ("fake", fake)):
        if samples.ndim != 2 or len(samples) <= neighbours or samples.shape[1] != real.shape[1]:
            raise ValueError(
                f"Expected `{name}` of shape [more than {neighbours}, {real.shape[-1]}] but got"
                f" {list(samples.shape)}"
            )
    if not (real.isfinite().all() and fake.isfinite().all()):
        return real.new_tensor(torch.nan), real.new_tensor(torch.nan)
    # Distances come from products of features: without a large mean, less precision is lost.
    centre = in_float64(real).mean(dim=0)
    real, fake = in_float64(real) - centre, in_float64(fake) - centre
    return _within(fake, real, neighbours), _within(real, fake, neighbours)


def _within(samples: Tensor, members: Tensor, neighbours: int) -> Tensor:
    # The nearest neighbour of a member in its own set is the member itself.
    nearest = [
        torch.cdist(part, members).kthvalue(neighbours + 1, dim=1) for part in torch.split(members, 1000)
    ]
    radii = torch.cat([found.values for found in nearest])
    inside = [(torch.cdist(part, members) <= radii).any(dim=1) for part in torch.split(samples, 1000)]
    return torch.cat(inside).float().mean()


class FrechetDistance(of_lightning.MovedMetric):
    """The Fréchet distance of two sets of features, exact over any number of ranks.

    Args:
        features: F.

    Example:
        >>> distance = FrechetDistance(2)
        >>> samples = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
        >>> distance.update(samples, real=True)
        >>> distance.update(samples + torch.tensor([3.0, 0.0]), real=False)
        >>> f"{distance.compute():.4f}"
        '9.0000'
    """

    full_state_update = False
    counts: Tensor
    sums: Tensor
    products: Tensor

    @typed
    def __init__(self, features: int) -> None:
        super().__init__()
        check_counts(features=features)
        shapes = {"counts": (2,), "sums": (2, features), "products": (2, features, features)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def moved(self, state: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Move a sum; all of them stay on the host if the device has no float64."""
        return fn(state) if has_float64(fn(torch.zeros(()))) else state

    @typed
    def update(self, features: Tensor, real: bool) -> None:
        """Add features [B, F] of real or of generated samples."""
        check_shape("features", features, "B", self.sums.shape[1])
        which, own = int(not real), in_float64(features)
        self.counts[which] += len(own)
        self.sums[which] += own.sum(dim=0)
        self.products[which] += own.T @ own

    def compute(self) -> Tensor:
        """Compute the distance, a scalar; NaN with fewer than two samples of either kind."""
        if self.counts.min() < 2:
            return self.sums.new_tensor(torch.nan)
        means = self.sums / self.counts[:, None]
        outer = self.counts[:, None, None] * means[:, :, None] * means[:, None, :]
        covariances = (self.products - outer) / (self.counts - 1)[:, None, None]
        return frechet_distance(means[0], covariances[0], means[1], covariances[1])


class PrecisionRecall(ListMetric):
    """Precision and recall by nearest neighbours, over all samples of all ranks.

    Args:
        features: F.
        neighbours: k, see :func:`precision_recall`.
    """

    full_state_update = False
    real: list[Tensor]
    fake: list[Tensor]

    @typed
    def __init__(self, features: int, neighbours: int = 3) -> None:
        super().__init__()
        check_counts(features=features, neighbours=neighbours)
        self.neighbours = neighbours
        self.add_rows("real", features)
        self.add_rows("fake", features)

    @typed
    def update(self, features: Tensor, real: bool) -> None:
        """Add features [B, F] of real or of generated samples."""
        check_shape("features", features, "B", self._rows["real"].shape[1])
        self.keep(**{"real" if real else "fake": features})

    def compute(self) -> tuple[Tensor, Tensor]:
        """Compute precision and recall, scalars in [0, 1]; NaN with too few samples."""
        real, fake = self.rows("real"), self.rows("fake")
        if min(len(real), len(fake)) <= self.neighbours:
            return real.new_tensor(torch.nan), real.new_tensor(torch.nan)
        return precision_recall(real, fake, self.neighbours)


class ClassShares(Metric):
    """Share of each class among generated samples, by a classifier's scores.

    Args:
        classes: C.

    Example:
        >>> shares = ClassShares(2)
        >>> shares.update(torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [0.0, 2.0]]))
        >>> shares.compute()
        tensor([0.2500, 0.7500])
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Tensor) -> None:
        """Add the scores [B, C] of generated samples."""
        self.counts += torch.bincount(scores.argmax(dim=1), minlength=len(self.counts))

    def compute(self) -> Tensor:
        """Compute the shares [C], which sum to 1."""
        return self.counts / self.counts.sum()
