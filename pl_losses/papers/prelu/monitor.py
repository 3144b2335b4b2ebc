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
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from pl_losses.core.compat.names import without_wrappers
from pl_losses.core.declared import Keys, Part as Declared, Recipe, declared_keys, without
from pl_losses.core.kinds import is_a
from pl_losses.core.panels import Sections
from pl_losses.core.validation import typed
from pl_losses.monitoring.monitor import Monitor, Part, bring_together, optimizer_names
from pl_losses.monitoring.pictures import log_figure
from pl_losses.monitoring.rows import Array, Row
from pl_losses.monitoring.steps import logged_step, torch_optimizers
from pl_losses.papers.prelu import manifest
from pl_losses.papers.prelu.drawing import History, draw_final_slopes, draw_heat_map
from pl_losses.papers.prelu.slopes import Trained, find_slopes, gather, members, parameters_of

QUANTILES = {"q05": 0.05, "median": 0.5, "q95": 0.95}
POOLED = ("mean", "min", "max", "below_0", "above_1")


class PReLUSlopeMonitor(Monitor):
    """Logs the slopes of each ``nn.PReLU``, and of subclasses, in any LightningModule.

    A layer is named by its module path, as in ``prelu/network.3/mean``. If a layer or its slopes are shared,
    it appears once, by its first name. A layer that is added during training appears from then on. A lazy
    layer appears when it knows its size. Frozen layers are shown too. Slopes are those after the step. With
    several optimizers they are those after the last step of the batch. Gradients and momenta are those of the
    step of their own optimizer, after clipping, and without the scale of mixed precision. With a
    parametrisation (``torch.nn.utils.parametrize``, weight norm, pruning) the slopes are its result.
    Gradients and momenta are then those of its parameters. Slopes that your code passes to
    ``torch.nn.functional.prelu`` itself are not found.

    At the end of training, and when it is interrupted, the monitor draws two pictures: a heat map of the mean
    slopes over the steps, and a bar chart of the final slopes by depth, as in the paper's Table 1. The
    history is kept in checkpoints.

    It warns once if the slopes have weight decay, which pulls them to 0. A PReLU with the slope 0 is a ReLU.

    Args:
        every_n_steps: Look at every n-th step; the trainer's ``log_every_n_steps`` if ``None``.
        modules: Show only layers whose path fits this pattern, such as ``"backbone.*"``.

    Raises:
        ValueError: If ``every_n_steps`` is not positive.
        TypeError: If ``modules`` is not a string.

    Example:
        >>> from lightning.pytorch.loggers import CSVLogger
        >>> trainer = Trainer(callbacks=[PReLUSlopeMonitor(every_n_steps=100)], logger=CSVLogger("logs"))
    """

    panels: ClassVar[Sections] = manifest.SLOPE_MONITOR

    @classmethod
    def logged_keys(cls, part: Declared, recipe: Recipe) -> Keys:
        """Return the keys that it logs: no histogram of a single slope."""
        shared = recipe.model.argument("rectifier") == "prelu_shared"
        return without(declared_keys(cls), ["prelu/<layer>/slopes"] if shared else [])

    KEYS: ClassVar[Keys] = {
        "prelu/<layer>/mean": "mean slope over the layer's channels",
        "prelu/<layer>/min": "smallest slope",
        "prelu/<layer>/max": "largest slope",
        "prelu/<layer>/q05": "5 % quantile of the slopes",
        "prelu/<layer>/median": "median slope",
        "prelu/<layer>/q95": "95 % quantile of the slopes",
        "prelu/<layer>/below_0": "share of slopes below 0, in [0, 1]; such a PReLU is not monotonic",
        "prelu/<layer>/above_1": "share of slopes above 1, in [0, 1]; such a PReLU is steeper below 0",
        "prelu/<layer>/grad_norm": "L2 norm of the gradient of the slopes, after clipping",
        "prelu/<layer>/momentum_norm": "L2 norm of SGD's or Adam's average of the slopes' gradients"
        " (`momentum_buffer` or `exp_avg`)",
        "prelu/<layer>/slopes": "histogram of the slopes, for layers with more than one",
        "prelu/mean": "mean over the slopes of all layers",
        "prelu/min": "smallest slope of all",
        "prelu/max": "largest slope of all",
        "prelu/below_0": "share of all slopes below 0, in [0, 1]",
        "prelu/above_1": "share of all slopes above 1, in [0, 1]",
        "prelu/heat_map": "image, at the end: mean slope of each layer over the steps",
        "prelu/final_slopes": "image, at the end: mean, smallest and largest slope of each layer by depth",
    }

    @typed
    def __init__(self, every_n_steps: int | None = None, *, modules: str = "*") -> None:
        super().__init__(every_n_steps)
        self.modules = modules
        self._history = History()
        self._latest: dict[str, tuple[float, float, float]] = {}  # Mean, min, max; on rank zero.
        self._warned = False

    def state_dict(self) -> dict[str, object]:
        """Return the history of the mean slopes, as plain data."""
        return {"history": deepcopy(vars(self._history))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the history of a checkpoint."""
        vars(self._history).update(deepcopy(state_dict["history"]))

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of faults before the first step; forget an earlier training, unless this one continues it."""
        self._latest, self._warned = {}, False
        if logged_step(trainer) == 0:  # The global step is 0, too, of optimizers that Lightning does not see.
            self._history = History()
        layers = pl_module.named_modules()
        paths = [without_wrappers(path) for path, layer in layers if isinstance(layer, nn.PReLU)]
        if not any(fnmatchcase(path, self.modules) for path in paths):
            rank_zero_warn(
                f"PReLUSlopeMonitor found no nn.PReLU in {type(pl_module).__name__}"
                + (f" that fits `modules` = {self.modules!r}" if paths else "")
                + ", so it logs nothing"
            )
        self._warn_of_decay(trainer, pl_module, find_slopes(pl_module, self.modules))

    def collect(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> list[Part]:
        """Collect all slopes, and the gradients and momenta of those that this optimizer trains."""
        # Looking for them each time costs microseconds and misses nothing that came, went or was replaced.
        layers = find_slopes(pl_module, self.modules)
        if not layers:
            return []
        trained = self._warn_of_decay(trainer, pl_module, layers)
        return [self._part(trainer, layers, optimizer, trained)]

    def _part(
        self,
        trainer: Trainer,
        layers: dict[str, Tensor],
        optimizer: Optimizer | None,
        trained: Trained | None = None,
    ) -> Part:
        trained = {path: [slopes] for path, slopes in layers.items()} if trained is None else trained
        sums = gather(layers, optimizer, sharded=self._sharded, rank=trainer.global_rank, trained=trained)
        sizes = {
            path: (slopes.numel(), sum(one.numel() for one in trained[path]))
            for path, slopes in layers.items()
        }
        step = None if optimizer is None else logged_step(trainer)
        return Part(sums, [], partial(self._finish, sizes, step))

    def _finish(
        self, sizes: dict[str, tuple[int, int]], step: int | None, sums: Array, maxima: Array, row: Row
    ) -> None:
        # With several optimizers the last one of the batch overwrites what the others said of the slopes.
        (total, own), start, at = map(sum, zip(*sizes.values(), strict=True)), 0, 0
        values, held = sums[:total], sums[total + 2 * own :].reshape(2, -1).tolist()
        moved = sums[total : total + 2 * own].reshape(2, own)
        self._latest = {}
        for index, (path, (size, parameters)) in enumerate(sizes.items()):
            slopes, others = values[start : start + size], moved[:, at : at + parameters]
            start, at = start + size, at + parameters
            described = describe(slopes)
            _, low, high = self._latest[path] = described["mean"], described["min"], described["max"]
            for key, other, there in zip(("grad_norm", "momentum_norm"), others, held, strict=True):
                if there[index] > 0:
                    described[key] = math.sqrt(np.dot(other, other))
            row.scalars |= {f"prelu/{path}/{key}": value for key, value in described.items()}
            # A histogram cannot show values that are not finite, of a diverged training.
            if size > 1 and math.isfinite(low) and math.isfinite(high):
                row.histograms[f"prelu/{path}/slopes"] = slopes
        pooled = (values.mean(), values.min(), values.max(), (values < 0).mean(), (values > 1).mean())
        row.scalars |= {f"prelu/{key}": float(value) for key, value in zip(POOLED, pooled, strict=True)}
        if step is not None:
            self._history.add(step, {path: mean for path, (mean, _, _) in self._latest.items()})

    def _warn_of_decay(
        self, trainer: Trainer, pl_module: LightningModule, layers: dict[str, Tensor]
    ) -> Trained:
        """Warn of weight decay on the slopes, once; return the parameters that train them."""
        trained = parameters_of(layers, pl_module, self.modules)
        if self._warned:
            return trained
        optimizers = torch_optimizers(trainer)
        reached = [
            (index, number, paths)
            for index, optimizer in enumerate(optimizers)
            for number, group in enumerate(optimizer.param_groups)
            if group.get("weight_decay") and (paths := members(group, trained))
        ]
        if reached:
            self._warned = True
            names = optimizer_names(optimizers)
            where = "; ".join(
                f"{names[index][number]} ({in_short(paths)})" for index, number, paths in reached
            )
            rank_zero_warn(
                f"Weight decay draws slopes of PReLUs to 0, where they are ReLUs: in {where}."
                " Put the slopes into a parameter group with weight_decay=0"
            )
        return trained

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the final slopes (on all ranks if sharded) and draw them (on rank zero)."""
        watching = bool(self._handles)
        super().on_train_end(trainer, pl_module)
        layers = find_slopes(pl_module, self.modules) if watching else {}
        if layers:
            # The last step may not have been logged.
            bring_together([self._part(trainer, layers, None)], trainer, self._sharded)
            self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks; after an interruption, draw what was logged last."""
        super().on_exception(trainer, pl_module, exception)
        if is_a(exception, "KeyboardInterrupt", "SIGTERMException"):
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


def describe(slopes: Array) -> dict[str, float]:
    """Compute mean, extremes, quantiles, and the shares below 0 and above 1 of slopes, shape [N].

    Example:
        >>> describe(np.array([-0.5, 0.0, 0.5, 2.0]))["below_0"]
        0.25
    """
    # Plain Python: for so few numbers, a call of NumPy takes longer than the work.
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
    """List the first names, and the number of further ones.

    Example:
        >>> in_short(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
