"""From config to objects: the only place that instantiates what a config names."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch import Callback, LightningModule
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer

from lr_lightning.app.config import GROUP_BASES, Config
from lr_lightning.app.errors import ConfigError
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.random_state import RandomState
from lr_lightning.callbacks.step_recorder import StepRecorder
from lr_lightning.schedules import Schedule, Warmup
from lr_lightning.training.data import ImageDataModule
from lr_lightning.training.optimizers import OptimizerFactory
from lr_lightning.training.progress import RunProgress


def own_arguments(group: str, node: Any) -> dict[str, Any]:
    """The arguments a choice adds to its group's base keys, and its free ``kwargs``."""
    base = {f.name for f in fields(GROUP_BASES[group])}
    return {f.name: getattr(node, f.name) for f in fields(node) if f.name not in base} | dict(node.kwargs)


def located(target: str, key: str) -> Any:
    """The object a ``_target_`` names.

    Raises:
        ConfigError: If it cannot be imported.
    """
    try:
        return get_object(target)
    except (ImportError, ValueError, AttributeError) as e:
        reason = str(e).splitlines()[0]
        raise ConfigError(f"{key}._target_: cannot import '{target}' ({reason}). Check the name, or install it.") from e


def call(group: str, target: str, arguments: Mapping[str, Any], **objects: Any) -> Any:
    """Call a ``_target_`` with plain ``arguments`` (nested ``_target_`` are built) and ready ``objects``.

    Raises:
        ConfigError: If the target cannot be imported, or refuses its arguments.
    """
    callee = located(target, group)
    try:
        plain = instantiate(OmegaConf.create(dict(arguments)), _convert_="all")  # objects would become configs in there
    except InstantiationException as e:
        raise ConfigError(f"{group}: {str(e).splitlines()[0]}") from e
    try:
        inspect.signature(callee).bind(**plain, **objects)
    except TypeError as e:
        names = ", ".join(p for p in inspect.signature(callee).parameters if p not in objects)
        raise ConfigError(f"{group}: {target} does not take these arguments ({e}). It takes: {names}.") from e
    except ValueError:
        pass  # a callable without a signature: the call itself will tell
    return callee(**plain, **objects)


def accepted(callee: Callable[..., Any], offers: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that a callable names."""
    names = inspect.signature(callee).parameters
    return {name: value for name, value in offers.items() if name in names}


def build_schedule(config: Config) -> Schedule:
    """The schedule over the whole run, with its warm-up. Pure arithmetic: cheap and early."""
    node = config.schedule
    try:
        piece: Schedule = call("schedule", node._target_, own_arguments("schedule", node))
        if node.warmup in (0, "0"):
            return piece
        return Warmup(node.warmup, then=piece, shape=cast(Any, node.warmup_shape))
    except ValueError as e:
        raise e if isinstance(e, ConfigError) else ConfigError(f"schedule: {e}") from e


def build_data(config: Config) -> ImageDataModule:
    """The data module, not yet loaded."""
    node = config.data
    arguments = own_arguments("data", node)
    return ImageDataModule(
        lambda: call("data", node._target_, arguments),
        batch_size=node.batch_size,
        eval_batch_size=node.eval_batch_size,
        val_fraction=node.val_fraction,
        split_seed=node.split_seed,
        seed=config.seed,
        crop_padding=node.crop_padding,
        crop_fill=cast(Any, node.crop_fill),
        flip=node.flip,
        normalize=cast(Any, config.model.inputs),
        image_size=node.image_size,
        in_memory_limit=node.in_memory_limit,
        num_workers=node.num_workers,
        channels_last=config.trainer.channels_last,
        drop_last=node.drop_last,
    )


def build_net(config: Config, data: ImageDataModule) -> nn.Module:
    """The network, fitted to the data's channels, image size and classes."""
    node = config.model
    offers = {"in_channels": data.in_channels, "num_classes": data.num_classes, "image_size": data.image_size}
    own = accepted(located(node._target_, "model"), offers)
    own |= {theirs: offers[ours] for ours, theirs in node.data_arguments.items()}
    net = call("model", node._target_, dict(node.kwargs), **{k: v for k, v in own.items() if k not in node.kwargs})
    if not isinstance(net, nn.Module):
        raise ConfigError(f"model._target_: '{node._target_}' gave a {type(net).__name__}, not a torch.nn.Module.")
    return net


def build_optimizer(config: Config) -> Callable[[nn.Module], Optimizer]:
    """From a module to its optimizer, with the param groups the config asks for."""
    node = config.optimizer
    return OptimizerFactory(
        located(node._target_, "optimizer"),
        lr=node.lr,
        weight_decay=node.weight_decay,
        kwargs=own_arguments("optimizer", node),
        decay_bias_and_norm=node.decay_bias_and_norm,
        multipliers=node.multipliers,
    )


def build_module(config: Config, net: nn.Module, data: ImageDataModule) -> LightningModule:
    """The LightningModule: the app's classifier or the user's own."""
    node = config.module
    offers = {"net": net, "optimizer": build_optimizer(config), "num_classes": data.num_classes}
    objects = accepted(located(node._target_, "module"), offers)
    module = call("module", node._target_, dict(node.kwargs), **objects)
    if not isinstance(module, LightningModule):
        raise ConfigError(f"module._target_: '{node._target_}' gave a {type(module).__name__}, not a LightningModule.")
    return module


def build_callbacks(config: Config, schedule: Schedule) -> list[Callback]:
    """What watches and drives the run; the checkpoints, which need the output folder, come in ``train``."""
    callbacks: list[Callback] = [
        LRSchedule(schedule, total_steps=config.schedule.total_steps),
        StepRecorder(),
        RunProgress(config.trainer.progress),
    ]
    if config.callbacks.overfitting is not None:
        callbacks.append(OverfittingMonitor(**asdict(config.callbacks.overfitting), seed=config.data.split_seed))
    for name, extra in config.callbacks.extra.items():
        if extra is None:
            continue
        arguments = dict(extra)
        target = arguments.pop("_target_", None)
        if target is None:
            raise ConfigError(f"callbacks.extra.{name}: needs a _target_, the callback's class.")
        callbacks.append(call(f"callbacks.extra.{name}", target, arguments))
    return [*callbacks, RandomState()]
