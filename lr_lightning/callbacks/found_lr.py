"""Set a found lr, once, wherever a run keeps its lr; `optimizer_driver` writes the lr of each step."""

import math
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from functools import reduce
from typing import Any

from torch.optim import AdamW, Optimizer

from lr_lightning._lightning import (
    LightningModule,
    Trainer,
    callbacks_of,
    hyperparameter_dicts,
    planned_epochs,
    rank_zero_warn,
)
from lr_lightning._param_groups import MOST_STEPS, peak_lr, scheduler_lrs, set_value
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.trainer_clock import trainer_clock
from lr_lightning.errors import ArgumentError
from lr_lightning.torch_schedule import TorchSchedule

__all__ = [
    *("decay_message", "is_cyclical", "lr_ratios", "configured_lr", "scheduler_factor"),
    *("set_default_lr", "set_module_lr", "set_peak"),
]

_GROUP_KEYS = ("lr", "initial_lr", "max_lr", "min_lr")  # the last two are OneCycleLR's
_SCHEDULER_LISTS = ("base_lrs", "_last_lr", "base_values", "max_lrs")  # base_values is timm's


def configured_lr(trainer: Trainer, module: LightningModule, attribute: str | None = None) -> float:
    """Return the configured peak lr that a found one replaces.

    This is the module's own lr (``lr``, ``learning_rate`` or ``attribute``, of the module or its hparams) if one of the
    param groups has this peak, else the peak of the first group whose peak is not 0.
    """
    peaks = _peaks(trainer)
    named = [float(_get(owner, key)) for owner, key in _owners(module, attribute)]
    if attribute is not None and not named:
        raise ArgumentError(
            f"attribute={attribute!r}: there is no such number in {type(module).__name__}, nor in its hparams."
        )
    above = [own for own in peaks if own > 0]
    if not above:
        raise ArgumentError(
            f"every param group of {type(trainer.optimizers[0]).__name__} has lr = 0, so the ratios of their learning "
            "rates are not known. Give the optimizer an lr above 0."
        )
    return next((value for value in named if any(math.isclose(value, own) for own in above)), above[0])


def lr_ratios(trainer: Trainer, reference: float) -> list[float]:
    """Return the ratio of each param group's peak lr to the reference."""
    return [own / reference for own in _peaks(trainer)]


def _peaks(trainer: Trainer) -> list[float]:
    for scheduler in _torch_cyclic(trainer):
        return list(map(float, scheduler.max_lrs))
    return [peak_lr(group) for group in trainer.optimizers[0].param_groups]


def is_cyclical(trainer: Trainer) -> bool:
    """Return whether the run's lr goes up and down between a base_lr and a max_lr."""
    return bool(_schedules_with_base(trainer) or _torch_cyclic(trainer))


def _schedules_with_base(trainer: Trainer) -> list[LRSchedule | TorchSchedule]:
    """Return this package's cyclical schedules."""
    schedulers = (config.scheduler for config in trainer.lr_scheduler_configs)
    every: list[LRSchedule | TorchSchedule] = [*callbacks_of(trainer, LRSchedule)]
    every += [scheduler for scheduler in schedulers if isinstance(scheduler, TorchSchedule)]
    return [each for each in every if each.has_base]


def _torch_cyclic(trainer: Trainer) -> list[Any]:
    """Return torch's CyclicLR schedulers."""
    schedulers = (config.scheduler for config in trainer.lr_scheduler_configs)
    return [scheduler for scheduler in schedulers if hasattr(scheduler, "max_lrs")]


def decay_message(optimizer: Optimizer, old: float, new: float, steps_per_epoch: float | None = None) -> str:
    """Say over how many updates AdamW's weight decay averages at another peak lr; "" without such a weight decay.

    AdamW's weights are a moving average of its last 1 / (lr * weight decay) updates (Wang & Aitchison 2024, "How to set
    AdamW's weight decay as you scale model and dataset size", 2405.13698).
    """

    def time_scale(lr: float) -> str:
        count = 1 / (lr * decay)
        return f"{count:,.0f} updates" + (f" ({count / steps_per_epoch:.3g} epochs)" if steps_per_epoch else "")

    for group in optimizer.param_groups:
        decay, lr = float(group.get("weight_decay", 0.0)), peak_lr(group)
        decoupled = isinstance(optimizer, AdamW) or group.get("decoupled_weight_decay", False)
        if decoupled and decay > 0 and lr > 0 and not math.isclose(old, new):
            return (
                f" With this lr the weight decay of {decay:g} averages over 1 / (lr · decay) = "
                f"{time_scale(lr * new / old)}. Before, it was {time_scale(lr)}, which "
                f"weight_decay={decay * old / new:.2g} would restore."
            )
    return ""


def set_peak(
    trainer: Trainer, module: LightningModule, lr: float, base_lr: float | None = None, attribute: str | None = None
) -> None:
    """Train with this peak lr (a cyclical schedule's max_lr); param groups keep their ratios. Call in ``on_fit_start``.

    It is written into the groups' learning rates and peaks, the optimizer's default for groups that are added later,
    schedulers made by ``configure_optimizers``, the lower bound of cyclical schedules, and the module's own lr.
    """
    old = configured_lr(trainer, module, attribute)
    optimizer = trainer.optimizers[0]
    for config in trainer.lr_scheduler_configs:
        if not _scale_scheduler(config.scheduler, old, lr):
            name = type(config.scheduler).__name__
            rank_zero_warn(
                f"It is not known where {name} keeps its learning rates, so it may still follow "
                f"the configured lr, {old:g}, and not the one that was found, {lr:g}. Use LRSchedule instead."
            )
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    # read all values before writing one: groups may share a tensor
    new = [{name: float(group[name]) for name in _GROUP_KEYS if name in group} for group in optimizer.param_groups]
    for group, values in zip(optimizer.param_groups, new, strict=True):
        for name, value in values.items():
            set_value(group, name, _scaled(value, old, lr))
    if base_lr is not None:
        for cyclic in _torch_cyclic(trainer):
            cyclic.base_lrs = [base_lr * (top / lr) for top in cyclic.max_lrs]
            for group, low in zip(optimizer.param_groups, cyclic.base_lrs, strict=True):  # a cycle starts at base_lr
                set_value(group, "lr", low)
                set_value(group, "initial_lr", low)
        for schedule in _schedules_with_base(trainer):
            schedule.set_base(base_lr / lr)
    set_default_lr(optimizer, old, lr)
    set_module_lr(module, lr, attribute)


def set_default_lr(optimizer: Optimizer, old: float, lr: float) -> None:
    """Scale the default lr of param groups that are added later; no checkpoint holds this default."""
    default = optimizer.defaults.get("lr")
    if isinstance(default, int | float):
        optimizer.defaults["lr"] = _scaled(default, old, lr)


def set_module_lr(module: LightningModule, lr: float, attribute: str | None = None) -> None:
    """Write the lr into ``lr`` or ``learning_rate`` (or ``attribute``), wherever module and hparams have it."""
    owners = list(_owners(module, attribute))
    for owner, key in owners:
        with suppress(Exception):  # a property that only reads another object, or settings that are read-only
            if isinstance(owner, MutableMapping):
                owner[key] = lr
            else:
                setattr(owner, key, lr)
    old = {f"{type(owner).__name__}.{key}": now for owner, key in owners if (now := _get(owner, key)) != lr}
    if old:
        rank_zero_warn(
            f"{' and '.join(old)} cannot be changed from {next(iter(old.values())):g} to the found lr, {lr:g}. "
            "The optimizer has the found lr, but another call of configure_optimizers() would read the configured one."
        )


def scheduler_factor(trainer: Trainer, reference: float) -> float | None:
    """Return the run's highest lr under the module's own schedulers, divided by the configured one; None: not known.

    The quotient is 1 for most schedulers. It differs for a LambdaLR or MultiplicativeLR that does not begin or peak at
    1, such as Noam's. The schedulers are stepped, and the loaders must be known: call this in a dry run, which restores
    the schedulers.
    """
    factor, index = 1.0, _reference_group(trainer, reference)
    for config in trainer.lr_scheduler_configs:
        total = planned_epochs(trainer) if config.interval == "epoch" else trainer_clock(trainer).total
        steps = MOST_STEPS if total is None or total < 0 else min(total, MOST_STEPS)
        groups = trainer.optimizers[0].param_groups
        peak = _peaks(trainer)[index]
        lrs = scheduler_lrs(config.scheduler, groups, -(-steps // config.frequency))
        if lrs is None:
            return None
        own = [values[index] for values in lrs]
        highest = max(own)
        if math.isclose(highest, peak, rel_tol=1e-3):
            continue
        if not math.isfinite(highest) or highest <= 0 or highest == min(own) or (own[-1] == highest < peak):
            return None  # its lr depends on more than its count of steps, or the run ends in its warmup
        factor *= highest / peak
    return factor


def _reference_group(trainer: Trainer, reference: float) -> int:
    return next(i for i, own in enumerate(_peaks(trainer)) if math.isclose(own, reference))


def _scaled(value: float, old: float, new: float) -> float:
    return new * (value / old)  # in this order, so that the reference itself becomes exactly the new one


def _scale_scheduler(scheduler: Any, old: float, lr: float) -> bool:
    """Scale the learning rates that a scheduler remembers; return False if it is not known where it keeps them."""
    known = False
    for inner in getattr(scheduler, "_schedulers", ()):  # SequentialLR, ChainedScheduler
        known |= _scale_scheduler(inner, old, lr)
    for name in _SCHEDULER_LISTS:
        lrs = getattr(scheduler, name, None)
        if isinstance(lrs, list | tuple):
            known = True
            setattr(scheduler, name, type(lrs)(_scaled(float(value), old, lr) for value in lrs))
    return known or hasattr(scheduler, "min_lrs")  # ReduceLROnPlateau multiplies the groups' present lr


def _owners(module: LightningModule, attribute: str | None) -> Iterator[tuple[Any, str]]:
    """Yield the objects and mappings in which a module keeps its lr, each with the name of the lr in it."""
    for name in ("lr", "learning_rate") if attribute is None else (attribute,):
        *path, key = name.split(".")
        for root in (module, *hyperparameter_dicts(module)):
            owner = reduce(_get, path, root)
            value = _get(owner, key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield owner, key


def _get(owner: Any, key: str) -> Any:
    try:
        return owner.get(key) if isinstance(owner, Mapping) else getattr(owner, key, None)
    except Exception:  # settings whose __getattr__ raises a KeyError, or a property that is not ready
        return None
