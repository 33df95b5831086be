"""What stands in for training in tests of searches."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

from lr_lightning.app.config import Config
from lr_lightning.app.run.train import RunOutcome
from lr_lightning.search.settings import Search
from lr_lightning.search.task import Answer, Task, TaskResult, TaskStatus

Searched = Callable[..., Search]
Run = Callable[..., int]
UNTRACKED = ("tracking=none", "sweep=s")


def valley(config: Config) -> float:
    """An accuracy that is highest, 0.9, at a learning rate of 0.1."""
    return 0.9 - 0.1 * math.log10(config.optimizer.lr / 0.1) ** 2


class Trainings:
    """Stands in for `train`: notes the configs, and returns what `value` says."""

    def __init__(self, value: Callable[[Config], float] = valley) -> None:
        self.value = value
        self.configs: list[Config] = []

    def __call__(self, config: Config, previous: Any = None, **_: Any) -> RunOutcome:
        self.configs.append(config)
        summary = {"best_val_acc": self.value(config)}
        return RunOutcome(summary, output_dir=Path(config.output_root), run_id=f"run{len(self.configs)}")


class InstantWorker:
    """Stands in for a worker process: every run has ended at once."""

    tasks: ClassVar[list[Task]] = []
    result = TaskResult(TaskStatus.FINISHED, summary={"best_val_acc": 0.5}, epochs=4.0)
    gpu = identity = None
    is_single_use = False

    def start(self, job: Any, *_: Any) -> None:
        self.tasks.append(job)

    def poll(self) -> Answer:
        return Answer(self.result)

    def stop(self) -> None:
        """Nothing runs."""

    kill = stop


class InstantWorkers:
    """Stands in for `Workers`."""

    share = 1

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing starts."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing runs."""

    def get(self, *_: Any) -> InstantWorker:
        return InstantWorker()

    def give_back(self, worker: InstantWorker) -> None:
        """It is not needed again."""

    def wait(self, *_: Any) -> None:
        """All has ended."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)
