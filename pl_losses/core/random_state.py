"""The state of the global random numbers in checkpoints: dropout and noise go on where they were."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

State = dict[str, Any]  # Of each library's and device's random numbers, by name.

KEY = "random_states"  # Key in a checkpoint: one state for each rank.
ACCELERATORS = ("cuda", "xpu")


class RandomState(Callback):
    """Saves the states of the global random generators, and restores them when a fit resumes.

    These are the generators of PyTorch on the CPU and every accelerator, of NumPy and of Python, on each
    rank. A resumed fit then draws the same numbers as a fit without an interruption. Every module of the
    suite and every ``pl-losses fit`` has this callback.
    """

    def __init__(self) -> None:
        self._loaded: list[State] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what an earlier fit has loaded."""
        self._loaded = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]
    ) -> None:
        """Save the states of all ranks; every rank calls this."""
        states = [random_state()] * trainer.world_size
        if trainer.world_size > 1 and torch.distributed.is_initialized():
            torch.distributed.all_gather_object(states, states[0])
        checkpoint[KEY] = states

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep this rank's state until training goes on."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._loaded = checkpoint.get(KEY)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the state after all hooks that may draw when training starts."""
        if self._loaded is not None:
            # The strategy's hook is the last of them.
            trainer.strategy.on_train_start = partial(self._go_on, trainer)  # type: ignore[method-assign]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the state if nothing was left to train, for a test that may follow."""
        self._restore(trainer)

    def _go_on(self, trainer: Trainer) -> None:
        strategy: Strategy = trainer.strategy
        del vars(strategy)["on_train_start"]
        strategy.on_train_start()
        self._restore(trainer)

    def _restore(self, trainer: Trainer) -> None:
        states, self._loaded = self._loaded, None
        if states is None:
            return
        if len(states) != trainer.world_size:
            rank_zero_warn(
                f"The checkpoint has the random numbers of {len(states)} ranks and there are"
                f" {trainer.world_size}: dropout and noise differ from those of an uninterrupted run"
            )
        if trainer.global_rank < len(states):
            try:
                set_random_state(states[trainer.global_rank])
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"The checkpoint (--ckpt_path) is damaged: expected `{KEY}` to hold the states of random"
                    f" numbers but got others ({type(error).__name__}: {error})"
                ) from error


def random_state() -> State:
    """Return the state of this process's global random numbers, as plain data."""
    name, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss],
    }
    for kind in ACCELERATORS:
        if (device := getattr(torch, kind)).is_initialized():
            state[kind] = device.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: State) -> None:
    """Restore what :func:`random_state` returned, as far as the devices are there."""
    torch.set_rng_state(state["torch"].cpu())
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    for kind in ACCELERATORS:
        device = getattr(torch, kind)
        if device.is_available():
            for index, one in enumerate(state.get(kind, ())[: device.device_count()]):
                device.set_rng_state(one.cpu(), index)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())
