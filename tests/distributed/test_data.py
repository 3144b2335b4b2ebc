from datetime import timedelta
from itertools import chain

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image

from pl_losses import RectifierNet
from pl_losses.data import ImageFolders, ImageShards, TensorDataModule, write_shards

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs the gloo backend")


class Numbers(TensorDataModule):
    def load(self, stage):
        return {"train": (torch.arange(21.0),), "val": (torch.arange(37.0),), "test": (torch.arange(17.0),)}


class Counter(pl.LightningModule):
    """Writes down on each rank which samples it saw, and trains with a collective in every step."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": []}

    def record(self, split, batch):
        self.seen[split].append(batch[0].tolist())
        return self.weight * batch[0].mean()

    def training_step(self, batch):
        return self.record("train", batch)

    def validation_step(self, batch):
        self.log("val", self.record("val", batch), sync_dist=True)

    def test_step(self, batch):
        # As in a sharded model: without equally many batches this waits for ever.
        torch.distributed.all_reduce(torch.ones(1))
        self.record("test", batch)

    def on_fit_end(self):
        torch.save(self.seen, f"{self.folder}/fit{self.global_rank}.pt")

    def on_test_end(self):
        torch.save(self.seen, f"{self.folder}/test{self.global_rank}.pt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def two_ranks(folder):
    return pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(
            start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=20)
        ),
        default_root_dir=folder,
        max_epochs=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_two_ranks_train_on_one_process_batches_and_evaluate_each_sample_once(tmp_path):
    data = Numbers(batch_size=4, eval_batch_size=4)
    two_ranks(tmp_path).fit(Counter(tmp_path), data)
    first, second = (torch.load(tmp_path / f"fit{rank}.pt") for rank in (0, 1))

    alone = Numbers(batch_size=8)
    alone.setup("fit")
    loader = alone.train_dataloader()
    expected = [batch[0].tolist() for _ in range(2) for batch in loader]
    steps = [sorted({*a, *b}) for a, b in zip(first["train"], second["train"], strict=True)]
    # 21 samples: both ranks get 11, so the last step repeats the epoch's first sample.
    repeated = [
        {*batch} | ({expected[i - 2][0]} if i % 3 == 2 else set()) for i, batch in enumerate(expected)
    ]
    assert steps == [sorted(batch) for batch in repeated]

    assert len(first["val"]) == len(second["val"]) == 2 * 5
    assert sorted(chain(*first["val"][:5], *second["val"][:5])) == list(range(37))


def test_two_ranks_test_an_uneven_set_once_with_collectives_in_step(tmp_path):
    # 17 samples, batches of 4: one rank has 9 samples, the other 8, yet both take three steps.
    two_ranks(tmp_path).test(Counter(tmp_path), Numbers(eval_batch_size=4), verbose=False)
    first, second = (torch.load(tmp_path / f"test{rank}.pt")["test"] for rank in (0, 1))
    assert [len(batch) for batch in first] == [4, 4, 1]
    assert [len(batch) for batch in second] == [4, 3, 1]
    assert sorted(chain(*first, *second)) == list(range(17))


class Graded(RectifierNet):
    """Writes down its test errors on rank zero."""

    path = ""

    def on_test_epoch_end(self):
        super().on_test_epoch_end()
        self.test_error.compute()
        if self.global_rank == 0:
            torch.save(self.test_error.counted, self.path)


def pictures(root):
    draw = torch.Generator().manual_seed(0)
    for label, count in (("a", 5), ("b", 6)):
        for split in ("train", "val"):
            (folder := root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(256, (20, 30, 3), generator=draw, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")


def graded(path):
    torch.manual_seed(0)
    model = Graded(2, 3, stages=[[4]], pyramid=[2], hidden_size=8)
    model.path = path
    return model


@pytest.mark.parametrize("kind", [ImageFolders, ImageShards])
def test_two_ranks_test_each_image_of_a_folder_once(tmp_path, kind):
    pictures(root := tmp_path)
    if kind is ImageShards:
        pytest.importorskip("litdata", reason="no LitData: install the extra `shards`")
        write_shards(tmp_path, root := tmp_path / "shards", shard_bytes=4000)
    model = graded(tmp_path / "errors.pt")
    data = kind(str(root), 16, batch_size=4, num_workers=1)
    two_ranks(tmp_path).test(model, data, verbose=False)
    data.setup("test")
    ((images, labels),) = data.make_loader("test", batch_size=11, transform=data.eval_transform)
    wrong = (model.eval()(images).argmax(1) != labels).sum()
    assert torch.load(model.path) == (int(wrong), 11)


def test_two_ranks_go_on_where_all_files_of_a_batch_are_damaged(tmp_path):
    """Eleven whole images, one in a batch, are also not to be shared evenly."""
    pictures(tmp_path)
    for split in ("train", "val"):
        for name in ("a/1", "a/4", "b/0", "b/5"):
            (tmp_path / f"{split}/{name}.png").write_bytes(b"text")
    model = graded(tmp_path / "errors.pt")
    data = ImageFolders(str(tmp_path), 16, batch_size=1, num_workers=1, on_error="skip", whole=True)
    trainer = two_ranks(tmp_path)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    data.setup("test")
    images = list(data.make_loader("test", batch_size=1, transform=data.eval_transform))
    seen = [one for place, one in enumerate(images) if place not in (1, 4, 5, 10)]
    wrong = sum(int(model.eval()(image).argmax()) != int(label) for image, label in seen)
    assert torch.load(model.path) == (wrong, 7)
