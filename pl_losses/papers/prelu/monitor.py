"""He et al. 2015, section 2.1 and Table 1: how the learned slopes of a network's PReLUs move.

f(y) = max(0, y) + a min(0, y): a = 0 is a ReLU, a = 1 the identity, a < 0 folds the negative side up.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from copy import deepcopy
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from pl_losses.observers.monitor import (
    Array,
    Monitor,
    Numbers,
    Part,
    Row,
    bring_together,
    logged_step,
    optimizer_names,
    own_shard,
    unwrap,
    vector,
)
from pl_losses.observers.pictures import log_figure
from pl_losses.papers.prelu.drawing import History, draw_final_slopes, draw_heat_map

# What torch puts around a module: its name would make the keys of a compiled run others than of a plain one.
WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module"}
QUANTILES = {"q05": 0.05, "median": 0.5, "q95": 0.95}
POOLED = ("mean", "min", "max", "below_0", "above_1")


class PReLUSlopeMonitor(Monitor):
    """Shows the slopes of every ``nn.PReLU``, also of subclasses, of any LightningModule.

    A layer is named by its module path, as in ``prelu/network.3/mean``; one that is shared, or that shares
    its slopes, appears once, by its first name. Layers that are added during training appear when they come,
    lazy ones when they know their size; frozen ones are shown, too. Slopes are those after the step (with
    several optimizers: after the last step of the batch), gradients and momenta those of the step that their
    own optimizer made: after clipping, without the scale of mixed precision. Slopes that are passed to
    ``torch.nn.functional.prelu`` directly are not found.

    At the end of training, and when it is interrupted, draws a heat map of the mean slopes over the steps and
    a bar chart of the final slopes by depth, as in the paper's Table 1. The history is kept in checkpoints.

    Warns once if a weight decay reaches the slopes: it draws them to 0, that is to a ReLU.

    Args:
        every_n_steps: Look at every n-th step; the trainer's ``log_every_n_steps`` if ``None``.
        modules: Show only layers whose path fits this pattern, such as ``"backbone.*"``.

    Raises:
        ValueError: If ``every_n_steps`` is not a positive integer.
        TypeError: If ``modules`` is not a string.

    Example:
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> trainer = Trainer(callbacks=[PReLUSlopeMonitor(every_n_steps=100)], logger=CSVLogger("logs"))
    """

    KEYS: ClassVar[dict[str, str]] = {
        "prelu/<layer>/mean": "mean slope over the layer's channels",
        "prelu/<layer>/min": "smallest slope",
        "prelu/<layer>/max": "largest slope",
        "prelu/<layer>/q05": "5 % quantile of the slopes",
        "prelu/<layer>/median": "median slope",
        "prelu/<layer>/q95": "95 % quantile of the slopes",
        "prelu/<layer>/below_0": "share of slopes below 0, in [0, 1]: not monotonic",
        "prelu/<layer>/above_1": "share of slopes above 1, in [0, 1]: steeper on the negative side",
        "prelu/<layer>/grad_norm": "L2 norm of the gradient of the slopes, after clipping",
        "prelu/<layer>/momentum_norm": "L2 norm of the slopes' `momentum_buffer` or `exp_avg`",
        "prelu/<layer>/slopes": "histogram over channels, of layers with more than one",
        "prelu/mean": "mean over the slopes of all layers",
        "prelu/min": "smallest slope of all",
        "prelu/max": "largest slope of all",
        "prelu/below_0": "share of all slopes below 0, in [0, 1]",
        "prelu/above_1": "share of all slopes above 1, in [0, 1]",
        "prelu/heat_map": "image, at the end: mean slope of each layer over the steps",
        "prelu/final_slopes": "image, at the end: mean, smallest and largest slope of each layer by depth",
    }

    def __init__(self, every_n_steps: int | None = None, modules: str = "*") -> None:
        super().__init__(every_n_steps)
        if not isinstance(modules, str):
            raise TypeError(f"Expected `modules` to be a pattern of module paths but got {modules!r}")
        self.modules = modules
        self._history = History()
        self._latest: dict[str, tuple[float, float, float]] = {}  # Mean, min, max; on rank zero.
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        """The history of the mean slopes, plain data."""
        return {"history": deepcopy(vars(self._history))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history of a checkpoint."""
        vars(self._history).update(deepcopy(state_dict["history"]))

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of what is wrong before the first step; forget a training before, unless this continues it."""
        self._latest, self._warned = {}, False
        if trainer.global_step == 0:
            self._history = History()
        paths = [clean(path) for path, layer in pl_module.named_modules() if isinstance(layer, nn.PReLU)]
        if not any(fnmatchcase(path, self.modules) for path in paths):
            rank_zero_warn(
                f"PReLUSlopeMonitor found no nn.PReLU in {type(pl_module).__name__}"
                + (f" that fits `modules` = {self.modules!r}" if paths else "")
                + ", so it logs nothing"
            )
        self._warn_of_decay(trainer, find_slopes(pl_module, self.modules))

    def collect(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> list[Part]:
        """All slopes, and the gradients and momenta of those that this optimizer moves."""
        # Looking for them each time costs microseconds and misses nothing that came, went or was replaced.
        layers = find_slopes(pl_module, self.modules)
        if not layers:
            return []
        self._warn_of_decay(trainer, layers)
        return [self._part(trainer, layers, optimizer)]

    def _part(self, trainer: Trainer, layers: dict[str, Tensor], optimizer: Optimizer | None) -> Part:
        sums = gather(layers, optimizer, self._sharded, trainer.global_rank)
        sizes = {path: slopes.numel() for path, slopes in layers.items()}
        step = None if optimizer is None else logged_step(trainer)
        return Part(sums, [], partial(self._finish, sizes, step))

    def _finish(self, sizes: dict[str, int], step: int | None, sums: Array, maxima: Array, row: Row) -> None:
        # With several optimizers the last one of the batch overwrites what the others said of the slopes.
        total, start = sum(sizes.values()), 0
        values, held = sums[: 3 * total].reshape(3, total), sums[3 * total :].reshape(2, -1).tolist()
        self._latest = {}
        for index, (path, size) in enumerate(sizes.items()):
            slopes, *others = values[:, start : start + size]
            start += size
            described = describe(slopes)
            _, low, high = self._latest[path] = described["mean"], described["min"], described["max"]
            for key, other, there in zip(("grad_norm", "momentum_norm"), others, held, strict=True):
                if there[index] > 0:
                    described[key] = math.sqrt(np.dot(other, other))
            row.scalars |= {f"prelu/{path}/{key}": value for key, value in described.items()}
            # A histogram has no place for what a diverged training leaves.
            if size > 1 and math.isfinite(low) and math.isfinite(high):
                row.histograms[f"prelu/{path}/slopes"] = slopes
        pooled = describe(values[0])
        row.scalars |= {f"prelu/{key}": pooled[key] for key in POOLED}
        if step is not None:
            self._history.add(step, {path: mean for path, (mean, _, _) in self._latest.items()})

    def _warn_of_decay(self, trainer: Trainer, layers: dict[str, Tensor]) -> None:
        if self._warned:
            return
        reached = [
            (index, number, paths)
            for index, optimizer in enumerate(trainer.optimizers)
            for number, group in enumerate(unwrap(optimizer).param_groups)
            if group.get("weight_decay")
            and (paths := [path for path in members(group, layers) if layers[path].requires_grad])
        ]
        if reached:
            self._warned = True
            names = optimizer_names(trainer.optimizers)
            where = "; ".join(
                f"{names[index][number]} ({in_short(paths)})" for index, number, paths in reached
            )
            rank_zero_warn(
                f"Weight decay draws slopes of PReLUs to 0, where they are ReLUs: in {where}."
                " Put the slopes into a parameter group with weight_decay=0"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the final slopes together (on all ranks if sharded) and draw (on rank zero)."""
        watching = bool(self._handles)
        super().on_train_end(trainer, pl_module)
        layers = find_slopes(pl_module, self.modules) if watching else {}
        if layers:
            # The last step need not have been a logged one.
            bring_together([self._part(trainer, layers, None)], trainer, self._sharded)
            self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the optimizers; after an interruption, draw what was logged last."""
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        latest, self._latest = self._latest, {}
        if not latest or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        log_figure(trainer, "prelu/final_slopes", draw_final_slopes(latest))
        history = self._history
        if len(history.steps) > 1:
            # In the order of definition; layers that are gone come last.
            means = {path: history.means[path] for path in latest if path in history.means} | history.means
            log_figure(trainer, "prelu/heat_map", draw_heat_map(history.steps, means))


def clean(path: str) -> str:
    """A module's path without the names that ``torch.compile`` and activation checkpointing put into it.

    Example:
        >>> clean("network._orig_mod.3")
        'network.3'
    """
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def find_slopes(module: nn.Module, pattern: str = "*") -> dict[str, Tensor]:
    """The slopes of every PReLU by its path, in the order of definition; lazy ones without size left out.

    Args:
        module: Where to look, at any depth.
        pattern: Which paths are wanted.

    Example:
        >>> list(find_slopes(nn.Sequential(nn.Linear(2, 3), nn.PReLU(3), nn.Sequential(nn.PReLU()))))
        ['1', '2.0']
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()

    def look(layer: nn.Module, path: str) -> None:
        if isinstance(layer, nn.PReLU) and (pattern == "*" or fnmatchcase(path, pattern)):
            slopes = layer.weight
            if id(slopes) not in seen and not is_lazy(slopes):
                found[path] = slopes
                seen.add(id(slopes))
        for name, child in layer._modules.items():
            # As named_modules, but faster: most layers are leaves of no interest.
            if child is not None and (child._modules or isinstance(child, nn.PReLU)):
                look(child, path if name in WRAPPERS else f"{path}.{name}" if path else name)

    look(module, "")
    return found


def members(group: dict[str, Any], layers: dict[str, Tensor]) -> list[str]:
    """The paths of the layers whose slopes are in a parameter group."""
    inside = set(map(id, group["params"]))
    return [path for path, slopes in layers.items() if id(slopes) in inside]


def gather(layers: dict[str, Tensor], optimizer: Optimizer | None, sharded: bool, rank: int) -> Numbers:
    """All slopes, their gradients and momenta, this rank's shard in its place, zeros elsewhere.

    Adding the vectors of all ranks gives the whole. It has the same length on all ranks.

    Args:
        layers: Slopes by path, N in total in L layers.
        optimizer: Whose gradients and momenta are wanted: that has just made its step. ``None``: no one's.
        sharded: Whether the ranks' vectors are going to be added up.
        rank: This process' global rank.

    Returns:
        Shape [3 N + 2 L]: slopes, gradients, momenta, then for each layer whether there is a gradient (> 0),
        and whether there is a momentum. An array if it is known on the CPU.
    """
    device = next(iter(layers.values())).device
    groups = [] if optimizer is None else optimizer.param_groups
    owned = {id(tensor) for group in groups for tensor in group["params"]}
    columns: list[list[Tensor | None]] = [[], [], []]
    for slopes in layers.values():
        gradient, momentum = None, None
        if optimizer is not None and id(slopes) in owned:
            gradient = own_gradient(optimizer, slopes, sharded, rank)
            momentum = own_momentum(optimizer, slopes, sharded, rank)
        for column, part in zip(columns, (own_part(slopes, sharded, rank), gradient, momentum), strict=True):
            column.append(part)
    flat = [
        torch.zeros(slopes.numel(), device=device) if part is None else part.to(device).reshape(-1)
        for column in columns
        for slopes, part in zip(layers.values(), column, strict=True)
    ]
    held = [float(part is not None) for column in columns[1:] for part in column]
    if device.type == "cpu" and not sharded:
        joined = torch.cat(flat)
        whole = np.empty(len(joined) + len(held))
        whole[: len(joined)] = joined.double().numpy()
        whole[len(joined) :] = held
        return whole
    return torch.cat([*flat, vector(held, device)])


def own_part(tensor: Tensor | None, sharded: bool, rank: int) -> Tensor | None:
    """The full shape with this rank's shard in its place and zeros elsewhere; ``None`` if it has no part."""
    own = None if tensor is None else own_shard(tensor.detach(), sharded, rank)
    if own is None or not isinstance(tensor, DTensor):
        return own
    _, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    whole = own.new_zeros(tensor.shape)
    whole[tuple(slice(s, s + length) for s, length in zip(start, own.shape, strict=True))] = own
    return whole


def own_gradient(optimizer: Optimizer, slopes: Tensor, sharded: bool, rank: int) -> Tensor | None:
    """This rank's part of the gradient of ``slopes``, without the loss scale.

    A fused optimizer takes the scale off in its step unless it skips it.
    """
    gradient = own_part(slopes.grad, sharded, rank)
    scale, overflow = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if gradient is None or scale is None or overflow is None:
        return gradient
    scale, overflow = scale.to(gradient.device), overflow.to(gradient.device)
    return gradient / torch.where(overflow > 0, scale, torch.ones_like(scale))


def own_momentum(optimizer: Optimizer, slopes: Tensor, sharded: bool, rank: int) -> Tensor | None:
    """This rank's part of the running mean of the gradients of ``slopes``, if the optimizer keeps one."""
    holder = getattr(optimizer, "optim", optimizer)  # ZeRO: each parameter's state is on one rank, whole.
    state = holder.state.get(slopes, {})
    for key in ("momentum_buffer", "exp_avg"):
        momentum = state.get(key)
        if isinstance(momentum, Tensor) and momentum.shape == slopes.shape:
            return own_part(momentum, sharded and holder is optimizer, rank)
    return None


def describe(slopes: Array) -> dict[str, float]:
    """Mean, extremes, quantiles, and the shares below 0 and above 1 of slopes, shape [N].

    Example:
        >>> describe(np.array([-0.5, 0.0, 0.5, 2.0]))["below_0"]
        0.25
    """
    # Python's numbers: on so few, a call of NumPy takes longer than the work.
    ordered: list[float] = np.sort(slopes).tolist()
    count, low, high = len(ordered), ordered[0], ordered[-1]  # NaN comes last.
    described = {"mean": sum(ordered) / count, "min": high if math.isnan(high) else low, "max": high}
    for key, level in QUANTILES.items():  # Linear between order statistics, as np.quantile.
        rank = level * (count - 1)
        below = ordered[int(rank)]
        described[key] = below + rank % 1 * (ordered[math.ceil(rank)] - below)
    numbers = count if high == high else int(np.count_nonzero(slopes == slopes))
    described["below_0"] = bisect_left(ordered, 0.0, hi=numbers) / count
    described["above_1"] = (numbers - bisect_right(ordered, 1.0, hi=numbers)) / count
    return described


def in_short(names: list[str], most: int = 3) -> str:
    """The first names and how many there are besides.

    Example:
        >>> in_short(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
