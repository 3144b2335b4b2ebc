"""Checks of what overridden methods return and batches hold, with errors that say what was expected."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pl_losses.core.signatures import OWN
from pl_losses.core.validation import in_words


def loss(owner: object, method: str, value: object, rows: int | None = None) -> Tensor:
    """Check the loss that a method returned, and return it.

    Args:
        owner: Whose method it is.
        method: Its name.
        value: What it returned.
        rows: How many samples the loss is of, one number each. Default: it is a scalar.

    Raises:
        TypeError: If it is no tensor of floating-point numbers.
        ValueError: If it is of another shape.
    """
    wanted = "a scalar, such as `losses.mean()`," if rows is None else f"the losses of {rows} samples, [B],"
    message = f"Expected `{method}` of {type(owner).__name__} to return {wanted} but got {in_words(value)}"
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(message)
    if value.shape != (() if rows is None else (rows,)):
        raise ValueError(message)
    return value


def backward(owner: object, value: Tensor) -> None:
    """Refuse a loss that no gradient can be made of.

    Raises:
        ValueError: If it is no scalar, or without a gradient.
    """
    wanted = f"Expected the loss of `training_step` of {type(owner).__name__} to"
    if value.ndim:
        raise ValueError(f"{wanted} be a scalar, such as `losses.mean()`, but got {in_words(value)}")
    if not value.requires_grad:
        raise ValueError(f"{wanted} have a gradient but got one that is detached, or made of no parameter")


def arguments(message: str, names: Mapping[str, object]) -> str:
    """Say of an overridden method that it cannot be called as the suite does; empty if it can.

    Args:
        message: Python's, of the call.
        names: Of the caller; ``self`` is whose method it is.
    """
    found = re.match(r"(\w+)\.(\w+)\(\) ((?:takes|missing|got an unexpected) .*)", message)
    if not found:
        return ""
    name, method, fault = found.groups()
    kinds = (kind for kind in type(names.get("self")).__mro__ if kind.__module__.startswith(f"{OWN}."))
    base = next((vars(kind)[method] for kind in kinds if method in vars(kind)), None)
    if not inspect.isfunction(base):
        return ""
    wanted = ", ".join(inspect.signature(base).parameters)
    return f"Expected `{method}` of {name} to take ({wanted}): it {fault}"


def types(message: str) -> str:
    """Say that inputs and weights are of other types; empty if PyTorch's message says something else."""
    if not re.search(r"[Ii]nput type .* should be the same|same dtype|expected scalar type", message):
        return ""
    return (
        f"Expected inputs in batches of the type of the model's weights but got others: {message:.200};"
        " convert them where the data are made, or set `--trainer.precision`"
    )


def outputs(owner: object, value: object, rows: int) -> Tensor:
    """Check the outputs of ``forward`` for a batch of ``rows`` samples, [B, ...], and return them.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it has not as many rows.
    """
    message = f"Expected `forward` of {type(owner).__name__} to return [B, ...] with B = {rows} but got"
    if not isinstance(value, Tensor):
        raise TypeError(f"{message} {in_words(value)}")
    if not value.ndim or len(value) != rows:
        raise ValueError(f"{message} {in_words(value)}")
    return value


def labelled(owner: object, batch: object) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of a batch.

    Raises:
        TypeError: If it is no pair of tensors.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise TypeError(
            f"Expected `batch` of {type(owner).__name__} to be a tuple of inputs and targets but got"
            f" {in_words(batch)}"
        )
    return batch[0], batch[1]


def finite(owner: object, inputs: Tensor) -> None:
    """Refuse inputs with NaN or infinite values.

    Raises:
        ValueError: If there are any.
    """
    if not inputs.isfinite().all():
        count = int((~inputs.isfinite()).sum())
        raise ValueError(
            f"Expected the inputs in batches of {type(owner).__name__} to be finite but got {count} of"
            f" {inputs.numel()} that are NaN or infinite"
        )


def first(owner: object, batch: object) -> Tensor:
    """Return the inputs of a batch: the batch itself, or its first item.

    Raises:
        TypeError: If that is no tensor.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"Expected `batch` of {type(owner).__name__} to be a tensor of inputs, or a tuple that starts"
            f" with one, but got {in_words(batch)}"
        )
    return inputs


@contextmanager
def inputs(owner: object, batch: object) -> Iterator[Any]:
    """Yield the inputs to predict for, the batch itself or its first item, and check them if their use fails.

    Raises:
        TypeError: If the code within the context fails, and the inputs are not a tensor.
    """
    found = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    try:
        yield found
    except (AttributeError, KeyError, TypeError) as error:
        if isinstance(found, Tensor):
            raise
        raise TypeError(
            f"Expected `batch` of {type(owner).__name__} to be a tensor of inputs, or a tuple that starts"
            f" with one, but got {in_words(batch)}: override `predict_step`, or `forward` to take it"
        ) from error


def of_kind(owner: object, batch: object, *kinds: type) -> None:
    """Refuse a batch that is of none of these types.

    Raises:
        TypeError: If the batch is of another type.
    """
    if not isinstance(batch, kinds):
        names = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
        raise TypeError(
            f"Expected `batch` of {type(owner).__name__} to be a {names} but got {in_words(batch)}"
        )


def several(owner: object, method: str, value: object, count: int) -> tuple[object, ...]:
    """Check that a method returned ``count`` values, and return them.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, (tuple, list)) or len(value) != count:
        raise TypeError(
            f"Expected `{method}` of {type(owner).__name__} to return a tuple of {count} but got"
            f" {in_words(value)}"
        )
    return tuple(value)


def builder(name: str, value: object) -> None:
    """Refuse an argument that is no function from parameters to an optimizer.

    Raises:
        TypeError: If it cannot be called, or is an optimizer already.
    """
    if isinstance(value, Optimizer) or not callable(value):
        raise TypeError(
            f"Expected `{name}` to be a function of the parameters, such as"
            f" `lambda parameters: torch.optim.Adam(parameters)`, but got {value!r:.80}"
        )


def makers(
    owner: object, method: str, value: object
) -> tuple[Callable[..., Optimizer], Callable[..., Any] | None]:
    """Check that a method returned builders of an optimizer and a scheduler or ``None``, and return them.

    Raises:
        TypeError: If it returned anything else, such as an optimizer.
    """
    pair = value if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not callable(pair[0]) or not (pair[1] is None or callable(pair[1])):
        raise TypeError(
            f"Expected `{method}` of {type(owner).__name__} to return a function that makes the optimizer and"
            f" one that makes its scheduler, or None, but got {in_words(value)}"
        )
    return pair[0], pair[1]


def optimizer(value: object) -> Optimizer:
    """Check that the constructor's ``optimizer`` built an optimizer, and return it.

    Raises:
        TypeError: If it built anything else.
    """
    if not isinstance(value, Optimizer):
        raise TypeError(f"Expected `optimizer` to return a torch.optim.Optimizer but got {in_words(value)}")
    return value


def monitor(scheduler: object) -> str:
    """Return the name of the logged value that a scheduler monitors.

    Raises:
        ValueError: If the scheduler does not name one.
    """
    name = getattr(scheduler, "monitor", None)
    if not isinstance(name, str):
        raise ValueError(
            "Expected `lr_scheduler` to name the value that it watches but got PyTorch's ReduceLROnPlateau:"
            " take lightning.pytorch.cli.ReduceLROnPlateau, with a `monitor` such as 'val/loss'"
        )
    return name
