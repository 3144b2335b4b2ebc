"""He et al. 2015, section 2.1: the PReLU, its training at nearly the cost of a ReLU's.

f(y) = max(0, y) + a min(0, y). Torch's backward pass writes dE/df * min(0, y) for every position before it
adds these up; here one compiled loop writes dE/dy and adds up dE/da. On a CPU it is Numba's, which needs no
compiler on the machine and keeps what it compiled; else it is torch.compile's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pl_losses.core.autograd import Context
from pl_losses.core.compat import of_torch
from pl_losses.core.kernels import kernels
from pl_losses.core.precision import at_least_float32
from pl_losses.core.validation import typed

# torch.compile takes ten seconds of a processor: more than a short run of small layers gains.
LEAST_COMPILED = 2**22
# Below 2**15 to call Numba's loop from Python takes longer than torch's own pass.
LEAST_ELEMENTS = {"auto": 2**15, True: 1, False: math.inf}
LONG = 4096  # From here on the compiler adds up in parts.
PLAIN = (Tensor, nn.Parameter)  # No DTensor, nor what torch.fx puts there.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

log = logging.getLogger(__name__)
Backward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class PReLU(nn.PReLU):
    r"""An ``nn.PReLU`` with a compiled backward pass for large inputs.

    .. math:: f(y_i) = \max(0, y_i) + a_i \min(0, y_i)

    Parameters, outputs, gradients and ``state_dict`` are those of ``nn.PReLU``, under autocast too. The
    slopes' gradient is added up in float32. For float32 on a CPU Numba compiles the loop, with the extra
    ``fast``, in a few seconds. In other cases the first forward pass of a large input waits for
    ``torch.compile``, about ten seconds. One loop works for all layers and sizes of a dtype and memory
    layout. Torch's own backward pass is used if there is no compiler, if nothing is trained, for inputs of
    float64 and inputs that are not dense, for second and forward-mode derivatives, and for ``torch.func``. It
    is also used within ``torch.compile``, which compiles it anyway.

    Args:
        num_parameters: 1 for one slope, or the number of channels (dimension 1 of the input).
        init: Where the slopes start.
        device: Where they lie.
        dtype: Of the slopes.
        compiled: "auto" compiles for inputs of at least 2**22 elements, 2**15 with Numba, ``True`` for all,
            ``False`` for none.

    Raises:
        ValueError: If ``compiled`` is none of its choices.

    Example:
        >>> PReLU(2)(torch.tensor([[-1.0, 2.0]])).tolist()
        [[-0.25, 2.0]]
    """

    @typed
    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.25,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        compiled: Literal["auto"] | bool = "auto",
    ) -> None:
        super().__init__(num_parameters, init, device, dtype)
        self.compiled = compiled

    def forward(self, input: Tensor) -> Tensor:
        """Apply the rectifier: [B, C, ...] -> [B, C, ...]."""
        slopes: Tensor = self.weight
        if not _pays(input, slopes, LEAST_ELEMENTS[self.compiled]):
            return torch.prelu(input, slopes)
        device = "cpu" if input.is_cpu else input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))  # As autocast does for torch's.
        backward = _native(input, slopes)
        if backward is None and (self.compiled is True or input.numel() >= LEAST_COMPILED):
            backward = _compiled(input, slopes)
        if backward is None:
            return torch.prelu(input, slopes)
        output: Tensor = _Rectified.apply(input, slopes, backward)
        return output


def _native(input: Tensor, slopes: Tensor) -> Backward | None:
    """Return Numba's loop if it can serve: for float32 on a CPU."""
    if not (input.is_cpu and input.dtype == slopes.dtype == torch.float32):
        return None
    native = kernels("pl_losses.papers.prelu.compiled")
    return native.derivatives if native else None


def _pays(input: Tensor, slopes: Tensor, least: float) -> bool:
    """Return whether a compiled pass can pay: a large tensor in training, with first derivatives only."""
    return (
        not torch.compiler.is_compiling()
        and type(input) in PLAIN
        and input.numel() >= least
        and not input.is_meta
        and not input.is_neg()
        and torch.is_grad_enabled()
        and input.requires_grad
        and slopes.requires_grad
        and type(slopes) in PLAIN
        and input.dtype in DTYPES
        and input.ndim > 1
        and slopes.numel() in (1, input.shape[1])
        and not of_torch.is_transformed()
        and (input.is_contiguous() or _is_last(input))
    )


def _is_last(input: Tensor) -> bool:
    """Return whether the channels lie side by side in memory."""
    return input.movedim(1, -1).is_contiguous()


def _folded(input: Tensor, slopes: Tensor) -> tuple[int, int, int]:
    """Fold the shape to three dimensions in the order of memory, for one loop.

    Returns:
        Batch, positions, channels where these lie side by side, else batch, channels (1 if the slope is
        shared), positions.
    """
    batch, channels = input.shape[:2]
    if slopes.numel() == 1:
        return batch, 1, input.numel() // batch
    positions = input.numel() // (batch * channels)
    if not _is_last(input):
        return batch, channels, positions
    return (batch, positions, channels) if input.ndim > 2 else (1, batch, channels)


class _RectifiedContext(Context, Protocol):
    compiled: Backward


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _RectifiedContext, input: Tensor, slopes: Tensor, backward: Backward) -> Tensor:
        ctx.save_for_backward(input, slopes)
        ctx.compiled = backward
        return _rectified(input, slopes)

    @staticmethod
    def backward(ctx: _RectifiedContext, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        input, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # A further derivative of this derivative is needed.
            outputs = _rectified(input, slopes)
            first = torch.autograd.grad(outputs, (input, slopes), gradient, create_graph=True)
            return first[0], first[1], None
        return *ctx.compiled(gradient, input, slopes), None


def _rectified(input: Tensor, slopes: Tensor) -> Tensor:
    """Call torch's own; without autocast the dtypes are alike, and ``to`` would take time anyway."""
    return torch.prelu(input, slopes if slopes.dtype == input.dtype else slopes.to(input.dtype))


def _on_folded(compiled: Backward, gradient: Tensor, input: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the derivatives by what is compiled for three dimensions."""
    shape, last = _folded(input, slopes), _is_last(input)
    flat = [tensor.movedim(1, -1) if last else tensor for tensor in (gradient, input)]
    with torch.autocast(input.device.type, enabled=False):
        folded = [_reshaped(tensor.detach().contiguous(), shape) for tensor in flat]
        by_input, by_slopes = compiled(folded[0], folded[1], slopes.detach())
    by_input = by_input.view(flat[0].shape)
    return by_input.movedim(-1, 1) if last else by_input, by_slopes


def _reshaped(tensor: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the same memory in another shape, not as a view: views are compiled anew for each rank."""
    strides = (shape[1] * shape[2], shape[2], 1)
    return tensor.new_empty(0).set_(tensor.untyped_storage(), tensor.storage_offset(), shape, strides)


def _channels_last(gradient: Tensor, input: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the derivatives by the input [B, L, C] and by the slopes [C]."""
    by_input, by_slopes = _terms(gradient, input, slopes)
    return by_input, by_slopes.sum(1).sum(0).to(slopes.dtype)


def _channels_first(gradient: Tensor, input: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the derivatives by the input [B, C, L] and by the slopes [C]."""
    by_input, by_slopes = _terms(gradient, input, slopes[:, None])
    return by_input, by_slopes.sum(2).sum(0).to(slopes.dtype)


def _terms(gradient: Tensor, input: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    positive = input > 0
    wide = at_least_float32(gradient)
    by_input = torch.where(positive, gradient, (at_least_float32(slopes) * wide).to(input.dtype))
    return by_input, torch.where(positive, 0.0, at_least_float32(input) * wide)


def _compiled(input: Tensor, slopes: Tensor) -> Backward | None:
    """Return the backward pass by torch.compile; ``None`` if no compiler works."""
    side_by_side = slopes.numel() > 1 and _is_last(input)
    kinds = tuple((size == 1, size > LONG) for size in _folded(input, slopes))
    compiled = _compiled_for(input.device, input.dtype, slopes.dtype, side_by_side, kinds)
    return compiled and partial(_on_folded, compiled)


@cache
def _compiled_for(
    device: torch.device,
    dtype: torch.dtype,
    slopes: torch.dtype,
    side_by_side: bool,
    kinds: tuple[tuple[bool, bool], ...],
) -> Backward | None:
    """Compile the backward pass and try it on a small input; ``None`` if no compiler works.

    Lengths of 1 and beyond :data:`LONG` are compiled to loops of their own. Which lengths these are is part
    of the key, so that the backward pass calls what was compiled here, in the forward pass.
    """
    shape = [
        1 if one else LONG + 1 if long else size for (one, long), size in zip(kinds, (3, 5, 7), strict=True)
    ]
    gradient, input = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
    channels = torch.zeros(shape[2 if side_by_side else 1], device=device, dtype=slopes)
    backward = torch.compile(_channels_last if side_by_side else _channels_first, dynamic=True)
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            backward(gradient, input, channels)
    except Exception as error:  # There may be no compiler, or it may fail with any error.
        log.info("PReLU: the backward pass could not be compiled and torch's own is used: %s", error)
        return None
    return backward
