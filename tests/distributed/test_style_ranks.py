"""Every rank works on images of its own, and a run of two ranks goes on where it stopped."""

import os

import pytest
import torch
from papers.style.networks import picture, state

from pl_losses import StyleTransfer
from pl_losses.callbacks import StyleReport
from pl_losses.data import Pictures
from pl_losses.data.image_files import write_image
from pl_losses.papers.style.optimizer import MonotoneLBFGS
from pl_losses.papers.style.ranks import EachForItself, TilesTogether


class Written(StyleTransfer):
    """Writes down its image at the end, and saves a checkpoint on the way."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.keep and self.global_step == 2:
            self.trainer.save_checkpoint(f"{self.folder}/half.ckpt", weights_only=False)

    def on_train_end(self):
        torch.save(self.image.detach(), f"{self.folder}/{self.global_rank}.pt")


def lbfgs(parameters):
    return MonotoneLBFGS(parameters, max_iter=8)


def run(make_trainer, folder, ranks, contents, styles, ckpt_path=None, keep=False, **options):
    model = Written(weights=f"{folder}/weights.pt", alpha=1.0, beta=10.0, optimizer=lbfgs)
    model.folder, model.keep = folder, keep
    data = Pictures(contents, styles, None, paired=True, steps=4)
    trainer = make_trainer(ranks, max_epochs=1, **options)
    if ranks > 1:
        trainer.strategy.__class__ = EachForItself
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture
def names(tmp_path):
    torch.save(state(), tmp_path / "weights.pt")
    for seed, name in enumerate(("a", "b", "x", "y")):
        write_image(picture(32, 24 + 4 * seed, seed), tmp_path / f"{name}.png")
    return {name: str(tmp_path / f"{name}.png") for name in ("a", "b", "x", "y")}


def test_two_ranks_are_two_runs_and_go_on_from_their_checkpoint(make_trainer, tmp_path, names):
    contents, styles = [names["a"], names["b"]], [names["x"], names["y"]]
    report = StyleReport(str(tmp_path / "out.png"))
    both = run(make_trainer, tmp_path, 2, contents, styles, keep=True, callbacks=[report])
    # Of two sizes, which one process would refuse to make a batch of.
    assert [image.shape[3] for image in both] == [24, 28]
    assert {"out-a-x.png", "out-b-y.png"} <= set(os.listdir(tmp_path))
    again = run(make_trainer, tmp_path, 2, contents, styles, tmp_path / "half.ckpt")
    for rank in range(2):
        (alone,) = run(make_trainer, tmp_path, 1, contents[rank], styles[rank])
        assert torch.equal(both[rank], alone)
        assert torch.equal(again[rank], alone)


def test_two_ranks_share_the_tiles_of_an_image(make_trainer, tmp_path, names):
    """Four tiles for two ranks, then one tile, which leaves a rank without any."""
    data, images = Pictures(names["a"], names["x"], None, steps=2), {}
    for tile in (None, 16, 32):
        ranks = 1 if tile is None else 2
        # Adam would divide the roundings of a tiny gradient by itself.
        options = {"alpha": 1.0, "beta": 10.0, "optimizer": lambda p: torch.optim.SGD(p, 0.1)}
        model = Written(weights=f"{tmp_path}/weights.pt", tile=tile, **options)
        model.folder, model.keep = tmp_path, False
        report = StyleReport(str(tmp_path / f"{tile}.png"))
        trainer = make_trainer(ranks, max_epochs=1, callbacks=[report])
        if ranks > 1:
            trainer.strategy.__class__ = TilesTogether
        trainer.fit(model, data)
        assert (tmp_path / f"{tile}.png").is_file()
        images[tile] = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    start = StyleTransfer(weights=f"{tmp_path}/weights.pt")
    start.pictures = data.pictures()
    assert (images[None][0] - 255 * start.first_image((32, 24))).abs().max() > 1
    for tile in (16, 32):
        assert torch.equal(images[tile][0], images[tile][1])
        torch.testing.assert_close(images[tile][0], images[None][0], rtol=1e-4, atol=1e-2)


def test_plain_ddp_is_refused(make_trainer, tmp_path, names):
    model = StyleTransfer(weights=f"{tmp_path}/weights.pt")
    data = Pictures([names["a"], names["b"]], names["x"], None)
    with pytest.raises(Exception, match='Expected `strategy="each_for_itself"` on several ranks'):
        make_trainer(2, max_epochs=1).fit(model, data)
