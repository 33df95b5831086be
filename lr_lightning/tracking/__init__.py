"""Tracking of runs: a logger that loses no row and never blocks training. This package alone imports MLflow."""

from lr_lightning.errors import Rejected, RunInUse, StoreUnavailable, TrackingError
from lr_lightning.tracking.environment import environment_tags
from lr_lightning.tracking.locks import mark_dead_runs
from lr_lightning.tracking.logger import RunLogger
from lr_lightning.tracking.replay import Replayed, replay
from lr_lightning.tracking.store import Store, open_store

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
