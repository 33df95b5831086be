"""What can be known early about a config's callbacks: metrics that do not exist, criteria that do not fit."""

import math
from collections.abc import Iterator

from lr_lightning.app.config import Config
from lr_lightning.app.errors import did_you_mean
from lr_lightning.app.schemas.study import rates
from lr_lightning.diagnosis.cost import parse_target

MEASURED = (
    "probe/loss",
    "probe/acc",
    "overfit/gap_loss",
    "overfit/gap_acc",
    "overfit/gl",
    "overfit/pq",
    "overfit/up",
    "overfit/ece",
    "overfit/temperature",
    "overfit/gap_loss_scaled",
    "overfit/overconfident",
)
"""What callbacks.overfitting logs."""

COSTS = ("cost/seconds", "cost/examples_per_second")
"""What callbacks.cost logs."""


def bad_callbacks(config: Config) -> Iterator[str]:
    """A line for each problem: the key, the value and the remedy."""
    node = config.callbacks
    if node.checkpoint is not None:
        yield from _bad_monitor(config, "callbacks.checkpoint.monitor", node.checkpoint.monitor)
    if node.early_stopping is not None and node.early_stopping.criterion is not None:
        yield from _bad_stopping(config)
    yield from _bad_cost(config)
    if isinstance(monitor := getattr(config.schedule, "monitor", None), str):
        yield from _bad_monitor(config, "schedule.monitor", monitor)


def bad_study(config: Config) -> Iterator[str]:
    """The same of the keys of a study, and of what it needs."""
    node = config.study
    if node is None:
        return
    given = node.lrs if node.lrs is not None else [node.low, node.high]
    key = "study.lrs" if node.lrs is not None else "study.low and study.high"
    if not all(math.isfinite(lr) and lr > 0 for lr in given) or len(set(given)) < 2:
        yield f"{key}: must be two or more different finite numbers above 0, got {given}."
    elif node.lrs is None and node.low >= node.high:
        yield f"study.low: must be below study.high, {node.high:g}, got {node.low:g}."
    elif node.points < 2:
        yield f"study.points: must be 2 or more, got {node.points}."
    elif node.reference is not None and node.reference not in rates(node):
        choices = ", ".join(f"{lr:g}" for lr in rates(node))
        yield f"study.reference: must be one of the rates, {choices}, or null for the middle one, got {node.reference}."
    if not node.seeds or len(set(node.seeds)) < len(node.seeds) or not all(0 <= seed < 2**32 for seed in node.seeds):
        yield f"study.seeds: must be one or more different numbers in 0..4294967295, got {node.seeds}."
    if not 0 < node.level < 1:
        yield f"study.level: must lie between 0 and 1, for instance 0.95, got {node.level}."
    if config.callbacks.overfitting is None:
        yield "study: needs callbacks.overfitting, which is off."
    if config.callbacks.cost is None or config.callbacks.cost.target is None:
        yield "study: needs a target to measure the speed by; give 'callbacks.cost.target=\"val/acc>=0.95\"'."
    if getattr(config.schedule, "max_lr", None) is not None or getattr(config.schedule, "base_lr", None) is not None:
        yield "study: sets the rates itself; leave schedule.max_lr and schedule.base_lr out."


def _bad_monitor(config: Config, key: str, monitor: str) -> Iterator[str]:
    for prefixes, names, group, node in (
        (("overfit/", "probe/"), MEASURED, "callbacks.overfitting", config.callbacks.overfitting),
        (("cost/",), COSTS, "callbacks.cost", config.callbacks.cost),
    ):
        if not monitor.startswith(prefixes):
            continue
        if node is None:
            yield f"{key}: '{monitor}' needs {group}, which is off."
        elif monitor not in names:
            close = did_you_mean(monitor, names)
            yield f"{key}: '{monitor}' is not logged. Choices: val/..., {', '.join(names)}.{close}"


def _bad_stopping(config: Config) -> Iterator[str]:
    node = config.callbacks.early_stopping
    if node is None:
        return
    key = "callbacks.early_stopping"
    yield from _bad_monitor(config, f"{key}.monitor", node.monitor)
    if node.criterion in ("gl", "pq", "up") and (node.mode == "max" or node.monitor.endswith("acc")):
        yield (
            f"{key}.criterion: '{node.criterion}' takes a loss, which is better when it is lower, not {node.monitor} "
            f"with mode={node.mode}. Use {key}.monitor=val/loss, or criterion=patience."
        )
    plateau = getattr(config.schedule, "monitor", None) and getattr(config.schedule, "patience", None)
    if node.criterion == "patience" and isinstance(plateau, int) and 1 <= node.patience <= plateau:
        yield (
            f"{key}.patience: {node.patience} validations end the run before schedule.patience, {plateau}, lowers the "
            f"rate for the first time. Give {key}.patience={plateau + 1} or more, or a smaller schedule.patience."
        )
    if node.criterion == "pq" and config.callbacks.overfitting is None:
        yield f"{key}.criterion: 'pq' needs the probe's loss, and callbacks.overfitting is off. Use gl or up."


def _bad_cost(config: Config) -> Iterator[str]:
    node = config.callbacks.cost
    if node is None or node.target is None:
        return
    try:
        target = parse_target(node.target)
    except ValueError as e:
        yield f"callbacks.cost.{str(e).replace('target must', 'target: must', 1)}."
        return
    yield from _bad_monitor(config, "callbacks.cost.target", target.metric)
