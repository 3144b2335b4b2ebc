"""StyleTransfer: equal to a bare loop, resumed in the middle, stopped in time, and its options."""

import json
from itertools import pairwise

import lightning.pytorch as pl
import pytest
import torch
from papers.style.networks import picture
from PIL import Image

from pl_losses import StyleTransfer
from pl_losses.callbacks import StyleReport
from pl_losses.data import Pictures
from pl_losses.data.image_files import read_image, to_tensor, write_image
from pl_losses.papers.style.optimizer import MonotoneLBFGS
from pl_losses.papers.style.sizes import filling, scaled

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def short_lbfgs(parameters):
    return MonotoneLBFGS(parameters, max_iter=4, history_size=10)


def wolfe(parameters):
    return torch.optim.LBFGS(parameters, max_iter=4, history_size=10, line_search_fn="strong_wolfe")


def make(files, **options):
    # These weights' activations are small: other weights of the terms than VGG-19's.
    options = {"alpha": 1.0, "beta": 10.0, "optimizer": short_lbfgs} | options
    return StyleTransfer(weights=files["weights"], **options)


def pictures(files, **options):
    return Pictures(
        **{"content": files["photo"], "style": files["painting"], "size": None, "steps": 3} | options
    )


def trainer(folder, **options):
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False} | options
    return pl.Trainer(default_root_dir=folder, **QUIET, **options)


def bare_loop(model, data, steps, optimizer=short_lbfgs, image=None):
    """What the Trainer does, by hand, from the start or from an image in [0, 255]."""
    features = model.configure_features()
    objective = model.configure_objective(features)
    shown = data.pictures()
    objective.set_targets(shown.contents, shown.styles)
    if image is None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(shown.contents.shape[1:], generator=generator)
        image = 255 * (0.5 + 0.1 * noise).clamp(0, 1)[None]
    image = image.clone().requires_grad_()
    stepper = optimizer([image])

    def closure():
        stepper.zero_grad()
        loss, _ = objective(image / 255)
        loss.backward()
        return loss

    losses = [stepper.step(closure) for _ in range(steps)]
    return image.detach(), losses


@pytest.mark.parametrize("optimizer", [short_lbfgs, wolfe, lambda p: torch.optim.Adam(p, 5.0)])
def test_equal_to_a_bare_loop_bit_for_bit(files, tmp_path, optimizer):
    model, data = make(files, optimizer=optimizer), pictures(files)
    wanted, _ = bare_loop(model, data, 3, optimizer)
    trainer(tmp_path).fit(model, data)
    assert torch.equal(model.image.detach(), wanted)
    assert int(model.evaluations) >= 3


def test_the_loss_falls_and_is_tested(files, tmp_path):
    model, data = make(files), pictures(files, steps=10)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, data)
    _, losses = bare_loop(make(files), data, 10)
    (result,) = run.test(model, data, verbose=False)
    # What each step ended with.
    assert all(later < before for before, later in pairwise(losses))
    assert result["test/loss"] == pytest.approx(float(losses[-1]), rel=1e-5)
    total = model.alpha * result["test/content_loss"] + model.beta * result["test/style_loss"]
    assert result["test/loss"] == pytest.approx(total, rel=1e-5)
    (image,) = run.predict(model, data)
    assert image.shape == (1, 3, 40, 32)
    assert 0 <= image.min() <= image.max() <= 1


def saved_every_step(folder):
    kept = pl.callbacks.ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    return {"callbacks": [kept], "enable_checkpointing": True}


def test_resumed_in_the_middle_bit_for_bit(files, tmp_path):
    whole = make(files)
    trainer(tmp_path, **saved_every_step(tmp_path)).fit(whole, pictures(files, steps=4))
    path = tmp_path / "step=2.ckpt"
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert set(saved) == {"image", "evaluations"}
    resumed = make(files)
    trainer(tmp_path).fit(resumed, pictures(files, steps=4), ckpt_path=path)
    assert torch.equal(resumed.image, whole.image)
    assert resumed.evaluations == whole.evaluations > saved["evaluations"]
    alone = StyleTransfer.load_from_checkpoint(path)
    assert torch.equal(alone.image, saved["image"])
    assert alone.result().shape == (1, 3, 40, 32)


def test_resumed_at_another_scale(files, tmp_path):
    options = {"scales": [0.5, 1.0]}
    whole = make(files, **options)
    trainer(tmp_path, max_epochs=2, **saved_every_step(tmp_path)).fit(whole, pictures(files))
    assert whole.image.shape == (1, 3, 40, 32)
    for steps, height in ((2, 20), (3, 20), (5, 40)):
        path = tmp_path / f"step={steps}.ckpt"
        assert torch.load(path, weights_only=True)["state_dict"]["image"].shape[2] == height
        resumed = make(files, **options)
        trainer(tmp_path, max_epochs=2).fit(resumed, pictures(files), ckpt_path=path)
        assert torch.equal(resumed.image, whole.image), steps
    with pytest.raises(ValueError, match=r"`max_epochs` of the Trainer to be at least 2.*but got 1"):
        trainer(tmp_path).fit(make(files, **options), pictures(files))


class Explodes(StyleTransfer):
    """Its third evaluation is not finite."""

    def evaluate(self):
        loss, terms = super().evaluate()
        return loss * (float("nan") if int(self.evaluations) == 2 else 1), terms


def test_stops_at_a_loss_that_is_not_finite_and_keeps_the_last_good_image(files, tmp_path):
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, 1.0), "alpha": 1.0}
    model = Explodes(weights=files["weights"], **sgd)
    report = StyleReport(str(tmp_path / "out.png"))
    with pytest.raises(FloatingPointError, match="finite loss but got nan at evaluation 3"):
        trainer(tmp_path, callbacks=[report]).fit(model, pictures(files, steps=9))
    two = make(files, **sgd, beta=1.0)
    trainer(tmp_path, max_steps=1).fit(two, pictures(files))
    assert torch.equal(model.image, two.image)
    saved = to_tensor(read_image(tmp_path / "out.png"))
    torch.testing.assert_close(saved, model.result()[0], rtol=0, atol=0.5 / 255 + 1e-6)


def test_starts(files, tmp_path):
    data = pictures(files)
    shown = data.pictures()
    for start, wanted in (("content", shown.contents), ("style", shown.styles[0][0][None])):
        model = make(files, start=start, optimizer=lambda p: torch.optim.SGD(p, 0.0))
        trainer(tmp_path, max_steps=1).fit(model, data)
        torch.testing.assert_close(model.result(), wanted)
    noise = make(files, optimizer=lambda p: torch.optim.SGD(p, 0.0), seed=1)
    trainer(tmp_path, max_steps=1).fit(noise, data)
    assert 0.08 < noise.result().std() < 0.12
    assert filling(torch.rand(3, 20, 60), (40, 32)).shape == (1, 3, 40, 32)
    assert torch.equal(scaled(shown.contents, (40, 32)), shown.contents)


def test_colours_are_preserved(files, tmp_path):
    data = pictures(files)
    content = data.pictures().contents
    model = make(files, preserve_colour="luminance")
    trainer(tmp_path).fit(model, data)
    chroma = model.result() - model.result().mean(1, keepdim=True)
    wanted = content - content.mean(1, keepdim=True)
    inside = ((model.result() > 0) & (model.result() < 1)).all(1, keepdim=True).expand_as(chroma)
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(chroma[inside], wanted[inside], rtol=0, atol=1e-5)
    model = make(files, preserve_colour="histogram")
    trainer(tmp_path, max_steps=1).fit(model, data)
    _, styles = model._recoloured()
    torch.testing.assert_close(styles[0][0].mean((1, 2)), content[0].mean((1, 2)), rtol=0, atol=0.03)


def test_a_batch_under_adam_is_its_images_one_by_one(files, tmp_path):
    adam = {"optimizer": lambda p: torch.optim.Adam(p, 5.0)}
    both = make(files, **adam)
    contents, styles = [files["photo"], files["other"]], [files["painting"], files["second"]]
    trainer(tmp_path).fit(both, pictures(files, content=contents, style=styles, paired=True))
    for index in range(2):
        one = make(files, **adam)
        trainer(tmp_path).fit(one, pictures(files, content=contents[index], style=styles[index]))
        torch.testing.assert_close(both.image[index], one.image[0], rtol=1e-4, atol=1e-2)


def test_tiles_masks_and_normalisation_under_the_trainer(files, tmp_path):
    mask = torch.zeros(3, 40, 32)
    mask[:, :20] = 1
    write_image(mask, tmp_path / "top.png")
    write_image(1 - mask, tmp_path / "bottom.png")
    regions = {"style": [files["painting"], files["second"]]}
    regions["masks"] = [str(tmp_path / "top.png"), str(tmp_path / "bottom.png")]
    # Adam would divide the roundings of a tiny gradient by itself.
    options = {"normalize": True, "optimizer": lambda p: torch.optim.SGD(p, 0.1)}
    images = []
    for tile in (None, 16):
        model = make(files, tile=tile, **options)
        trainer(tmp_path).fit(model, pictures(files, **regions))
        images.append(model.image.detach())
    torch.testing.assert_close(images[1], images[0], rtol=1e-4, atol=1e-2)
    white = [str(tmp_path / "top.png")] * 2
    other = make(files, **options)
    trainer(tmp_path).fit(other, pictures(files, **regions | {"masks": white}))
    assert not torch.allclose(other.image, images[0], atol=0.1)


def test_bf16_is_near(files, tmp_path):
    data = pictures(files)
    start, _ = bare_loop(make(files), data, 0)
    moves = []
    for precision in ("32-true", "bf16-mixed"):
        # One step along the gradient: line searches make roundings of any size.
        model = make(files, optimizer=lambda p: torch.optim.SGD(p, 1e-4))
        trainer(tmp_path, precision=precision, max_steps=1).fit(model, data)
        assert model.image.dtype == torch.float32
        moves.append(model.image.detach() - start)
    # 0.025 to 0.031 for six sets of pictures, on each instruction set.
    assert 0 < (moves[1] - moves[0]).norm() < 0.1 * moves[0].norm()


def test_the_report_writes_and_shows(files, tmp_path, capsys):
    logger = pl.loggers.CSVLogger(tmp_path, name="runs", version="one")
    report = StyleReport(every_n_steps=2)
    model = make(files)
    run = trainer(tmp_path, logger=logger, callbacks=[report], log_every_n_steps=1)
    run.fit(model, pictures(files))
    path = tmp_path / "runs" / "one" / "photo-painting.png"
    assert f"Image: {path}" in capsys.readouterr().out
    assert Image.open(path).size == (32, 40)
    assert (tmp_path / "runs" / "one" / "pictures" / "train-image.png").is_file()
    logged = run.logged_metrics
    stated = {key for key in StyleTransfer.KEYS if key.startswith("train/") and "<" not in key}
    assert stated - {"train/total_variation"} <= set(logged)
    layers = {f"train/style_conv{block}_1" for block in range(1, 6)} | {"train/content_conv4_2"}
    assert layers <= set(logged)
    assert json.dumps({key: float(value) for key, value in logged.items()})
    path.unlink()
    run.predict(model, pictures(files))
    assert Image.open(path).size == (32, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "`alpha` to be finite and at least 0 but got -1"),
        ({"preset": "mine"}, "`preset` to be .paper"),
        ({"start": "zeros"}, "`start` to be .noise"),
        ({"style_layers": ["conv1_9"]}, "`style_layers` to be different ones"),
        ({"layer_weights": [1.0]}, "`layer_weights` for 5 style layers"),
        ({"scales": [2.0]}, r"`scales` in \(0, 1\]"),
        ({"tile": 4}, "`tile` to be at least 16"),
        ({"preserve_colour": "all"}, "`preserve_colour` to be .luminance"),
    ],
)
def test_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        StyleTransfer(**options)


def test_a_report_that_could_not_be_written_is_refused():
    with pytest.raises(ValueError, match=r"`output` to end in \.png.* but got my\.pic"):
        StyleReport("my.pic")
    with pytest.raises(ValueError, match="`every_n_steps` to be at least 0 but got -1"):
        StyleReport(every_n_steps=-1)


def test_data_without_pictures_are_refused(files, tmp_path):
    with pytest.raises(TypeError, match="Expected a DataModule with `pictures`"):
        trainer(tmp_path).fit(make(files), [0])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        trainer(tmp_path).fit(StyleTransfer(weights="nowhere.pt"), pictures(files))


def test_other_images_start_anew(files, tmp_path):
    model, fresh = make(files), make(files)
    trainer(tmp_path).fit(model, pictures(files))
    other = {"content": files["other"], "style": files["second"]}
    trainer(tmp_path).fit(model, pictures(files, **other))
    trainer(tmp_path).fit(fresh, pictures(files, **other))
    assert torch.equal(model.image, fresh.image)
    assert model.evaluations == fresh.evaluations
    run = trainer(tmp_path, max_steps=1)
    run.fit(fresh, pictures(files, size=[32, 32]))
    run.save_checkpoint(tmp_path / "square.ckpt")
    with pytest.raises(ValueError, match=r"proportions of the content, 40 x 32, but .* 1 of 32 x 32"):
        trainer(tmp_path).test(make(files), pictures(files), ckpt_path=tmp_path / "square.ckpt")


def test_pictures_of_ones_own(files, tmp_path):
    class Own(Pictures):
        def open(self, argument, name, size):
            return picture(32, 48, len(name))

    model = make(files)
    trainer(tmp_path, max_steps=1).fit(model, Own("a", "bc", steps=1))
    assert model.image.shape == (1, 3, 32, 48)
