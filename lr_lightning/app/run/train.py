"""One run, from a checked config to its result.

Before training, the configured lr can change in four places:

- `composition.take_peak_from_schedule` lets ``schedule.max_lr`` replace ``optimizer.lr``;
- `fork` lets a fork's own ``optimizer.lr`` replace that of its trunk, and then drops the trunk's finder and lr_rule;
- `train` applies ``optimizer.lr_rule``, with `world.scale_lr`;
- in the fit, before its first step, a finder puts the lr that it found into the optimizer, with `found_lr.set_peak`.

From then on only `LRSchedule` writes it, at every step, through its `OptimizerDriver`.
"""

import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from lr_lightning._lightning import callbacks_of
from lr_lightning._threads import threads_for
from lr_lightning.app import build
from lr_lightning.app.config import Config
from lr_lightning.app.run import checkpoints, record
from lr_lightning.app.run.checkpoints import LAST, make_output_root, new_output_dir
from lr_lightning.app.run.fork import ForkedRun, ForkState, check_fork
from lr_lightning.app.run.graceful_stop import CoolDownOnRequest, GracefulStop
from lr_lightning.app.run.messages import DataNotes, print_outcome, print_start, quiet
from lr_lightning.app.run.predictions import report_predictions
from lr_lightning.app.run.record import RunOutcome
from lr_lightning.app.run.resume import ResumedRun, choose_checkpoint, identity, set_damaged_aside
from lr_lightning.app.run.signals import ParentWatch, is_child
from lr_lightning.app.schemas.schedule import CooldownConfig
from lr_lightning.app.schemas.trainer import CallbacksConfig, TrainerConfig
from lr_lightning.app.world import (
    is_rank_zero,
    local_processes,
    scale_lr,
    world_size,
)
from lr_lightning.callbacks.base_finder import BaseLRFinder
from lr_lightning.callbacks.cooldown_preview import CooldownPreview
from lr_lightning.errors import ConfigError
from lr_lightning.schedules import Clock, Schedule
from lr_lightning.schedules.clock import epoch_clock, updates_per_epoch
from lr_lightning.tracking import RunLogger
from lr_lightning.tracking.keys import flatten
from lr_lightning.training.datamodule import ImageDataModule

Start = ResumedRun | ForkedRun | None  # the state from which a run starts; None: from none
_ASSUMED_CLOCK = Clock(1000, steps_per_epoch=100)  # of a run whose length is not known yet

__all__ = ["OpenRun", "RunOutcome", "build_data_and_module", "open_run", "prepare_process", "train"]


def train(
    config: Config,
    start: Start = None,
    *,
    report: bool = True,
    notes: bool | None = None,
    watching: Sequence[Callback] = (),
) -> RunOutcome:
    """Build everything, fit, test the best checkpoint once, and record the run.

    Args:
        config: The checked config.
        start: The state of a run from which to train on.
        report: Whether to print the start and the result of the run. If not, only a bar is shown, on a terminal.
        notes: Whether to print the notes on the data. None: as ``report``.
        watching: Further callbacks, such as a search's. The test is skipped if any of them sets ``skips_test``.

    Raises:
        ConfigError: The input is bad; the run does not appear in the store.
        Diverged, RunFailed: The run is in the store as FAILED.
        Interrupted: The run was stopped, and is in the store as KILLED.
    """
    folder = str(start.output_dir) if isinstance(start, ResumedRun) else config.output_root
    prepare_process(config.trainer, folder, show_notes=report if notes is None else notes)
    _check_fork_keys(config, start)
    config, scaling = (config, {}) if start else scale_lr(config)  # a stored config is scaled already

    schedules = build.build_schedules(config.schedule, config.optimizer.lr)
    data, module = build_data_and_module(config)
    clock = _checked_clock(schedules.planned, config.schedule.total_steps, config.trainer, data)
    start = _checked_start(start, config, data, schedules, clock)
    finder, callbacks = _build_callbacks(config, schedules, module, start, report=report)
    _check_disk_space(config, module, callbacks, clock, report=report)

    run = open_run(config, data, module, [*callbacks, *watching], start=start, scaling=scaling, report=report)
    outcome = run.record(lambda: _fit_and_evaluate(config, run.trainer, module, data, start))
    outcome = _with_applied_lr(outcome, finder)
    if run.folder and report:
        print_outcome(config, run.folder, outcome, idle=start is not None and not record.stepped(run.trainer))
    return outcome


def prepare_process(node: TrainerConfig, output: str, *, show_notes: bool = True) -> None:
    """Silence libraries, watch the launcher, and check the device and the output root."""
    quiet()
    if show_notes:
        logger = logging.getLogger("lr_lightning.training")
        logger.handlers[:] = logger.handlers or [DataNotes()]
        logger.setLevel(logging.INFO)
    if is_child():
        ParentWatch().start()
    if node.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator: '{node.accelerator}', but torch {torch.__version__} sees no GPU here. "
            "Use trainer=cpu or trainer=auto."
        )
    make_output_root(output)


@dataclass(frozen=True)
class OpenRun:
    """A run that is ready to start; only the first rank has a folder and a logger."""

    config: Config
    trainer: Trainer
    stop: GracefulStop
    folder: Path | None
    logger: RunLogger | None

    def record(self, work: Callable[[], RunOutcome]) -> RunOutcome:
        """Do ``work``, the fit and what follows, and record whether it finished, failed or was stopped."""
        outcome = record.record_run(self.config, self.trainer, self.logger, self.stop, work)
        return replace(outcome, output_dir=self.folder, run_id=self.logger.run_id if self.logger else None)


def open_run(
    config: Config,
    data: ImageDataModule,
    module: LightningModule,
    callbacks: Iterable[Callback],
    *,
    job: str = "train",
    start: Start = None,
    scaling: Mapping[str, Any] = MappingProxyType({}),
    report: bool = True,
) -> OpenRun:
    """Make a run's folder, Trainer and record.

    The job ``train`` trains and saves checkpoints. The fit of any other job ends before its first step, so that only
    its callbacks work, such as a finder.
    """
    folder, trains = None, job == "train"
    resumed = start if isinstance(start, ResumedRun) else None
    forked = start if isinstance(start, ForkedRun) else None
    if is_rank_zero():
        what = config.schedule.name if trains else f"{job}-{config.finder.name}"
        parts = config.data.name, config.model.name, what, f"s{config.seed}"
        folder = resumed.output_dir if resumed else new_output_dir(config.output_root, *parts)
    stop = GracefulStop(folder / "checkpoints" / LAST if folder and trains else None)
    try:
        attached = [stop, *callbacks, record.Summary()]
        if trains:
            trainer = _trainer_that_trains(config, folder, stop, attached)
        else:
            trainer = _trainer_without_steps(config.trainer, folder, attached)
        logger = None
        if folder:
            about: dict[str, Any] = {"resume": resumed is not None, "job": job, "scaling": scaling, "forked": forked}
            logger = record.open_logger(config, folder, data, module, **about)
    except ValueError as e:
        if folder and not resumed:
            shutil.rmtree(folder)
        if isinstance(e, ConfigError):
            raise
        raise ConfigError(str(e)) from e
    if logger:
        trainer.loggers = [logger]
        logger.set_tags({"env.world_size": trainer.world_size})  # `devices=auto` does not tell
        if resumed:
            set_damaged_aside(resumed)  # only with the record's lock
    if folder and report:
        print_start(config, folder, data, module, start)
    return OpenRun(config, trainer, stop, folder, logger)


def _trainer_that_trains(config: Config, folder: Path | None, stop: GracefulStop, callbacks: list[Callback]) -> Trainer:
    """Return a Trainer that also saves checkpoints, and cools down on request."""
    node, io = config.callbacks.checkpoint, checkpoints.AtomicCheckpointIO(folder)
    attached = [*callbacks, CoolDownOnRequest(stop, folder), *checkpoints.checkpoint_callbacks(node, folder)]
    return build.build_trainer(config.trainer, folder, attached, io, enable_checkpointing=node is not None)


def _trainer_without_steps(node: TrainerConfig, folder: Path | None, callbacks: list[Callback]) -> Trainer:
    """Return a Trainer whose fit ends before its first step, so that only its callbacks work."""
    untrained, io = replace(node, max_steps=0), checkpoints.AtomicCheckpointIO(folder)
    off: dict[str, Any] = {"enable_checkpointing": False, "num_sanity_val_steps": 0}
    return build.build_trainer(untrained, folder, callbacks, io, **off)


def build_data_and_module(config: Config) -> tuple[ImageDataModule, LightningModule]:
    """Load the data, and build the module for it; ``config.trainer.threads`` becomes a number, and is used."""
    _use_threads(config.trainer)
    try:
        seed_everything(config.seed, workers=True, verbose=False)
        data = build.build_data(config)
        data.prepare()
        seed_everything(config.seed, workers=True, verbose=False)  # equal initial weights, whatever loading drew
        net = build.build_net(config.model, data)
        _use_threads(config.trainer, net, data)
        check_batch_norm(config.trainer, net)
        if config.trainer.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module = build.build_module(config.module, config.optimizer, net, data)
        if config.ckpt:
            path = Path(config.ckpt).expanduser()
            checkpoints.load_weights(module, checkpoints.read_checkpoint(path, "ckpt"), f"ckpt: {path}")
    except ConfigError:
        raise
    except ValueError as e:
        raise ConfigError(str(e)) from e
    if config.trainer.compile:
        net.compile()
    return data, module


def _use_threads(node: TrainerConfig, net: nn.Module | None = None, data: ImageDataModule | None = None) -> None:
    """Set the number of torch's threads. Once ``net`` is known, note it in ``node``: a run's bits depend on it."""
    threads, processes = node.threads, local_processes(node)
    if threads == "auto":
        shape = () if data is None else (data.batch_size, data.in_channels, *data.image_size)
        helpers = 0 if data is None or data.in_memory else data.num_workers
        threads = threads_for(net, shape, processes, helpers)
    torch.set_num_threads(int(threads))
    if net is not None:
        node.threads = int(threads)
        if processes > 1:  # for the ranks that Lightning starts, which it would give all cores
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def check_batch_norm(node: TrainerConfig, net: nn.Module) -> None:
    """Refuse synchronized batch norm over several processes on CPUs, before torch refuses it in each process."""
    on_cpu = node.accelerator == "cpu" or not torch.cuda.is_available()
    normalizes = any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in net.modules())
    if node.sync_batchnorm and on_cpu and normalizes and world_size(node) > 1:
        raise ConfigError(
            "trainer.sync_batchnorm: true, but torch synchronizes batch norm on GPUs only, and these processes have "
            "none. Set it to false: each process then normalizes with its own batch."
        )


def _check_fork_keys(config: Config, start: Start) -> None:
    """Refuse the keys that mean something only where a run starts from a state of another."""
    if start is not None:
        return
    if config.fork:
        raise ConfigError("fork: belongs to scripts/train.py, which starts one run from another. Leave it out.")
    if isinstance(config.schedule, CooldownConfig):
        raise ConfigError(
            "schedule: a cooldown starts from a trained run: give fork=RUN@60%, or another schedule, such as wsd, "
            "which ends with a cooldown."
        )


def _checked_clock(
    schedule: Schedule, total_steps: int | None, node: TrainerConfig, data: ImageDataModule
) -> Clock | None:
    """Return the run's clock; refuse durations that do not fit into it, before the run appears in the store.

    If the number of steps is not yet known (several processes, limited batches), return None: LRSchedule checks later.
    """
    if node.limit_train_batches != 1.0 or node.strategy != "auto" or world_size(node) > 1:
        return None
    steps = updates_per_epoch(len(data.train_dataloader()), node.accumulate_grad_batches)
    limits = [node.max_steps] if node.max_steps > 0 else []
    clock = epoch_clock([steps] * max(1, node.max_epochs), ends=node.max_epochs > 0, totals=limits)
    if total_steps is not None:
        clock = replace(clock, total=total_steps)
    try:
        schedule.check(clock)
    except ValueError as e:
        raise ConfigError(f"schedule: {e}") from e
    return clock


def _checked_start(
    start: Start, config: Config, data: ImageDataModule, schedules: build.Schedules, clock: Clock | None
) -> Start:
    """Check the state that the run starts from, and give the data module its part of it."""
    flat = flatten(asdict(config))
    if isinstance(start, ResumedRun):
        known = schedules.planned if schedules.plateau is None else None
        return _resumed_state(choose_checkpoint(start, flat, data), known, clock)
    if start is not None:
        check_fork(start, flat, data)
    return start


def _resumed_state(resumed: ResumedRun, schedule: Schedule | None, clock: Clock | None) -> ResumedRun:
    """Return the run with the learning rate of its next step, if its length has changed and that lr is known."""
    if schedule is None or clock is None or not {"trainer.max_epochs", "trainer.max_steps"} & resumed.changed.keys():
        return resumed
    return replace(resumed, next_lr=resumed.peak_lr * schedule(resumed.step, clock))


def _build_callbacks(
    config: Config, schedules: build.Schedules, module: LightningModule, start: Start, *, report: bool
) -> tuple[BaseLRFinder[Any] | None, list[Callback]]:
    """Return the finder, if there is one, and the callbacks, in the order in which Lightning calls them."""
    forked = start if isinstance(start, ForkedRun) else None
    progress = _progress(config.trainer, report=report)
    finder = build.build_finder(config.finder, module, progress, config.output_root)
    callbacks: list[Callback] = [] if forked is None else [ForkState(forked)]
    callbacks.append(checkpoints.ConfigInCheckpoint(identity(flatten(asdict(config)))))
    if finder is not None:
        callbacks += [finder, record.FoundLR(config, finder, report=report)]
    new_peak = forked is not None and forked.new_peak
    callbacks += build.build_callbacks(config, schedules, module, progress=progress, new_peak=new_peak)
    return finder, callbacks


def _progress(node: TrainerConfig, *, report: bool) -> str:
    """Return how to show the progress: without a report, ``auto`` prints no lines."""
    if report or node.progress != "auto":
        return node.progress
    return "bar" if sys.stdout.isatty() else "none"


def _check_disk_space(
    config: Config, module: LightningModule, callbacks: Iterable[Callback], clock: Clock | None, *, report: bool
) -> None:
    """Print how much space the checkpoints along the run will need. Raise a ConfigError if the disk has less."""
    node = config.callbacks.checkpoint
    if node is None or node.every is None or not is_rank_zero():
        return
    copies = build.optimizer_copies(config.optimizer) + any(isinstance(each, CooldownPreview) for each in callbacks)
    folder = make_output_root(config.output_root)
    text = checkpoints.trunk_space(node.every, clock or _ASSUMED_CLOCK, module, copies, folder)
    if report:
        print(text, flush=True)


def _fit_and_evaluate(
    config: Config, trainer: Trainer, module: LightningModule, data: ImageDataModule, start: Start
) -> RunOutcome:
    """Fit, then test the best checkpoint and report its predictions, as far as the config asks for them."""
    path = str(start.checkpoint) if start else None
    trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True if path else None)
    outcome = record.outcome_of(trainer)  # before the test, which restores the callbacks of the best checkpoint
    if any(getattr(callback, "skips_test", False) for callback in callbacks_of(trainer, Callback)):
        return outcome
    tests = config.test and data.has_test
    if tests:
        outcome = _test(trainer, module, data, outcome)
    return _predict(config.callbacks, trainer, module, data, outcome, tested=tests)


def _test(trainer: Trainer, module: LightningModule, data: ImageDataModule, outcome: RunOutcome) -> RunOutcome:
    """Evaluate the best checkpoint on the test set, and add its numbers to the outcome."""
    best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    results = trainer.test(module, datamodule=data, ckpt_path=best, weights_only=True if best else None, verbose=False)
    tested = {key.replace("/", "_"): value for key, value in results[0].items() if math.isfinite(value)}
    return replace(outcome, summary=outcome.summary | tested)


def _predict(
    node: CallbacksConfig,
    trainer: Trainer,
    module: LightningModule,
    data: ImageDataModule,
    outcome: RunOutcome,
    *,
    tested: bool,
) -> RunOutcome:
    """Report the predictions of the best checkpoint, if the config asks for any, and add them to the outcome."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if path and not tested and (node.class_accuracy or node.confusion_matrix or node.mistakes):
        checkpoints.load_weights(module, checkpoints.read_checkpoint(Path(path), "ckpt"), path)
    found = report_predictions(node, trainer, module, data, "test" if tested else "validation")
    if found is None or not node.class_accuracy:
        return outcome if found is None else replace(outcome, predictions=found)
    by_class = zip(found.class_names, found.class_accuracies, strict=True)
    accuracies = {f"acc_of/{name}": acc for name, acc in by_class if math.isfinite(acc)}
    return replace(outcome, summary=outcome.summary | accuracies, predictions=found)


def _with_applied_lr(outcome: RunOutcome, finder: BaseLRFinder[Any] | None) -> RunOutcome:
    """Add the learning rate that the finder has set, and the run that it was found for."""
    if finder is None or finder.applied_lr is None:
        return outcome
    planned = getattr(finder.result, "planned", None)
    return replace(outcome, applied_lr=finder.applied_lr, found_for=planned and planned.describe())
