"""Trainer strategies that Lightning does not have ready."""

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all ranks: parameters, gradients and optimizer state sharded, one checkpoint file.

    Lightning's ModelParallelStrategy takes the number of nodes for the size of the data-parallel group and
    shards nothing on one machine; this one takes the number of ranks.

    Args:
        save_distributed_checkpoint: Whether every rank saves its shard, instead of one file with the whole.
        kwargs: Passed on to ``ModelParallelStrategy``.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **kwargs: Any) -> None:
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint, **kwargs
        )

    def setup_environment(self) -> None:
        """Make the data-parallel group as large as the job."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
