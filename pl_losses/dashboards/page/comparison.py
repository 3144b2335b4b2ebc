"""What runs are made of, what they end with, and how several of them differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pl_losses.core.manifests import headlines, rooms_of
from pl_losses.core.names import own_class
from pl_losses.dashboards.offline.runs import Run, as_number

SOME = 4  # differences that a line has room for
# What parallel coordinates show at most: axes, and the texts on one of them.
AXES, TEXTS = 12, 12


def origin(run: Run) -> str:
    """Return what a run is of: its recipe, else the class of its model, and one's own class in any case."""
    model = run.config.get("model")
    path = str(model.get("class_path", "")) if isinstance(model, dict) else ""
    named = [own_class(path), run.recipe] if run.recipe else [path.rpartition(".")[2]]
    return ", ".join(filter(None, named))


def made_from(run: Run) -> str:
    """Return what a run is of, and the checkpoint that it started from, with the run that trained it."""
    start, trained = (run.facts.get(fact, "") for fact in ("checkpoint", "checkpoint of run"))
    start = start and f"checkpoint {start}" + (f" of run {trained}" if trained else "")
    return ", ".join(filter(None, [origin(run), start]))


def classes_of(config: Any) -> list[str]:
    """List the paths of the classes in a run's config: the model, the callbacks, then all others.

    Example:
        >>> classes_of({"data": {"class_path": "a.B"}, "model": {"class_path": "pl_losses.LeNet5"}})
        ['pl_losses.LeNet5', 'a.B']
    """
    trainer = config.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    return list(dict.fromkeys(nested_class_paths([config.get("model"), callbacks, config])))


def nested_class_paths(config: Any) -> Iterator[str]:
    """Yield the paths of the classes in a config, with repetitions."""
    if isinstance(config, dict):
        if "class_path" in config:
            yield str(config["class_path"])
        config = list(config.values())
    if isinstance(config, list):
        for one in config:
            yield from nested_class_paths(one)


def finals(run: Run, metric: str = "") -> list[tuple[str, float]]:
    """Return a run's headline: its last value in the test, else in the validation or the training.

    Args:
        run: A run.
        metric: The key of another headline, such as what a sweep seeks.
    """
    names = headlines(rooms_of(classes_of(run.config)))
    known = [f"{stage}/{name}" for stage in ("test", "val", "train") for name in names]
    for key in [metric] if metric else known:
        values = run.curve(key)[1]
        if len(values):
            return [(key, float(values[-1]))]
    return []


def flatten(config: Any, above: str = "") -> dict[str, object]:
    """Flatten a nested config to dotted names, without empty values.

    Example:
        >>> flatten({"a": {"b": 1, "c": [2]}, "d": None})
        {'a.b': 1, 'a.c.0': 2}
    """
    if isinstance(config, dict):
        inner = config.items()
    elif isinstance(config, list):
        inner = enumerate(config)  # type: ignore[assignment]
    else:
        return {} if config is None else {above: config}
    found: dict[str, object] = {}
    for key, value in inner:
        found |= flatten(value, f"{above}.{key}" if above else str(key))
    return found


def compared(run: Run) -> dict[str, object]:
    """Return a run's flat config without its logger: a run's id and folder change no result."""
    flat = flatten(run.config)
    return {key: value for key, value in flat.items() if not key.startswith("trainer.logger")}


def differs(key: str, configs: Sequence[dict[str, object]]) -> bool:
    """Return whether configs have different values of a key, or only some have one."""
    return len({str(config.get(key)) for config in configs}) > 1


def differences(flat: Sequence[dict[str, object]]) -> list[str]:
    """Describe in short how each run's flat config differs from the others'."""
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if differs(key, flat)]
    # What all have says more than what only some have, such as a callback.
    keys.sort(key=lambda key: not all(key in one for one in flat))
    return [
        ", ".join(f"{key.rpartition('.')[2]} {shown(one.get(key, '-'))}" for key in keys[:SOME])
        + (" ..." if len(keys) > SOME else "")
        for one in flat
    ]


def parallel(
    configs: Sequence[Mapping[str, object]], ends: Sequence[Sequence[tuple[str, float]]]
) -> dict[str, Any]:
    """Make the parallel coordinates of runs: what differs in their configs, and what each ended with.

    Args:
        configs: Each run's flat config.
        ends: Each run's headlines.

    Returns:
        A panel; empty if there are fewer than three runs, or nothing that differs.
    """
    axes = []
    shared = [key for key in configs[0] if all(key in config for config in configs)]
    for key in shared:
        values = [plain_value(config[key]) for config in configs]
        several = len(set(values))
        # A text that each run has for itself, such as a folder, tells nothing.
        short = several <= TEXTS and (several < len(configs) or several <= 3)
        if several > 1 and (short or all(isinstance(one, (int, float)) for one in values)):
            axes.append({"name": key.replace("init_args.", ""), "values": values})
    finite = [{key: value for key, value in end if math.isfinite(value)} for end in ends]
    found = Counter(key for end in finite for key in end)
    if len(configs) < 3 or not axes or not found:
        return {}
    (headline, _), *_ = found.most_common(1)
    last = {"name": headline, "values": [end.get(headline) for end in finite]}
    return {"kind": "parallel", "title": f"Configs and {headline}", "axes": [*axes[: AXES - 1], last]}


def plain_value(value: object) -> float | str | None:
    """Return a config's number as such, anything else as short text."""
    number = None if isinstance(value, bool) else as_number(value)
    if number is not None and math.isfinite(number):
        return number
    return None if value is None else shown(value)


def shown(value: object) -> str:
    """Write a config's value in short.

    Example:
        >>> shown(0.0017380000000001), shown("torch.optim.SGD"), shown("a text.")
        ('0.001738', 'SGD', 'a text.')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text.rpartition(".")[2] if text.replace(".", "").isidentifier() else text
