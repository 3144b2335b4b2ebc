"""Loops over memory that Numba compiles. Modules that :func:`.kernels` loads import this one."""

from __future__ import annotations

from collections.abc import Callable

import numba


def compiled(
    arguments: str, fastmath: set[str] | bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Compile a loop over addresses, to be called without Numba's own dispatch.

    For a small tensor, to wrap it as an array takes longer than the loop.

    Args:
        arguments: Their types, such as "voidptr, intp".
        fastmath: What LLVM may assume of numbers.
    """

    def compile(loop: Callable[..., None]) -> Callable[..., None]:
        options = {"cache": True, "error_model": "numpy", "fastmath": fastmath}
        kernel = numba.cfunc(f"void({arguments})", **options)(loop)
        function = kernel.ctypes
        function.kernel = kernel  # The code is in memory as long as this is.
        return function  # type: ignore[no-any-return]

    return compile
