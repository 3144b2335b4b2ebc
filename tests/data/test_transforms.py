import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from pl_losses.data.transforms import RandomAffine, smooth_field, warp


def parameters(right=0.0, down=0.0, scale=0.0, squeeze=0.0, shear=0.0, angle=0.0):
    return torch.tensor([[right, down, scale, squeeze, shear, angle]])


def images(batch=1, size=32):
    return torch.rand(batch, 2, size, size, generator=torch.Generator().manual_seed(0))


def test_no_range_leaves_the_images_as_they_are():
    x = images(3)
    assert torch.equal(RandomAffine(0, scale=0, squeeze=0, shear=0, rotate=0)(x), x)
    assert torch.equal(warp(x, parameters().expand(3, 6)), x)


@pytest.mark.parametrize("background", [0.0, -0.5])
def test_a_shift_by_whole_pixels_is_exact(background):
    # Eighths: adding and subtracting the background does not round.
    x = (images() * 8).round() / 8
    expected = torch.full_like(x, background)
    expected[..., 3:, :-2] = x[..., :-3, 2:]
    assert torch.equal(warp(x, parameters(right=-2, down=3), background=background), expected)


def test_a_displacement_says_where_each_pixel_is_taken_from():
    x = images(2)
    displacement = torch.zeros(2, 2, 32, 32)
    displacement[0, 0], displacement[1, 1] = 3, -2  # From the right, and from above.
    expected = torch.zeros_like(x)
    expected[0, ..., :-3], expected[1, :, 2:] = x[0, ..., 3:], x[1, :, :-2]
    assert torch.equal(warp(x, parameters().expand(2, 6), displacement=displacement), expected)


def test_a_smooth_field_is_torchs_bicubic_interpolation():
    nodes = torch.randn(3, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = interpolate(nodes, (32, 20), mode="bicubic", align_corners=True)
    torch.testing.assert_close(smooth_field(nodes, 32, 20), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize(
    ("log_scale", "degrees", "shift"), [(0.3, 0, (0, 0)), (-0.2, 20, (3, -1)), (0, -7, (0, 2))]
)
def test_scale_rotation_and_shift_equal_torchvision(size, log_scale, degrees, shift):
    x = images(size=size).double()
    factor = float(torch.tensor(log_scale).exp())
    expected = affine(x, degrees, list(shift), factor, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
    angle = float(torch.deg2rad(torch.tensor(float(degrees))))
    found = warp(x, parameters(*shift, scale=log_scale, angle=angle).double())
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def point(x, y, size=32):
    image = torch.zeros(1, 1, size, size)
    image[0, 0, y, x] = 1
    return image


def centroid(image):
    index = torch.arange(image.shape[-1]) - (image.shape[-1] - 1) / 2
    mass = image.sum()
    return float((image.sum((0, 1, 2)) * index).sum() / mass), float(
        (image.sum((0, 1, 3)) * index).sum() / mass
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"squeeze": 0.5}, (6.5 * 1.6487, 4.5 / 1.6487)),
        ({"scale": 0.4}, (6.5 * 1.4918, 4.5 * 1.4918)),
        ({"shear": 0.5}, (6.5 + 0.5 * 4.5, 4.5)),
        ({"angle": torch.pi / 2}, (-4.5, 6.5)),
        ({"right": 1.5, "down": -2.5}, (8.0, 2.0)),
    ],
)
def test_a_point_goes_where_the_definition_says(change, expected):
    # The pixel at (22, 20) lies (6.5, 4.5) from the centre.
    assert centroid(warp(point(22, 20), parameters(**change))) == pytest.approx(expected, abs=0.35)


def test_wide_images_keep_right_angles():
    x = torch.zeros(1, 1, 16, 64)
    x[0, 0, 7:9, 20:44] = 1
    turned = warp(x, parameters(angle=torch.pi / 2))
    assert turned[0, 0, :, 31:33].min() > 0.99
    assert turned.sum() == pytest.approx(32, abs=0.1)


def test_draws_follow_the_generator_alone_and_differ_between_images():
    x = images(4)
    x[:] = x[:1]
    state = torch.get_rng_state()
    first, again = (RandomAffine()(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, RandomAffine()(x, torch.Generator().manual_seed(2)))


def test_the_background_moves_in():
    x = torch.full((8, 1, 32, 32), -0.1)
    torch.testing.assert_close(RandomAffine(background=-0.1)(x), x)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"`shear` to be finite and at least 0 but got -0.1"):
        RandomAffine(shear=-0.1)
    with pytest.raises(ValueError, match=r"`images` of shape \[B, C, H, W\] .* \[3, 32, 32\]"):
        RandomAffine()(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match=r"torch\.uint8"):
        RandomAffine()(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
