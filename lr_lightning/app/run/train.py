"""One run, from a checked config to its result."""

import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
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
from lr_lightning.app.run.found_lr import FoundRate
from lr_lightning.app.run.messages import print_start, print_summary
from lr_lightning.app.run.output import LAST, new_output_dir, output_root
from lr_lightning.app.run.record import open_logger, recorded, run_id_of, watchdog_of
from lr_lightning.app.run.resume import Previous, checked, identity, set_damaged_aside
from lr_lightning.app.run.signals import Interrupts, watch_parent
from lr_lightning.app.run.summary import Outcome, Summary, outcome_of, stepped
from lr_lightning.app.world import devices_and_nodes, is_rank_zero, world_size
from lr_lightning.diagnosis import History, Verdict
from lr_lightning.errors import ConfigError
from lr_lightning.schedules import Schedule
from lr_lightning.schedules.clock import epoch_clock, updates_per_epoch
from lr_lightning.training.datamodule import ImageDataModule

# --- What callbacks leave alone at a step costs nothing.

STEP_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)


def spare_idle_hooks(callbacks: Iterable[Callback]) -> None:
    """Keep Lightning from calling the hooks of a step that a callback does not have.

    It enters a profiler for each of them: six hooks times fifteen callbacks, most of them empty. It passes over what is
    not callable.

    Args:
        callbacks: Changed in place; their classes are not, so ``super()`` finds every hook.
    """
    for callback in callbacks:
        for hook in STEP_HOOKS:
            inherited = getattr(type(callback), hook) is getattr(Callback, hook)
            if inherited and hook not in vars(callback):  # LambdaCallback has them in the instance
                setattr(callback, hook, None)


_NOT_LIGHTNINGS = frozenset({"name", "channels_last", "compile", "deterministic", "progress", "kwargs"})


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        output_dir: Its output folder; None on ranks other than the first.
        run_id: Its MLflow run id, where it has one.
        summary: The values logged as ``summary/*``, without the prefix.
        verdict: Whether it over- or underfits, where that was measured.
        history: What that was measured from.
    """

    output_dir: Path | None
    run_id: str | None
    summary: dict[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None
    history: History | None = None

    @property
    def objective(self) -> float | None:
        """The best validation accuracy, which a search maximises."""
        return self.summary.get("best_val_acc")


def train(
    config: Config, previous: Previous | None = None, *, report: bool = True, watching: Sequence[Callback] = ()
) -> Result:
    """Build everything, fit, test the best checkpoint once, and record the run.

    All that can be wrong with the input is found before the run appears in the store.

    Args:
        config: The checked config.
        previous: The run to go on with, or None for a new one.
        report: Whether to print what is trained, and its result.
        watching: Callbacks beside the config's, such as a search's. One that has ``gives_up`` and says so spares the
            test.

    Raises:
        ConfigError: If the input is bad.
        Diverged: If a loss becomes non-finite; the run is FAILED.
        RunFailed: If another process of the run, or its disk, is gone; the run is FAILED.
        Interrupted: On SIGTERM or Ctrl-C; the run is KILLED.
    """
    begin(config)
    config, scaling = (config, {}) if previous else scale_lr(config)  # a stored config has the resulting rates
    schedule = build.build_schedule(config)
    data, module = build_run(config)
    _check_durations(config, schedule, data)
    if previous:
        previous = checked(previous, config, data)
    finder = build.build_finder(config, module)
    configured = build.build_callbacks(config, schedule, module)
    folder = (previous.output_dir if previous else new_output_dir(config)) if is_rank_zero() else None
    interrupts = Interrupts(folder / "checkpoints" / LAST if folder else None)
    searching = [] if finder is None else [finder, FoundRate(config, finder, folder)]
    stamp = ConfigStamp(identity(flatten(asdict(config))))
    watchers = [*configured, *watching, Summary()]
    callbacks = [interrupts, stamp, *searching, *watchers, *checkpoint_callbacks(config, folder)]
    with starting(None if previous else folder):
        trainer = make_trainer(config, folder, callbacks)
        logger = open_logger(config, folder, previous, data, module, scaling=scaling) if folder else None
    if logger:
        trainer.loggers = [logger]
        logger.set_tags({"env.world_size": trainer.world_size})  # `devices=auto` does not tell
        if previous:
            set_damaged_aside(previous)  # not before the record's lock is held
    if folder and report:
        print_start(config, folder, data, module, previous)
    with interrupts, watchdog_of(logger, config):
        outcome = recorded(config, trainer, logger, interrupts, lambda: _run(config, trainer, module, data, previous))
    run_id = run_id_of(logger)
    if folder and report:
        idle = previous is not None and not stepped(trainer)
        print_summary(config, folder, run_id, outcome.summary, outcome.verdict, idle=idle)
    return Result(folder, run_id, outcome.summary, outcome.verdict, outcome.history)


def _run(
    config: Config, trainer: Trainer, module: LightningModule, data: ImageDataModule, previous: Previous | None
) -> Outcome:
    """Fit, and evaluate the best checkpoint on the test set; what both came to."""
    ckpt = str(previous.checkpoint) if previous else None
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    # before the test, which restores the callbacks of the best checkpoint
    outcome = outcome_of(trainer)
    given_up = any(getattr(callback, "gives_up", False) for callback in callbacks_of(trainer, Callback))
    if config.test and data.has_test and not given_up:
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        results = trainer.test(
            module, datamodule=data, ckpt_path=best, weights_only=True if best else None, verbose=False
        )
        tested = {key.replace("/", "_"): value for key, value in results[0].items() if math.isfinite(value)}
        outcome = replace(outcome, summary=outcome.summary | tested)
    return outcome


def build_run(config: Config) -> tuple[ImageDataModule, LightningModule]:
    """Data, loaded, and the module for it.

    Raises:
        ConfigError: If a key, a file or a checkpoint is bad.
    """
    try:
        seed_everything(config.seed, workers=True, verbose=False)
        data = build.build_data(config)
        data.prepare()
        seed_everything(config.seed, workers=True, verbose=False)  # whatever loading drew, the weights start the same
        net = build.build_net(config, data)
        check_batch_norm(config, net)
        if config.trainer.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module = build.build_module(config, net, data)
        if config.ckpt:
            load_weights(module, Path(config.ckpt).expanduser())
    except ValueError as e:
        raise e if isinstance(e, ConfigError) else ConfigError(str(e)) from e
    if config.trainer.compile:
        net.compile()
    return data, module


def _check_durations(config: Config, schedule: Schedule, data: ImageDataModule) -> None:
    """Find a warm-up that is longer than the run before the run appears in the store.

    Where the number of steps is not yet known (several processes, limited batches), LRSchedule finds it itself.
    """
    node = config.trainer
    if node.limit_train_batches != 1.0 or node.strategy != "auto" or world_size(node) > 1:
        return
    steps = updates_per_epoch(len(data.train_dataloader()), node.accumulate_grad_batches)
    limits = [node.max_steps] if node.max_steps > 0 else []
    clock = epoch_clock([steps] * max(1, node.max_epochs), ends=node.max_epochs > 0, totals=limits)
    if config.schedule.total_steps is not None:
        clock = replace(clock, total=config.schedule.total_steps)
    try:
        schedule.check(clock)
    except ValueError as e:
        raise ConfigError(f"schedule: {e}") from e


def make_trainer(config: Config, folder: Path | None, callbacks: list[Callback], **settings: Any) -> Trainer:
    """Lightning's Trainer, as the config asks for it.

    Raises:
        ConfigError: If it refuses.
    """
    node = config.trainer
    passed = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in _NOT_LIGHTNINGS}
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
            enable_checkpointing=config.callbacks.checkpoint is not None,
            plugins=[AtomicCheckpointIO()],
            **{**node.kwargs, **settings},
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as e:
        raise ConfigError(f"trainer: {e}") from e
    spare_idle_hooks(callbacks_of(trainer, Callback))
    return trainer


def begin(config: Config) -> None:
    """What comes before all else: no chatter, no life without the launcher, a device and a place for the output.

    Raises:
        ConfigError: If the GPU that is asked for, or the place, cannot be used.
    """
    quiet()
    watch_parent()
    _check_device(config)
    output_root(config)


@contextmanager
def starting(folder: Path | None) -> Iterator[None]:
    """For what comes before a run is there: what is wrong is bad input, and no run means no folder.

    Args:
        folder: What was made for it; None for nothing.
    """
    try:
        yield
    except ValueError as e:
        if folder:
            shutil.rmtree(folder)
        raise ConfigError(str(e)) from e


def _check_device(config: Config) -> None:
    """Refuse a GPU that is not there."""
    if config.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator: '{config.trainer.accelerator}', but torch {torch.__version__} sees no GPU here. "
            "Use trainer=cpu or trainer=auto."
        )


def check_batch_norm(config: Config, net: nn.Module) -> None:
    """Refuse what torch refuses when the processes have been started: batch norm over several of them on CPUs.

    Raises:
        ConfigError: If it is asked for.
    """
    node = config.trainer
    on_cpu = node.accelerator == "cpu" or not torch.cuda.is_available()
    if not node.sync_batchnorm or not on_cpu or world_size(node) == 1:
        return
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in net.modules()):
        raise ConfigError(
            "trainer.sync_batchnorm: true, but torch synchronises batch norm on GPUs only, and these processes have "
            "none. Set it to false: each process then normalises with its own batch."
        )


def quiet() -> None:
    """No telemetry, and none of the libraries' chatter that a user of the app can do nothing about."""
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "true")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    known = (
        "does not have many workers",
        "The number of training batches",
        "Checkpoint directory .* exists and is not empty",
        "isinstance.treespec",
        "The configured lr stays as it is",  # FoundRate says it
    )
    for text in (f".*{part}.*" for part in known):
        warnings.filterwarnings("ignore", message=text)
