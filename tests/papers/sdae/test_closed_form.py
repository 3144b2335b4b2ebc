"""The linear denoising autoencoder has a closed form: the regression of x on its corrupted self.

The expectation over the corruption is taken exactly, over all patterns or by its moments, so that the minimum
of our loss and the formula agree to rounding.
"""

from itertools import product

import torch

from pl_losses.losses import reconstruction_loss
from pl_losses.papers.sdae import GaussianNoise, MaskingNoise


def points():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    return torch.randn(50, 4, dtype=torch.float64, generator=generator) @ mixing


def fitted(batches):
    """The minimum of the weighted sum of our losses over W: one Newton step, as the sum is quadratic."""
    start = torch.zeros(4, 4, dtype=torch.float64)

    def total(weights):
        return sum(share * reconstruction_loss(seen @ weights.T, clean) for share, seen, clean in batches)

    gradient = torch.autograd.functional.jacobian(total, start).flatten()
    hessian = torch.autograd.functional.hessian(total, start).view(16, 16)
    return (start.flatten() - torch.linalg.solve(hessian, gradient)).view(4, 4)


def test_masking():
    clean, kept = points(), 0.7
    patterns = [torch.tensor(bits) for bits in product([False, True], repeat=4)]

    class Given(MaskingNoise):
        def choose(self, keys):
            return keys.bool()

    def seen(pattern):
        return Given(0.3, "bernoulli").apply(clean, pattern.expand_as(clean))[0]

    batches = [
        ((1 - kept) ** int(pattern.sum()) * kept ** int((~pattern).sum()), seen(pattern), clean)
        for pattern in patterns
    ]
    scatter = clean.T @ clean / len(clean)
    q = kept**2 * scatter + (kept - kept**2) * scatter.diagonal().diag()
    torch.testing.assert_close(fitted(batches), kept * scatter @ torch.linalg.inv(q), rtol=0, atol=1e-6)


def test_gaussian():
    clean, sigma = points(), 0.8
    # The eight points +-2 sigma e_j have the noise's mean and covariance, which is all a square needs.
    corners = 2.0 * torch.cat([torch.eye(4, dtype=torch.float64), -torch.eye(4, dtype=torch.float64)])
    noise = GaussianNoise(sigma)
    batches = [(1 / 8, noise.apply(clean, corner.expand_as(clean))[0], clean) for corner in corners]
    scatter = clean.T @ clean / len(clean)
    wanted = scatter @ torch.linalg.inv(scatter + sigma**2 * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(fitted(batches), wanted, rtol=0, atol=1e-6)


def test_drawn_masks_approach_the_closed_form():
    clean = points()[:25]
    generator = torch.Generator().manual_seed(1)
    repeated = clean.repeat(1000, 1)
    corrupted, _ = MaskingNoise(0.5)(repeated, generator)
    found = fitted([(1.0, corrupted, repeated)])
    scatter = clean.T @ clean / len(clean)
    # Two of four exactly: both of a pair stay with probability 1/2 * 1/3.
    q = scatter / 6 + (1 / 2 - 1 / 6) * scatter.diagonal().diag()
    torch.testing.assert_close(found, 0.5 * scatter @ torch.linalg.inv(q), rtol=0, atol=0.05)
