import pytest
import torch

from pl_losses import RectifierNet
from pl_losses.papers.prelu.multi_view import at_scale, mean_log_probabilities, ten_crops, windows


def small(**options):
    torch.manual_seed(0)
    net = RectifierNet(architecture="E", stem="small", width=0.02, hidden_size=8, **options)
    torch.nn.init.normal_(net.head[-1].weight)
    return net.eval()


def test_ten_views_are_corners_centre_and_mirror_images():
    images = torch.arange(2 * 30.0).view(2, 1, 5, 6)
    views = list(ten_crops(images, 3))
    assert len(views) == 10
    assert torch.equal(views[4], images[..., 2:, :3])
    assert torch.equal(views[7], images[..., 2:, 3:].flip(-1))
    assert torch.equal(views[8], images[..., 1:4, 1:4])
    with pytest.raises(ValueError, match="`images` of at least 6 pixels a side but got 5x6"):
        next(ten_crops(images, 6))


def test_windows_are_all_places_once():
    maps = torch.arange(12).view(1, 1, 3, 4)
    assert [window.flatten().tolist() for window in windows(maps, (2, 3))] == [
        [0, 1, 2, 4, 5, 6],
        [1, 2, 3, 5, 6, 7],
        [4, 5, 6, 8, 9, 10],
        [5, 6, 7, 9, 10, 11],
    ]
    assert len(list(windows(maps, (9, 9)))) == 1


def test_probabilities_are_averaged():
    views = torch.randn(3, 4, 5, dtype=torch.float64)
    wanted = views.softmax(dim=2).mean(dim=0).log()
    torch.testing.assert_close(mean_log_probabilities(views, lambda view: view), wanted)
    assert mean_log_probabilities(views.bfloat16(), lambda view: view).dtype == torch.float32
    with pytest.raises(ValueError, match="`views`"):
        mean_log_probabilities([], torch.log)


@torch.no_grad()
def test_ten_view_testing():
    net, images = small(test_views="ten", test_crop=24), torch.randn(2, 1, 32, 32)
    views = [net(view).softmax(dim=1) for view in ten_crops(images, 24)]
    torch.testing.assert_close(net.test_outputs(images).exp(), sum(views) / 10)


@torch.no_grad()
def test_dense_testing_of_an_image_of_the_crops_size_is_the_image_and_its_mirror_image():
    net, images = small(test_views="dense", test_crop=32), torch.randn(2, 1, 32, 32)
    both = net(images).softmax(dim=1) + net(images.flip(-1)).softmax(dim=1)
    torch.testing.assert_close(net.test_outputs(images).exp(), both / 2)


@torch.no_grad()
def test_dense_testing_is_cropping_where_the_convolutions_see_no_border():
    """Model E's paddings aside: a stem of 1x1 and no stage leaves windows of pixels."""
    net = RectifierNet(stages=[[4]], pyramid=[2, 1], hidden_size=6, test_views="dense", test_crop=8).eval()
    net.features[0] = torch.nn.Conv2d(1, 4, 1)
    images = torch.randn(2, 1, 12, 10)
    total = 0
    for view in (images, images.flip(-1)):
        for top in range(0, 5, 2):  # The pooling takes steps of two pixels.
            for left in range(0, 3, 2):
                total = total + net(view[..., top : top + 8, left : left + 8]).softmax(dim=1)
    torch.testing.assert_close(net.test_outputs(images).exp(), total / 12)


@torch.no_grad()
@pytest.mark.parametrize("views", ["ten", "dense"])
def test_scales_count_alike_however_many_views_they_have(views):
    net = small(test_views=views, test_crop=24, test_scales=[24, 32])
    images = torch.randn(2, 1, 32, 40)
    parts = [net.view_outputs(at_scale(images, scale), 24).exp() for scale in (24, 32)]
    torch.testing.assert_close(net.test_outputs(images).exp(), sum(parts) / 2)
    assert at_scale(images, 32) is images
    assert at_scale(images, 24).shape == (2, 1, 24, 30)


@pytest.mark.parametrize(
    "options", [{"test_scales": [32]}, {"test_views": "ten", "test_crop": 24, "test_scales": [16]}]
)
def test_scales_without_room_for_a_crop_are_refused(options):
    with pytest.raises(ValueError, match="`test_scales` of at least `test_crop` pixels, with `test_views`"):
        small(**options)
