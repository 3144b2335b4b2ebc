import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.fx import symbolic_trace

from pl_losses.papers.prelu import PReLU, layers


@pytest.fixture(params=["torch.compile", "numba"])
def as_written(request, monkeypatch):
    """The names of the loops that run: those for torch.compile as they are written, or Numba's."""
    calls = []

    def compile_(function, **options):
        def run(*tensors):
            calls.append(function.__name__)
            return function(*tensors)

        return run

    layers._compiled_for.cache_clear()
    monkeypatch.setattr(torch, "compile", compile_)
    if request.param == "torch.compile":
        monkeypatch.setattr(layers, "kernels", lambda name: None)
    else:
        native = pytest.importorskip(
            "pl_losses.papers.prelu.compiled", reason="no Numba: install the extra `fast`"
        )
        for name in ("channels_first", "channels_last"):
            run = partial(
                lambda loop, name, *given: [calls.append(name), loop(*given)], getattr(native, name)
            )
            monkeypatch.setattr(native, name, partial(run, f"_{name}"))
    yield calls
    layers._compiled_for.cache_clear()


def inputs(shape, dtype=torch.float32, memory=torch.contiguous_format):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x.contiguous(memory_format=memory).requires_grad_()


def gradients(layer, x, autocast=False):
    with torch.autocast("cpu", enabled=autocast):
        y = layer(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return (y, *torch.autograd.grad(y, (x, layer.weight), weights))


CASES = [
    ((4, 3, 5, 5), 3, torch.contiguous_format, "_channels_first"),
    ((4, 3, 5, 5), 3, torch.channels_last, "_channels_last"),
    ((4, 3, 5, 5), 1, torch.channels_last, "_channels_first"),
    ((1, 3, 5, 5), 1, torch.contiguous_format, "_channels_first"),
    ((6, 3), 3, torch.contiguous_format, "_channels_last"),
    ((2, 3, 4), 3, torch.contiguous_format, "_channels_first"),
    ((2, 67, 83), 67, torch.contiguous_format, "_channels_first"),  # Many numbers at a time.
    ((50, 67), 67, torch.contiguous_format, "_channels_last"),
]


@pytest.mark.parametrize(("shape", "channels", "memory", "loop"), CASES)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_loops_give_torchs_gradients(as_written, shape, channels, memory, loop, autocast):
    ours, torchs = PReLU(channels, compiled=True), nn.PReLU(channels)
    slopes = torch.linspace(-0.5, 1.5, channels)
    with torch.no_grad():
        ours.weight.copy_(slopes)
        torchs.weight.copy_(slopes)
    x = inputs(shape, memory=memory)
    found, wanted = gradients(ours, x, autocast), gradients(torchs, x, autocast)
    assert as_written[-1] == loop
    tolerance = {"rtol": 2e-2, "atol": 1e-1} if autocast else {}
    for one, other in zip(found, wanted, strict=True):
        assert (one.dtype, one.stride()) == (other.dtype, other.stride())
        torch.testing.assert_close(one, other, **tolerance)


def test_the_slopes_gradient_is_the_sum_over_the_negative_inputs(as_written):
    """dE/da = sum of dE/df * min(0, y); at y = 0 the slope has no part, and f's derivative is a."""
    layer = PReLU(1, compiled=True)
    x = torch.tensor([[-2.0, 0.0], [3.0, -1.0]], requires_grad=True)
    layer(x).backward(torch.tensor([[10.0, 20.0], [30.0, 40.0]]))
    assert layer.weight.grad.tolist() == [-2 * 10 - 1 * 40]
    assert x.grad.tolist() == [[2.5, 5.0], [30.0, 10.0]]


def test_infinity_and_nan_are_passed_on_as_by_torch(as_written):
    x = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0] * 10]).requires_grad_()
    ours, torchs = PReLU(40, compiled=True), nn.PReLU(40)
    weights = torch.full_like(x, torch.inf)
    found = torch.autograd.grad(ours(x), (x, ours.weight), weights)
    wanted = torch.autograd.grad(torchs(x), (x, torchs.weight), weights)
    torch.testing.assert_close(found, wanted, equal_nan=True)
    assert as_written


def test_bfloat16_slopes_are_added_up_in_float32(as_written):
    x = -torch.ones(1, 1, 4096, dtype=torch.bfloat16).requires_grad_()
    layer = PReLU(compiled=True)
    with torch.autocast("cpu"):
        layer(x).backward(torch.ones(1, 1, 4096, dtype=torch.bfloat16))
    assert layer.weight.grad.item() == -4096  # In bfloat16, 256 + 1 is 256.


@pytest.mark.parametrize("channels", [1, 3])
def test_first_and_second_derivatives(as_written, channels):
    """In double precision torch's own; in single precision the second derivative of the compiled one."""
    layer = PReLU(channels, compiled=True).double()
    x = inputs((2, 3, 4), torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, a: torch.func.functional_call(layer, {"weight": a}, x), (x, layer.weight)
    )
    assert torch.autograd.gradgradcheck(
        lambda x, a: torch.func.functional_call(layer, {"weight": a}, x), (x, layer.weight)
    )
    layer, x = layer.float(), inputs((2, 3, 4))

    def second(layer):
        y = layer(x)
        (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), (x, layer.weight))

    twin = nn.PReLU(channels)
    torch.testing.assert_close(second(layer), second(twin))


def test_slopes_of_zero_and_one_are_a_relu_and_the_identity(as_written):
    x = inputs((3, 2, 4))
    assert torch.equal(PReLU(2, 0.0, compiled=True)(x), x.relu())
    output = PReLU(2, 1.0, compiled=True)(x)
    assert torch.equal(output, x)
    output.sum().backward()
    assert as_written


def derivative(layer, x):
    return torch.func.grad(lambda x: layer(x).sum())(x.detach())


def forward_derivative(layer, x):
    return torch.func.jvp(layer, (x,), (torch.ones_like(x),))[1]


def frozen(layer, x):
    return layer.requires_grad_(False)(x)


@pytest.mark.parametrize(
    "use",
    [
        derivative,
        forward_derivative,
        frozen,
        lambda layer, x: layer(x.detach()),
        lambda layer, x: layer(x[..., ::2]),
        lambda layer, x: layer(torch.empty(0, 2, 4, requires_grad=True)),
        lambda layer, x: torch.func.vmap(layer)(x[None])[0],
        lambda layer, x: symbolic_trace(nn.Sequential(layer))(x),
        lambda layer, x: torch.no_grad()(layer)(x),
        lambda layer, x: torch.zeros_like(
            layer.to("meta")(x.detach().to("meta").requires_grad_()), device="cpu"
        ),
    ],
)
def test_everything_else_is_torchs(as_written, use):
    x = inputs((3, 2, 4))
    found = use(PReLU(2, compiled=True), x)
    torch.testing.assert_close(found, use(nn.PReLU(2), x))
    assert "Rectified" not in str(found.grad_fn)
    assert not as_written


def test_small_inputs_are_not_compiled(as_written, request):
    least = 2**14 if "numba" in request.node.name else 2**21
    gradients(PReLU(2), torch.empty(1, 2, least - 1, requires_grad=True))
    gradients(PReLU(2, compiled=False), torch.empty(1, 2, least + 1, requires_grad=True))
    assert not as_written
    gradients(PReLU(2), torch.empty(1, 2, least, requires_grad=True))
    assert as_written


def test_without_a_compiler_torchs_own_serves(monkeypatch):
    def broken(function, **options):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *args, **options: broken)
    monkeypatch.setattr(layers, "kernels", lambda name: None)
    layers._compiled_for.cache_clear()
    x = inputs((3, 2, 4))
    found, wanted = gradients(PReLU(2, compiled=True), x), gradients(nn.PReLU(2), x)
    layers._compiled_for.cache_clear()
    assert "PreluKernel" in str(found[0].grad_fn)
    torch.testing.assert_close(found, wanted)


def test_states_and_copies_are_those_of_torch():
    layer = PReLU(3, compiled=False)
    layer.load_state_dict(nn.PReLU(3, init=0.7).state_dict())
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(copied, nn.PReLU)
        assert copied.compiled is False
        assert copied.weight.tolist() == layer.weight.tolist()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="`compiled`"):
        PReLU(compiled="always")


@pytest.mark.slow
def test_compiled_loops_give_torchs_gradients(monkeypatch):
    monkeypatch.setattr(layers, "kernels", lambda name: None)
    layers._compiled_for.cache_clear()
    for shape, channels, memory, _ in CASES:
        x = inputs(shape, memory=memory)
        found, wanted = gradients(PReLU(channels, compiled=True), x), gradients(nn.PReLU(channels), x)
        torch.testing.assert_close(found, wanted)
    assert layers._compiled_for.cache_info().currsize > 1
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    gradients(PReLU(4, compiled=True), inputs((9, 4, 13, 17)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 2])
def test_numbas_loop_has_torchs_derivatives_of_every_number(channels, memory, threads, monkeypatch):
    """Longer than a block of the loop, on threads, and where a product would be inf * 0."""
    native = pytest.importorskip(
        "pl_losses.papers.prelu.compiled", reason="no Numba: install the extra `fast`", exc_type=ImportError
    )
    monkeypatch.setattr("pl_losses.core.kernels.SHARE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    random = torch.Generator().manual_seed(0)
    input, gradient = (torch.randn(5, 2, 33, 40, generator=random) for _ in range(2))
    slopes = torch.linspace(0.1, 0.4, channels)
    gradient[input > 1] = torch.inf  # Of positive numbers, which give no derivative by a slope.
    input[0, 0, 0, :3] = torch.tensor([torch.inf, -0.0, 0.0])
    input[1, 1, 1, 1] = torch.nan
    input, gradient = (one.contiguous(memory_format=memory) for one in (input, gradient))
    found = native.derivatives(gradient, input, slopes)
    given = input.clone().requires_grad_(), slopes.clone().requires_grad_()
    wanted = torch.autograd.grad(torch.prelu(*given), given, gradient)
    torch.testing.assert_close(found, wanted, equal_nan=True)


@pytest.mark.parametrize(
    ("shape", "channels", "memory"),
    [
        ((2**22, 1), 1, torch.contiguous_format),
        ((2**20, 4), 4, torch.contiguous_format),
        ((1, 2, 1024, 1024), 2, torch.contiguous_format),
        ((1, 2, 1024, 1024), 2, torch.channels_last),
        ((1, 2, 1024, 1024), 1, torch.channels_last),
    ],
)
def test_numbas_loop_adds_up_millions_of_numbers_precisely(shape, channels, memory):
    native = pytest.importorskip(
        "pl_losses.papers.prelu.compiled", reason="no Numba: install the extra `fast`", exc_type=ImportError
    )
    random = torch.Generator().manual_seed(0)
    input = -torch.rand(shape, generator=random)
    if len(shape) == 4:
        input = input.contiguous(memory_format=memory)
    _, found = native.derivatives(torch.ones_like(input), input, torch.full((channels,), 0.25))
    wanted = input.double().movedim(1, 0).reshape(channels, -1).sum(1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
