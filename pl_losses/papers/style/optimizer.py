"""L-BFGS for a loss without noise whose every evaluation is dear: no point is evaluated twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import check_counts, check_positive, typed

SLOPE = 1e-4  # Of the fall that the slope promises, the share that a step has to bring (Armijo).
TRIALS = 20  # Of one line search; each shortens the step to at most a half.


class MonotoneLBFGS(Optimizer):
    r"""L-BFGS whose loss never rises, for closures that give the same loss and gradient at the same weights.

    .. math::
        x \leftarrow x - t H \nabla f(x), \qquad
        f(x_\text{new}) \leq f(x) - 10^{-4} \, t \, \nabla f^T H \nabla f

    H is made of the last changes of x and of the gradient. The whole step, t = ``lr``, is tried first. If the
    loss falls by too little, t becomes shorter, by a cubic through both ends. So most iterations evaluate
    the closure once. A step begins where the last one ended, and does not evaluate this point again, unless
    the weights were changed in between. :class:`torch.optim.LBFGS` does, and its strong Wolfe conditions also
    refuse steps that are too short.

    Args:
        params: Parameters, real and dense, of one group.
        lr: The t that is tried first.
        max_iter: Iterations of a step.
        history_size: Changes that H is made of. Each takes twice the memory of the parameters.
        stretch: Factor of the usual matrix that H begins with. With 1 most steps end before the loss is least
            along them.
        smooth: For images. H begins with a matrix that multiplies the part of spatial frequency f, in cycles
            per pixel, by :math:`1 / (f + \text{smooth})`. The amplitudes of photographs fall about so.
            ``None``: by 1.

    Raises:
        ValueError: If a number is not positive, there is more than one group, or ``smooth`` is given and a
            parameter has no last dimensions H and W of at least 1.

    Example:
        >>> x = torch.tensor([3.0, -2.0], requires_grad=True)
        >>> optimizer = MonotoneLBFGS([x])
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (torch.tensor([1.0, 10.0]) * x.square()).sum()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> bool(x.abs().max() < 1e-4)
        True
    """

    @typed
    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        *,
        max_iter: int = 20,
        history_size: int = 100,
        stretch: float = 2.0,
        smooth: float | None = None,
    ) -> None:
        check_positive("lr", lr)
        check_positive("stretch", stretch)
        if smooth is not None:
            check_positive("smooth", smooth)
        check_counts(max_iter=max_iter, history_size=history_size)
        options = {"lr": lr, "max_iter": max_iter, "history_size": history_size}
        super().__init__(params, options | {"stretch": stretch, "smooth": smooth})
        shapes = [tuple(one.shape) for one in self.param_groups[0]["params"]]
        if smooth is not None and any(len(shape) < 2 or 0 in shape[-2:] for shape in shapes):
            raise ValueError(f"Expected `params` with `smooth` to be [..., H, W] but got the shapes {shapes}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the parameters; a matrix is of all of them, so there is one group.

        Raises:
            ValueError: If there is one already.
        """
        if self.param_groups:
            raise ValueError("Expected `params` of one group but got another one")
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state; one of an earlier version has neither ``stretch`` nor ``smooth``."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("stretch", 2.0)
            group.setdefault("smooth", None)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Make ``max_iter`` iterations, or fewer if none lowers the loss.

        Args:
            closure: Clears the gradients, computes the loss and its gradients, and returns the loss.

        Returns:
            What the closure returned last.
        """
        closure, returned = torch.enable_grad()(closure), None
        group, parameters = self.param_groups[0], self.param_groups[0]["params"]
        # All is kept with the first parameter, as torch's L-BFGS does: so a checkpoint has it.
        state = self.state[parameters[0]]

        def evaluate(point: Tensor) -> tuple[float, Tensor]:
            nonlocal returned
            place(parameters, point)
            returned = closure()
            return float(returned), gradients(parameters)

        def begin(vector: Tensor) -> Tensor:
            return vector if group["smooth"] is None else low_pass(vector, parameters, group["smooth"])

        here = flat(parameters)
        if "point" not in state or not torch.equal(here, state["point"]):
            state["loss"], state["gradient"] = evaluate(here)
            state["point"] = here
            state.setdefault("moves", [])
            state.setdefault("changes", [])
        for _ in range(group["max_iter"]):
            if not _iterate(state, evaluate, begin, group):
                place(parameters, state["point"])
                break
        if returned is None:  # Trainers rely on it that a step calls the closure.
            evaluate(here)
        return returned


def _iterate(
    state: dict[str, Any],
    evaluate: Callable[[Tensor], tuple[float, Tensor]],
    begin: Callable[[Tensor], Tensor],
    group: dict[str, Any],
) -> bool:
    """Go on from the point of ``state`` to one of a lower loss; return whether there was one."""
    point, loss, gradient = state["point"], state["loss"], state["gradient"]
    moves, changes = state["moves"], state["changes"]
    direction = quasi_newton(gradient, moves, changes, begin=begin, stretch=group["stretch"])
    slope = float(gradient @ direction)
    if not slope < 0:
        return False
    # As long as no curvature is known, no weight changes by more than a unit.
    length = float(group["lr"]) * (1.0 if moves else min(1.0, 1.0 / float(direction.abs().max())))
    for _ in range(TRIALS):
        move = length * direction
        reached, new = evaluate(point + move)
        if reached <= loss + SLOPE * length * slope:
            break
        best = cubic_minimum(length, (loss, reached), (slope, float(new @ direction)))
        length *= min(max(best / length, 0.1), 0.5) if math.isfinite(best) else 0.1
    else:
        # H may be wrong: the next step begins along the gradient.
        moves.clear()
        changes.clear()
        return False
    change = new - gradient
    if move @ change > 1e-10 * (change @ change):
        moves.append(move)
        changes.append(change)
        del moves[: -group["history_size"]], changes[: -group["history_size"]]
    state |= {"point": point + move, "loss": reached, "gradient": new}
    return True


def quasi_newton(
    gradient: Tensor,
    moves: list[Tensor],
    changes: list[Tensor],
    *,
    begin: Callable[[Tensor], Tensor],
    stretch: float,
) -> Tensor:
    r"""Compute :math:`-H \nabla f` by the two loops of Nocedal 1980: [N] -> [N].

    They begin with the matrix A times :math:`s \cdot y / y \cdot A y` of the last change, times ``stretch``.

    Args:
        gradient: Shape [N].
        moves: Changes s of the weights, each [N], the last one last.
        changes: Changes y of the gradient, with s . y > 0.
        begin: Multiplies a vector by A, which is symmetric and positive definite.
        stretch: See :class:`MonotoneLBFGS`.
    """
    direction, shares = -gradient, list[float]()
    products = [float(move @ change) for move, change in zip(moves, changes, strict=True)]
    for move, change, product in zip(reversed(moves), reversed(changes), reversed(products), strict=True):
        shares.append(float(move @ direction) / product)
        direction.add_(change, alpha=-shares[-1])
    direction = begin(direction)
    if moves:
        direction *= stretch * products[-1] / float(changes[-1] @ begin(changes[-1]))
    for move, change, product, share in zip(moves, changes, products, reversed(shares), strict=True):
        direction.add_(move, alpha=share - float(change @ direction) / product)
    return direction


def low_pass(vector: Tensor, parameters: list[Tensor], smooth: float) -> Tensor:
    """Multiply the spatial frequencies f of images by 1 / (f + smooth): [N] -> [N].

    Args:
        vector: The images one after the other.
        parameters: Tensors of their shapes, [..., H, W].
        smooth: In cycles per pixel.
    """
    parts = torch.split(vector, [one.numel() for one in parameters])
    return torch.cat(
        [_low_pass(part.view_as(one), smooth).flatten() for part, one in zip(parts, parameters, strict=True)]
    )


def _low_pass(images: Tensor, smooth: float) -> Tensor:
    height, width = images.shape[-2:]
    wide = at_least_float32(images)  # There is no transform of bfloat16.
    options: Any = {"dtype": wide.dtype, "device": wide.device}
    rows, columns = torch.fft.fftfreq(height, **options)[:, None], torch.fft.rfftfreq(width, **options)
    factor = 1 / (torch.hypot(rows, columns) + smooth)
    smooth_images: Tensor = torch.fft.irfft2(torch.fft.rfft2(wide) * factor, s=(height, width))
    return smooth_images.to(images.dtype)


def cubic_minimum(length: float, values: tuple[float, float], slopes: tuple[float, float]) -> float:
    """Return where the cubic with these values and slopes at 0 and at ``length`` is least; NaN if nowhere.

    >>> cubic_minimum(2.0, (1.0, 1.0), (-2.0, 2.0))
    1.0
    """
    middle = sum(slopes) - 3 * (values[1] - values[0]) / length
    square = middle * middle - slopes[0] * slopes[1]
    if not square >= 0:
        return math.nan
    root = math.sqrt(square)
    return length - length * (slopes[1] + root - middle) / (slopes[1] - slopes[0] + 2 * root)


def flat(parameters: list[Tensor]) -> Tensor:
    """Join parameters to one vector."""
    return torch.cat([one.detach().flatten() for one in parameters])


def place(parameters: list[Tensor], point: Tensor) -> None:
    """Give parameters the values of a vector."""
    parts = torch.split(point, [one.numel() for one in parameters])
    for one, values in zip(parameters, parts, strict=True):
        one.copy_(values.view_as(one))


def gradients(parameters: list[Tensor]) -> Tensor:
    """Join gradients to one vector; 0 where there are none."""
    return flat([torch.zeros_like(one) if one.grad is None else one.grad for one in parameters])
