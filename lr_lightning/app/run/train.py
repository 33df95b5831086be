"""One run, from a checked config to its result."""

import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from lr_lightning._lightning import callbacks_of
from lr_lightning.app import build
from lr_lightning.app.config import Config, flatten
from lr_lightning.app.lr_scaling import scale_lr
from lr_lightning.app.run.checkpoints import AtomicCheckpointIO, ConfigStamp, checkpoint_callbacks, load_weights
from lr_lightning.app.run.graceful_stop import GracefulStop
from lr_lightning.app.run.messages import print_outcome, print_start
from lr_lightning.app.run.output import LAST, new_output_dir, output_root
from lr_lightning.app.run.record import (
    FoundLR,
    RunOutcome,
    Summary,
    open_logger,
    outcome_of,
    record_run,
    stepped,
)
from lr_lightning.app.run.resume import ResumedRun, choose_checkpoint, identity, set_damaged_aside
from lr_lightning.app.run.signals import watch_parent
from lr_lightning.app.schemas.trainer import TrainerConfig
from lr_lightning.app.world import devices_and_nodes, is_rank_zero, world_size
from lr_lightning.callbacks.base_finder import NoSuggestionWarning
from lr_lightning.errors import ConfigError
from lr_lightning.schedules import Schedule
from lr_lightning.schedules.clock import epoch_clock, updates_per_epoch
from lr_lightning.training.datamodule import ImageDataModule

__all__ = ["RunOutcome", "as_bad_input", "build_run", "make_trainer", "prepare_process", "quiet", "train"]


def train(
    config: Config, resumed: ResumedRun | None = None, *, report: bool = True, watching: Sequence[Callback] = ()
) -> RunOutcome:
    """Build everything, fit, test the best checkpoint once, and record the run.

    Bad input is found before the run appears in the store.

    Args:
        config: The checked config.
        resumed: The run to resume, or None for a new one.
        report: Whether to print what is trained, and the result.
        watching: More callbacks than the config's, such as a search's. If one has a true attribute ``gives_up``, the
            test is skipped.

    Raises:
        ConfigError: If the input is bad.
        Diverged: If a loss becomes non-finite; the run is FAILED.
        RunFailed: If memory, the disk or another process of the run fails; the run is FAILED.
        Interrupted: On SIGTERM, Ctrl-C or SIGHUP; the run is KILLED.
    """
    prepare_process(config.trainer, config.output_root)
    config, scaling = (config, {}) if resumed else scale_lr(config)  # a stored config is scaled already
    flat = flatten(asdict(config))

    # What is trained.
    schedules = build.build_schedules(config.schedule, config.optimizer.lr)
    data, module = build_run(config)
    _check_durations(schedules.lr, config.schedule.total_steps, config.trainer, data)
    if resumed:
        resumed = choose_checkpoint(resumed, flat, data)

    # What drives, watches and saves it.
    finder = build.build_finder(config.finder, module, config.trainer.progress)
    finding = [] if finder is None else [finder, FoundLR(config, finder)]
    configured = build.build_callbacks(config, schedules, module)
    folder = None  # only the first rank writes
    if is_rank_zero():
        names = config.data.name, config.model.name, config.schedule.name, f"s{config.seed}"
        folder = resumed.output_dir if resumed else new_output_dir(config.output_root, *names)
    stop = GracefulStop(folder / "checkpoints" / LAST if folder else None)
    saving = checkpoint_callbacks(config.callbacks.checkpoint, folder)
    callbacks = [stop, ConfigStamp(identity(flat)), *finding, *configured, *watching, Summary(), *saving]

    # Where it is recorded.
    with as_bad_input(remove=None if resumed else folder):
        saves = config.callbacks.checkpoint is not None
        trainer = make_trainer(config.trainer, folder, callbacks, enable_checkpointing=saves)
        logger = None
        if folder:
            logger = open_logger(config, folder, data, module, resume=resumed is not None, scaling=scaling)
    if logger:
        trainer.loggers = [logger]
        logger.set_tags({"env.world_size": trainer.world_size})  # `devices=auto` does not tell
        if resumed:
            set_damaged_aside(resumed)  # only with the record's lock
    if folder and report:
        print_start(config, folder, data, module, resumed)

    # Train, test and record it.
    def work() -> RunOutcome:
        outcome = _fit(trainer, module, data, resumed)
        return _test(trainer, module, data, outcome) if config.test and data.has_test else outcome

    outcome = record_run(config, trainer, logger, stop, work)
    outcome = replace(outcome, output_dir=folder, run_id=logger.run_id if logger else None)
    if folder and report:
        print_outcome(config, folder, outcome, idle=resumed is not None and not stepped(trainer))
    return outcome


def prepare_process(node: TrainerConfig, output: str) -> None:
    """Silence libraries, watch the launcher, and check the device and the output root.

    Raises:
        ConfigError: If the requested GPU, or the output root, cannot be used.
    """
    quiet()
    watch_parent()
    if node.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator: '{node.accelerator}', but torch {torch.__version__} sees no GPU here. "
            "Use trainer=cpu or trainer=auto."
        )
    output_root(output)


def build_run(config: Config) -> tuple[ImageDataModule, LightningModule]:
    """Load the data, and build the module for it.

    Raises:
        ConfigError: If a key, a file or a checkpoint is bad.
    """
    try:
        seed_everything(config.seed, workers=True, verbose=False)
        data = build.build_data(config)
        data.prepare()
        seed_everything(config.seed, workers=True, verbose=False)  # equal initial weights, whatever loading drew
        net = build.build_net(config.model, data)
        check_batch_norm(config.trainer, net)
        if config.trainer.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module = build.build_module(config.module, config.optimizer, net, data)
        if config.ckpt:
            load_weights(module, Path(config.ckpt).expanduser())
    except ValueError as e:
        raise e if isinstance(e, ConfigError) else ConfigError(str(e)) from e
    if config.trainer.compile:
        net.compile()
    return data, module


def check_batch_norm(node: TrainerConfig, net: nn.Module) -> None:
    """Refuse synchronised batch norm over several processes on CPUs, before torch does in each of them.

    Raises:
        ConfigError: If it is asked for.
    """
    on_cpu = node.accelerator == "cpu" or not torch.cuda.is_available()
    if not node.sync_batchnorm or not on_cpu or world_size(node) == 1:
        return
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in net.modules()):
        raise ConfigError(
            "trainer.sync_batchnorm: true, but torch synchronises batch norm on GPUs only, and these processes have "
            "none. Set it to false: each process then normalises with its own batch."
        )


def _check_durations(schedule: Schedule, total_steps: int | None, node: TrainerConfig, data: ImageDataModule) -> None:
    """Refuse durations that do not fit into the run, before the run appears in the store.

    LRSchedule does it later if the number of steps is not yet known (several processes, limited batches).
    """
    if node.limit_train_batches != 1.0 or node.strategy != "auto" or world_size(node) > 1:
        return
    steps = updates_per_epoch(len(data.train_dataloader()), node.accumulate_grad_batches)
    limits = [node.max_steps] if node.max_steps > 0 else []
    clock = epoch_clock([steps] * max(1, node.max_epochs), ends=node.max_epochs > 0, totals=limits)
    if total_steps is not None:
        clock = replace(clock, total=total_steps)
    try:
        schedule.check(clock)
    except ValueError as e:
        raise ConfigError(f"schedule: {e}") from e


@contextmanager
def as_bad_input(remove: Path | None) -> Iterator[None]:
    """Turn a ValueError into a ConfigError, and remove the folder that was made for the run, if any."""
    try:
        yield
    except ValueError as e:
        if remove:
            shutil.rmtree(remove)
        raise ConfigError(str(e)) from e


_APP_KEYS = frozenset({"name", "channels_last", "compile", "deterministic", "progress", "kwargs"})


def make_trainer(
    node: TrainerConfig, folder: Path | None, callbacks: list[Callback], *, enable_checkpointing: bool, **settings: Any
) -> Trainer:
    """Build Lightning's Trainer; ``settings`` are arguments that replace the config's.

    Raises:
        ConfigError: If the Trainer refuses an argument.
    """
    passed = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in _APP_KEYS}
    passed["devices"], passed["num_nodes"] = devices_and_nodes(node)
    if node.gradient_clip_val is None:
        passed["gradient_clip_algorithm"] = None
    try:
        trainer = Trainer(
            **passed,
            deterministic="warn" if node.deterministic else None,
            logger=False,
            callbacks=callbacks,
            default_root_dir=folder,
            enable_model_summary=False,
            enable_checkpointing=enable_checkpointing,
            plugins=[AtomicCheckpointIO()],
            **{**node.kwargs, **settings},
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as e:
        raise ConfigError(f"trainer: {e}") from e
    spare_idle_hooks(callbacks_of(trainer, Callback))
    return trainer


def _fit(trainer: Trainer, module: LightningModule, data: ImageDataModule, resumed: ResumedRun | None) -> RunOutcome:
    checkpoint = str(resumed.checkpoint) if resumed else None
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return outcome_of(trainer)  # before the test, which restores the callbacks of the best checkpoint


def _test(trainer: Trainer, module: LightningModule, data: ImageDataModule, outcome: RunOutcome) -> RunOutcome:
    """Evaluate the best checkpoint on the test set, and add its numbers to the outcome."""
    if any(getattr(callback, "gives_up", False) for callback in callbacks_of(trainer, Callback)):
        return outcome
    best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    results = trainer.test(module, datamodule=data, ckpt_path=best, weights_only=True if best else None, verbose=False)
    tested = {key.replace("/", "_"): value for key, value in results[0].items() if math.isfinite(value)}
    return replace(outcome, summary=outcome.summary | tested)


STEP_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)


def spare_idle_hooks(callbacks: Iterable[Callback]) -> None:
    """Keep Lightning from calling the hooks of a step that a callback does not implement.

    Lightning enters a profiler for each call: six hooks times fifteen callbacks, most of them empty. It skips a hook
    that is not callable.

    Args:
        callbacks: Changed in place. Their classes are not changed, so ``super()`` finds every hook.
    """
    for callback in callbacks:
        for hook in STEP_HOOKS:
            inherited = getattr(type(callback), hook) is getattr(Callback, hook)
            if inherited and hook not in vars(callback):  # LambdaCallback has its hooks in the instance
                setattr(callback, hook, None)


def quiet() -> None:
    """Turn off telemetry, and the messages of libraries that a user of the app can do nothing about."""
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "true")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    known = (
        "does not have many workers",
        "The number of training batches",
        "Checkpoint directory .* exists and is not empty",
        "isinstance.treespec",
    )
    for text in known:
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    warnings.filterwarnings("ignore", category=NoSuggestionWarning)  # FoundLR prints it
