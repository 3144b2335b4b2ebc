"""Trainer strategies that Lightning does not provide; importing this module registers their names."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.overrides.distributed import prepare_for_backward
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from pl_losses.core.compat import of_lightning
from pl_losses.core.sharding import load_whole, units

State = dict[str, Any]  # What a checkpoint, an optimizer or a loader keeps, by name.


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all ranks: splits parameters, gradients and optimizer states, saves one checkpoint file.

    Lightning's ModelParallelStrategy shards over the nodes, and so shards nothing on one machine. This one
    shards over all ranks. You can load its one-file checkpoint under any other strategy: parameters have
    their numbers in the optimizer's order. Lightning's would have them in the module's order.

    Args:
        save_distributed_checkpoint: Whether every rank saves its shard, instead of one file with everything.
        kwargs: Passed on to ``ModelParallelStrategy``.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **kwargs: Any) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint, **kwargs
        )

    def setup_environment(self) -> None:
        """Set the size of the data-parallel group to the number of ranks."""
        of_lightning.shard_over(self, self.num_nodes * self.num_processes)
        super().setup_environment()
        if of_lightning.syncs_batch_norm(self):
            raise ValueError(
                "Expected `sync_batchnorm` to be False under FSDP2: give the module layers of"
                ' `torch.nn.SyncBatchNorm`, or use `strategy="ddp"`'
            )

    def optimizer_state(self, optimizer: Optimizer) -> State:
        """Return the whole state on rank zero, or this rank's part of it if each rank saves its own."""
        if of_lightning.saves_shards(self):
            return super().optimizer_state(optimizer)
        # Imported when a run is sharded: it takes as long as all the rest of this module, in every run.
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        assert self.model is not None
        inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: State = get_optimizer_state_dict(self.model, inner, options=options)
        return self._renamed(state, OptimStateKeyType.PARAM_ID, inner) if self.is_global_zero else state

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> State:
        """Load the weights and the optimizers' states; return what else was saved."""
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return super().load_checkpoint(path, weights_only=weights_only)
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        assert self.model is not None
        assert self.lightning_module is not None
        saved: State = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        strict = self.lightning_module.strict_loading
        load_whole(self.model, saved.pop("state_dict"), strict)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict)
        for optimizer, state in zip(self.optimizers, saved.get("optimizer_states", ()), strict=False):
            state = self._renamed(state, OptimStateKeyType.PARAM_NAME, optimizer)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=state, options=options)
        return saved

    def _renamed(self, state: State, key: OptimStateKeyType, optimizer: Optimizer) -> State:
        assert self.model is not None
        renamed: State = FullyShardedDataParallel.rekey_optim_state_dict(
            state, key, self.model, optim=optimizer
        )
        return renamed

    def process_dataloader(self, dataloader: object) -> object:
        """Refuse unequal numbers of batches, as ranks would wait for each other in every layer.

        Raises:
            ValueError: If the loader's length is not the same on all ranks.
        """
        lengths: list[int | None] = [None] * self.world_size
        torch.distributed.all_gather_object(lengths, sized_len(dataloader))
        if None in lengths:
            return (StatefulInStep if hasattr(dataloader, "state_dict") else InStep)(dataloader)
        _check_lengths(lengths)
        return dataloader

    def on_validation_start(self) -> None:
        """Copy rank zero's buffers (running statistics) to all ranks; training does not use them."""
        if self.lightning_module is not None:
            broadcast(list(self.lightning_module.buffers()))

    on_test_start = on_predict_start = on_validation_start


class InStep:
    """A dataloader of unknown length that ends on all ranks together, or raises an error if it does not.

    Args:
        loader: The dataloader, whose batches, attributes and state these are.
    """

    def __init__(self, loader: Any) -> None:
        self.__dict__["loader"] = loader

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # Not set yet, in a copy.
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.loader, name, value)

    def __iter__(self) -> Iterator[object]:
        batches = iter(self.loader)
        for count in itertools.count():
            batch = next(batches, _END)
            counts: list[int | None] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(counts, count + int(batch is not _END))
            _check_lengths(counts)
            if batch is _END:
                return
            yield batch


class StatefulInStep(InStep):
    """The same for a dataloader with a state, which Lightning recognises by the methods of its class."""

    def state_dict(self) -> State:
        """Return the loader's state."""
        state: State = self.loader.state_dict()
        return state

    def load_state_dict(self, state_dict: State) -> None:
        """Load the loader's state."""
        self.loader.load_state_dict(state_dict)


_END = object()


def _check_lengths(lengths: list[int | None]) -> None:
    if len(set(lengths)) > 1:
        raise ValueError(
            f"Expected equally many batches on all ranks under FSDP2 but got {lengths}: give"
            ' them equally many, or use `strategy="ddp"`'
        )


class DDPPerModule(DDPStrategy):
    """DDP for modules with several optimizers: each submodule averages its own gradients.

    It is chosen by ``strategy="ddp_per_module"``. Plain DDP waits in every backward pass for the gradients of
    all parameters. It fails if a pass has the gradients of one network only, as in a GAN. Here the strategy
    waits for each direct child of the LightningModule by itself. An item of a ModuleList or ModuleDict, and a
    parameter of the LightningModule itself, are children too. Parameters that children share are treated as a
    child. A child that takes no part in a pass, or is frozen in it, is not waited for, without
    ``find_unused_parameters``. The module itself is not wrapped: names, checkpoints, hooks and calls are
    those of a single process. You may call any method of a child, not only ``forward``.

    Pass losses to ``self.manual_backward``. ``loss.backward()`` is refused: its gradients would be of this
    rank only. Under accumulation nothing is sent until the last pass (``accumulate_grad_batches``,
    ``toggle_model(sync_grad=False)`` or ``strategy.block_backward_sync()``). Lightning counts every
    optimizer's step, under any strategy; see :func:`step_uncounted`.

    Args:
        broadcast_buffers: Whether all ranks get rank zero's buffers (running statistics) after each step.
        ddp_comm_state: State of the communication hook, or a function that makes one for each child: some
            hooks' states cannot be shared.
        kwargs: Passed on to ``DDPStrategy``, and from there to ``DistributedDataParallel``.

    Raises:
        ValueError: If ``static_graph`` is asked for: here graphs differ from pass to pass.
    """

    def __init__(self, broadcast_buffers: bool = True, **kwargs: Any) -> None:
        if kwargs.get("static_graph"):
            raise ValueError(
                "Expected `static_graph` to be False: passes for one child differ from the others"
            )
        # Ranks have the same values already, and graphs may not find parameters written to.
        super().__init__(**kwargs, init_sync=False)
        self.broadcast_buffers = broadcast_buffers
        self._groups: list[list[nn.Parameter]] = []
        self._reducers: dict[int, tuple[list[int], DistributedDataParallel]] = {}
        self._hooks: list[RemovableHandle] = []
        self._blocked = self._passing = False

    def configure_ddp(self) -> None:
        """Group the parameters, and copy rank zero's values to all ranks."""
        module = self.lightning_module
        assert module is not None
        self._release()
        self._groups = parameter_groups(module)
        broadcast([*module.parameters(), *module.buffers()])
        for parameter in module.parameters():
            if parameter.is_leaf and parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(self._refuse_foreign)  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Prepare for the gradients of this pass; a group without gradients is not awaited."""
        if self._blocked:
            return
        for index, group in enumerate(self._groups):
            trained = [parameter for parameter in group if parameter.requires_grad]
            if trained:
                prepare_for_backward(self._reducer(index, trained), closure_loss)

    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: object, **kwargs: object
    ) -> Tensor:
        """Run the backward pass and average the gradients."""
        self._passing = True
        try:
            return super().backward(closure_loss, optimizer, *args, **kwargs)
        finally:
            self._passing = False

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Keep gradients to this rank within this context; a later pass averages their sums."""
        before, self._blocked = self._blocked, True
        try:
            yield
        finally:
            self._blocked = before

    def training_step(self, *args: object, **kwargs: object) -> STEP_OUTPUT:
        """Run the step, then copy rank zero's buffers to all ranks."""
        output = super().training_step(*args, **kwargs)
        if self.broadcast_buffers and self.lightning_module is not None:
            broadcast(list(self.lightning_module.buffers()))
        return output

    def teardown(self) -> None:
        """Release the parameters."""
        self._release()
        super().teardown()

    def _reducer(self, index: int, trained: list[nn.Parameter]) -> DistributedDataParallel:
        """Return the DDP around a group; build it anew when other parameters of the group are trained."""
        which = [id(parameter) for parameter in trained]
        if index not in self._reducers or self._reducers[index][0] != which:
            # Drop the earlier one first: it would wait for parameters that are frozen now.
            self._reducers.pop(index, None)
            self._reducers[index] = which, of_lightning.in_ddp(self, nn.ParameterList(trained))
        return self._reducers[index][1]

    def _refuse_foreign(self, parameter: Tensor) -> None:
        if not self._passing:
            raise RuntimeError(
                "Expected `self.manual_backward(loss)` but got gradients of `loss.backward()`, which are not"
                " averaged over the ranks"
            )

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._groups, self._reducers = [], [], {}


def step_uncounted(module: LightningModule, optimizer: LightningOptimizer | Optimizer) -> None:
    """Step an optimizer under manual optimisation without counting the step.

    Lightning counts the steps of all optimizers together (``trainer.global_step``, and with it ``max_steps``
    and ``log_every_n_steps``). To count a batch once, step one optimizer by its own ``step()`` and the others
    by this function; gradient clipping, mixed precision and strategies work as usual.

    Args:
        module: The module of the training step.
        optimizer: One of ``module.optimizers()``.
    """
    inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
    module.trainer.strategy.optimizer_step(inner, lambda: None, module)


def parameter_groups(module: nn.Module) -> list[list[nn.Parameter]]:
    """Group parameters by the child, or children, that have them; those of the module itself one by one.

    >>> shared = nn.Linear(1, 1, bias=False)
    >>> tree = nn.ModuleDict({"a": nn.Sequential(nn.Linear(1, 1), shared), "b": nn.Sequential(shared)})
    >>> [len(group) for group in parameter_groups(nn.ModuleList([tree]))]
    [2, 1]
    """
    owners: dict[nn.Parameter, list[str]] = {}
    for name, child in units(module):
        for parameter in child.parameters():
            owners.setdefault(parameter, []).append(name)
    for name, parameter in module.named_parameters():
        owners.setdefault(parameter, [name])
    groups: dict[tuple[str, ...], list[nn.Parameter]] = {}
    for parameter, names in owners.items():
        groups.setdefault(tuple(names), []).append(parameter)
    return list(groups.values())


@torch.no_grad()
def broadcast(tensors: list[Tensor]) -> None:
    """Copy rank zero's values to all ranks, in one message for each device and type."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for kind in kinds.values():
        joined = torch.cat([tensor.reshape(-1) for tensor in kind])
        torch.distributed.broadcast(joined, 0)
        parts = torch.split(joined, [tensor.numel() for tensor in kind])
        for tensor, part in zip(kind, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


StrategyRegistry.register(
    "ddp_per_module", DDPPerModule, description="DDP for several optimizers", override=True
)
