"""Learning rates for PyTorch Lightning: schedules, finders and monitors.

Public names are imported on first use, so that importing a light part of the package stays cheap.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lr_lightning.callbacks.batch_size import BatchSizeSchedule
    from lr_lightning.callbacks.cooldown_preview import CooldownPreview
    from lr_lightning.callbacks.early_stopping import ScheduleAwareStopping
    from lr_lightning.callbacks.lr_finder import LRFinder, LRGrid, find_lr
    from lr_lightning.callbacks.lr_race import LRRace
    from lr_lightning.callbacks.lr_schedule import LRSchedule
    from lr_lightning.callbacks.overfitting import OverfittingMonitor
    from lr_lightning.callbacks.random_state import RandomState
    from lr_lightning.callbacks.run_cost import RunCost
    from lr_lightning.callbacks.schedule_free import ScheduleFreeMode
    from lr_lightning.callbacks.step_recorder import StepRecorder
    from lr_lightning.diagnosis.diagnose import diagnose
    from lr_lightning.diagnosis.history import History
    from lr_lightning.errors import Diverged
    from lr_lightning.lr_finder.results import RangeTest
    from lr_lightning.torch_schedule import TorchSchedule

__version__ = "0.1.0"
__all__ = [
    "BatchSizeSchedule",
    "CooldownPreview",
    "Diverged",
    "History",
    "LRFinder",
    "LRGrid",
    "LRRace",
    "LRSchedule",
    "OverfittingMonitor",
    "RandomState",
    "RangeTest",
    "RunCost",
    "ScheduleAwareStopping",
    "ScheduleFreeMode",
    "StepRecorder",
    "TorchSchedule",
    "__version__",
    "diagnose",
    "find_lr",
]

_MODULES = {
    "BatchSizeSchedule": "callbacks.batch_size",
    "CooldownPreview": "callbacks.cooldown_preview",
    "Diverged": "errors",
    "History": "diagnosis.history",
    "LRFinder": "callbacks.lr_finder",
    "LRGrid": "callbacks.lr_finder",
    "LRRace": "callbacks.lr_race",
    "LRSchedule": "callbacks.lr_schedule",
    "OverfittingMonitor": "callbacks.overfitting",
    "RandomState": "callbacks.random_state",
    "RangeTest": "lr_finder.results",
    "RunCost": "callbacks.run_cost",
    "ScheduleAwareStopping": "callbacks.early_stopping",
    "ScheduleFreeMode": "callbacks.schedule_free",
    "StepRecorder": "callbacks.step_recorder",
    "TorchSchedule": "torch_schedule",
    "diagnose": "diagnosis.diagnose",
    "find_lr": "callbacks.lr_finder",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = getattr(import_module(f"lr_lightning.{_MODULES[name]}"), name)
        if (shared := sys.modules.get("lr_lightning._lightning")) is not None:
            shared.join_packages()  # a LightningCLI asks for the class before it makes the callback
        return found
    raise AttributeError(f"module 'lr_lightning' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
