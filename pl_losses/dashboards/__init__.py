"""Dashboards: W&B workspaces as code, and runs read back from their files and shown on a page."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.core.panels import Panel as Panel, Section as Section
    from pl_losses.dashboards.offline.find import find_run as find_run
    from pl_losses.dashboards.offline.runs import Run as Run, read_run as read_run
    from pl_losses.dashboards.page.page import build_page as build_page
    from pl_losses.dashboards.workspace import build_workspace as build_workspace, push as push

__getattr__, __dir__, __all__ = lazy(__name__)
