"""Tracking of runs: a logger that loses no row and never blocks training. This package alone imports MLflow."""

from typing import TYPE_CHECKING, Any

from lr_lightning.errors import Rejected, RunInUse, StoreUnavailable, TrackingError
from lr_lightning.tracking.locks import mark_dead_runs
from lr_lightning.tracking.replay import Replayed, replay
from lr_lightning.tracking.store import Store, open_store

if TYPE_CHECKING:
    from lr_lightning.tracking.environment import environment_tags
    from lr_lightning.tracking.logger import RunLogger

__all__ = [
    "Rejected",
    "Replayed",
    "RunInUse",
    "RunLogger",
    "Store",
    "StoreUnavailable",
    "TrackingError",
    "environment_tags",
    "mark_dead_runs",
    "open_store",
    "replay",
]


def __getattr__(name: str) -> Any:
    """Import on first use what needs torch or Lightning: a search's own process does without."""
    if name == "RunLogger":
        from lr_lightning.tracking.logger import RunLogger

        return RunLogger
    if name == "environment_tags":
        from lr_lightning.tracking.environment import environment_tags

        return environment_tags
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
