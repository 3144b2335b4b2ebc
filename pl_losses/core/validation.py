"""Checks of arguments: TypeError for types, ValueError for values, the argument's name in backticks."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import cache, wraps
from math import isfinite, isnan
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, ParamSpec, TypeGuard, TypeVar, Union, get_args, get_origin

import torch
from torch import Tensor

from pl_losses.core.compat import of_python

P = ParamSpec("P")
R = TypeVar("R")


class _Kind(NamedTuple):
    """What an annotation allows: in words, the type alone, and the type and its value."""

    words: str
    is_type: Callable[[object], bool]
    fits: Callable[[object], bool]


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that its arguments are checked by their annotations before it runs.

    A tensor must be dense and real, a number no boolean and not NaN, a choice one of its ``Literal``, and a
    sequence no text. The rest of an annotation, such as what a function returns, is not checked, nor are
    elements of tensors. Within ``torch.compile`` nothing is checked.

    Example:
        >>> @typed
        ... def half(number: float) -> float:
        ...     return number / 2
        >>> half("one")
        Traceback (most recent call last):
        TypeError: Expected `number` to be a number but got 'one'
    """

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_compiling():
            check_types(function, dict(zip(_kinds(function), args, strict=False), **kwargs))
        return function(*args, **kwargs)

    return checked


def check_types(function: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """Refuse arguments that do not fit a function's annotations, see :func:`typed`.

    Raises:
        TypeError: If one is of another type.
        ValueError: If one is none of its choices, or not a number.
    """
    kinds = _kinds(function)
    for name, value in arguments.items():
        kind = kinds.get(name)
        if kind is not None and not kind.fits(value):
            error = ValueError if kind.is_type(value) else TypeError
            raise error(f"Expected `{name}` to be {kind.words} but got {in_words(value)}")


def check_init(arguments: Mapping[str, Any]) -> None:
    """Check a constructor's arguments as :func:`typed` does: call it first, with ``locals()``.

    A decorator would hide the constructor's frame, in which Lightning looks for hyper-parameters.
    """
    check_types(arguments["__class__"].__init__, arguments)


def check_integer(name: str, value: int, least: int, *, most: int | None = None, also: str = "") -> None:
    """Refuse an argument that is no integer in ``least``..``most``; ``also`` names what else would do."""
    if not _INT.fits(value):
        raise TypeError(f"Expected `{name}` to be an integer but got {in_words(value)}")
    if value < least or (most is not None and value > most):
        wanted = f"at least {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"Expected `{name}` to be {also}{wanted} but got {value}")


def check_counts(least: int = 1, /, **values: int | None) -> None:
    """Refuse arguments that are no integers of at least ``least``; ``None`` is for the caller to refuse."""
    for name, value in values.items():
        if value is not None and not (type(value) is int and value >= least):
            check_integer(name, value, least)


def check_number(
    name: str, value: Any, wanted: str = "to be finite", fits: Callable[[float], bool] = lambda _: True
) -> None:
    """Refuse an argument that is no finite number, or not ``wanted``."""
    if not _FLOAT.is_type(value):
        raise TypeError(f"Expected `{name}` {wanted} but got {in_words(value)}")
    if not (isfinite(value) and fits(value)):
        raise ValueError(f"Expected `{name}` {wanted} but got {value}")


def check_positive(name: str, value: object, none: bool = False) -> None:
    """Refuse an argument that is no positive, finite number; ``none`` says that None would do."""
    if none and value is None:
        return
    check_number(name, value, "to be positive and finite", lambda number: number > 0)


def check_not_negative(**values: object) -> None:
    """Refuse arguments that are no finite numbers of at least 0; ``None`` is for the caller to refuse."""
    for name, value in values.items():
        if value is not None:
            check_number(name, value, "to be finite and at least 0", lambda number: number >= 0)


def check_share(name: str, value: object) -> None:
    """Refuse an argument that is not in [0, 1), such as a probability to drop."""
    check_number(name, value, "in [0, 1)", lambda share: 0 <= share < 1)


def check_some(**values: Sized | None) -> None:
    """Refuse empty lists; ``None`` is for the caller to refuse."""
    for name, value in values.items():
        if value is not None and not len(value):
            raise ValueError(f"Expected `{name}` to have an element at least but got {value}")


def check_device(device: str) -> str:
    """Return a device of this machine: "auto" is a GPU if there is one, else the CPU."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"Expected `device` to be one of this machine but got {device!r}: {reason}"
        ) from error
    return device


def check_shape(name: str, tensor: Tensor, *shape: int | str) -> None:
    """Refuse a tensor of another shape. A letter is any size, and a last "..." any number of sizes.

    >>> check_shape("target", torch.zeros(7), 8)
    Traceback (most recent call last):
    ValueError: Expected `target` of shape [8] but got [7]
    """
    more = shape[-1:] == ("...",)
    sizes = shape[: len(shape) - more]
    fits = tensor.ndim >= len(sizes) if more else tensor.ndim == len(sizes)
    pairs = zip(sizes, tensor.shape, strict=False)
    if not fits or any(not isinstance(size, str) and size != found for size, found in pairs):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"Expected `{name}` of shape [{wanted}] but got {list(tensor.shape)}")


def check_real(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that is not of a floating point type."""
    if not tensor.is_floating_point():
        raise TypeError(f"Expected `{name}` to be floating point but got {tensor.dtype}")


def check_integers(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that holds no integers."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"Expected `{name}` to hold integers but got {tensor.dtype}")


def check_classes(name: str, tensor: Tensor, count: int, classes: int) -> None:
    """Refuse a tensor that is not [count] of integers; where :func:`has_values`, classes out of range too."""
    if tensor.shape != (count,):
        raise ValueError(f"Expected `{name}` of shape [B] with B = {count} but got {list(tensor.shape)}")
    check_integers(name, tensor)
    # On an accelerator a look would wait for the device; its own index check stops a wrong one there.
    if has_values(tensor):
        low, high = (int(extreme) for extreme in tensor.aminmax())
        if low < 0 or high >= classes:
            raise ValueError(f"Expected `{name}` in [0, {classes - 1}] but got values from {low} to {high}")


def has_values(tensor: Tensor) -> bool:
    """Return whether elements can be read for free: on the CPU, and not within a compiler."""
    return tensor.device.type == "cpu" and tensor.numel() > 0 and not torch.compiler.is_compiling()


def check_least(name: str, tensor: Tensor, least: float) -> None:
    """Refuse, where :func:`has_values`, a tensor with elements below ``least`` or NaN."""
    if has_values(tensor) and not (smallest := float(tensor.detach().min())) >= least:
        raise ValueError(f"Expected `{name}` of at least {least:g} but got {smallest:.4g}")


def in_words(value: object) -> str:
    """Describe what was got, in few words: plain data as they are written, the rest by its type.

    >>> in_words({"image": torch.zeros(2)}), in_words([torch.zeros(2), 1]), in_words([0.5, "a"])
    ("a dict of 'image'", 'a list of Tensor, int', "[0.5, 'a']")
    """
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        kind = f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
        if isinstance(value, Mapping):
            return f"{kind} of {', '.join(map(repr, value)):.80}"
        if not isinstance(value, (tuple, list)):
            return f"{value!r:.80}" if isinstance(value, _PLAIN) else kind
        if all(isinstance(one, (*_PLAIN, tuple, list)) for one in value):
            return f"{value!r:.80}"
        return f"{kind} of {', '.join(type(one).__name__ for one in value):.80}"
    layout = "" if value.layout is torch.strided else f"{str(value.layout).removeprefix('torch.')} "
    dtype = "" if value.is_floating_point() else f" and type {value.dtype}"
    return f"a {layout}tensor of shape {list(value.shape)}{dtype}"


@cache
def _kinds(function: Callable[..., object]) -> dict[str, _Kind | None]:
    """Find what each parameter allows; ``None`` if anything."""
    names = getattr(inspect.unwrap(function), "__globals__", {})
    kinds: dict[str, _Kind | None] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = parameter.annotation
        try:
            annotation = eval(annotation, dict(names)) if isinstance(annotation, str) else annotation
        except (NameError, TypeError):  # A name that only type checkers import.
            annotation = Any
        named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        kinds[name] = _kind(annotation) if named and annotation is not parameter.empty else None
    return kinds


def _simple(words: str, is_type: Callable[[object], bool]) -> _Kind:
    return _Kind(words, is_type, is_type)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_dense(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_complex()
        and not value.is_quantized
    )


# What is shown as it is written.
_PLAIN = (str, bytes, Real, type(None), type, torch.dtype, torch.device)
_INT = _simple(
    "an integer",
    # The first is the usual one, and several times as fast.
    lambda value: type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool)),
)
_FLOAT = _Kind("a number", _is_number, lambda value: _is_number(value) and not isnan(value))
_SIMPLE: dict[object, _Kind] = {
    int: _INT,
    float: _FLOAT,
    bool: _simple("True or False", lambda value: isinstance(value, bool)),
    str: _simple("a text", lambda value: isinstance(value, str)),
    type(None): _simple("None", lambda value: value is None),
    None: _simple("None", lambda value: value is None),
    Tensor: _simple("a dense, real tensor", _is_dense),
}


def _kind(annotation: Any) -> _Kind | None:
    if annotation in (Any, object):
        return None
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if torch.optim.Optimizer in inner:  # The modules say what an optimizer's function looks like.
        return None
    if origin is Literal:
        return _Kind(
            _either([f'"{choice}"' if isinstance(choice, str) else repr(choice) for choice in inner]),
            lambda value: any(type(value) is type(choice) for choice in inner),
            lambda value: any(type(value) is type(choice) and value == choice for choice in inner),
        )
    if origin in (Union, types.UnionType):
        kinds = [_kind(each) for each in inner]
        return None if None in kinds else _any([kind for kind in kinds if kind is not None])
    if origin is type or (isinstance(origin, type) and issubclass(origin, Callable)):  # type: ignore[arg-type]
        return _simple("a class" if origin is type else "a function", callable)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _simple("a dictionary", lambda value: isinstance(value, Mapping))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _sequence(origin, inner)
    if origin is Iterable:
        return _simple(
            "a sequence", lambda value: isinstance(value, Iterable) and not isinstance(value, (str, Tensor))
        )
    if of_python.is_protocol(annotation):
        bases = [base for base in annotation.__mro__ if of_python.is_protocol(base)]
        methods = [name for base in bases for name in vars(base) if name[0] != "_"]
        return _simple(
            f"a {annotation.__name__}", lambda value: all(hasattr(type(value), name) for name in methods)
        )
    if isinstance(annotation, type):
        return _simple(f"a {annotation.__name__}", lambda value: isinstance(value, annotation))
    return None


def _either(words: Iterable[str]) -> str:
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last


def _any(kinds: list[_Kind]) -> _Kind:
    def fits(value: object) -> bool:
        for kind in kinds:  # noqa: SIM110 - any() takes twice as long.
            if kind.fits(value):
                return True
        return False

    words = _either(kind.words for kind in kinds)
    return _Kind(words, lambda value: any(kind.is_type(value) for kind in kinds), fits)


def _sequence(origin: type, inner: tuple[object, ...]) -> _Kind:
    """Describe a sequence, a list or a tuple; a tuple annotation of fixed length fixes the length."""
    long = len(inner) if origin is tuple and inner[-1:] != (...,) else None
    element = _kind(inner[0]) if inner else None
    words = "a sequence" if long is None else f"{long} of them in a sequence"
    if element is not None:
        words = (
            f"{words} ({element.words} each)"
            if long is None
            else f"{long} in a sequence ({element.words} each)"
        )

    def is_sequence(value: object) -> TypeGuard[Sequence[object]]:
        return isinstance(value, Sequence) and not isinstance(value, str)

    def has_elements(value: object, fits: str) -> TypeGuard[Sequence[object]]:
        return is_sequence(value) and (element is None or all(map(getattr(element, fits), value)))

    return _Kind(
        words,
        lambda value: has_elements(value, "is_type"),
        lambda value: has_elements(value, "fits") and long in (None, len(value)),
    )
