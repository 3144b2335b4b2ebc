"""Pictures of a style transfer: the image as it evolves, and the finished one as a file."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pl_losses.core.declared import Keys
from pl_losses.core.figures import Figure, new_figure
from pl_losses.core.panels import Sections
from pl_losses.core.validation import check_counts, typed
from pl_losses.data.image_files import image_format, to_image, write_image
from pl_losses.monitoring.pictures import log_figure
from pl_losses.monitoring.record import run_folder
from pl_losses.papers.style import manifest
from pl_losses.papers.style.module import StyleTransfer
from pl_losses.papers.style.ranks import TilesTogether


class StyleReport(Callback):
    """Writes the image to a file, and logs it during training, with content and style beside it.

    It is for a :class:`~pl_losses.StyleTransfer`. It logs ``train/image``, of rank zero's first images. The
    file is written when training ends, also if it is interrupted. If the loss is not finite, training stops,
    and the last good image is written. ``predict`` writes the image of a checkpoint.

    Args:
        output: File to write. Its suffix says the format. With several contents, their names are put before
            the suffix. Default: ``<content>-<style>.png`` in the run's folder.
        every_n_steps: Show the image after every n-th optimizer step; 0 for never.

    Raises:
        ValueError: If ``every_n_steps`` is no integer of at least 0, or ``output`` has no image suffix.
    """

    KEYS: ClassVar[Keys] = {
        "train/image": "picture: the image as it evolves, content and style beside it",
    }
    panels: ClassVar[Sections] = manifest.STYLE_REPORT

    @typed
    def __init__(self, output: str | Path | None = None, *, every_n_steps: int = 1) -> None:
        check_counts(0, every_n_steps=every_n_steps)
        if output is not None:
            image_format(output)
        self.output, self.every_n_steps = output, every_n_steps
        self.written: list[Path] = []
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on the folder among all ranks.

        Raises:
            TypeError: If the module is not a StyleTransfer.
        """
        if not isinstance(pl_module, StyleTransfer):
            raise TypeError(f"Expected a StyleTransfer to report on but got {type(pl_module).__name__}")
        folder = run_folder(trainer) if trainer.is_global_zero else None
        self._folder = trainer.strategy.broadcast(folder) or Path()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the image that training starts from."""
        self._show(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Show the image."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the image."""
        self._write(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the image of a checkpoint."""
        self._write(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the current image."""
        if isinstance(pl_module, StyleTransfer) and pl_module.pictures and int(pl_module.evaluations):
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StyleTransfer)
        assert pl_module.pictures is not None
        together = isinstance(trainer.strategy, TilesTogether)
        if getattr(trainer, "fast_dev_run", False) or (together and not trainer.is_global_zero):
            return
        self.written, ranks = [], 1 if together else trainer.world_size
        for name, image in zip(pl_module.pictures.names, pl_module.result(), strict=True):
            path = self._path(name, alone=len(pl_module.pictures.names) * ranks == 1)
            write_image(image, path)
            self.written.append(path)
            print(f"Image: {path}")

    def _path(self, name: str, alone: bool) -> Path:
        if self.output is None:
            return self._folder / f"{name}.png"
        path = Path(self.output).expanduser()
        return path if alone else path.with_name(f"{path.stem}-{name}{path.suffix}")

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StyleTransfer)
        assert pl_module.pictures is not None
        if not (self.every_n_steps and trainer.is_global_zero and trainer.loggers):
            return
        pictures = pl_module.pictures
        count = int(pl_module.evaluations)
        panels = [("content", pictures.contents[0])]
        panels += [("style", style) for style in pictures.styles[0]]
        panels += [(f"after {count} evaluations", image) for image in pl_module.result()[:1]]
        log_figure(trainer, "train/image", draw_panels(panels))


def draw_panels(panels: list[tuple[str, Tensor]]) -> Figure:
    """Draw images [3, H, W] of one height side by side, each with a title."""
    shares = [float(image.shape[2] / image.shape[1]) for _, image in panels]
    width = 3.2 * sum(shares)
    size = 1.3 * width  # Of the titles, in points.
    figure = new_figure(width, 3.3 + size / 40)
    row = figure.subplots(1, len(panels), squeeze=False, width_ratios=shares)[0]
    for axes, (title, image) in zip(row, panels, strict=True):
        axes.imshow(to_image(image))
        axes.set_title(title, fontsize=size)
        axes.set_axis_off()
    return figure
