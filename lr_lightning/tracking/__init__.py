"""Tracking of runs: a logger that loses no row and never blocks training. This package alone imports MLflow."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lr_lightning.tracking.locks import mark_dead_runs
from lr_lightning.tracking.replay import replay
from lr_lightning.tracking.store import Store, open_store

if TYPE_CHECKING:
    from lr_lightning.tracking.environment import environment_tags
    from lr_lightning.tracking.logger import RunLogger

__all__ = ["RunLogger", "Store", "environment_tags", "mark_dead_runs", "open_store", "replay"]

_LAZY = {"RunLogger": "logger", "environment_tags": "environment"}


def __getattr__(name: str) -> Any:
    """Import on first use what needs torch or Lightning: a search's own process does without."""
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
