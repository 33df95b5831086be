"""One run, from a checked config to its result."""

import logging
import math
import os
import shutil
import signal
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lr_lightning.app import build
from lr_lightning.app.config import Config
from lr_lightning.app.errors import ConfigError
from lr_lightning.app.guards import FinalValidation, MonitorCheck
from lr_lightning.app.interrupt import Interrupted, Interrupts
from lr_lightning.app.output import LAST, new_output_dir
from lr_lightning.app.record import open_logger, run_id_of
from lr_lightning.app.resume import Previous
from lr_lightning.app.summary import Summary, print_start, print_summary, summarise
from lr_lightning.app.weights import load_weights
from lr_lightning.callbacks.diverged import Diverged
from lr_lightning.tracking import RunLogger
from lr_lightning.training.data import ImageDataModule

_NOT_LIGHTNINGS = frozenset({"name", "channels_last", "compile", "deterministic", "progress", "kwargs"})


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        output_dir: Its output folder; None on ranks other than the first.
        run_id: Its MLflow run id, where it has one.
        summary: The values logged as ``summary/*``, without the prefix.
    """

    output_dir: Path | None
    run_id: str | None
    summary: dict[str, float] = field(default_factory=dict)

    @property
    def objective(self) -> float | None:
        """The best validation accuracy, which a search maximises."""
        return self.summary.get("best_val_acc")


def train(config: Config, previous: Previous | None = None) -> Result:
    """Build everything, fit, test the best checkpoint once, and record the run.

    All that can be wrong with the input is found before the run appears in the store.

    Args:
        config: The checked config.
        previous: The run to go on with, or None for a new one.

    Raises:
        ConfigError: If the input is bad.
        Diverged: If a loss becomes non-finite; the run is FAILED.
        Interrupted: On SIGTERM or Ctrl-C; the run is KILLED.
    """
    _quiet()
    _check_device(config)
    schedule = build.build_schedule(config)
    data, module = _build(config)
    first = getattr(rank_zero_only, "rank", 0) == 0
    folder = (previous.output_dir if previous else new_output_dir(config)) if first else None
    interrupts = Interrupts(folder / "checkpoints" / LAST if folder else None)
    callbacks = [*build.build_callbacks(config, schedule), Summary(), *_checkpoints(config, folder), interrupts]
    try:
        trainer = _trainer(config, folder, callbacks)
        logger = open_logger(config, folder, previous, data, module) if folder else None
    except ValueError as e:
        if folder and not previous:
            shutil.rmtree(folder)  # nothing was started: no run, no folder
        raise ConfigError(str(e)) from e
    if logger:
        trainer.loggers = [logger]
    if folder:
        print_start(config, folder, data, module, previous)
    with interrupts:
        summary = _recorded(config, trainer, module, data, previous, logger, interrupts)
    run_id = run_id_of(logger)
    if folder:
        print_summary(config, folder, run_id, summary)
    return Result(folder, run_id, summary)


def _recorded(
    config: Config,
    trainer: Trainer,
    module: LightningModule,
    data: ImageDataModule,
    previous: Previous | None,
    logger: RunLogger | None,
    interrupts: Interrupts,
) -> dict[str, float]:
    """Run, and give the record its true status, whatever happens."""
    status = "FAILED"
    try:
        summary = _run(config, trainer, module, data, previous)
        if logger:
            logger.log_summary(summary)
        status = "FINISHED"
        return summary
    except Diverged as e:
        if logger:
            logger.set_tags({"diverged": "true", "diverged_step": str(e.step), "diverged_lr": str(e.lr)})
        raise
    except (SIGTERMException, Interrupted, KeyboardInterrupt) as e:
        status = "KILLED"
        raise (e if isinstance(e, Interrupted) else Interrupted(interrupts.signum or signal.SIGINT)) from None
    finally:
        if logger:
            logger.end(status)


def _run(
    config: Config, trainer: Trainer, module: LightningModule, data: ImageDataModule, previous: Previous | None
) -> dict[str, float]:
    """Fit, and evaluate the best checkpoint on the test set; the summary of both."""
    ckpt = str(previous.checkpoint) if previous else None
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    summary = summarise(trainer)  # before the test, which restores the callbacks of the best checkpoint
    if config.test and data.has_test:
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        results = trainer.test(
            module, datamodule=data, ckpt_path=best, weights_only=True if best else None, verbose=False
        )
        summary |= {key.replace("/", "_"): value for key, value in results[0].items() if math.isfinite(value)}
    return summary


def _build(config: Config) -> tuple[ImageDataModule, LightningModule]:
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


def _checkpoints(config: Config, folder: Path | None) -> list[Callback]:
    node = config.callbacks.checkpoint
    if node is None:
        return [FinalValidation()]
    # Ranks other than the first take the folder from it, through Lightning's own broadcast.
    common: dict[str, Any] = {
        "dirpath": str(folder / "checkpoints") if folder else None,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    last = Path(LAST).stem
    best = ModelCheckpoint(filename="best", monitor=node.monitor, mode=node.mode, **common)
    kept = [best, ModelCheckpoint(filename=last, every_n_epochs=1, save_on_train_epoch_end=False, **common)]
    if node.every_n_steps:
        kept.append(ModelCheckpoint(filename=last, every_n_train_steps=node.every_n_steps, **common))
    return [FinalValidation(), MonitorCheck(node.monitor), *kept]


def _trainer(config: Config, folder: Path | None, callbacks: list[Callback]) -> Trainer:
    node = config.trainer
    passed = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in _NOT_LIGHTNINGS}
    if node.gradient_clip_val is None:
        passed["gradient_clip_algorithm"] = None
    try:
        return Trainer(
            **passed,
            deterministic="warn" if node.deterministic else None,
            logger=False,
            callbacks=callbacks,
            default_root_dir=folder,
            enable_model_summary=False,
            enable_checkpointing=config.callbacks.checkpoint is not None,
            **node.kwargs,
        )
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as e:
        raise ConfigError(f"trainer: {e}") from e


def _check_device(config: Config) -> None:
    if config.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator: '{config.trainer.accelerator}', but torch {torch.__version__} sees no GPU here. "
            "Use trainer=cpu or trainer=auto."
        )


def _quiet() -> None:
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
    )
    for text in (f".*{part}.*" for part in known):
        warnings.filterwarnings("ignore", message=text)
