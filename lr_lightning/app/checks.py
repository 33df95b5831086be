"""What can be known about a config before anything heavy is imported: unknown keys, missing values, bad values."""

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import did_you_mean, explain
from lr_lightning.app.lr_scaling import bad_lr_rule
from lr_lightning.diagnosis.cost import parse_target
from lr_lightning.errors import ConfigError

# --- What can be known early about a config's callbacks: metrics that do not exist, criteria that do not fit.

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
    elif node.reference is not None and node.reference not in node.all_lrs():
        choices = ", ".join(f"{lr:g}" for lr in node.all_lrs())
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


def validate(cfg: DictConfig) -> Config:
    """The composed config as plain dataclasses, if every key and value is good.

    Raises:
        ConfigError: With the first few problems, a line each: the key, the value and the remedy.
    """
    problems = list(_unknown_or_absent(cfg))
    problems += [f"{key}: needs a value; give {key}=..." for key in sorted(OmegaConf.missing_keys(cfg))]
    if not problems:
        try:
            config = cast(Config, OmegaConf.to_object(cfg))
        except OmegaConfBaseException as e:
            raise ConfigError(explain(e, getattr(e, "full_key", None))) from e
        problems = list(_bad_values(config))
        if not problems:
            config.optimizer.lr = _peak(config)
            return config
    raise ConfigError("\n".join(problems[:5]))


def _unknown_or_absent(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Keys the schema does not have (``+sede=3`` passes Hydra), and those it has that were deleted (``~seed``)."""
    schema = OmegaConf.get_type(node)
    known = [f.name for f in fields(schema)] if is_dataclass(schema) else None
    for key in map(str, node):
        name = f"{prefix}{key}"
        if known is not None and key not in known:
            yield f"{name}: there is no such key.{did_you_mean(key, known)} `--cfg job` shows every key."
        elif not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            child = node[key]
            if isinstance(child, DictConfig) and not child._is_none():
                yield from _unknown_or_absent(child, f"{name}.")
    present = set(map(str, node))
    for key in known or ():
        if key not in present:
            yield f"{prefix}{key}: was deleted, but is needed; leave ~{prefix}{key} out."


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _not_negative(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _momentum(value: float) -> bool:
    return 0 <= value < 1


def _limit(value: float) -> bool:
    return value > 0 and (isinstance(value, int) or value <= 1)


Rule = tuple[str, Callable[[Any], bool], str]
_ONE_OR_MORE: tuple[Callable[[Any], bool], str] = (lambda v: v >= 1, "must be 1 or more")
_RULES: tuple[Rule, ...] = (
    ("seed", lambda v: 0 <= v < 2**32, "must lie in 0..4294967295"),
    ("data.batch_size", *_ONE_OR_MORE),
    ("data.eval_batch_size", *_ONE_OR_MORE),
    ("optimizer.lr_reference_batch", *_ONE_OR_MORE),
    ("data.val_fraction", lambda v: 0 < v < 1, "must lie between 0 and 1; the validation set chooses the checkpoint"),
    ("data.split_seed", lambda v: v >= 0, "must be 0 or more"),
    ("data.crop_padding", lambda v: v >= 0, "must be 0 (no crops) or more pixels"),
    ("data.image_size", *_ONE_OR_MORE),
    ("data.train_size", *_ONE_OR_MORE),
    ("data.flip_labels", lambda v: 0 <= v <= 1, "must lie in [0, 1], a share of the training labels"),
    ("data.num_workers", lambda v: v >= 0, "must be 0 or more"),
    ("model.lr", _positive, "must be a finite number above 0"),
    ("optimizer.lr", _positive, "must be a finite number above 0, for instance 0.1 for SGD or 0.001 for Adam"),
    ("optimizer.weight_decay", _not_negative, "must be a finite number, 0 or more"),
    ("optimizer.momentum", _momentum, "must lie in [0, 1), for instance 0.9"),
    ("optimizer.alpha", _momentum, "must lie in [0, 1), for instance 0.99"),
    ("optimizer.eps", _not_negative, "must be a finite number, 0 or more"),
    ("optimizer.betas", lambda v: len(v) == 2 and all(map(_momentum, v)), "must be two numbers in [0, 1)"),
    ("optimizer.warmup_steps", lambda v: v >= 0, "must be 0 (no warm-up) or more steps"),
    ("optimizer.r", _not_negative, "must be a finite number, 0 or more"),
    ("optimizer.weight_lr_power", _not_negative, "must be a finite number, 0 or more"),
    ("optimizer.beta3", _momentum, "must lie in [0, 1), or null for the root of the second of optimizer.betas"),
    ("optimizer.d0", _positive, "must be a finite number above 0, for instance 1e-6"),
    ("optimizer.d_coef", _positive, "must be a finite number above 0, for instance 0.5, 1 or 2"),
    ("optimizer.growth_rate", lambda v: v > 1, "must be above 1, for instance 1.02, or .inf for no limit"),
    ("schedule.total_steps", *_ONE_OR_MORE),
    ("schedule.max_lr", _positive, "must be a finite number above 0, or null for optimizer.lr"),
    ("schedule.base_lr", _positive, "must be a finite number above 0, or null for the choice's share of the peak"),
    ("schedule.base_momentum", _momentum, "must lie in [0, 1), for instance 0.85"),
    ("schedule.max_momentum", _momentum, "must lie in [0, 1), for instance 0.95"),
    ("finder.min_lr", _positive, "must be a finite number above 0, for instance 1e-6"),
    ("finder.max_lr", _positive, "must be a finite number above 0, for instance 10"),
    ("finder.num_steps", lambda v: v >= 10, "must be 10 or more optimizer updates, for instance 100"),
    ("finder.num_lrs", lambda v: v >= 3, "must be 3 or more rates, for instance 13"),
    ("finder.repeats", *_ONE_OR_MORE),
    ("finder.val_batches", *_ONE_OR_MORE),
    ("trainer.max_epochs", lambda v: v >= 1 or v == -1, "must be 1 or more, or -1 for no limit"),
    ("trainer.max_steps", lambda v: v >= 1 or v == -1, "must be 1 or more, or -1 for no limit"),
    ("trainer.num_nodes", *_ONE_OR_MORE),
    ("trainer.gradient_clip_val", _positive, "must be a finite number above 0, or null for no clipping"),
    ("trainer.accumulate_grad_batches", *_ONE_OR_MORE),
    ("trainer.check_val_every_n_epoch", *_ONE_OR_MORE),
    ("trainer.limit_train_batches", _limit, "must be a number of batches (an integer) or a fraction in (0, 1]"),
    ("trainer.limit_val_batches", _limit, "must be a number of batches (an integer) or a fraction in (0, 1]"),
    ("trainer.limit_test_batches", _limit, "must be a number of batches (an integer) or a fraction in (0, 1]"),
    ("callbacks.checkpoint.every_n_steps", *_ONE_OR_MORE),
    ("callbacks.overfitting.every_n_validations", *_ONE_OR_MORE),
    ("callbacks.cost.price_per_gpu_hour", _not_negative, "must be a finite number, 0 or more"),
    ("callbacks.early_stopping.patience", *_ONE_OR_MORE),
    ("callbacks.early_stopping.strip", *_ONE_OR_MORE),
    ("callbacks.early_stopping.threshold", _positive, "must be a finite number above 0, or null for the usual one"),
    ("callbacks.early_stopping.min_delta", _not_negative, "must be a finite number, 0 or more"),
)

_CHOICES: dict[str, tuple[str, ...]] = {
    "data.crop_fill": ("zero", "reflect"),
    "data.batch_size_is": ("per_process", "global"),
    "optimizer.lr_rule": ("none", "linear", "sqrt"),
    "model.inputs": ("standard", "unit", "mean_image"),
    "schedule.warmup_shape": ("linear", "cosine", "exponential"),
    "trainer.gradient_clip_algorithm": ("norm", "value"),
    "trainer.progress": ("auto", "bar", "lines", "none"),
    "callbacks.checkpoint.mode": ("min", "max"),
    "finder.mode": ("exponential", "linear"),
    "finder.metric": ("loss", "val_loss", "accuracy"),
    "callbacks.early_stopping.mode": ("min", "max"),
    "callbacks.early_stopping.criterion": ("patience", "gl", "pq", "up"),
    "tracking.name": ("mlflow", "csv", "none"),
}


def _bad_values(config: Config) -> Iterator[str]:
    for key, good, expected in _RULES:
        value = _value(config, key)
        if value is not None and not good(value):
            yield f"{key}: {expected}, got {value}."
    for key, choices in _CHOICES.items():
        value = _value(config, key)
        if value is not None and value not in choices:
            yield f"{key}: unknown choice '{value}'. Choices: {', '.join(choices)}.{did_you_mean(str(value), choices)}"
    yield from _bad_combinations(config)
    yield from _bad_bounds(config)
    yield from _bad_momentum(config)
    yield from _bad_finder(config)
    yield from bad_lr_rule(config)
    yield from _absent_paths(config)


def _bad_combinations(config: Config) -> Iterator[str]:
    if config.trainer.max_epochs == -1 and config.trainer.max_steps == -1:
        yield "trainer.max_epochs: -1, and trainer.max_steps: -1: the run would never end. Give one of them."
    if _value(config, "optimizer.nesterov") and not _value(config, "optimizer.momentum"):
        yield "optimizer.nesterov: true needs optimizer.momentum above 0; give optimizer.nesterov=false."
    yield from _bad_for_optimizer(config)
    if config.resume and config.ckpt:
        yield "ckpt: cannot be given with resume, which has a checkpoint of its own. Leave one of the two out."
    yield from bad_callbacks(config)
    yield from bad_study(config)
    for pattern, factors in config.optimizer.multipliers.items():
        for name, value in factors.items():
            if name not in ("lr", "weight_decay"):
                yield f"optimizer.multipliers.{pattern}: '{name}' is not one of lr, weight_decay."
            elif not _not_negative(value):
                yield f"optimizer.multipliers.{pattern}.{name}: must be a finite number, 0 or more, got {value}."


def _peak(config: Config) -> float:
    """The peak rate, which has two names where the schedule is cyclical."""
    max_lr = _value(config, "schedule.max_lr")
    return config.optimizer.lr if max_lr is None else float(max_lr)


def _lr_given(config: Config) -> bool:
    """Whether optimizer.lr was asked for: it is not its default, or it stands on the command line."""
    default = getattr(type(config.optimizer), "lr", None)
    default = config.model.lr if default == "${model.lr}" else default
    if config.optimizer.lr != default:
        return True
    known = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return any(override.lstrip("+").startswith("optimizer.lr=") for override in known)


def _bad_bounds(config: Config) -> Iterator[str]:
    lr, peak, base_lr = config.optimizer.lr, _peak(config), _value(config, "schedule.base_lr")
    if peak != lr and _lr_given(config):
        yield (
            f"schedule.max_lr: {peak:g}, but optimizer.lr: {lr:g}. "
            "They are two names of the peak rate: give one of them."
        )
    elif base_lr is not None and base_lr > peak:
        yield f"schedule.base_lr: must be at most the peak (optimizer.lr or schedule.max_lr), {peak:g}, got {base_lr}."


def _bad_momentum(config: Config) -> Iterator[str]:
    low, high = _value(config, "schedule.base_momentum"), _value(config, "schedule.max_momentum")
    if low is None and high is None:
        return
    if low is None or high is None:
        absent, given = ("base", "max") if low is None else ("max", "base")
        yield f"schedule.{absent}_momentum: needs a value beside schedule.{given}_momentum; give both or none."
    elif low > high:
        yield f"schedule.base_momentum: must be at most schedule.max_momentum, {high}, got {low}."
    known = {f.name for f in fields(config.optimizer)} | set(config.optimizer.kwargs)
    if not known & {"momentum", "betas"}:
        yield (
            f"schedule.max_momentum: {config.optimizer.name} has neither momentum nor betas to move. "
            "Leave schedule.base_momentum and schedule.max_momentum out, or take another optimizer."
        )


def _bad_finder(config: Config) -> Iterator[str]:
    """What a search for a rate cannot do."""
    if config.finder._target_ is None:
        return
    low, high = _value(config, "finder.min_lr"), _value(config, "finder.max_lr")  # a finder of one's own may have none
    if low is not None and high is not None and low >= high:
        yield f"finder.max_lr: must be above finder.min_lr, {low:g}, got {high:g}."
    if _value(config, "finder.metric") in ("val_loss", "accuracy") and config.trainer.limit_val_batches == 0:
        yield "finder.metric: needs validation batches, and trainer.limit_val_batches is 0. Give finder.metric=loss."
    if _value(config, "finder.apply") and _value(config, "schedule.base_lr") is not None:
        yield (
            f"schedule.base_lr: finder={config.finder.name} sets both bounds of a cyclical schedule. Leave it out, or "
            "give finder.apply=false."
        )
    if config.study is not None:
        yield "finder: the study trains given rates, so there is none to find. Give finder=none."
    package = config.optimizer._target_.split(".")[0]
    if package in ("prodigyopt", "dadaptation"):
        yield (
            f"finder: {config.optimizer.name} estimates its rate by itself, so there is none to find. Give finder=none "
            "or another optimizer."
        )


def _bad_for_optimizer(config: Config) -> Iterator[str]:
    """What the optimizers from packages of their own cannot do."""
    package, name = config.optimizer._target_.split(".")[0], config.optimizer.name
    if package == "schedulefree":
        betas = _value(config, "optimizer.betas")
        if _value(config, "schedule.max_momentum") is not None:
            yield (
                f"schedule.max_momentum: {name} averages by its momentum, which must stay as it is. Leave "
                "schedule.base_momentum and schedule.max_momentum out."
            )
        if _value(config, "optimizer.momentum") == 0:
            yield f"optimizer.momentum: must be above 0 with {name}, which averages by it, got 0."
        if betas and betas[0] == 0:
            yield f"optimizer.betas: the first must be above 0 with {name}, which averages by it, got {betas}."
    elif package in ("prodigyopt", "dadaptation"):
        if _value(config, "optimizer.eps") == 0:
            yield f"optimizer.eps: must be above 0 with {name}, for instance 1e-8, got 0."
        for pattern, factors in config.optimizer.multipliers.items():
            if factors.get("lr", 1) not in (0, 1):
                yield (
                    f"optimizer.multipliers.{pattern}.lr: {name} estimates one rate for all parameters, so it must be "
                    f"left out (or be 0, for parameters that stay as they are), got {factors['lr']}."
                )


def _absent_paths(config: Config) -> Iterator[str]:
    for key in ("data.train", "data.val", "data.test"):
        path = _value(config, key)
        if path is not None and not Path(path).expanduser().is_file():
            yield f"{key}: no such file: '{path}' (in {Path.cwd()}). Give the path of a parquet file."
    root = _value(config, "data.root")
    if root is not None and not Path(root).expanduser().is_dir():
        yield f"data.root: no such folder: '{root}' (in {Path.cwd()}). Give a folder with one folder of images a class."
    if config.ckpt is not None and not Path(config.ckpt).expanduser().is_file():
        yield f"ckpt: no such file: '{config.ckpt}' (in {Path.cwd()}). Give the path of a checkpoint (*.ckpt)."


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part, None)
    return config
