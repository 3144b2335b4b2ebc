"""Strategies of several ranks: each optimises its own images, or all share the tiles of the same images."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry


class EachForItself(DDPStrategy):
    """Processes as DDP starts them, but no gradient is exchanged. ``strategy="each_for_itself"``.

    A checkpoint of several ranks has one file each: rank 1 saves ``last.ckpt.rank1`` beside ``last.ckpt``. A
    fit resumes from it on the same number of ranks only.
    """

    def configure_ddp(self) -> None:
        """Leave the module as it is."""

    def save_checkpoint(
        self, checkpoint: dict[str, object], filepath: object, storage_options: object | None = None
    ) -> None:
        """Save this rank's image and optimizer."""
        self.checkpoint_io.save_checkpoint(checkpoint, self._own(filepath), storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: object, weights_only: bool | None = None) -> dict[str, object]:
        """Load this rank's image and optimizer.

        Raises:
            FileNotFoundError: If there is none for this rank.
        """
        own = self._own(checkpoint_path)
        if not Path(own).is_file():
            raise FileNotFoundError(
                f"Expected a part of the checkpoint for each of {self.world_size} ranks but there is no {own}"
                ": go on with as many ranks as it was saved by"
            )
        return super().load_checkpoint(own, weights_only=weights_only)

    def remove_checkpoint(self, filepath: object) -> None:
        """Remove this rank's part."""
        self.checkpoint_io.remove_checkpoint(self._own(filepath))

    def _own(self, path: object) -> str:
        return f"{path}.rank{self.global_rank}" if self.global_rank else str(path)


class TilesTogether(DDPStrategy):
    """Every rank has the same image and computes some of its tiles. ``strategy="tiles_together"``.

    The sums over the tiles are the same on all ranks, and so are the optimizers' steps, if the devices are of
    one kind.
    """

    def configure_ddp(self) -> None:
        """Leave the module as it is: the objective adds up the gradients."""


StrategyRegistry.register(
    "each_for_itself", EachForItself, description="no gradients exchanged", override=True
)
StrategyRegistry.register(
    "tiles_together", TilesTogether, description="the tiles of an image shared", override=True
)
