"""A W&B workspace for a recipe, as code: what its classes log, in the sections of its papers.

It needs the extra ``dashboards`` (wandb-workspaces). Building and checking need no account; saving does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from pl_losses.core.compat import of_wandb
from pl_losses.core.declared import Recipe
from pl_losses.core.manifests import reproduced
from pl_losses.core.metrics import X_AXIS
from pl_losses.core.names import own_class
from pl_losses.core.panels import Panel, Section, automatic, matches, regex, sorted_sections
from pl_losses.core.refusals import WITHOUT, refusals_told
from pl_losses.core.trust import is_class
from pl_losses.core.version import EXTRA
from pl_losses.dashboards.keys import keys_of, kind_of, panels_of, read_recipe
from pl_losses.monitoring.charts import FIELDS
from pl_losses.recipes import OVERLAYS, UsageError, names

COLUMNS, ROWS = 3, 2


def sections_of(recipe: Recipe) -> list[Section]:
    """Build the sections of a recipe's dashboard: every logged key is on a panel, and no panel is empty."""
    logged = keys_of(recipe)
    alive = [replace(one, panels=_alive(one.panels, logged)) for one in panels_of(recipe)]
    shown = [key for section in alive for panel in section.panels for key in panel.keys]
    rest = [key for key in logged if not any(fits(pattern, key) for pattern in shown)]
    kinds = {key: kind_of(about) for key, about in logged.items()}
    return sorted_sections([*alive, *automatic(rest, kinds)])


def logs(recipe: Recipe, key: str) -> bool:
    """Return whether a recipe logs a key."""
    return any(fits(pattern, key) for pattern in keys_of(recipe))


def _alive(panels: Iterable[Panel], logged: Iterable[str]) -> tuple[Panel, ...]:
    kept = []
    for panel in panels:
        keys = tuple(pattern for pattern in panel.keys if any(fits(pattern, key) for key in logged))
        if keys:
            kept.append(replace(panel, keys=keys))
    return tuple(kept)


def fits(pattern: str, key: str) -> bool:
    """Return whether a panel's pattern and a class's can mean the same key; either may match several."""
    return matches(pattern, key) or matches(key, pattern)


def build_workspace(name: str, entity: str = "", project: str = "pl_losses") -> Any:
    """Build the workspace of a recipe, of a class, or of what ``pl-losses reproduce`` makes.

    Args:
        name: Such as "lenet/digits", "my_module.MyModel" or "adam/fig4".
        entity: W&B's user or team.
        project: W&B's project.

    Returns:
        ``wandb_workspaces.workspaces.Workspace``, unsaved.

    Raises:
        UsageError: If there is no such recipe, or wandb-workspaces is not installed.
    """
    ws = _library()
    if (made := reproduced().get(name)) and made.panels:
        return _built(name, entity, project, made.panels, ("test", "val"), ws.RunsetSettings())
    recipe = read_recipe(name)
    stages = ("test", "val") if recipe.validates else ("test",)
    ends = dict.fromkeys(f"test/{name}" for name in (getattr(recipe.model.cls, "headline", "loss"), "loss"))
    settings = ws.RunsetSettings(
        # The recipe's runs (with overlays, other seeds) are drawn as their mean and range.
        groupby=[ws.Config("recipe")],
        filters=f"Config('recipe') in {[name, *(f'{name}, {overlay}' for overlay in overlays())]}",
        pinned_columns=[f"summary:{key}" for key in ends if logs(recipe, key)],
    )
    model = recipe.model.cls
    if is_class(name):  # Its runs are of any recipe, or of none.
        settings = ws.RunsetSettings(pinned_columns=settings.pinned_columns)
        return _built(model.__name__, entity, project, sections_of(recipe), stages, settings)
    own = own_class(f"{model.__module__}.{model.__name__}")
    title = f"{own}, {name}" if own else name
    return _built(title, entity, project, sections_of(recipe), stages, settings)


def overlays() -> list[str]:
    """List the recipes that are added to others."""
    return [name for name in names() if name.startswith(f"{OVERLAYS}/")]


def _built(
    name: str, entity: str, project: str, sections: Iterable[Section], stages: tuple[str, ...], runset: Any
) -> Any:
    ws = _library()
    return ws.Workspace(
        entity=entity or "entity",
        project=project,
        name=f"pl_losses: {name}",
        sections=[
            ws.Section(
                name=section.name,
                panels=_placed([made for panel in section.panels for made in _panels(panel, stages)]),
                is_open=position < 3,
                layout_settings=ws.SectionLayoutSettings(columns=COLUMNS, rows=ROWS),
                panel_settings=ws.SectionPanelSettings(x_axis=X_AXIS),
            )
            for position, section in enumerate(sections)
        ],
        settings=ws.WorkspaceSettings(x_axis=X_AXIS),
        runset_settings=runset,
    )


def _placed(panels: list[Any]) -> list[Any]:
    """Place panels side by side, three in a row of W&B's 24 columns."""
    import wandb_workspaces.reports.v2 as wr

    width = 24 // COLUMNS
    for position, panel in enumerate(panels):
        panel.layout = wr.Layout(x=width * (position % COLUMNS), y=6 * (position // COLUMNS), w=width, h=6)
    return panels


def _panels(panel: Panel, stages: tuple[str, ...]) -> list[Any]:
    """Make a panel of W&B's, or one for each key where it can show no more."""
    named = list(dict.fromkeys(key for pattern in panel.keys for key in expand(pattern, stages)))
    single = panel.kind in ("chart", "table")
    return [_panel(panel, [key]) for key in named] if single else [_panel(panel, named)]


def _panel(panel: Panel, named: list[str]) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if panel.kind == "pictures":
        return wr.MediaBrowser(
            title=panel.title, media_keys=named, num_columns=1, mode="gallery", gallery_axis="step"
        )
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=named)
    if panel.kind == "chart":
        fields = {column: column for column in FIELDS[panel.chart]}
        query = {"summaryTable": {"tableKey": named[0]}}
        return wr.CustomChart(
            query=query, chart_name=panel.chart, chart_fields=fields, chart_strings={"title": panel.title}
        )
    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=named[0])
    return wr.LinePlot(
        title=panel.title,
        x=X_AXIS,
        title_x="batches",
        metric_regex="|".join(map(regex, panel.keys)),
        log_y=panel.log_y or None,
        smoothing_type="exponentialTimeWeighted" if panel.smoothing else "none",
        smoothing_factor=panel.smoothing or None,
        smoothing_show_original=bool(panel.smoothing) or None,
        groupby_rangefunc="minmax",
    )


def expand(pattern: str, stages: Iterable[str]) -> list[str]:
    """List the keys of a pattern that leaves only the stage open, for panels that need exact keys.

    Example:
        >>> expand("<stage>/dropout/entropy", ("test", "val"))
        ['test/dropout/entropy', 'val/dropout/entropy']
    """
    return [pattern.replace("<stage>", stage) for stage in stages] if "<stage>" in pattern else [pattern]


def spec(built: Any) -> dict[str, Any]:
    """Return what W&B is sent, as plain data.

    Raises:
        UsageError: If wandb-workspaces is not installed.
    """
    view = of_wandb.as_view(built)
    found: dict[str, Any] = json.loads(view.model_dump_json(by_alias=True, exclude_none=True))
    return found


def push(name: str, entity: str, project: str, *, save: Callable[[Any], Any] | None = None) -> str:
    """Save a recipe's workspace to W&B, and replace the one that was pushed before.

    Args:
        name: The recipe.
        entity: W&B's user or team.
        project: W&B's project.
        save: Saves the workspace; by default its own method, which needs an account.

    Returns:
        The workspace's address.

    Raises:
        UsageError: If W&B refuses, or cannot be reached.
    """
    built = build_workspace(name, entity, project)
    # The same name makes W&B update the view that has it.
    of_wandb.name_view(built, view_name(name))
    with refusals_told(WITHOUT):
        return str((save or type(built).save)(built).url)


def view_name(name: str) -> str:
    """Return W&B's internal name of a recipe's workspace: the same whenever it is pushed.

    Example:
        >>> view_name("lenet/digits") == view_name("lenet/digits") != view_name("lenet/mnist")
        True
    """
    return f"nw-{hashlib.sha256(f'pl_losses {name}'.encode()).hexdigest()[:11]}-v"


def _library() -> Any:
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UsageError(
            f"Dashboards on W&B need wandb-workspaces: {EXTRA.format('dashboards')}; "
            "`pl-losses show` works without it"
        ) from None
    return ws
