"""Dashboards: W&B workspaces as code, and runs read back from their files and shown on a page."""

from typing import TYPE_CHECKING

from pl_losses.core.lazy import lazy

if TYPE_CHECKING:
    from pl_losses.dashboards.offline.find import find_run as find_run
    from pl_losses.dashboards.offline.runs import Run as Run
    from pl_losses.dashboards.offline.runs import read_run as read_run
    from pl_losses.dashboards.page.page import build_page as build_page
    from pl_losses.dashboards.panels import Panel as Panel
    from pl_losses.dashboards.panels import Section as Section
    from pl_losses.dashboards.workspace import build_workspace as build_workspace
    from pl_losses.dashboards.workspace import push as push

__getattr__, __dir__ = lazy(
    __name__,
    {
        "Panel": "pl_losses.dashboards.panels",
        "Run": "pl_losses.dashboards.offline.runs",
        "Section": "pl_losses.dashboards.panels",
        "build_page": "pl_losses.dashboards.page.page",
        "build_workspace": "pl_losses.dashboards.workspace",
        "find_run": "pl_losses.dashboards.offline.find",
        "push": "pl_losses.dashboards.workspace",
        "read_run": "pl_losses.dashboards.offline.runs",
    },
)
__all__ = ["Panel", "Run", "Section", "build_page", "build_workspace", "find_run", "push", "read_run"]
