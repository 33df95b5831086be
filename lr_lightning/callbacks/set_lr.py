"""Writing a found rate wherever a run keeps its rate, so that no old value is left."""

import math
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lr_lightning._lightning import callbacks_of, hyperparameter_dicts
from lr_lightning._param_groups import peak_lr, set_value
from lr_lightning.callbacks.lr_schedule import LRSchedule

__all__ = ["is_cyclical", "lr_ratios", "reference_lr", "set_default_lr", "set_module_lr", "set_peak"]

_NAMES = ("lr", "learning_rate")
_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # the last two: OneCycleLR's
_SCHEDULER_RATES = ("base_lrs", "_last_lr", "base_values")  # the last: timm's


# -- the rate as it is configured ----------------------------------------------------------------------------------


def reference_lr(trainer: Trainer, module: LightningModule, attribute: str | None = None) -> float:
    """The configured peak rate that a found one takes the place of.

    It is the module's own (``lr``, ``learning_rate`` or ``attribute``, of the module or its hparams) if one of the
    param groups has it, else that of the first group whose rate is not 0.

    Raises:
        ValueError: ``attribute`` is not there, or no group has a rate above 0.
    """
    peaks = _peaks(trainer)
    named = [float(_get(place, key)) for place, key in _places(module, attribute)]
    if attribute is not None and not named:
        raise ValueError(
            f"attribute={attribute!r}: there is no such number in {type(module).__name__}, nor in its hparams."
        )
    for value in named:
        if value > 0 and any(math.isclose(value, own) for own in peaks):
            return value
    above = [own for own in peaks if own > 0]
    if not above:
        raise ValueError(
            f"every param group of {type(trainer.optimizers[0]).__name__} has lr = 0, so the ratios of their rates are "
            "not known. Give the optimizer a rate above 0."
        )
    return above[0]


def lr_ratios(trainer: Trainer, reference: float) -> list[float]:
    """Of each param group's peak rate to the reference."""
    return [own / reference for own in _peaks(trainer)]


def _peaks(trainer: Trainer) -> list[float]:
    bounds = next((s.max_lrs for s in _schedulers(trainer) if hasattr(s, "max_lrs")), None)  # CyclicLR's
    return (
        [peak_lr(group) for group in trainer.optimizers[0].param_groups] if bounds is None else list(map(float, bounds))
    )


def is_cyclical(trainer: Trainer) -> bool:
    """Whether the rate is to go up and down between a base_lr and a max_lr."""
    ours = any(callback.has_base for callback in callbacks_of(trainer, LRSchedule))
    return ours or any(hasattr(scheduler, "max_lrs") for scheduler in _schedulers(trainer))


# -- the rate as it is found ---------------------------------------------------------------------------------------


def set_peak(
    trainer: Trainer, module: LightningModule, lr: float, base_lr: float | None = None, attribute: str | None = None
) -> None:
    """Train with this peak rate.

    Param groups keep their ratios. Written are the groups' rates and peaks, the optimizer's default for groups that
    are added later, schedulers made by ``configure_optimizers``, the lower bound of cyclical schedules, and the
    module's own rate (see :func:`set_module_lr`).

    Args:
        trainer: In ``on_fit_start``.
        module: Its module.
        lr: The new peak; a cyclical schedule's max_lr.
        base_lr: The lower bound of a cyclical schedule; others take no notice of it.
        attribute: The name of the module's own rate, if it is not ``lr`` or ``learning_rate``.
    """
    old = reference_lr(trainer, module, attribute)
    optimizer = trainer.optimizers[0]
    for config in trainer.lr_scheduler_configs:
        if not _set_scheduler(config.scheduler, optimizer, old, lr, base_lr):
            rank_zero_warn(
                f"{type(config.scheduler).__name__} keeps its rates in a way of its own, so it may still follow the "
                f"configured rate, {old:g}, and not the one that was found, {lr:g}. Use LRSchedule instead."
            )
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    # all are read before one is written: groups may share a tensor
    new = [{name: float(group[name]) for name in _GROUP_RATES if name in group} for group in optimizer.param_groups]
    for group, values in zip(optimizer.param_groups, new, strict=True):
        for name, value in values.items():
            set_value(group, name, _scaled(value, old, lr))
    _set_cyclic_base(trainer, old, lr, base_lr)
    set_default_lr(optimizer, old, lr)
    for callback in callbacks_of(trainer, LRSchedule):
        if base_lr is not None and callback.has_base:
            callback.set_base(base_lr / lr)
    set_module_lr(module, lr, attribute)


def set_default_lr(optimizer: Optimizer, old: float, lr: float) -> None:
    """Scale the rate of param groups that are added later without one of their own; no checkpoint holds it."""
    default = optimizer.defaults.get("lr")
    if isinstance(default, int | float):
        optimizer.defaults["lr"] = _scaled(default, old, lr)


def set_module_lr(module: LightningModule, lr: float, attribute: str | None = None) -> None:
    """Write a rate into ``lr`` or ``learning_rate`` (or ``attribute``), wherever module and hparams have it."""
    for place, key in list(_places(module, attribute)):
        if isinstance(place, MutableMapping):
            place[key] = lr
        else:
            with suppress(AttributeError):  # a property that shows another place
                setattr(place, key, lr)


def _scaled(value: float, old: float, new: float) -> float:
    return new * (value / old)  # in this order, so that the reference itself becomes exactly the new one


def _set_scheduler(scheduler: Any, optimizer: Optimizer, old: float, lr: float, base_lr: float | None) -> bool:
    """Scale what a scheduler remembers; False if it is not known where that is."""
    known = False
    for inner in getattr(scheduler, "_schedulers", ()):  # SequentialLR, ChainedScheduler
        known |= _set_scheduler(inner, optimizer, old, lr, base_lr)
    for name in (*_SCHEDULER_RATES, "max_lrs"):
        rates = getattr(scheduler, name, None)
        if isinstance(rates, list | tuple):
            known = True
            setattr(scheduler, name, type(rates)(_scaled(float(rate), old, lr) for rate in rates))
    return known or hasattr(scheduler, "min_lrs")  # ReduceLROnPlateau: multiplies what it finds


def _set_cyclic_base(trainer: Trainer, old: float, lr: float, base_lr: float | None) -> None:
    """Give torch's CyclicLR its lower bound; it starts from there."""
    for scheduler in _schedulers(trainer):
        if base_lr is None or not hasattr(scheduler, "max_lrs"):
            continue
        scheduler.base_lrs = [base_lr * (top / lr) for top in scheduler.max_lrs]
        for group, low in zip(trainer.optimizers[0].param_groups, scheduler.base_lrs, strict=True):
            set_value(group, "lr", low)
            set_value(group, "initial_lr", low)


def _schedulers(trainer: Trainer) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def _places(module: LightningModule, attribute: str | None) -> Iterator[tuple[Any, str]]:
    """Where a module keeps its rate: an object or mapping, and the name in it."""
    hparams = hyperparameter_dicts(module)
    for name in _NAMES if attribute is None else (attribute,):
        *path, key = name.split(".")
        for root in (module, *hparams):
            place = root
            for part in path:
                place = _get(place, part)
            value = _get(place, key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield place, key


def _get(place: Any, key: str) -> Any:
    return place.get(key) if isinstance(place, Mapping) else getattr(place, key, None)
