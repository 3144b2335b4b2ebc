import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from pl_losses.papers.prelu import param_groups


class Net(nn.Module):
    """A shared PReLU; slopes that a parametrised name or a shape would not give away."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)
        self.norm = nn.LayerNorm(4)
        self.bias = nn.PReLU(4)  # By its path no slope.
        self.again = self.bias
        self.slopes = nn.Parameter(torch.zeros(1))  # By its path one.

    def forward(self, x):
        return self.second(self.again(self.norm(self.bias(self.first(x))))) + self.slopes


def names(module, groups):
    paths = {id(parameter): path for path, parameter in module.named_parameters()}
    return {group["name"]: [paths[id(p)] for p in group["params"]] for group in groups}


def test_slopes_are_told_by_module_type():
    net = Net()
    assert names(net, param_groups(net)) == {
        "weights": ["slopes", "first.weight", "first.bias", "second.weight", "norm.weight", "norm.bias"],
        "slopes": ["bias.weight"],
    }
    apart = names(net, param_groups(net, 0.1, decay_biases=False, decay_norms=False))
    assert apart["weights"] == ["slopes", "first.weight", "second.weight"]
    assert apart["undecayed"] == ["first.bias", "norm.weight", "norm.bias"]
    assert sum(map(len, apart.values())) == len(list(net.parameters()))


def parametrized(layer, name):
    return parametrize.register_parametrization(layer, name, nn.Softplus())


@pytest.mark.parametrize(
    ("layer", "undecayed"),
    [
        (
            nn.LSTM(2, 3, bidirectional=True),
            ["bias_ih_l0", "bias_hh_l0", "bias_ih_l0_reverse", "bias_hh_l0_reverse"],
        ),
        (
            nn.MultiheadAttention(4, 2, add_bias_kv=True),
            ["in_proj_bias", "bias_k", "bias_v", "out_proj.bias"],
        ),
        (prune.l1_unstructured(nn.Linear(2, 3), "bias", 1), ["bias_orig"]),
        (parametrized(nn.Linear(2, 3), "bias"), ["parametrizations.bias.original"]),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(2, 3), "bias", dim=None),
            ["parametrizations.bias.original0", "parametrizations.bias.original1"],
        ),
        (parametrized(nn.Linear(2, 3), "weight"), ["bias"]),
        (parametrized(nn.BatchNorm1d(3), "weight"), ["bias", "parametrizations.weight.original"]),
        (prune.l1_unstructured(nn.LayerNorm(3), "weight", 1), ["bias", "weight_orig"]),
    ],
)
def test_biases_and_norms_are_told_however_they_are_made(layer, undecayed):
    groups = names(layer, param_groups(layer, 0.1, decay_biases=False, decay_norms=False))
    assert sorted(groups["undecayed"]) == sorted(undecayed)
    assert sum(map(len, groups.values())) == len(list(layer.parameters()))


def test_without_prelu_there_is_one_group():
    (group,) = param_groups(nn.Linear(2, 2))
    assert sorted(group) == ["name", "params"]


def test_the_optimizers_own_decay_does_not_reach_the_slopes():
    net = Net()
    optimizer = torch.optim.SGD(param_groups(net), lr=0.1, weight_decay=0.5)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (net.bias.weight == 0.25).all()
    assert (net.norm.weight == 0.95).all()


def test_learning_rates():
    rates = {g["name"]: g.get("lr") for g in param_groups(Net(), lr=0.1, slope_lr_factor=3.0)}
    assert rates == {"weights": 0.1, "slopes": pytest.approx(0.3)}
    rates = {g["name"]: g.get("lr") for g in param_groups(Net(), slope_lr=0.2)}
    assert rates == {"weights": None, "slopes": 0.2}


def test_slope_momentum_is_sgds_to_the_bit():
    """delta a := mu delta a + dE/da, a := a - eps delta a, the paper's eq. 9 with eps outside, by hand."""
    net = Net()
    groups = param_groups(net, 5e-4, slope_lr=0.02, slope_momentum=0.5)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    slopes, delta = net.bias.weight.detach().clone(), torch.zeros(4)
    alone = slopes.clone().requires_grad_()
    twin = torch.optim.SGD([alone], lr=0.02, momentum=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.randn(8, 3)).square().mean().backward()
        delta = 0.5 * delta + net.bias.weight.grad
        slopes = slopes - 0.02 * delta
        alone.grad = net.bias.weight.grad.clone()
        optimizer.step()
        twin.step()
        assert torch.equal(net.bias.weight, alone)
    torch.testing.assert_close(alone.detach(), slopes, rtol=1e-6, atol=1e-8)
    assert (slopes != 0.25).all()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"slope_momentum": -0.1}, "slope_momentum"),
        ({"slope_lr_factor": 2.0}, "slope_lr_factor"),
        ({"slope_lr_factor": 2.0, "lr": 1.0, "slope_lr": 1.0}, "slope_lr_factor"),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ValueError, match=f"Expected `{name}`"):
        param_groups(nn.PReLU(), **options)
