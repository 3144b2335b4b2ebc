"""Every callback of the suite by its name."""

from typing import TYPE_CHECKING

from pl_losses._lazy import lazy

if TYPE_CHECKING:
    from pl_losses.observers.pictures import ClassifierReport as ClassifierReport

__getattr__, __dir__ = lazy(__name__, {"ClassifierReport": "pl_losses.observers.pictures"})
__all__ = ["ClassifierReport"]
