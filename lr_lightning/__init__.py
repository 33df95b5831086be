"""Learning rates for PyTorch Lightning: schedules, monitors and the app built on them.

The names below are loaded when they are first used, so that importing a light part of the package stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lr_lightning.callbacks.batch_size import BatchSizeSchedule
    from lr_lightning.callbacks.early_stopping import ScheduleAwareStopping
    from lr_lightning.callbacks.lr_finder import LRFinder, LRGrid
    from lr_lightning.callbacks.lr_schedule import LRSchedule
    from lr_lightning.callbacks.overfitting import OverfittingMonitor
    from lr_lightning.callbacks.random_state import RandomState
    from lr_lightning.callbacks.run_cost import RunCost
    from lr_lightning.callbacks.schedule_free import ScheduleFreeMode
    from lr_lightning.callbacks.step_recorder import StepRecorder

__version__ = "0.1.0"
__all__ = [
    "BatchSizeSchedule",
    "LRFinder",
    "LRGrid",
    "LRSchedule",
    "OverfittingMonitor",
    "RandomState",
    "RunCost",
    "ScheduleAwareStopping",
    "ScheduleFreeMode",
    "StepRecorder",
    "__version__",
]

_HOMES = {
    "BatchSizeSchedule": "batch_size",
    "LRFinder": "lr_finder",
    "LRGrid": "lr_grid",
    "LRSchedule": "lr_schedule",
    "OverfittingMonitor": "overfitting",
    "RandomState": "random_state",
    "RunCost": "run_cost",
    "ScheduleAwareStopping": "early_stopping",
    "ScheduleFreeMode": "schedule_free",
    "StepRecorder": "step_recorder",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"lr_lightning.callbacks.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'lr_lightning' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
