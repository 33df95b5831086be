"""The batch of one process, and the learning rate for the batch that all processes make together."""

import math
from copy import deepcopy
from typing import Any

from lr_lightning.app.config import Config
from lr_lightning.app.schemas.data import DataConfig
from lr_lightning.app.schemas.schedule import CyclicalConfig
from lr_lightning.app.schemas.trainer import TrainerConfig
from lr_lightning.app.world import world_size
from lr_lightning.errors import ConfigError


def process_batch_size(data: DataConfig, trainer: TrainerConfig) -> int:
    """Return the number of training examples in a batch of one process, which the config may give for all together."""
    size = data.batch_size
    if data.batch_size_is == "per_process":
        return size
    world = world_size(trainer)
    if size % world:
        wrong = (
            f"{size} is the batch of all processes (data.batch_size_is=global) and cannot be shared equally by {world}"
        )
        fitting = f"{max(1, size // world) * world} or {(size // world + 1) * world}"
        raise ConfigError(f"data.batch_size: {wrong}. Give {fitting}.")
    return size // world


def effective_batch_size(data: DataConfig, trainer: TrainerConfig) -> int:
    """Return the number of training examples in an update: of all processes, over all accumulated batches."""
    return process_batch_size(data, trainer) * world_size(trainer) * trainer.accumulate_grad_batches


def lr_factor(rule: str, batch: int, reference: int) -> float:
    """Return the factor that adapts a learning rate for updates of ``reference`` examples to those of ``batch``.

    The rule is ``linear`` (Goyal et al. 2017, for SGD), ``sqrt`` (Krizhevsky 2014; Malladi et al. 2022, for Adam) or
    ``none``.

    >>> lr_factor("linear", 512, 128), lr_factor("sqrt", 512, 128), lr_factor("none", 512, 128)
    (4.0, 2.0, 1.0)
    """
    ratio = batch / reference
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]


def scale_lr(config: Config) -> tuple[Config, dict[str, Any]]:
    """Apply ``optimizer.lr_rule`` to the peak learning rate and the bounds of a cycle.

    Returns:
        The config with the scaled learning rates, and a record of the change: the given learning rate and the factor.
        Without a rule, the same config and an empty record.
    """
    node = config.optimizer
    if node.lr_rule == "none" or node.lr_reference_batch is None:
        return config, {}
    factor = lr_factor(node.lr_rule, effective_batch_size(config.data, config.trainer), node.lr_reference_batch)
    scaled = deepcopy(config)
    scaled.optimizer.lr = node.lr * factor
    if isinstance(scaled.schedule, CyclicalConfig):
        for name in ("max_lr", "base_lr"):
            if (lr := getattr(scaled.schedule, name)) is not None:
                setattr(scaled.schedule, name, lr * factor)
    return scaled, {"lr_rule.given_lr": node.lr, "lr_rule.factor": factor}
