"""Kingma and Ba 2015, Fig. 4: the grid of Adam's settings, trained in stacks, interruptible at any moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import torch
from torch import Tensor

from pl_losses.core.experiment import Experiment
from pl_losses.core.rng import keyed_generator
from pl_losses.core.validation import check_counts
from pl_losses.papers.adam.fig4.batched_vae import BatchedVAE, Settings
from pl_losses.papers.adam.vae import VAE

# Steps between readings of the losses, which wait for an accelerator.
LOOK = 10
EVALUATED = 1000


@dataclass(frozen=True)
class Plan:
    """Everything that the results of a grid depend on, except the images.

    Attributes:
        beta1: Decay rates of the first moment.
        beta2: Decay rates of the second moment.
        log_alpha: Decimal logarithms of the learning rate.
        steps: Steps of each run.
        at: Steps after which the loss is evaluated.
        batch_size: Images per step.
        hidden_size: Units of the autoencoders' layers.
        latent_size: Dimensions of z.
        seed: Seed of the start, the batches and the noise, which are the same for all runs.
        dataset: Name of the images.

    Raises:
        ValueError: If a value is out of range.
    """

    beta1: list[float]
    beta2: list[float]
    log_alpha: list[float]
    steps: int
    at: list[int]
    batch_size: int
    hidden_size: int
    latent_size: int
    seed: int
    dataset: str

    def __post_init__(self) -> None:
        check_counts(
            steps=self.steps,
            batch_size=self.batch_size,
            hidden_size=self.hidden_size,
            latent_size=self.latent_size,
        )
        for name in ("beta1", "beta2"):
            values = getattr(self, name)
            if not values or not all(0 <= value < 1 for value in values):
                raise ValueError(f"Expected `{name}` to hold numbers in [0, 1) but got {values}")
        if not self.log_alpha or not all(-30 <= value <= 30 for value in self.log_alpha):
            raise ValueError(f"Expected `log_alpha` to hold numbers in [-30, 30] but got {self.log_alpha}")
        for name in ("beta1", "beta2", "log_alpha"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"Expected `{name}` to hold each number once but got {values}")
        if not self.at or min(self.at) < 1 or max(self.at) > self.steps:
            raise ValueError(f"Expected `at` to hold numbers in 1..{self.steps} but got {self.at}")

    def settings(self) -> list[Settings]:
        """List all runs, panel by panel of the figure."""
        return [
            Settings(beta1, beta2, 10.0**power, correction)
            for beta1, beta2, correction, power in product(
                self.beta1, self.beta2, (True, False), self.log_alpha
            )
        ]


@dataclass
class Outcome:
    """The outcome of a run.

    Attributes:
        losses: Step to the negative bound after it, nats per image; only as long as it is finite.
        diverged: Number of steps after which its loss was not finite; ``None`` if it always was.
    """

    losses: dict[int, float] = field(default_factory=dict)
    diverged: int | None = None


Results = dict[Settings, Outcome]


class Grid:
    """Trains a :class:`VAE` for each of a plan's settings, stacks of them at a time.

    The state is saved in the folder repeatedly; a new ``Grid`` of the same plan resumes from it. A run whose
    loss is not finite is recorded as diverged and leaves the stack.

    Args:
        plan: What to train.
        images: uint8 [N, D] or larger, at least ``batch_size`` of them; made binary at mid-grey.
        folder: For the state, ``state.pt``.
        together: Runs in a stack.
        device: Where to train.
        save_every: Seconds between savings.
        progress: Called with the number of steps done and the number of all, over all runs.

    Attributes:
        seconds: Processor time spent, those before an interruption included.

    Raises:
        ValueError: If the folder has the state of another plan, or there are too few images.
    """

    def __init__(
        self,
        plan: Plan,
        images: Tensor,
        folder: Path,
        *,
        together: int,
        device: torch.device | str = "cpu",
        save_every: float = 60.0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        if len(images) < plan.batch_size:
            raise ValueError(
                f"Expected `batch_size` to be at most {len(images)}, all images, but got {plan.batch_size}"
            )
        check_counts(together=together)
        self.plan, self.together, self.save_every = plan, together, save_every
        self.kept = Experiment("adam/fig4", folder, {**asdict(plan), "images": list(images.shape)})
        self.images = images.flatten(1).to(device)
        self.device = torch.device(device)
        self.progress = progress
        self.results: Results = {}
        self.seconds, self._since = 0.0, process_time()
        self._saved = monotonic()
        self._order = (-1, torch.empty(0))
        self._interrupted = self._load()

    def run(self) -> Results:
        """Train the unfinished runs, and return the outcome of each run."""
        if self._interrupted is not None:
            stack, step = self._interrupted
            self._interrupted = None
            self._train(stack, step)
        left = [run for run in self.plan.settings() if run not in self.results]
        for first in range(0, len(left), self.together):
            chosen = left[first : first + self.together]
            self.results.update({run: Outcome() for run in chosen})
            self._train(self._stack(chosen), 0)
        return self.results

    def _stack(self, settings: Sequence[Settings]) -> BatchedVAE:
        plan = self.plan
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            start = VAE(self.images.shape[1], plan.hidden_size, plan.latent_size).parameters()
        return BatchedVAE([tensor.to(self.device) for tensor in start], settings)

    def _train(self, stack: BatchedVAE, step: int) -> None:
        """Train a stack from a step to the end."""
        running = list(stack.settings)
        while step < self.plan.steps and running:
            stop = min([step + LOOK, self.plan.steps, *(at for at in self.plan.at if at > step)])
            losses = [stack.step(*self._batch(now)) for now in range(step, stop)]
            step_before, step = step, stop
            self._drop(stack, torch.stack(losses).isfinite().cpu(), step_before)
            running = self._alive(running)
            if step in self.plan.at and running:
                self._evaluate(stack, step)
                running = self._alive(running)
            finished = self.plan.steps * (len(self.results) - len(running))
            self.progress(finished + step * len(running), self.plan.steps * len(self.plan.settings()))
            if running and monotonic() - self._saved >= self.save_every:
                self._save(stack, step)
        self._save(None, 0)

    def _alive(self, runs: list[Settings]) -> list[Settings]:
        return [run for run in runs if self.results[run].diverged is None]

    def _drop(self, stack: BatchedVAE, finite: Tensor, before: int) -> None:
        """Record runs whose loss was not finite, and drop them; ``finite`` is [steps, runs]."""
        for run, column in zip(stack.settings, finite.T, strict=True):
            if not column.all():
                # The losses are those before the step.
                self.results[run].diverged = before + int((~column).int().argmax())
        whole = finite.all(0)
        if whole.any() and not whole.all():
            stack.keep(whole.nonzero().flatten().tolist())

    def _evaluate(self, stack: BatchedVAE, step: int) -> None:
        """Record the loss of the first images after a step."""
        rows = min(EVALUATED, len(self.images))
        noise = self._noise(rows, "evaluation")
        total = torch.zeros(len(stack), dtype=torch.float64)
        for first in range(0, rows, self.plan.batch_size):
            part = slice(first, min(first + self.plan.batch_size, rows))
            inputs = self._binary(self.images[part])
            total += stack.losses(inputs, noise[part]).double().cpu() * len(inputs)
        for run, value in zip(stack.settings, (total / rows).tolist(), strict=True):
            if math.isfinite(value):
                self.results[run].losses[step] = value
        self._drop(stack, total.isfinite()[None], step)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images and noise of a step, which do not depend on earlier steps."""
        size = self.plan.batch_size
        epoch, position = divmod(step, len(self.images) // size)
        if self._order[0] != epoch:
            generator = keyed_generator(self.plan.seed, "order", epoch)
            self._order = (epoch, torch.randperm(len(self.images), generator=generator).to(self.device))
        rows = self._order[1][position * size : (position + 1) * size]
        return self._binary(self.images[rows]), self._noise(size, step)

    def _noise(self, rows: int, key: object) -> Tensor:
        generator = keyed_generator(self.plan.seed, key)
        return torch.randn(rows, self.plan.latent_size, generator=generator).to(self.device)

    def _binary(self, images: Tensor) -> Tensor:
        return (images > 127).float()

    def _save(self, stack: BatchedVAE | None, step: int) -> None:
        """Save the results so far, and an unfinished stack."""
        self.kept.results = [[list(run), one.losses, one.diverged] for run, one in self.results.items()]
        settings = [list(run) for run in stack.settings] if stack else []
        now = process_time()
        self.seconds, self._since = self.seconds + now - self._since, now
        state = {"seconds": self.seconds, "step": step, "settings": settings}
        self.kept.save(state | {"stack": stack.state_dict() if stack else None})
        self._saved = monotonic()

    def _load(self) -> tuple[BatchedVAE, int] | None:
        """Read the results so far; return the interrupted stack, if there is one, and its step."""
        for run, losses, diverged in self.kept.results:
            self.results[Settings(*run)] = Outcome(losses, diverged)
        if (state := self.kept.unfinished) is None:
            return None
        self.seconds = state["seconds"]
        if state["stack"] is None:
            return None
        stack = self._stack([Settings(*run) for run in state["settings"]])
        stack.load_state_dict(state["stack"])
        return stack, state["step"]


def rows(plan: Plan, results: Results) -> Iterator[dict[str, Any]]:
    """Yield one row per run and evaluated step: seed, settings, ``step``, ``loss`` and ``diverged``."""
    for run in plan.settings():
        outcome = results[run]
        for step in sorted(plan.at):
            yield {
                "seed": plan.seed,
                **run._asdict(),
                "step": step,
                "loss": outcome.losses.get(step),
                "diverged": outcome.diverged,
            }
