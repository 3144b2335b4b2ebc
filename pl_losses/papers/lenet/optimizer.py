r"""LeCun et al. 1998, Appendix C: the stochastic diagonal Levenberg-Marquardt method.

"Gradient-based learning applied to document recognition", Proc. IEEE 86(11). Each weight has its own step
size, set by its second derivative, which is estimated on some patterns before each pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from graphlib import TopologicalSorter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer, ParamsT

from pl_losses.core.compat import of_torch
from pl_losses.core.precision import in_float64
from pl_losses.core.validation import check_counts, typed

Network = Callable[..., Tensor]
Loss = Callable[[Tensor, Any], Tensor]
Seconds = Sequence[Tensor | None]
OutputCurvature = Callable[[Tensor, Any], Tensor] | None
# The paper's eps, each with its last pass; 1e-5 afterwards.
PASSES = ((2, 5e-4), (5, 2e-4), (8, 1e-4), (12, 5e-5))


class StochasticDiagonalLM(Optimizer):
    r"""Stochastic diagonal Levenberg-Marquardt, Appendix C.

    .. math::
        w_k \leftarrow w_k - \frac{\eta}{\mu + h_{kk}} \frac{\partial E^p}{\partial w_k}, \qquad
        h_{kk} = \frac{1}{P} \sum_p \sum_{(i,j) \in V_k} \frac{\partial^2 E^p}{\partial u_{ij}^2}

    :math:`V_k` are the connections that share the weight :math:`w_k`. :meth:`estimate_curvature` finds
    :math:`h_{kk} \geq 0`, kept as ``state[parameter]["curvature"]``: call it before the first step, and again
    before each pass.

    Args:
        params: Parameters or parameter groups; ``lr`` and ``mu`` may differ between groups.
        lr: The paper's global :math:`\eta`, for batches of one pattern; see :class:`LeCun1998Schedule`. Where
            h is far below ``mu``, steps grow with the scale of the loss, which may call for a smaller rate.
        mu: The paper's :math:`\mu`, which bounds the step where the curvature is small.

    Raises:
        ValueError: If ``lr`` is negative or ``mu`` not above 0.

    Example:
        >>> line = nn.Linear(1, 1, bias=False)
        >>> optimizer = StochasticDiagonalLM(line.parameters(), lr=0.1)
        >>> patterns = [(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))]
        >>> optimizer.estimate_curvature(line, patterns, lambda y, t: 0.5 * (y - t).square().mean())
        >>> optimizer.state[line.weight]["curvature"]
        tensor([[5.]])
    """

    @typed
    def __init__(self, params: ParamsT, lr: float | Tensor = 5e-4, mu: float = 0.02) -> None:
        if not lr >= 0:
            raise ValueError(f"Expected `lr` to be at least 0 but got {lr}")
        if not mu > 0:
            raise ValueError(f"Expected `mu` to be above 0 but got {mu}")
        self._rates: dict[Tensor, tuple[Tensor, int, float, Tensor]] = {}
        self._blank: list[Tensor] = []
        super().__init__(params, {"lr": lr, "mu": mu})

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._rates, self._blank = {}, []

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; return what ``closure``, if given, returns after computing the gradients anew.

        Raises:
            RuntimeError: If the curvature of a parameter with a gradient was never estimated.
        """
        with torch.enable_grad():
            value = closure() if closure is not None else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not group["lr"]:
                # torch.distributed takes such a step to make a state that a checkpoint is loaded into.
                new = [p for p in params if not self.state[p]]
                self._blank += [self.state[p].setdefault("curvature", torch.zeros_like(p)) for p in new]
            elif params:
                rates, grads = [self._rate(p, group["mu"]) for p in params], [p.grad for p in params]
                of_torch.foreach_addcmul_(params, grads, rates, value=-float(group["lr"]))
        return value

    def _rate(self, parameter: Tensor, mu: float) -> Tensor:
        """Return 1 / (mu + h), computed only if h or mu has changed."""
        curvature = self.state[parameter].get("curvature")
        if curvature is None or any(curvature is blank for blank in self._blank):
            raise RuntimeError(f"No curvature of {self._name(parameter)}: call `estimate_curvature` first")
        cached = self._rates.get(parameter)
        if cached and cached[0] is curvature and cached[1] == of_torch.version(curvature) and cached[2] == mu:
            return cached[3]
        rate: Tensor = 1 / (mu + curvature)
        self._rates[parameter] = (curvature, of_torch.version(curvature), mu, rate)
        return rate

    def _name(self, parameter: Tensor) -> str:
        flat = [(g, i, p) for g, group in enumerate(self.param_groups) for i, p in enumerate(group["params"])]
        g, i = next((g, i) for g, i, candidate in flat if candidate is parameter)
        return f"parameter {i} of group {g}, of shape {list(parameter.shape)}"

    def estimate_curvature(
        self,
        network: Network,
        batches: Iterable[object],
        loss: Loss,
        *,
        output_curvature: OutputCurvature = None,
    ) -> None:
        r"""Estimate the diagonal of the Gauss-Newton matrix, averaged over the patterns of ``batches``.

        A second back-propagation, in which weights and slopes are squared and the term with f'' is dropped:

        .. math::
            \frac{\partial^2 E}{\partial u_{ij}^2} = \frac{\partial^2 E}{\partial a_i^2} x_j^2, \quad
            \frac{\partial^2 E}{\partial a_j^2} = f'(a_j)^2\sum_i u_{ij}^2 \frac{\partial^2 E}{\partial a_i^2}

        It starts from the exact diagonal of the Hessian of ``loss`` by the output, negative entries set to 0.
        Paths that meet again (shared weights, skip connections) add up without cross terms; batch norm is a
        fixed affine map. A parameter that only ``loss`` uses, such as adaptable RBF centres, gets the exact
        diagonal of the Hessian, at one backward pass through ``loss`` for each of its elements.

        Modes, gradients, random streams, and the buffers of ``network`` and ``loss`` (modules or methods of
        modules) stay as they were. With several processes, the patterns of all of them count.

        Args:
            network: Maps an input to an output of shape [B, ...].
            batches: Pairs (input, target); tensors are moved to the parameters' device.
            loss: Maps (output, target) to a scalar: the mean over B patterns of a term of each.
            output_curvature: Maps (output, target) to the second derivatives of each pattern's term by the
                output, in its shape: faster, and for a ``loss`` that cannot be differentiated twice.

        Raises:
            NotImplementedError: If second derivatives cannot be carried through an operation of ``network``.
            TypeError: If a batch is no pair or ``network`` returns no tensor of shape [B, ...].
            ValueError: If ``batches`` is empty, a shape is wrong, a parameter is used by neither ``network``
                nor ``loss``, or the estimate is 0 everywhere or not finite.
        """
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if not parameters:
            raise ValueError("Expected a parameter with requires_grad=True but all are frozen")
        totals = _Totals(parameters)
        if isinstance(network, DistributedDataParallel):
            network = network.module  # DDP's forward would prepare for a backward pass that never comes.
        with _undisturbed((network, loss), parameters):
            for batch in batches:
                totals.add_batch(network, batch, loss, output_curvature)
        totals.all_reduce()
        self._adopt(totals)

    def _adopt(self, totals: _Totals) -> None:
        if totals.count == 0:
            raise ValueError("Expected `batches` to hold at least one pattern but got none")
        for parameter in (p for p, reached in totals.reached.items() if not reached):
            raise ValueError(f"Expected `network` or `loss` to use {self._name(parameter)}: else freeze it")
        means = {p: (total / totals.count).clamp(min=0) for p, total in totals.sums.items()}
        if not all(mean.isfinite().all() for mean in means.values()):
            raise ValueError("Expected finite second derivatives but got inf or NaN: check the weights")
        if not any(mean.any() for mean in means.values()):
            raise ValueError(
                "Expected `loss` to be curved, but its second derivatives are 0: where it is linear in the "
                "output, move the last layers (such as RBF units) from `network` into `loss`"
            )
        for parameter, mean in means.items():
            self.state[parameter]["curvature"] = mean.to(parameter)


def lecun_1998_schedule(pass_number: int) -> float:
    """Return the paper's global step size in a pass over the training set, counted from 1.

    Raises:
        ValueError: If ``pass_number`` is below 1.

    Example:
        >>> [lecun_1998_schedule(n) for n in (1, 2, 3, 6, 9, 13)]
        [0.0005, 0.0005, 0.0002, 0.0001, 5e-05, 1e-05]
    """
    check_counts(pass_number=pass_number)
    return next((eta for last, eta in PASSES if pass_number <= last), 1e-5)


class LeCun1998Schedule(LRScheduler):
    """Steps :func:`lecun_1998_schedule` once a pass; other initial rates change in the same ratios."""

    def get_lr(self) -> list[float | Tensor]:
        """Return the step size of each group in this pass."""
        return [base * (lecun_1998_schedule(self.last_epoch + 1) / PASSES[0][1]) for base in self.base_lrs]


class _Totals:
    """Second derivatives summed over patterns."""

    def __init__(self, params: list[Tensor]) -> None:
        self.parameters = params
        self.sums = {p: in_float64(torch.zeros_like(p)) for p in params}
        self.reached = dict.fromkeys(params, 0)
        self.count = 0

    def add_batch(
        self, network: Network, batch: object, loss: Loss, output_curvature: OutputCurvature
    ) -> None:
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            raise TypeError(f"Expected `batches` of pairs (input, target) but got {type(batch).__name__}")
        input, target = (
            part.to(self.parameters[0].device) if isinstance(part, Tensor) else part for part in batch
        )
        output = network(input)
        if not isinstance(output, Tensor) or output.ndim == 0:
            got = "a scalar" if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(f"Expected `network` to return a tensor of shape [B, ...] but got {got}")
        leaf = output.detach().requires_grad_()
        value = loss(leaf, target)
        if value.numel() != 1:
            raise ValueError(f"Expected `loss` to return a scalar but got shape {list(value.shape)}")
        seconds = _propagate(output, _seed(value, leaf, target, output_curvature)) if output.grad_fn else {}
        for parameter in self.parameters:
            second = seconds.get(parameter)
            if second is None and (mean := _hessian_diagonal(value, parameter, 1)) is not None:
                second = len(output) * mean
            if second is not None:
                self.sums[parameter] += in_float64(second)
                self.reached[parameter] = 1
        self.count += len(output)

    def all_reduce(self) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            return
        # All processes join in the same reductions, whichever parameters their own batches reached.
        counts = torch.tensor([self.count, *self.reached.values()], device=self.parameters[0].device)
        dist.all_reduce(counts)
        self.count, *reached = counts.tolist()
        self.reached = dict(zip(self.parameters, reached, strict=True))
        for total in self.sums.values():
            dist.all_reduce(total)


@contextmanager
def _undisturbed(owners: Iterable[object], parameters: list[Tensor]) -> Iterator[None]:
    """Use full precision and gradients within this context; restore random streams and buffers after it."""
    modules = [m for m in (getattr(owner, "__self__", owner) for owner in owners) if isinstance(m, nn.Module)]
    kept = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    devices = {p.device for p in parameters if p.is_cuda}
    full_precision = torch.autocast(parameters[0].device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), full_precision, torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for buffer, value in kept:
                buffer.detach().copy_(value)


def _hessian_diagonal(value: Tensor, variable: Tensor, rows: int) -> Tensor | None:
    """Compute second derivatives of ``value`` by ``variable``'s elements; None if it is independent of it.

    The ``rows`` of the first dimension must not interact in ``value``: they share their backward passes.
    """
    found = value.requires_grad and torch.autograd.grad(value, variable, create_graph=True, allow_unused=True)
    if not found or (gradient := found[0]) is None:
        return None
    diagonal = torch.zeros_like(variable, requires_grad=False).reshape(rows, -1)
    columns = gradient.reshape(rows, -1).sum(0)
    for i in range(len(columns) if columns.requires_grad else 0):
        (second,) = torch.autograd.grad(columns[i], variable, retain_graph=True, allow_unused=True)
        if second is not None:
            diagonal[:, i] = second.reshape(rows, -1)[:, i]
    return diagonal.view_as(variable)


def _seed(value: Tensor, output: Tensor, target: object, output_curvature: OutputCurvature) -> Tensor:
    """Compute the second derivatives of each pattern's own term by the output, at least 0."""
    if output_curvature is None:
        diagonal = _hessian_diagonal(value, output, len(output))
        # The loss is a mean over the batch.
        return torch.zeros_like(output) if diagonal is None else len(output) * diagonal.clamp(min=0)
    seed = output_curvature(output.detach(), target)
    if (got := seed.shape) != output.shape:
        raise ValueError(f"Expected `output_curvature` of shape {list(output.shape)} but got {list(got)}")
    return seed.detach().clamp(min=0)


@torch.no_grad()
def _propagate(output: Tensor, seed: Tensor) -> dict[Tensor, Tensor]:
    """Carry second derivatives from ``output`` back through its autograd graph to the parameters."""
    found: dict[Tensor, Tensor] = {}
    assert output.grad_fn is not None
    arriving: dict[Node, dict[int, Tensor]] = {output.grad_fn: {output.output_nr: seed}}
    for node in _consumers_first(output.grad_fn):
        seconds = arriving.pop(node, {})
        if not seconds:
            continue
        if hasattr(node, "variable"):
            found[node.variable] = seconds[0]
            continue
        ordered = [seconds.get(i) for i in range(len(of_torch.input_shapes(node)))]
        for (source, i), second in zip(node.next_functions, _through(node, ordered), strict=True):
            if source is not None and second is not None:
                second = second.sum_to_size(of_torch.input_shapes(source)[i])  # Broadcast operands share.
                slots = arriving.setdefault(source, {})
                slots[i] = slots[i] + second if i in slots else second
    return found


def _consumers_first(root: Node) -> Iterable[Node]:
    consumers: dict[Node, set[Node]] = {root: set()}
    nodes = [root]
    for node in nodes:  # The list grows on the way.
        for source in (source for source, _ in node.next_functions if source is not None):
            if source not in consumers:
                nodes.append(source)
            consumers.setdefault(source, set()).add(node)
    return TopologicalSorter(consumers).static_order()


def _through(node: Node, seconds: list[Tensor | None]) -> Seconds:
    rule = _RULES.get(re.sub(r"(Backward)?\d*$", "", node.name()))
    if rule is None or (rule is _function and len(node.next_functions) != 1):
        raise NotImplementedError(
            f"Second derivatives cannot be carried back through {node.name()} in `network`. Known are "
            f"{', '.join(sorted(_RULES))}. The last layers of a network can move into `loss`"
        )
    return rule(of_torch.Saved(node), *seconds)


def _copy(node: of_torch.Saved, *seconds: Tensor | None) -> Seconds:
    """Return magnitudes: with coefficients -1, 0 and 1 the ordinary backward pass errs only in signs."""
    sources = node(*seconds)
    return [None if h is None else h.abs() for h in (sources if isinstance(sources, tuple) else [sources])]


def _function(node: of_torch.Saved, h: Tensor, *others: None) -> Seconds:
    """Compute f'(a)^2 h for an elementwise function f."""
    return _squares(h, node(torch.ones_like(h), *others))


def _squares(h: Tensor, *coefficients: Tensor | None) -> Seconds:
    return [None if c is None else h * c * c for c in coefficients]


def _average_pool(node: of_torch.Saved, h: Tensor) -> Seconds:
    if node.ceil_mode or (any(node.padding) and not node.count_include_pad):
        raise NotImplementedError("Average pooling in `network` must divide by the same number everywhere")
    return [node(h / (node.divisor_override or math.prod(node.kernel_size)))]


def _matmul(h: Tensor, left: Tensor | None, right: Tensor | None) -> Seconds:
    by_left = None if right is None else h @ right.square().mT
    return [by_left, None if left is None else left.square().mT @ h]


def _convolution(node: of_torch.Saved, h: Tensor) -> Seconds:
    names = "stride padding dilation transposed output_padding groups"
    geometry = [getattr(node, name) for name in names.split()]
    wanted = [source is not None for source, _ in node.node.next_functions]
    tensors = (h, node.input.square(), node.weight.square(), node.bias_sym_sizes_opt)
    seconds: Seconds = torch.ops.aten.convolution_backward(*tensors, *geometry, wanted)
    return seconds


def _batch_norm(node: of_torch.Saved, h: Tensor) -> Seconds:
    x, weight, dims = node.input, node.weight, [0, *range(2, h.ndim)]
    mean, scale = node.result1, node.result2
    if not node.training:
        eps = node.eps if hasattr(node, "eps") else node.epsilon
        mean, scale = node.running_mean, (node.running_var + eps).rsqrt()
    mean, scale = (part.view(-1, *[1] * (h.ndim - 2)) for part in (mean, scale))
    gain = scale if weight is None else scale * weight.view_as(scale)
    return h * gain.square(), (h * ((x - mean) * scale).square()).sum(dims), h.sum(dims)


_FUNCTIONS = """Abs Atan Celu Clamp ClampMax ClampMin Cos Elu Erf Exp Expm1 Gelu Hardshrink Hardsigmoid
    Hardswish Hardtanh LeakyRelu Log Log1P LogSigmoid Mish NativeDropout Pow Reciprocal Relu Rsqrt Sigmoid
    Silu Sin Softplus Softshrink Sqrt Tanh Threshold"""
_COPIES = """Alias Cat Clone ConstantPadNd Expand Flip Gather Im2Col Index IndexPut IndexSelect MaskedFill Max
    MaxPool2DWithIndices MaxPool3DWithIndices Neg Permute PixelShuffle PixelUnshuffle ReflectionPad2D Repeat
    ReplicationPad2D ReshapeAlias Roll Select Slice Split SplitWithSizes Squeeze Stack Sum T ToCopy Transpose
    Unbind Unfold UnsafeView Unsqueeze UpsampleNearest2D View Where"""
# By the names of autograd's nodes: functions from second derivatives by outputs to those by operands.
_RULES: dict[str, Callable[..., Seconds]] = {
    **dict.fromkeys(_FUNCTIONS.split(), _function),
    **dict.fromkeys(_COPIES.split(), _copy),
    **dict.fromkeys(("Add", "Sub"), lambda node, h: (h, node.alpha**2 * h)),
    "Rsub": lambda node, h: (node.alpha**2 * h,),
    "Mul": lambda node, h: _squares(h, node.other, node.self),
    "Div": lambda node, h: _squares(
        h,
        1 / node.other,
        None if node.self is None else node.self / node.other**2,
    ),
    "Mean": lambda node, h: (node(h * (h.numel() / node.self_sym_numel)),),
    **dict.fromkeys(("AvgPool2D", "AvgPool3D"), _average_pool),
    **dict.fromkeys(("Mm", "Bmm"), lambda node, h: _matmul(h, node.self, node.mat2)),
    "Addmm": lambda n, h: [
        n.beta**2 * h,
        *_matmul(h * n.alpha**2, n.mat1, n.mat2),
    ],
    "Convolution": _convolution,
    **dict.fromkeys(("NativeBatchNorm", "CudnnBatchNorm"), _batch_norm),
}
