"""The batch of one process, and the rate for the batch that all of them make together."""

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from lr_lightning.app.config import Config
from lr_lightning.app.world import world_size
from lr_lightning.errors import ConfigError

_RATES = ("max_lr", "base_lr")


def bad_lr_rule(config: Config) -> Iterator[str]:
    """A rule that lacks what it needs, or would scale a rate that is for this very batch."""
    rule = config.optimizer.lr_rule
    if rule == "none":
        return
    if config.optimizer.lr_reference_batch is None:
        yield (
            f"optimizer.lr_reference_batch: needs a value with optimizer.lr_rule={rule}: the examples in one update "
            "(over all processes and accumulated batches) that optimizer.lr is for."
        )
    if config.finder._target_ is not None or config.study is not None:
        what = "the study trains given rates" if config.study is not None else "the finder's rate is for this batch"
        yield f"optimizer.lr_rule: {what}, so there is none to scale. Give optimizer.lr_rule=none."


def process_batch_size(config: Config) -> int:
    """Training examples in a batch of one process.

    Raises:
        ConfigError: If ``data.batch_size`` is that of all processes together and cannot be shared equally.
    """
    size = config.data.batch_size
    if config.data.batch_size_is == "per_process":
        return size
    world = world_size(config.trainer)
    if size % world:
        raise ConfigError(
            f"data.batch_size: {size} is the batch of all processes (data.batch_size_is=global) and cannot be shared "
            f"equally by {world}. Give {max(1, size // world) * world} or {(size // world + 1) * world}."
        )
    return size // world


def effective_batch_size(config: Config) -> int:
    """Training examples in one update: of all processes, over all accumulated batches."""
    return process_batch_size(config) * world_size(config.trainer) * config.trainer.accumulate_grad_batches


def lr_factor(rule: str, batch: int, reference: int) -> float:
    """What a rate that was good for batches of ``reference`` is multiplied by for batches of ``batch``.

    Args:
        rule: ``linear`` (Goyal et al. 2017, for SGD), ``sqrt`` (Krizhevsky 2014; Malladi et al. 2022, for Adam) or
            ``none``.
        batch: Examples in one update.
        reference: Examples in one update of the run that the rate is from.

    >>> lr_factor("linear", 512, 128), lr_factor("sqrt", 512, 128), lr_factor("none", 512, 128)
    (4.0, 2.0, 1.0)
    """
    ratio = batch / reference
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]


def scale_lr(config: Config) -> tuple[Config, dict[str, Any]]:
    """The config with the rates that ``optimizer.lr_rule`` makes of those given: the peak, and the bounds of a cycle.

    Returns:
        The config, and what is recorded of the change: the rate that was given, and the factor. Nothing without a rule.

    Raises:
        ConfigError: If the batch cannot be shared by the processes.
    """
    node = config.optimizer
    if node.lr_rule == "none" or node.lr_reference_batch is None:
        return config, {}
    by = lr_factor(node.lr_rule, effective_batch_size(config), node.lr_reference_batch)
    own = deepcopy(config)
    own.optimizer.lr = node.lr * by
    for name in _RATES:
        if getattr(own.schedule, name, None) is not None:
            setattr(own.schedule, name, getattr(own.schedule, name) * by)
    return own, {"lr_rule.given_lr": node.lr, "lr_rule.factor": by}
