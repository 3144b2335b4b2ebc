"""Kingma and Ba 2015: Adam's bias correction and the size of its steps, watched while any module trains."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import repeat
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, optim
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from pl_losses.core.declared import Keys
from pl_losses.core.kinds import is_a
from pl_losses.core.panels import Sections
from pl_losses.core.validation import typed
from pl_losses.monitoring.monitor import Monitor, Part, on_cpu, optimizer_names, own_shard, vector
from pl_losses.monitoring.pictures import log_figure
from pl_losses.monitoring.rows import Array, Row
from pl_losses.monitoring.steps import torch_optimizers, unwrap
from pl_losses.papers.adam.monitor import manifest
from pl_losses.papers.adam.monitor.history import History, draw_history
from pl_losses.papers.adam.monitor.reduction import Group, GroupReduction
from pl_losses.papers.adam.monitor.statistics import Moments
from pl_losses.papers.adam.monitor.update_rule import Kind, Number, Rule, kind_of, number
from pl_losses.papers.adam.optimizer import Adam, AdaMax

KNOWN = {optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax, Adam, AdaMax}


@dataclass
class _Watched:
    """An optimizer that is monitored.

    Attributes:
        index: Its number in the trainer.
        name: Its name.
        kind: Its closed form.
        decoupled: Whether its weight decay is decoupled, unless a group says otherwise.
        groups: The names of its parameter groups.
        attempts: Steps so far, with those of the runs that this one resumes.
        taken: Attempts that changed something.
        changed: 0 if the last attempt did not.
        phase: "announced" by Lightning or "under way"; empty otherwise.
        proven: Whether its closed form is known to hold: a subclass may step otherwise.
        before: Until it is proven, some parameters of each group and their values before the current step.
    """

    index: int
    name: str
    kind: Kind
    decoupled: bool
    groups: list[str]
    attempts: int = 0
    taken: Number = 0
    changed: Number = 1
    phase: str = ""
    proven: bool = False
    before: list[dict[Tensor, Tensor]] = field(default_factory=list)


class AdamBiasCorrectionMonitor(Monitor):
    r"""Logs what Adam's bias correction does and how long its steps are, for any module.

    It works with torch's Adam, AdamW, NAdam, RAdam and Adamax, and with those of this suite. It also works
    with subclasses and similar optimizers whose first step agrees with the formula. Other optimizers of the
    module are left out. All numbers are computed from the state after a step, and from the formula of the
    step. They are about the parameters that the step changed. If a step changes nothing, since there is no
    gradient or mixed precision skips the step, only ``skipped_steps`` is logged. Keys begin with ``adam/``
    and the name of the optimizer. If it has several parameter groups, the name of the group follows, as in
    ``LearningRateMonitor``. :attr:`KEYS` says what is logged. At the end of training, a picture shows the
    effective and the largest steps over time.

    Args:
        every_n_steps: Look at every n-th step; the trainer's ``log_every_n_steps`` if ``None``.
        level: ``"full"``, or ``"aggregate"`` to leave out what needs a pass over all coordinates.
        tensors: Pattern, such as ``"encoder.*.weight"``, of the names of parameters. Each of them is logged
            by itself, too.

    Raises:
        ValueError: If ``level`` is neither, or, when training starts, if ``tensors`` matches no parameter.
        TypeError: If ``tensors`` is not a string.

    Example:
        >>> monitor = AdamBiasCorrectionMonitor(every_n_steps=50, tensors="*.bias")
        >>> monitor.KEYS["adam/<group>/effective_lr"]
        'Learning rate times `effective_step`.'
    """

    panels: ClassVar[Sections] = manifest.BIAS_CORRECTION_MONITOR
    KEYS: ClassVar[Keys] = {
        "adam/<group>/lr": "Learning rate alpha.",
        "adam/<group>/coordinates": "Number of coordinates that the step changed.",
        "adam/<group>/step_max": "t, the largest step count of a parameter.",
        "adam/<group>/step_min": "The smallest step count. A parameter without gradients falls behind.",
        "adam/<group>/bias_correction1": "1 - beta1^t.",
        "adam/<group>/bias_correction2": "1 - beta2^t (not AdaMax).",
        "adam/<group>/effective_step": "sqrt(1 - beta2^t) / (1 - beta1^t), or the corresponding factor"
        " (NAdam, RAdam, AdaMax).",
        "adam/<group>/effective_lr": "Learning rate times `effective_step`.",
        "adam/<group>/m_norm": "Euclidean norm of the first moment, in units of the gradient.",
        "adam/<group>/m_hat_norm": "The same, with bias correction.",
        "adam/<group>/v_norm": "Norm of the second moment, in squared units of the gradient (AdaMax: of"
        " the running maximum).",
        "adam/<group>/v_hat_norm": "The same, with bias correction; with AMSGrad, of the largest v so far"
        " (not AdaMax).",
        "adam/<group>/update_norm": "Norm of the last step, weight decay included, in units of the weights.",
        "adam/<group>/update_rms": "Root mean square of the last step.",
        "adam/<group>/update_to_weight": "Norm of the last step, divided by the norm of the weights after"
        " this step.",
        "adam/<group>/max_update": "Largest step of a coordinate, divided by alpha; without the part of"
        " decoupled weight decay.",
        "adam/<group>/share_of_paper_bound": "`max_update`, divided by the paper's bound. It can be above 1,"
        " since the paper's bound is too small.",
        "adam/<group>/share_of_tight_bound": "`max_update`, divided by the tight bound: at most 1"
        " (not NAdam, RAdam).",
        "adam/<group>/trust_region_share": "Share of coordinates whose step is longer than 0.9 alpha.",
        "adam/<group>/eps_share": "Share of coordinates with sqrt(v_hat) < 10 eps (not AdaMax).",
        "adam/<group>/snr": "Signal to noise, the root mean square of m_hat / sqrt(v_hat) (not AdaMax).",
        "adam/<group>/measured_step": "Root mean square of the step, divided by that of alpha m / sqrt(v). It"
        " is `effective_step`, or less if eps is not negligible (Adam, AdamW).",
        "adam/<optimizer>/skipped_steps": "Steps so far that changed nothing, such as those that mixed"
        " precision skipped.",
        "adam/bias_correction": "Picture: effective and largest steps over time, beside the formulas.",
    }

    @typed
    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        level: Literal["aggregate", "full"] = "full",
        tensors: str | None = None,
    ) -> None:
        super().__init__(every_n_steps)
        self.level = level
        self.tensors = tensors
        self._history = History()
        self._watched: dict[int, _Watched] = {}
        self._selected: dict[int, str] = {}
        self._restored: dict[str, tuple[int, int]] = {}  # Attempts, and those taken.
        self._warned = False

    def __getstate__(self) -> dict[str, object]:
        """Leave out what belongs to the optimizers of one process."""
        return super().__getstate__() | {"_watched": {}, "_selected": {}}

    def state_dict(self) -> dict[str, object]:
        """Return step counts and the points of the picture."""
        counts = self._restored | {
            one.name: (one.attempts, round(float(one.taken))) for one in self._watched.values()
        }
        return {
            "attempts": {name: attempts for name, (attempts, _) in counts.items()},
            "taken": {name: taken for name, (_, taken) in counts.items()},
            "history": self._history.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore step counts and the points of the picture."""
        taken = state_dict["taken"]
        self._restored = {name: (attempts, taken[name]) for name, attempts in state_dict["attempts"].items()}
        self._watched = {}
        self._history.load_state_dict(state_dict["history"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier training, unless this one continues it."""
        self._watched = {}
        super().on_train_start(trainer, pl_module)

    def prepare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find Adam and its kin among the optimizers, and the parameters that ``tensors`` names."""
        counts = self._restored | {one.name: (one.attempts, one.taken) for one in self._watched.values()}
        self._watched, self._selected = {}, {}
        optimizers = torch_optimizers(trainer)
        unread = []
        for index, (optimizer, groups) in enumerate(
            zip(optimizers, optimizer_names(optimizers), strict=True)
        ):
            if known := kind_of(optimizer):
                name = groups[0].split("/")[0]
                watched = _Watched(index, name, *known, groups, *counts.get(name, (0, 0)))
                watched.proven = self._sharded or type(optimizer) in KNOWN
                self._watched[id(optimizer)] = watched
                if name not in counts and not _states(optimizer):
                    self._history.forget(groups)
            elif any("betas" in group for group in optimizer.param_groups):
                unread.append(type(optimizer).__name__)
        self._restored = {}
        name, classes = type(self).__name__, ", ".join(type(one).__name__ for one in optimizers)
        if not self._watched:
            rank_zero_warn(f"{name} logs nothing: it knows no optimizer like {classes}")
        elif unread:
            rank_zero_warn(f"{name} leaves out what it cannot read: {', '.join(unread)}")
        if self.tensors is not None and self._watched:
            names = {id(p): name for name, p in pl_module.named_parameters()}
            self._selected = {key: name for key, name in names.items() if fnmatchcase(name, self.tensors)}
            if not self._selected:
                some = ", ".join(list(names.values())[:3])
                raise ValueError(
                    f"Expected `tensors` to match a parameter such as {some} but got {self.tensors!r}"
                )

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Count a step that Lightning announces: mixed precision may skip it, so that it never begins."""
        watched = self._watched.get(id(optimizer))
        if watched is None:  # It is wrapped, of no kind to watch, or replaces another one.
            optimizer = unwrap(optimizer)
            known = any(steps.known(optimizer) for steps in self._handles)
            watched = self._watched.get(id(optimizer)) if known else None
        if watched and watched.phase != "under way":  # Otherwise a closure announces a step that has begun.
            watched.attempts += 1
            watched.phase = "announced"

    def begin(self, optimizer: Optimizer) -> None:
        """Count a step that was not announced."""
        if watched := self._watched.get(id(optimizer)):
            watched.attempts += watched.phase != "announced"
            watched.phase = "under way"
            if not watched.proven:
                watched.before = [
                    {p: p.detach().clone() for p in _some(group["params"])}
                    for group in optimizer.param_groups
                ]

    def end(self, optimizer: Optimizer) -> None:
        """Count a step if it had a gradient and, with a fused optimizer, did not overflow."""
        if watched := self._watched.get(id(optimizer)):
            watched.phase = ""
            watched.changed = 0
            if has_gradient(optimizer):
                overflow = vars(optimizer).get("found_inf")
                watched.changed = 1 if overflow is None else number(overflow.detach() == 0)
                watched.taken = watched.taken + watched.changed
            if not watched.proven:
                with torch.no_grad():
                    self._prove(watched, optimizer)

    def _prove(self, watched: _Watched, optimizer: Optimizer) -> None:
        """Compare a step that changed something with the closed form; leave out an optimizer that differs."""
        stated, real = 0.0, 0.0
        for decoupled in (watched.decoupled, not watched.decoupled):
            fits = True
            for group, before in zip(optimizer.param_groups, watched.before, strict=False):
                if not before:
                    continue
                readings = GroupReduction(next(iter(before)).device, True, False)
                rule = Rule.of(group, watched.kind, decoupled)
                readings.add(self._group("", rule, list(before), optimizer, 0))
                ((_, found),) = readings.read(*on_cpu([*readings.vectors()]))
                stated = found[""].get("update_norm", 0.0)
                real = math.hypot(*(float((p - was).norm()) for p, was in before.items()))
                rounded = (torch.finfo(p.dtype).eps * float(p.norm()) for p in before)
                fits &= abs(stated - real) <= 0.01 * stated + 2 * math.hypot(*rounded)
                watched.proven |= real > 0
            if fits:
                watched.decoupled = decoupled
                break
        watched.before = []
        if watched.proven and not fits:
            del self._watched[id(optimizer)]
            rank_zero_warn(
                f"{type(self).__name__} leaves out {type(optimizer).__name__}: it made a step of norm"
                f" {real:.3g} but its state gives {stated:.3g}"
            )

    def collect(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> list[Part]:
        """Collect sums and maxima of this optimizer's step."""
        watched = self._watched.get(id(optimizer))
        if watched is None:
            return []
        if len(watched.groups) != len(optimizer.param_groups):
            watched.groups = optimizer_names(torch_optimizers(trainer))[watched.index]
        groups = [list(dict.fromkeys(group["params"])) for group in optimizer.param_groups]
        parameters = [p for group in groups for p in group]
        if not parameters:
            return []
        readings = GroupReduction(parameters[0].device, self.level == "full", self._sharded)
        for name, group, own in zip(watched.groups, optimizer.param_groups, groups, strict=True):
            rule = Rule.of(group, watched.kind, watched.decoupled)
            readings.add(self._group(name, rule, own, optimizer, trainer.global_rank))
        attempts, taken = watched.attempts, watched.taken
        updates = [watched.changed, *([taken] if isinstance(taken, Tensor) else [])]
        known_here = [one for one in updates if not isinstance(one, Tensor)]
        on_device = len(known_here) < len(updates)
        readings.maxima.append(vector(updates, readings.device) if on_device else known_here)

        def finish(sums: Array, maxima: Array, row: Row) -> None:
            known = False
            changed, *counted = maxima[-len(updates) :]
            for group, found in readings.read(sums, maxima):
                known |= bool(found[group.name])
                if not changed or not found[group.name]:
                    continue
                for name, statistics in found.items():
                    row.scalars |= {f"adam/{name}/{key}": value for key, value in statistics.items()}
                self._history.add(group.name, group.rule, found[group.name])
            if known:
                done = round(counted[0]) if counted else taken
                row.scalars[f"adam/{watched.name}/skipped_steps"] = float(attempts - done)

        return [Part(*readings.vectors(), finish)]

    def _group(
        self,
        name: str,
        rule: Rule,
        parameters: list[Tensor],
        optimizer: Optimizer,
        rank: int,
    ) -> Group:
        """Collect what this rank knows of a parameter group."""
        group = Group(name, rule)
        states = _states(optimizer)
        partial = self._sharded and states is optimizer.state  # Else only this rank has these states.
        known = [states.get(parameter) for parameter in parameters]
        if not partial and rule.kind != "nadam" and all(known) and (columns := self._columns(known, rule)):
            steps, m, v, largest = columns
            # Without calls for each tensor, of which there may be a thousand.
            moments = map(Moments, steps, repeat(1.0), m, v, largest, parameters)
            group.steps, group.sizes = steps, [*map(Tensor.numel, m)]
            group.moments = [*moments]
            for index in [i for i, parameter in enumerate(parameters) if parameter.grad is None]:
                group.moments[index], group.sizes[index] = None, 0
        else:
            for parameter, state in zip(parameters, known, strict=True):
                gradient = parameter.grad
                shard = own_shard(parameter, True, rank) if partial else parameter
                one = self._moments(state, shard, gradient, rule) if state and shard is not None else None
                group.steps.append(-math.inf if one is None else one.step)
                group.moments.append(None if gradient is None else one)
                group.sizes.append(0 if gradient is None else parameter.numel() << parameter.is_complex())
        if selected := self._selected:
            group.selected = {i: selected[id(p)] for i, p in enumerate(parameters) if id(p) in selected}
        return group

    def _columns(self, states: list[Any], rule: Rule) -> tuple[list[Any], ...] | None:
        """Return t, m, v and the largest v of plain tensors of real numbers; None if some are not."""
        second = "exp_inf" if rule.kind == "adamax" else "exp_avg_sq"
        try:
            m, v = [one["exp_avg"] for one in states], [one[second] for one in states]
            largest = [one["max_exp_avg_sq"] for one in states] if rule.amsgrad else v
            steps = [number(one["step"]) for one in states]
        except KeyError:
            return None
        plain = {*map(type, m)} == {Tensor} and not any(
            dtype.is_complex for dtype in {one.dtype for one in m}
        )
        return (steps, m, v, largest) if plain else None

    def _moments(
        self, state: dict[str, Any], shard: Tensor, gradient: Tensor | None, rule: Rule
    ) -> Moments | None:
        try:
            step, m = state["step"], state["exp_avg"]
            v = state["exp_inf" if rule.kind == "adamax" else "exp_avg_sq"]
            largest = state["max_exp_avg_sq"] if rule.amsgrad else v
            product = number(state["mu_product"]) if rule.kind == "nadam" else 1.0
        except KeyError as missing:
            self._warn_once(f"leaves out parameters whose state has no {missing}")
            return None
        if rule.kind != "nadam":
            gradient = None
        if isinstance(shard, DTensor) or isinstance(m, DTensor) or shard.is_complex():
            m, v, largest, shard = map(_local, (m, v, largest, shard))
            gradient = None if gradient is None else _local(gradient)
        return Moments(number(step), product, m, v, largest, shard, gradient)

    def _warn_once(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"{type(self).__name__} {what}", stacklevel=3)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the picture, on rank zero."""
        watching = bool(self._handles)
        super().on_train_end(trainer, pl_module)
        if watching:
            self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks; after an interruption, draw the picture."""
        watching = bool(self._handles)
        super().on_exception(trainer, pl_module, exception)
        if watching and is_a(exception, "KeyboardInterrupt", "SIGTERMException"):
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        trial = getattr(trainer, "fast_dev_run", False)
        if trainer.is_global_zero and self._history.groups and not trial:
            log_figure(trainer, "adam/bias_correction", draw_history(self._history))


def _states(optimizer: Optimizer) -> dict[Tensor, dict[str, Any]]:
    """Return the state of each parameter; with ZeroRedundancyOptimizer, of those on this rank."""
    inner: Optimizer = getattr(optimizer, "optim", optimizer)
    return inner.state


def has_gradient(optimizer: Optimizer) -> bool:
    """Return whether any parameter has a gradient."""
    for group in optimizer.param_groups:  # Two loops, as a generator takes longer.
        for parameter in group["params"]:
            if parameter.grad is not None:
                return True
    return False


def _some(parameters: list[Tensor]) -> list[Tensor]:
    """Choose the smallest parameters, of about a million coordinates."""
    chosen: list[Tensor] = []
    for one in sorted(parameters, key=Tensor.numel):
        if chosen and sum(map(Tensor.numel, chosen)) + one.numel() > 2**20:
            break
        chosen.append(one)
    return chosen


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, as real numbers."""
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
