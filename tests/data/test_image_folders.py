"""Images in folders: read by any number of workers, shared by ranks, resumed inside an epoch."""

import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import time

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from papers.style.networks import state
from PIL import Image
from processes import Fork
from torchvision.transforms import v2

from pl_losses import GAN, FullBasicModel, LeNet5, RectifierNet, StyleTransfer
from pl_losses.cli.main import main
from pl_losses.core.loaders import num_unpadded
from pl_losses.data import ImageFolders, Pictures
from pl_losses.data.file_loader import GRACE, Crop, leave_signals
from pl_losses.data.image_files import read_image


def smooth(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("folders"), random.Random(0)
    for split, count in (("train", 11), ("val", 7)):
        for label, name in enumerate("ab"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                size = draw.randint(40, 90), draw.randint(40, 90)
                seed = 100 * label + number + 1000 * (split == "val")
                smooth(*size, seed).save(root / split / name / f"{number}.jpg")
    return root


def data(root, **options):
    made = ImageFolders(str(root), **{"size": 32, "num_workers": 0, "batch_size": 4, **options})
    made.setup()
    return made


JITTERED = {"scales": [32, 48], "flip": True, "colour": 0.1}


def test_batches_do_not_depend_on_workers_and_change_with_the_epoch(folders):
    passes = []
    for workers in (0, 2):
        loader = (made := data(folders, num_workers=workers, **JITTERED)).train_dataloader()
        passes.append([list(loader) for _ in range(2)])
        made.teardown("fit")
    for alone, helped in zip(*map(sum, passes, [[], []]), strict=True):
        assert torch.equal(alone[0], helped[0])
        assert torch.equal(alone[1], helped[1])
    first, second = passes[0]
    assert sum(len(labels) for _, labels in first) == 22
    assert not torch.equal(first[0][0], second[0][0])
    assert first[0][0].shape == (4, 3, 32, 32)
    assert first[0][0].dtype == torch.float32
    assert first[0][0].is_contiguous()


@pytest.mark.parametrize("ranks", [2, 3])
def test_what_is_drawn_for_an_image_does_not_depend_on_ranks(folders, ranks):
    made = data(folders, **JITTERED)
    (alone,) = made.make_loader("train", batch_size=22, shuffle=True, transform=made.train_transform)
    seen = []
    for rank in range(ranks):
        part = made.make_loader(
            "train", batch_size=22, shuffle=True, transform=made.train_transform, rank=rank, world_size=ranks
        )
        seen.append(next(iter(part)))
    for place, image in enumerate(alone[0]):
        assert torch.equal(seen[place % ranks][0][place // ranks], image)


def test_evaluation_sees_each_image_once_over_ranks(folders):
    made = data(folders, eval_batch_size=3)
    whole = torch.cat([images for images, _ in made.val_dataloader()])
    assert len(whole) == 14
    parts = [
        made.make_loader("val", batch_size=3, transform=made.eval_transform, rank=r, world_size=2)
        for r in (0, 1)
    ]
    batches = [[images for images, _ in part] for part in parts]
    assert [len(part) for part in batches] == [3, 3]
    for part, seen in zip(parts, batches, strict=True):
        assert [num_unpadded(part, i, len(one)) for i, one in enumerate(seen)] == [len(one) for one in seen]
    joined = torch.empty_like(whole)
    joined[::2], joined[1::2] = (torch.cat(part) for part in batches)
    assert torch.equal(joined, whole)


class Seen(pl.LightningModule):
    """Keeps a number of each batch that it trains on."""

    def __init__(self, stop=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.stop = {}, stop

    def training_step(self, batch):
        self.seen[self.global_step] = float(batch[0].double().sum()), batch[1].tolist()
        if self.global_step == self.stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.weight * batch[0].mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, root, workers, stop=None, resumed=None, kind=ImageFolders):
    made = kind(str(root), 32, batch_size=4, num_workers=workers, **JITTERED)
    model = Seen(stop)
    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
    )
    trainer.fit(model, made, ckpt_path=resumed)
    return model.seen


@pytest.mark.parametrize(("first", "then"), [(2, 0), (0, 2), (2, 1)])
def test_killed_and_resumed_fits_see_the_same_batches(folders, tmp_path, first, then):
    """An epoch has six batches: the eleventh step is inside the second one."""
    killed = Fork(fit, tmp_path, folders, first, 10)
    assert killed.wait() == -signal.SIGKILL
    whole = fit(tmp_path / "whole", folders, 0)
    rest = fit(tmp_path / "rest", folders, then, resumed=tmp_path / "step=10.ckpt")
    assert sorted(rest) == list(range(10, 18))
    assert rest == {step: whole[step] for step in rest}


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_files_are_refused_by_name_or_left_out_and_said_once(folders, tmp_path, workers):
    for label, name in enumerate("ab"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(6):
            smooth(40, 40, label).save(tmp_path / f"train/{name}/{number}.jpg")
    whole = (tmp_path / "train/b/3.jpg").read_bytes()
    (tmp_path / "train/b/3.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/a/1.jpg").write_bytes(b"text")
    made = data(tmp_path, num_workers=workers)
    with pytest.raises(ValueError, match=r'train/[ab]/[13]\.jpg.*`on_error` "skip" leaves such files out'):
        list(made.train_dataloader())
    made.teardown("fit")
    made = data(tmp_path, num_workers=workers, on_error="skip")
    with pytest.warns(UserWarning, match=r"train/[ab]/[13]\.jpg.*: such files are left out") as told:
        passes = [sum(len(labels) for _, labels in made.train_dataloader()) for _ in range(2)]
    made.teardown("fit")
    assert passes == [10, 10]
    assert len(told) == 1
    assert len(made.damaged) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_another_image_stands_in_for_a_batch_without_a_whole_file(folders, tmp_path, workers):
    for number, name in enumerate("abcd"):
        (tmp_path / "train/x").mkdir(parents=True, exist_ok=True)
        smooth(40, 40, number).save(tmp_path / f"train/x/{name}.png")
    for name in "bcd":
        (tmp_path / f"train/x/{name}.png").write_bytes(b"text")
    made = data(tmp_path, num_workers=workers, batch_size=2, on_error="skip")
    loader = made.make_loader("train", batch_size=2)
    batches = list(loader)
    assert torch.equal(batches[0][0], batches[1][0])
    assert [num_unpadded(loader, place, 1) for place in (0, 1)] == [1, 0]
    assert num_unpadded(loader, 1, 1, training=True) == 1
    assert len(made.damaged) == 3
    made.teardown("fit")
    (tmp_path / "train/x/a.png").unlink()
    with pytest.raises(ValueError, match=r"x/[bcd]\.png.*no other image is whole"):
        list(data(tmp_path, batch_size=1, on_error="skip").train_dataloader())


def test_a_prediction_refuses_damaged_files(folders, tmp_path):
    os.symlink(folders / "train", tmp_path / "train")
    (tmp_path / "val/a").mkdir(parents=True)
    (tmp_path / "val/a/x.png").write_bytes(b"text")
    trainer = pl.Trainer(accelerator="cpu", fast_dev_run=1, logger=False, enable_progress_bar=False)
    made = ImageFolders(str(tmp_path), 32, num_workers=0, on_error="skip")
    with pytest.raises(ValueError, match=r"val/a/x\.png.*a prediction is of all files"):
        trainer.predict(FullBasicModel(2, 3), made)


def test_folders_are_checked(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`root` to hold train .*nowhere/train is no folder"):
        data(tmp_path / "nowhere")
    (tmp_path / "train/a").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"images in the folders of .*train but there are none"):
        data(tmp_path)
    smooth(9, 9).save(tmp_path / "train/a/1.png")
    (tmp_path / "train/b").mkdir()
    with pytest.raises(FileNotFoundError, match=r"images of each class but there are none in .*train/b"):
        data(tmp_path)
    (tmp_path / "train/b").rmdir()
    (tmp_path / "val").mkdir()
    smooth(9, 9).save(tmp_path / "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(FileNotFoundError, match=r"hold val .*torchvision\.datasets\.ImageNet\(root, 'val'\)"):
        data(tmp_path)
    (tmp_path / "val/b").mkdir()
    with pytest.raises(ValueError, match=r"classes of .*train in .*val but got 'b'"):
        data(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_scale": 16}, r"`test_scale` to be at least `size` 32 but got 16"),
        ({"scales": [16, 48]}, r"`scales` .* at least `size` 32, but got \[16, 48\]"),
        ({"mean": [0.5]}, r"`mean` of 3 channels but got \[0\.5\]"),
        ({"grey": True, "colour": 0.1}, "`colour` to be 0 with `grey`"),
        ({"on_error": "ignore"}, "`on_error`"),
        ({"num_workers": -1}, "`num_workers` to be at least 0"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolders("nowhere", 32, **options)


def test_a_class_without_validation_images_keeps_its_place(tmp_path):
    for place in ("train/a", "train/b", "val/b"):
        (tmp_path / place).mkdir(parents=True)
        smooth(20, 20).save(tmp_path / place / "x.jpg")
    made = data(tmp_path)
    assert made.tensors["val"][1].tolist() == made.tensors["test"][1].tolist() == [1]
    assert made.predict_names() == ["val/b/x.jpg"]
    assert (made.num_classes, made.class_names) == (2, ("a", "b"))


def test_synsets_get_imagenets_names(tmp_path):
    from pl_losses.data.image_folders import in_words

    names = in_words([f"n{number:08}" for number in range(1000)])
    assert names[0] == "tench"
    assert in_words(["n00000000", "b"]) == ("n00000000", "b")


def test_a_crop_is_that_part_of_the_image(tmp_path):
    smooth(60, 90).save(tmp_path / "x.png")
    whole = np.asarray(smooth(60, 90), dtype=float)
    drawn = Crop(60, (60, 60))(tmp_path / "x.png", random.Random(3))
    differences = [np.abs(whole[:, left : left + 60] - drawn).max() for left in range(31)]
    # The place lies between two pixels.
    assert sorted(differences)[1] < 12 < np.median(differences)
    middle = Crop(60)(tmp_path / "x.png", random.Random(0))
    assert np.array_equal(middle, whole[:, 15:75])
    mirrored = [Crop(60, flip=True)(tmp_path / "x.png", random.Random(seed)) for seed in range(40)]
    turned = sum(np.array_equal(one, middle[:, ::-1]) for one in mirrored)
    assert 10 < turned < 30
    assert turned + sum(np.array_equal(one, middle) for one in mirrored) == 40
    assert Crop(30, whole=True)(tmp_path / "x.png", random.Random(0)).shape == (30, 45, 3)


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_photographs_are_decoded_at_a_part_of_their_size(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    smooth(300, 400).save(tmp_path / "x.jpg", exif=exif, quality=95)
    part, whole = read_image(tmp_path / "x.jpg", least=70), read_image(tmp_path / "x.jpg")
    assert part.size == tuple(side // 4 for side in whole.size)
    small = np.asarray(whole.resize(part.size, Image.Resampling.BOX), dtype=float)
    assert np.abs(small - np.asarray(part)).max() < 12


def test_values_are_shifted_and_scaled(folders):
    plain = next(iter(data(folders, batch_size=22).train_dataloader()))[0]
    assert 0 <= plain.min() < 0.3 < 0.7 < plain.max() <= 1
    changed = next(
        iter(data(folders, batch_size=22, low=-1, high=3, mean=[0.1, 0.2, 0.3]).train_dataloader())
    )[0]
    means = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(changed, -1 + 4 * (plain - means), atol=1e-5, rtol=0)
    shifted = next(iter(data(folders, batch_size=22, colour=0.1, high=4).train_dataloader()))[0] - 4 * plain
    assert shifted.flatten(2).std(2).max() < 1e-5
    assert shifted[:, :, 0, 0].std(0).min() > 0.01


def test_a_transform_of_torchvision_gets_bytes_and_repeats(folders):
    seen = []

    def changed(images):
        seen.append(images.dtype)
        return v2.RandomErasing(1.0, value=255)(images)

    passes = [next(iter(data(folders, transform=changed).train_dataloader()))[0] for _ in range(2)]
    assert torch.equal(*passes)
    assert set(seen) == {torch.uint8}
    before = torch.get_rng_state()
    next(iter(data(folders, transform=changed).train_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(TypeError, match=r"`transform` to return bytes, torch\.uint8, but got torch\.float32"):
        next(iter(data(folders, transform=lambda images: images.float()).train_dataloader()))


def test_the_command_line_takes_a_transform(capsys):
    given = ["--data.transform=torchvision.transforms.v2.RandomErasing", "--data.transform.p=1"]
    assert main(["fit", "--config=prelu/photographs", *given, "--print_config"]) == 0
    assert "class_path: torchvision.transforms.v2.RandomErasing" in capsys.readouterr().out
    assert "transform" not in ImageFolders(transform=v2.RandomErasing(p=1)).hparams


def net(**options):
    return RectifierNet(2, 3, stages=[[4]], pyramid=[2], hidden_size=8, **options)


CASES = {
    "GAN": (lambda: GAN(8, 3, width=2), {"low": -1.0}),
    "FullBasicModel": (lambda: FullBasicModel(2, 3), {}),
    "LeNet5": (lambda: LeNet5(2, head="linear"), {"grey": True, "low": -0.1, "high": 1.175}),
    "RectifierNet": (net, JITTERED),
    "RectifierNet, whole images": (
        lambda: net(test_views="dense", test_crop=32, test_scales=[32, 40]),
        {"whole": True, "test_scale": 40},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_modules_train_and_test_on_folders(folders, tmp_path, name):
    make, options = CASES[name]
    trainer = pl.Trainer(
        accelerator="cpu", fast_dev_run=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    model, made = make(), ImageFolders(str(folders), 32, batch_size=4, num_workers=0, **options)
    trainer.fit(model, made)
    (values,) = trainer.test(model, made, verbose=False)
    assert values["test/loss"] > 0


def test_the_models_classes_are_those_of_the_folders(folders, tmp_path):
    options = {"accelerator": "cpu", "fast_dev_run": 1, "logger": False, "enable_progress_bar": False}
    made = ImageFolders(str(folders), 32, batch_size=4, num_workers=0)
    with pytest.warns(
        UserWarning, match="of no class: expected `num_classes` of the model to be 2, .* got 3"
    ):
        pl.Trainer(**options).fit(FullBasicModel(3, 3), made)
    with pytest.raises(ValueError, match=r"`num_classes` of the model to be 2, .* but got 1"):
        pl.Trainer(**options).fit(FullBasicModel(1, 3), made)


def test_style_transfer_takes_a_folder_of_photographs(folders, tmp_path):
    torch.save(state(), tmp_path / "weights.pt")
    pictures = Pictures(str(folders / "val"), "starry-night", [32, 32], style_size=32, steps=1)
    model = StyleTransfer(weights=str(tmp_path / "weights.pt"), optimizer=torch.optim.Adam)
    trainer = pl.Trainer(
        accelerator="cpu", fast_dev_run=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(model, pictures)
    assert model.result().shape == (14, 3, 32, 32)
    assert len(set(pictures.pictures().names)) == 14
    assert pictures.content[0] == str(folders / "val/a/0.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"images in the folder .*empty of `content` but there are none"):
        Pictures(str(tmp_path / "empty"), "starry-night")


def test_half_precision_is_the_trainers(folders, tmp_path):
    trainer = pl.Trainer(
        accelerator="cpu", fast_dev_run=1, logger=False, enable_progress_bar=False, precision="bf16-true"
    )
    trainer.fit(net(), ImageFolders(str(folders), 32, batch_size=4, num_workers=0))


def test_workers_leave_signals_to_the_main_process():
    def worker():
        leave_signals(0)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(signal.alarm(0) != GRACE)

    assert Fork(worker).wait() == 0


@pytest.mark.slow
def test_workers_end_before_python_waits_for_them(folders):
    """What is registered last runs first: torch and multiprocessing come after this script's own."""
    code = """if 1:
        import atexit, multiprocessing, sys
        import torch.utils.data
        atexit.register(lambda: print(multiprocessing.active_children()))
        from pl_losses.data import ImageFolders
        data = ImageFolders(sys.argv[1], 32, num_workers=1, batch_size=2)
        data.setup("fit")
        loader = data.train_dataloader()
        next(iter(loader))
        print(len(multiprocessing.active_children()))"""
    ended = subprocess.run([sys.executable, "-c", code, folders], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("1\n[]\n", "")


def test_loaders_can_be_sent_to_new_processes(folders):
    loader = data(folders, num_workers=1).train_dataloader()
    reader = pickle.loads(pickle.dumps(loader._workers.dataset))
    assert len(reader[(0, [0, 1])][0]) == 2


@pytest.mark.parametrize("count", [1, 100])
def test_workers_end_with_a_loader_that_is_forgotten(folders, count):
    """In the middle of an epoch, and after it."""
    module = data(folders, num_workers=2)
    batches = iter(module.train_dataloader())
    read = [batch for _, batch in zip(range(count), batches, strict=False)]
    assert read
    began = time.monotonic()
    del module, batches
    gc.collect()
    # Of the workers that wait to be killed, each takes ten seconds.
    assert time.monotonic() - began < 8


def test_workers_end_with_the_fit(folders):
    made = data(folders, num_workers=1, batch_size=2)
    loader = made.train_dataloader()
    next(iter(loader))
    (process,) = loader._plan.reading._workers
    made.teardown("fit")
    process.join(10)
    assert not process.is_alive()
    assert len(list(loader)) == 11
    made.teardown("fit")


def test_a_fork_has_workers_of_its_own(folders):
    made = data(folders, num_workers=1, batch_size=2)
    loader = made.train_dataloader()
    next(iter(loader))

    def forked():
        made.teardown("fit")
        batches = len(list(loader))
        made.teardown("fit")
        return batches - 11

    fork = Fork(forked)
    assert (fork.wait(), fork.printed) == (0, ("", ""))
    made.teardown("fit")


def test_a_missing_val_is_told_before_training(tmp_path, folders):
    os.symlink(folders / "train", tmp_path / "train")
    with pytest.warns(UserWarning, match=r"Nothing is validated, since there is no folder .*val"):
        data(tmp_path).setup("fit")
