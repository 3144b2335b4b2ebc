"""Equations 1 to 6 against the sums written out, and what leaves them unchanged."""

import pytest
import torch

from pl_losses.losses import content_loss, gram_matrix, style_loss, total_variation

DOUBLE = {"dtype": torch.float64}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def close(value, wanted):
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)


def test_the_sums_written_out():
    f, p = draw(3, 5), draw(3, 5, seed=1)
    close(content_loss(f, p), sum((f[i, j] - p[i, j]) ** 2 for i in range(3) for j in range(5)) / 2)
    gram = torch.stack([torch.stack([(f[i] * f[j]).sum() for j in range(3)]) for i in range(3)])
    close(gram_matrix(f), gram)
    close(style_loss(f, p), (gram - p @ p.T).square().sum() / (4 * 3**2 * 5**2))


def test_gradients_are_equations_2_and_6():
    x, p, s = draw(4, 3, 3).requires_grad_(), draw(4, 3, 3, seed=1).relu(), draw(4, 3, 3, seed=2).relu()
    f = x.relu()
    (slope,) = torch.autograd.grad(content_loss(f, p), x, retain_graph=True)
    close(slope, torch.where(x > 0, f - p, 0).detach())
    (slope,) = torch.autograd.grad(style_loss(f, s), x)
    flat = f.detach().flatten(1)
    difference = flat @ flat.T - s.flatten(1) @ s.flatten(1).T
    wanted = (flat.T @ difference).T.view_as(f) / (4**2 * 9**2)
    close(slope, torch.where(x > 0, wanted, 0).detach())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradcheck(layout):
    f = draw(2, 3, 2, 4).contiguous(memory_format=layout).requires_grad_()
    mask = torch.rand(2, 2, 4, generator=torch.Generator().manual_seed(3), **DOUBLE)
    target = draw(1, 3, 3, 3, seed=1)
    assert torch.autograd.gradcheck(gram_matrix, f)
    assert torch.autograd.gradcheck(lambda x: gram_matrix(x, mask), f)
    assert torch.autograd.gradcheck(lambda x: style_loss(x, target), f)
    assert torch.autograd.gradcheck(lambda x: content_loss(x, target[..., :2, :1]), f[..., :1])
    assert torch.autograd.gradcheck(total_variation, f)
    assert torch.autograd.gradgradcheck(lambda x: style_loss(x, target), f)


def test_the_symmetric_backward_is_autograds_and_keeps_the_layout():
    f = draw(2, 8, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = draw(2, 8, 8, seed=1)
    (own,) = torch.autograd.grad((gram_matrix(f) * weights).sum(), f)
    flat = f.flatten(2)
    (plain,) = torch.autograd.grad((flat @ flat.transpose(1, 2) * weights).sum(), f)
    close(own, plain)
    assert own.is_contiguous(memory_format=torch.channels_last)


def test_where_things_are_does_not_matter_to_the_style():
    f, p = draw(4, 6, 5), draw(4, 6, 5, seed=1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    moved = [f.flatten(1)[:, order].view_as(f), f.flip(2), f.roll(2, 1)]
    for other in moved:
        close(style_loss(other, p), style_loss(f, p))
        assert abs(content_loss(other, p) - content_loss(f, p)) > 1e-3
    channels = torch.tensor([2, 0, 3, 1])
    close(style_loss(f[channels], p[channels]), style_loss(f, p))


def test_scales_and_zeros():
    f, p = draw(4, 6, 5), draw(4, 6, 5, seed=1)
    close(style_loss(3 * f, 3 * p), 81 * style_loss(f, p))
    close(content_loss(3 * f, 3 * p), 9 * content_loss(f, p))
    f.requires_grad_()
    loss = style_loss(f, f.detach())
    assert loss == 0
    assert not torch.autograd.grad(loss, f)[0].any()
    assert torch.linalg.eigvalsh(gram_matrix(draw(6, 3))).min() > -1e-12


def test_another_size_of_style_image_and_repetition():
    f, s = draw(3, 4, 4), draw(3, 5, 2, seed=1)
    tiled = torch.cat([s, s], dim=2)
    close(style_loss(f, tiled), style_loss(f, s))
    wanted = (gram_matrix(f) / 16 - gram_matrix(s) / 10).square().sum() / (4 * 9)
    close(style_loss(f, s), wanted)


def test_masks_pick_positions():
    f = draw(2, 3, 4, 4)
    mask = torch.zeros(1, 4, 4, **DOUBLE)
    mask[:, :2] = 1
    close(gram_matrix(f, mask), gram_matrix(f[:, :, :2]))
    close(gram_matrix(f[0], mask[0]), gram_matrix(f[0, :, :2]))


def test_layers_are_weighted_and_batches_summed():
    features = [draw(2, 3, 4, 4), draw(2, 5, 2, 2, seed=1)]
    targets = [draw(2, 3, 4, 4, seed=2), draw(2, 5, 2, 2, seed=3)]
    each = [style_loss(f, t) for f, t in zip(features, targets, strict=True)]
    close(style_loss(features, targets), (each[0] + each[1]) / 2)
    close(style_loss(features, targets, [0.2, 0.7]), 0.2 * each[0] + 0.7 * each[1])
    close(each[0], sum(style_loss(features[0][b], targets[0][b]) for b in range(2)))


def test_float32_under_autocast_and_closeness():
    f, p = draw(8, 20, 20), draw(8, 20, 20, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert gram_matrix(f.float()).dtype == torch.float32
        assert style_loss(f.bfloat16(), p.bfloat16()).dtype == torch.float32
        loss = style_loss(f.float(), p.float()).double()
    torch.testing.assert_close(loss, style_loss(f, p), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        content_loss(f.float(), p.float()).double(), content_loss(f, p), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: content_loss(draw(2, 3), draw(2, 4)), r"`target` of shape \[2, 3\] but got \[2, 4\]"),
        (lambda: content_loss(draw(2), draw(2)), r"`features` of shape \[N, M\].* but got \[2\]"),
        (lambda: gram_matrix(torch.ones(2, 3, dtype=torch.long)), "floating point but got .* torch.int64"),
        (lambda: gram_matrix(draw(2, 3, 3), draw(4, 3)), r"`mask` of shape \[3, 3\] but got \[4, 3\]"),
        (lambda: style_loss(draw(2, 3), draw(3, 3)), r"`target` with the channels of `features`, \[2, 3\]"),
        (lambda: style_loss([draw(2, 3)], []), "for 1 layers but got 0 and 1"),
        (lambda: style_loss(draw(2, 3), [draw(2, 3)]), "as sequences"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
