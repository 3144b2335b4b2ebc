import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from pl_losses.data import Digits, ImageDataModule, TensorDataModule


class Points(TensorDataModule):
    num_classes = 3

    def __init__(self, inputs=None, labels=None, val=True, **kwargs):
        super().__init__(**kwargs)
        self.inputs = torch.randn(20, 32) if inputs is None else inputs
        self.labels = torch.arange(20) % 3 if labels is None else labels
        self.val = val
        self.loads = []

    def load(self, stage):
        self.loads.append(stage)
        both = (self.inputs, self.labels)
        return {"train": both, "test": both} | ({"val": both} if self.val else {})

    def eval_transform(self, batch, generator):
        return (batch[0],)


class Model(BoringModel):
    def step(self, batch):
        return super().step(batch[0])

    def training_step(self, batch, batch_idx):
        return {"loss": self.step(batch)}

    def validation_step(self, batch, batch_idx):
        return {"x": self.step(batch)}

    def test_step(self, batch, batch_idx):
        return {"y": self.step(batch)}

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


def trainer(folder, **kwargs):
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


@pytest.mark.parametrize("val", [True, False])
def test_a_trainer_runs_every_stage(tmp_path, val):
    data, run, model = Points(val=val, batch_size=8), trainer(tmp_path), Model()
    run.fit(model, data)
    run.test(model, data, verbose=False)
    assert sum(len(batch) for batch in run.predict(model, data)) == 20
    assert run.global_step == 3
    assert data.loads == ["fit", "test", "predict"]


def test_a_missing_validation_split_gives_no_loader():
    data = Points(val=False)
    data.setup("fit")
    assert data.val_dataloader() == []


def test_evaluation_batches_are_large_and_in_order():
    data = Points(batch_size=4)
    data.setup()
    assert [len(loader) for loader in (data.train_dataloader(), data.val_dataloader())] == [5, 1]
    (seen,) = next(iter(data.test_dataloader()))
    assert torch.equal(seen, data.inputs)
    assert Points(batch_size=2000).eval_batch_size == 2000
    assert Points(eval_batch_size=7).eval_batch_size == 7


def test_overfitting_keeps_the_order(tmp_path):
    data = Points(batch_size=4)
    run = trainer(tmp_path, overfit_batches=1)
    run.fit(Model(), data)
    (seen,) = next(iter(run.train_dataloader))
    assert torch.equal(seen, data.inputs[:4])


def test_bad_data_and_arguments_are_named():
    inputs = torch.randn(20, 32)
    inputs[3, 4] = float("nan")
    with pytest.raises(ValueError, match="finite values in tensor 0 of 'train' but 1 are not"):
        Points(inputs).setup("fit")
    with pytest.raises(ValueError, match=r"labels of 'train' in 0..2 but got 0..3"):
        Points(labels=torch.arange(20) % 4).setup("fit")
    with pytest.raises(ValueError, match=r"labels of 'train' in 0..2 but got -1..2"):
        Points(labels=torch.arange(20) % 4 - 1).setup("fit")
    with pytest.raises(ValueError, match="`eval_batch_size` to be at least 1 but got 0"):
        Points(eval_batch_size=0)
    with pytest.raises(ValueError, match='`resident` to be "auto", "host" or "device" but got \'gpu\''):
        Points(resident="gpu")
    with pytest.raises(
        RuntimeError, match="'train' split to be loaded but there is nothing: call `prepare_data"
    ):
        Points().train_dataloader()
    with pytest.raises(NotImplementedError, match="override `load`"):
        TensorDataModule().setup("fit")


def test_digits_are_split_by_class_scaled_and_centred():
    data = Digits()
    data.setup()
    sizes = {split: len(tensors[0]) for split, tensors in data.tensors.items()}
    assert sizes == {"train": 1197, "val": 300, "test": 300}
    for images, labels in data.tensors.values():
        assert images.dtype == torch.uint8
        assert images.shape[1:] == data.input_shape
        counts = labels.bincount(minlength=10) / len(labels)
        assert (counts - 0.1).abs().max() < 0.01
        assert images[..., :4].max() == images[..., -4:].max() == images[..., :4, :].max() == 0
    images, _ = next(iter(data.test_dataloader()))
    assert images.dtype == torch.float32
    assert images.min() == pytest.approx(-0.1)
    assert images.max() == pytest.approx(1.175)


def rows(data):
    return {
        split: {image.numpy().tobytes() for image in images} for split, (images, _) in data.tensors.items()
    }


def test_digits_splits_are_disjoint():
    first, again, other = Digits(seed=1), Digits(seed=1, limit=100), Digits(seed=2, val_size=0)
    for data in (first, again, other):
        data.setup("fit")
    assert not rows(first)["train"] & rows(first)["test"]
    assert not rows(first)["val"] & (rows(first)["test"] | rows(first)["train"])
    assert torch.equal(again.tensors["train"][0], first.tensors["train"][0][:100])
    assert rows(first)["test"] == rows(other)["test"]
    assert len(other.tensors["train"][0]) == 1497
    assert other.val_dataloader() == []


def test_only_training_images_are_distorted_and_the_background_stays():
    plain, distorted = Digits(), Digits(distort={"translate": 3.0})
    for data in (plain, distorted):
        data.setup()
    assert torch.equal(next(iter(plain.val_dataloader()))[0], next(iter(distorted.val_dataloader()))[0])
    x, y = next(iter(plain.train_dataloader()))
    z, labels = next(iter(distorted.train_dataloader()))
    assert torch.equal(y, labels)
    assert not torch.allclose(x, z)
    torch.testing.assert_close(z.amin((1, 2, 3)), torch.full((64,), -0.1))


def test_bad_image_arguments_are_named():
    with pytest.raises(ValueError, match=r"`low` to be less than `high` but got 1.0 and 0.0"):
        Digits(low=1.0, high=0.0)
    with pytest.raises(ValueError, match="`limit` to be at least 1 but got 0"):
        Digits(limit=0)
    with pytest.raises(ValueError, match=r"`distort` to be a bool or to map some of .*zoom"):
        Digits(distort={"zoom": 1.0})
    with pytest.raises(ValueError, match=r"`val_size` to be 0, or in 10..1777 but got 5"):
        Digits(val_size=5)


def test_hyper_parameters_are_plain_data():
    assert dict(Digits(distort={"shear": 0.1}).hparams) == {
        "val_size": 300, "test_size": 300, "low": -0.1, "high": 1.175, "distort": {"shear": 0.1},
        "limit": None, "batch_size": 64, "eval_batch_size": None, "seed": 0, "resident": "auto",
    }  # fmt: skip


def test_the_face_imports_no_torch():
    code = "import pl_losses.data, sys; assert 'torch' not in sys.modules; dir(pl_losses.data)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_move_to_the_gpu_and_give_the_same_order(tmp_path):
    host, device = Digits(), Digits()
    host.setup("fit")
    device.setup("fit")
    device.trainer = Trainer(accelerator="gpu", devices=1, logger=False, default_root_dir=tmp_path)
    for (x, y), (images, labels) in zip(host.train_dataloader(), device.train_dataloader(), strict=True):
        assert images.is_cuda
        torch.testing.assert_close(images.cpu(), x)
        assert torch.equal(labels.cpu(), y)


def test_images_that_are_not_bytes_are_refused():
    class Scaled(ImageDataModule):
        def load(self, stage):
            return {"train": (torch.rand(4, 1, 8, 8), torch.arange(4))}

    with pytest.raises(TypeError, match=r"images of bytes, 0\.\.255, for 'train' but got torch\.float32"):
        Scaled().setup("fit")


def test_data_print_their_samples():
    data = Digits(limit=16, val_size=12, test_size=21)
    assert str(data) == "Digits(not set up)"
    data.setup("fit")
    assert str(data) == "Digits(test 21, train 16, val 12)"


def test_digits_have_the_same_test_images_for_every_seed():
    one, other = (Digits(seed=seed) for seed in (0, 1000))
    for module in (one, other):
        module.setup()
    assert torch.equal(one.tensors["test"][0], other.tensors["test"][0])
    assert not torch.equal(one.tensors["val"][0], other.tensors["val"][0])
    seen = {image.numpy().tobytes() for split in ("train", "val") for image in other.tensors[split][0]}
    assert not seen & {image.numpy().tobytes() for image in one.tensors["test"][0]}
