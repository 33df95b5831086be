"""Tracking of runs: loggers that never lose a row and never hold training up. The only importer of MLflow."""

from lr_lightning.errors import Rejected, RunInUse, StoreUnavailable, TrackingError
from lr_lightning.tracking.base import RunLogger
from lr_lightning.tracking.csv_logger import CSVLogger
from lr_lightning.tracking.environment import environment_tags
from lr_lightning.tracking.locks import mark_dead_runs
from lr_lightning.tracking.logger import MLflowLogger
from lr_lightning.tracking.no_logger import NoLogger
from lr_lightning.tracking.replay import Replayed, replay
from lr_lightning.tracking.store import Store, open_store

__all__ = [
    "CSVLogger",
    "MLflowLogger",
    "NoLogger",
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
