"""Tracking of runs: a logger that loses no row and never blocks training. This package alone imports MLflow."""

from typing import TYPE_CHECKING, Any

from lr_lightning.tracking.keys import environment_tags
from lr_lightning.tracking.locks import mark_dead_runs
from lr_lightning.tracking.replay import replay
from lr_lightning.tracking.store import Store, open_store

if TYPE_CHECKING:
    from lr_lightning.tracking.logger import RunLogger

__all__ = ["RunLogger", "Store", "environment_tags", "mark_dead_runs", "open_store", "replay"]


def __getattr__(name: str) -> Any:
    """Import on first use what needs torch and Lightning: a search's own process does without."""
    if name == "RunLogger":
        from lr_lightning.tracking.logger import RunLogger

        return RunLogger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
