"""What the keys of a schedule mean beyond its `_target_`'s arguments: warm-up, bounds, momentum, plateau."""

import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from lr_lightning.app.config import Config
from lr_lightning.app.errors import ConfigError
from lr_lightning.app.schemas.schedule import CyclicalConfig, ScheduleConfig
from lr_lightning.callbacks.trainer_clock import trainer_clock
from lr_lightning.schedules import Cosine, Join, Linear, Plateau, Schedule, Warmup, parse_duration

_BASE = frozenset(f.name for f in fields(ScheduleConfig))
_BOUNDS = frozenset(f.name for f in fields(CyclicalConfig)) - _BASE
_MOMENTUM = frozenset({"base_momentum", "max_momentum"})
_PLATEAU = tuple(f.name for f in fields(Plateau))


def target_arguments(node: ScheduleConfig, *, own_warmup: bool) -> dict[str, Any]:
    """What a schedule's `_target_` is called with: the choice's own keys and its free ``kwargs``.

    Args:
        node: The config's schedule.
        own_warmup: Whether the target takes the warm-up itself, as WSD does, rather than getting one in front of it.

    Raises:
        ConfigError: If the target takes the warm-up itself and a shape of it is asked for.
    """
    ours = _BASE | _BOUNDS | _MOMENTUM | {"growth"} | (frozenset(_PLATEAU) if hasattr(node, "monitor") else frozenset())
    own = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in ours}
    if own_warmup:
        if node.warmup_shape != "linear":
            raise ConfigError(
                f"schedule.warmup_shape: '{node.warmup_shape}', but {node._target_} has a warm-up of its own, which "
                "takes no shape. Leave it out."
            )
        own["warmup"] = node.warmup
    return own | dict(node.kwargs)


def completed(config: Config, piece: Any, *, own_warmup: bool) -> Schedule:
    """The schedule of the run: what the `_target_` gave, between the bounds that are asked for, after the warm-up.

    Raises:
        ConfigError: If it is no schedule, or has no lower bound where one is given.
        ValueError: If the warm-up is no duration.
    """
    node = config.schedule
    if not isinstance(piece, Schedule):
        raise ConfigError(
            f"schedule._target_: '{node._target_}' gave a {type(piece).__name__}, "
            "not a lr_lightning.schedules.Schedule."
        )
    base_lr = getattr(node, "base_lr", None)
    if base_lr is not None:
        bounded = piece.with_base(base_lr / config.optimizer.lr)
        if bounded is piece:
            raise ConfigError(f"schedule.base_lr: {base_lr:g}, but {node._target_} has no lower bound. Leave it out.")
        piece = bounded
    if own_warmup or parse_duration(node.warmup, "warmup").amount == 0:
        return cast(Schedule, piece)
    return Warmup(node.warmup, then=piece, shape=cast(Any, node.warmup_shape))


def momentum_of(node: ScheduleConfig) -> Schedule | None:
    """The momentum that moves against a single cycle: from its maximum to its base at the peak rate, and back.

    Source: Smith 2018, "A disciplined approach to neural network hyper-parameters" (arXiv 1803.09820).

    Returns:
        A schedule of the momentum itself, or None where none is asked for.
    """
    low, high = getattr(node, "base_momentum", None), getattr(node, "max_momentum", None)
    if low is None or high is None:
        return None
    shape = Linear if getattr(node, "shape", None) == "linear" else Cosine
    return Join((shape(high, low), node.warmup), (shape(low, high), None))


def plateau_of(node: ScheduleConfig) -> Plateau | None:
    """The plateau that multiplies the schedule, or None where the choice has none.

    Raises:
        ValueError: If one of its keys is out of range.
    """
    return Plateau(**{name: getattr(node, name) for name in _PLATEAU}) if hasattr(node, "monitor") else None


def named(error: ValueError, node: ScheduleConfig) -> ConfigError:
    """A schedule's error with the whole key in front, where it begins with the name of one of its arguments."""
    text = str(error).removeprefix("schedule.kwargs: ")
    if text.startswith(("schedule:", "schedule.")):
        return ConfigError(text)
    found = re.match(r"(\w+):? (.*)", text, flags=re.DOTALL)
    if found and found[1] in node.kwargs:
        return ConfigError(f"schedule.kwargs.{found[1]}: {found[2]}")
    if found and hasattr(node, found[1]):
        return ConfigError(f"schedule.{found[1]}: {found[2]}")
    return ConfigError(f"schedule: {text}")


class ScheduleCheck(Callback):
    """Find out before the first step what would stop the run in the middle: durations that do not fit.

    Args:
        schedules: All schedules of the run.
        total_steps: The number of updates, where the config gives it.
    """

    def __init__(self, schedules: Iterable[Schedule], total_steps: int | None) -> None:
        self.schedules, self.total_steps = tuple(schedules), total_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay the schedules out over the run, now that its length is known."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set outside the class; LRSchedule stretches such a run
            return
        sharing = 1 if pl_module.automatic_optimization else max(1, len(trainer.optimizers))
        clock = trainer_clock(trainer, optimizers=sharing, total_steps=self.total_steps)
        for schedule in self.schedules:
            if clock.total is None and schedule.needs_total:
                raise ConfigError(
                    f"schedule.total_steps: {type(schedule).__name__} needs the number of steps, and nothing says it "
                    "here. Give schedule.total_steps=..., trainer.max_epochs=... or trainer.max_steps=..."
                )
            try:
                schedule.check(clock)
            except ValueError as e:
                raise ConfigError(f"schedule: {e}") from e
