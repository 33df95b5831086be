"""What is done once before the first trial: a rehearsal of one batch, and the finder's suggestion to start from."""

import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lr_lightning.app.composition import load_config
from lr_lightning.app.error_messages import did_you_mean
from lr_lightning.app.lr_scaling import process_batch_size
from lr_lightning.errors import ConfigError
from lr_lightning.search.run import Result, Task, objective_of, run
from lr_lightning.search.settings import FINDER, Search, direction_of
from lr_lightning.search.space import Range, Value

__all__ = ["rehearse", "start_points"]

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


def rehearse(search: Search) -> None:
    """Train one batch, record nothing: data, model and objective are found to be wrong now, not in every trial.

    Raises:
        ConfigError: They are.
    """
    config = search.composer.config(_first(search))
    config.trainer = replace(config.trainer, **_ONE_BATCH)
    config.trainer.kwargs = {k: v for k, v in config.trainer.kwargs.items() if k not in _OF_LONG_RUNS}
    config.tracking = replace(config.tracking, name="none")
    config.test = False
    process_batch_size(config.data, config.trainer)  # with all the processes of a trial
    if search.node.workers > 0:
        config.trainer.devices, config.trainer.num_nodes, config.trainer.strategy = 1, 1, "auto"
    if config.callbacks.early_stopping is not None:
        config.callbacks.early_stopping.criterion = None
    if hasattr(config.schedule, "warmup"):
        config.schedule.warmup = "50%"  # one in steps may be longer than one batch
    config.schedule.total_steps = None
    folder = Path(tempfile.mkdtemp(prefix="lr_lightning-rehearsal-"))
    try:
        result = run(_task(search, folder), config)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if result.status == "failed":
        raise ConfigError(f"a trial of one batch, to see whether all is well, failed:\n{result.reason}")
    if result.status == "finished":
        _check_objective(search, result)


def _check_objective(search: Search, result: Result) -> None:
    name = search.node.objective
    logged = sorted([*(f"summary/{key}" for key in result.summary), *result.logged])
    if objective_of(name, result) is None and name not in logged:
        raise ConfigError(
            f"search.objective: no run logs '{name}'. They log: {', '.join(logged)}.{did_you_mean(name, logged)}"
        )
    if search.node.direction is None and direction_of(name) is None:
        raise ConfigError(
            f"search.direction: nothing says whether more of {name} is better. Give maximize or minimize."
        )
    if search.node.pruners and search.monitor not in result.logged:
        raise ConfigError(
            f"search.pruners: need '{search.monitor}' at each validation, which is not logged. "
            f"It logs: {', '.join(sorted(result.logged))}. Give search.pruners=[]."
        )


def start_points(search: Search) -> list[Mapping[str, Value]]:
    """The points of search.start, with the finder's rate in place, as far as it lies in the space."""
    rate = suggested(search)
    points: list[Mapping[str, Value]] = []
    for given in search.node.start:
        point: dict[str, Value] = {}
        for key, value in given.items():
            domain = search.space.keys[str(key)]
            if value != FINDER:
                point[str(key)] = value
            elif rate is not None and math.isfinite(rate):
                inside = min(domain.high, max(domain.low, rate)) if isinstance(domain, Range) else rate
                if domain.holds(inside):
                    point[str(key)] = inside
        if point:
            points.append(point)
    return points


def suggested(search: Search) -> float | None:
    """The LR finder's suggestion, where the start asks for it; None where it does not, or the finder abstains."""
    if not any(FINDER in point.values() for point in search.node.start):
        return None
    from lr_lightning.app.commands.find_lr import find_lr

    words = search.composer.overrides({k: v for k, v in _first(search).items() if not k.endswith("_lr")})
    config = load_config(search.root, [*words, "finder=range_test"])
    config.output_root = str(search.folder)
    config.trainer.progress = "none"
    config.trainer.devices, config.trainer.num_nodes, config.trainer.strategy = 1, 1, "auto"
    config.tracking.tags = {"sweep": search.name, **config.tracking.tags}
    return find_lr(config, words).summary.get("suggested_lr")


def _first(search: Search) -> dict[str, Value]:
    """The middle of the space."""
    point: dict[str, Value] = {}
    for key, domain in search.space.keys.items():
        if search.space.active(key, point, search.base):
            values = domain.grid()
            point[key] = values[len(values) // 2]
    return point


def _task(search: Search, folder: Path) -> Task:
    return Task(
        root=str(search.root),
        overrides=[],
        folder=str(folder),
        monitor=search.monitor,
        higher=search.monitor_higher,
    )
