"""Gal and Ghahramani 2016, section 4: the uncertainty of T stochastic passes for each input of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import check_positive, typed


@typed
def predictive_entropy(samples: Tensor) -> Tensor:
    r"""Compute the entropy of the passes' mean: all of the uncertainty about the class.

    .. math:: \mathrm{H}\Big[ \frac{1}{T} \sum_t p_t \Big]

    Args:
        samples: Probabilities, [T, B, C].

    Returns:
        [B], in nats, in [0, log C].

    Raises:
        ValueError: If ``samples`` has other dimensions, T is 0 or, on the CPU, they are not probabilities.
            The other functions of probabilities raise it too.

    Example:
        >>> samples = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> predictive_entropy(samples), expected_entropy(samples), mutual_information(samples)
        (tensor([0.6931]), tensor([0.]), tensor([0.6931]))
    """
    check_samples(samples)
    return _entropy(at_least_float32(samples).mean(dim=0))


@typed
def expected_entropy(samples: Tensor) -> Tensor:
    r"""Compute the mean entropy of the passes: the uncertainty that more data would not remove.

    .. math:: \frac{1}{T} \sum_t \mathrm{H}[p_t]

    Args:
        samples: Probabilities, [T, B, C].

    Returns:
        [B], in nats, at most the predictive entropy.
    """
    check_samples(samples)
    return _entropy(at_least_float32(samples)).mean(dim=0)


@typed
def mutual_information(samples: Tensor) -> Tensor:
    r"""Compute predictive minus expected entropy (BALD): how much the passes disagree.

    .. math:: \mathrm{H}\Big[ \frac{1}{T} \sum_t p_t \Big] - \frac{1}{T} \sum_t \mathrm{H}[p_t]

    Args:
        samples: Probabilities, [T, B, C].

    Returns:
        [B], in nats, at least 0.
    """
    # Rounding may leave a difference just below 0.
    return (predictive_entropy(samples) - expected_entropy(samples)).clamp_min(0)


@typed
def variation_ratio(samples: Tensor) -> Tensor:
    """Compute the share of the passes that do not predict the most frequently predicted class.

    Args:
        samples: Probabilities, [T, B, C].

    Returns:
        [B], in [0, 1 - 1/C].

    Example:
        >>> variation_ratio(torch.eye(2)[torch.tensor([[0], [0], [1], [0]])])
        tensor([0.2500])
    """
    check_samples(samples)
    votes = samples.argmax(dim=-1)
    return (votes != votes.mode(dim=0).values).to(at_least_float32(samples).dtype).mean(dim=0)


@typed
def max_probability(samples: Tensor) -> Tensor:
    """Compute the largest probability in the passes' mean: samples [T, B, C] -> [B]."""
    check_samples(samples)
    return at_least_float32(samples).mean(dim=0).amax(dim=-1)


@typed
def predictive_moments(samples: Tensor, precision: float | None = None) -> tuple[Tensor, Tensor]:
    r"""Compute the mean and the variance of an answer from T passes.

    .. math:: \bar y = \frac{1}{T} \sum_t y_t, \qquad \tau^{-1} + \frac{1}{T} \sum_t y_t^2 - \bar y^2

    Args:
        samples: [T, ...].
        precision: :math:`\tau > 0`, in the units of :math:`1 / y^2`; ``None`` leaves out :math:`\tau^{-1}`.

    Returns:
        Mean and variance, [...]. The variance is that of the passes themselves (divided by T), so that it is
        0 for a single pass.

    Raises:
        ValueError: If ``precision`` is not positive, or T is 0.

    Example:
        >>> predictive_moments(torch.tensor([[1.0], [3.0]]), precision=4.0)
        (tensor([2.]), tensor([1.2500]))
    """
    check_positive("precision", precision, none=True)
    if not samples.ndim or not len(samples):
        raise ValueError(f"Expected `samples` of shape [T, ...] with T > 0 but got {list(samples.shape)}")
    variance, mean = torch.var_mean(at_least_float32(samples), dim=0, correction=0)
    return mean, variance + (0 if precision is None else 1 / precision)


@typed
def mc_log_likelihood(samples: Tensor, target: Tensor, tau: float) -> Tensor:
    r"""Compute the log-likelihood of each target: the log of its mean probability over T passes.

    .. math:: \log \frac{1}{T} \sum_t N(y; y_t, \tau^{-1})

    Args:
        samples: [T, B] or [T, B, Q].
        target: [B] or [B, Q].
        tau: Precision of the noise, in the units of :math:`1 / y^2`.

    Returns:
        [B]; with Q outputs the joint log-likelihood.

    Raises:
        ValueError: If the shapes do not fit or ``tau`` is not positive.

    Example:
        >>> mc_log_likelihood(torch.zeros(3, 1), torch.tensor([1.0]), tau=1.0)  # log N(1; 0, 1)
        tensor([-1.4189])
    """
    check_positive("tau", tau, none=True)
    samples, target = fitting(samples, target)
    squares = (target - samples).square().sum(dim=-1)
    constant = samples.shape[-1] * 0.5 * math.log(tau / (2 * math.pi)) - math.log(len(samples))
    return torch.logsumexp(-0.5 * tau * squares, dim=0) + constant


@typed
def predictive_cdf(samples: Tensor, target: Tensor, precision: float | None = None) -> Tensor:
    """Compute P(Y <= y) under the predictive distribution, the mixture of N(y_t, 1/tau) over the passes.

    It is uniform on [0, 1] for a calibrated predictor. y lies in the central interval of probability q if the
    result is within q/2 of 1/2.

    Args:
        samples: [T, B] or [T, B, Q].
        target: [B] or [B, Q].
        precision: tau; ``None`` for passes without noise, with ties counted half.

    Returns:
        [B, Q].

    Raises:
        ValueError: If the shapes do not fit or ``precision`` is not positive.
    """
    check_positive("precision", precision, none=True)
    samples, target = fitting(samples, target)
    if precision is None:
        below = (samples < target).to(samples.dtype) + 0.5 * (samples == target)
    else:
        below = torch.special.ndtr((target - samples) * math.sqrt(precision))
    return below.mean(dim=0)


def check_samples(samples: Tensor) -> None:
    """Refuse samples that are not probabilities of T passes.

    Raises:
        ValueError: If ``samples`` is not of shape [T, B, C], T > 0, or, on the CPU, no probabilities.
    """
    # More dimensions than [T, B, C] may be pixels.
    if samples.ndim < 3 or not len(samples) or not samples.shape[-1]:
        raise ValueError(f"Expected `samples` of shape [T, B, C] with T > 0 but got {list(samples.shape)}")
    check_probabilities("samples", samples)


def check_probabilities(name: str, probabilities: Tensor) -> None:
    """Refuse values that are not probabilities; on the CPU only, as it would wait for another device."""
    if probabilities.device.type != "cpu" or not probabilities.numel():
        return
    sums = probabilities.sum(dim=-1)
    # NaN is allowed: a network that has diverged scores NaN.
    if (probabilities < 0).any() or ((sums - 1).abs() > 1e-2).any():
        raise ValueError(
            f"Expected `{name}` to be probabilities that sum to 1 over the last dimension but got sums in"
            f" {sums.min():.3g}..{sums.max():.3g}, least value {probabilities.min():.3g}: apply a softmax"
        )


def fitting(samples: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with their outputs, [T, B, Q] and [B, Q].

    Raises:
        ValueError: If the shapes do not fit.
    """
    if samples.ndim not in (2, 3) or not len(samples) or target.shape != samples.shape[1:]:
        raise ValueError(
            "Expected `samples` of shape [T, B] or [T, B, Q] with T > 0 and `target` of shape [B] or"
            f" [B, Q] but got {list(samples.shape)} and {list(target.shape)}"
        )
    samples, target = at_least_float32(samples), target.to(at_least_float32(samples).dtype)
    return (samples, target) if samples.ndim == 3 else (samples[..., None], target[..., None])


def _entropy(probabilities: Tensor) -> Tensor:
    """Compute the entropy: [..., C] -> [...]; 0 log 0 is 0."""
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=-1)
    return entropy
