"""What is done once before the first trial: a smoke test of one batch, and the LR finder's suggestion to start from."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lr_lightning.app.composition import load_config, prepare
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import did_you_mean
from lr_lightning.app.world import process_batch_size
from lr_lightning.errors import ConfigError
from lr_lightning.search.settings import FINDER, Search, direction_of
from lr_lightning.search.space import Range, Value
from lr_lightning.search.task import Call, Task, TaskResult, TaskStatus, objective_of

_OF_LONG_RUNS = ("num_sanity_val_steps", "val_check_interval", "min_epochs", "min_steps")
_ONE_BATCH: dict[str, Any] = {
    "max_epochs": 1,
    "max_steps": -1,
    "limit_train_batches": 1,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "progress": "none",
}
_ONE_PROCESS: dict[str, Any] = {"devices": 1, "num_nodes": 1, "strategy": "auto"}


def smoke_test(search: Search, call: Call) -> None:
    """Train one batch without a record: a fault of data, model or objective is found once, not in every trial."""
    config = search.composer.config(search.space.middle(search.base))
    config.trainer = replace(config.trainer, **_ONE_BATCH)
    config.trainer.kwargs = {k: v for k, v in config.trainer.kwargs.items() if k not in _OF_LONG_RUNS}
    config.tracking = replace(config.tracking, name="none")
    config.test = False
    process_batch_size(config.data, config.trainer)  # while it still has all the processes of a trial
    if search.node.workers > 0:
        config.trainer = replace(config.trainer, **_ONE_PROCESS)
    if config.callbacks.early_stopping is not None:
        config.callbacks.early_stopping.criterion = None
    if hasattr(config.schedule, "warmup"):
        config.schedule.warmup = "50%"  # a warmup in steps may be longer than one batch
    config.schedule.total_steps = None
    with tempfile.TemporaryDirectory(prefix="lr_lightning-smoke-test-", ignore_cleanup_errors=True) as folder:
        task = Task(search.checkout, config, Path(folder), search.monitor, search.compared, search.monitor_higher)
        result: TaskResult = call(_train, task)
    if result.status == TaskStatus.FAILED:
        raise ConfigError(f"a smoke test, a trial of one batch, failed:\n{result.reason}")
    if result.status == TaskStatus.FINISHED:
        _check_objective(search, result)


def _train(task: Task) -> TaskResult:
    from lr_lightning.search.worker import run_task

    prepare(task.checkout)
    return run_task(task)


def _check_objective(search: Search, result: TaskResult) -> None:
    name = search.node.objective
    logged = sorted([*(f"summary/{key}" for key in result.summary), *result.logged])
    if objective_of(name, result) is None and name not in logged:
        close = did_you_mean(name, logged)
        raise ConfigError(f"search.objective: no run logs '{name}'. They log: {', '.join(logged)}.{close}")
    if search.node.direction is None and direction_of(name) is None:
        raise ConfigError(f"search.direction: the name {name} does not tell what is better. Give maximize or minimize.")
    if search.node.pruners and search.compared not in result.logged:
        raise ConfigError(
            f"search.pruners: need '{search.compared}' at each validation, but no run logs it. "
            f"They log: {', '.join(sorted(result.logged))}. Give search.pruners=[]."
        )


def start_points(search: Search, call: Call) -> list[Mapping[str, Value]]:
    """Return the points of search.start; one of the LR finder's is left out if the finder abstains."""
    lr = suggested_lr(search, call)
    points: list[Mapping[str, Value]] = []
    for given in search.node.start:
        point: dict[str, Value] = {key: value for key, value in given.items() if value != FINDER}
        for key in given.keys() - point.keys():
            domain = search.space.keys[key]
            if lr is not None and math.isfinite(lr):
                inside = domain.clip(lr) if isinstance(domain, Range) else lr
                if domain.holds(inside):
                    point[key] = inside
        if point:
            points.append(point)
    return points


def suggested_lr(search: Search, call: Call) -> float | None:
    """Return the LR finder's suggestion if search.start asks for it; None if it does not, or the finder abstains."""
    if not any(FINDER in point.values() for point in search.node.start):
        return None
    words = search.composer.overrides(
        {k: v for k, v in search.space.middle(search.base).items() if not k.endswith("_lr")}
    )
    config = load_config(search.checkout, [*words, "finder=range_test"])
    config.output_root = str(search.folder)
    config.trainer = replace(config.trainer, progress="none", **_ONE_PROCESS)
    config.tracking.tags = {"sweep": search.name, **config.tracking.tags}
    found: float | None = call(_find, search.checkout, config, words)
    return found


def _find(checkout: Path, config: Config, words: list[str]) -> float | None:
    from lr_lightning.app.commands.find_lr import run_finder

    prepare(checkout)
    return run_finder(config, words).summary.get("suggested_lr")
