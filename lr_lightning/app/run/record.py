"""Opening a run's record: its config, parameters, tags and environment, in whichever tracking was chosen."""

import errno
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import DistBackendError, DistNetworkError

from lr_lightning._plotting import COLOUR_TAG, style
from lr_lightning.app.config import Config, flatten
from lr_lightning.app.error_messages import is_out_of_memory
from lr_lightning.app.lr_scaling import effective_batch_size
from lr_lightning.app.run.found_lr import default_run_name
from lr_lightning.app.run.messages import print_interrupted
from lr_lightning.app.run.output import LAST, write_config
from lr_lightning.app.run.resume import Previous
from lr_lightning.app.run.signals import Interrupted, Interrupts
from lr_lightning.app.run.summary import Outcome, outcome_of, stepped
from lr_lightning.app.world import world_size
from lr_lightning.errors import ConfigError, DataError, Diverged, RunFailed
from lr_lightning.tracking import RunLogger
from lr_lightning.tracking.environment import environment_tags
from lr_lightning.tracking.keys import hide_password
from lr_lightning.tracking.locks import mark_dead_runs
from lr_lightning.tracking.replay import Watchdog
from lr_lightning.tracking.store import open_store
from lr_lightning.tracking.ui import keep_view
from lr_lightning.training.datamodule import ImageDataModule


def open_logger(
    config: Config,
    folder: Path,
    previous: Previous | None,
    data: ImageDataModule,
    module: LightningModule,
    job: str = "train",
    scaling: Mapping[str, float] | None = None,
) -> RunLogger:
    """Open the run's record, which takes the lock of its output folder, and store the config there.

    Args:
        config: The run's config.
        folder: Its output folder.
        previous: The run that is gone on with.
        data: Its data.
        module: Its module.
        job: What the run does, a tag of it.
        scaling: What the rule for the rate has done, from ``scaled``.

    Raises:
        ConfigError: If the store cannot be used, or the run to go on with is still running.
    """
    container, stale = _plain(config), config.keys_set_by_finder()
    lr = None if stale else config.optimizer.lr
    name = config.tracking.run_name or (default_run_name(config, lr) if job == "train" else job)
    tags = {"job": job, **_tags(config, folder, data)}
    if job != "train":  # it follows no schedule and makes no checkpoints; what the user set stays
        absent = {"schedule", COLOUR_TAG, "checkpoint.last", "checkpoint.best"} - config.tracking.tags.keys()
        tags = {key: value for key, value in tags.items() if key not in absent}
    with _room_for(folder):
        logger = _opened(config, folder, name, tags, resume=previous is not None)
        with _ended_by_an_error(logger):
            artifact = write_config(folder, container)  # not before the lock is held: the folder may be a live run's
            logger.log_hyperparams({key: value for key, value in _given(container).items() if key not in stale})
            parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
            described = {f"dataset.{key}": value for key, value in data.describe().items()}
            logger.log_hyperparams({"model.parameters": parameters, **described})
            together = {"processes": world_size(config.trainer), "update_batch_size": effective_batch_size(config)}
            logger.log_hyperparams({**together, **(scaling or {})})
            logger.log_artifact(artifact)
    return logger


@contextmanager
def sweep_record(config: Config, folder: Path, sweep: str, job: str) -> Iterator[RunLogger]:
    """The record of a sweep's own run, which holds its table.

    It is closed at the end: as FAILED after an error, as KILLED if it was stopped.

    Args:
        config: The config that its runs share.
        folder: Of the record.
        sweep: Name of the sweep, which its runs have as a tag.
        job: What made it: ``lr_effects`` or ``search``.

    Raises:
        ConfigError: If the store cannot be used.
    """
    tags = {
        "job": job,
        **({"study": job} if job == "lr_effects" else {}),
        **_choices(config),
        **environment_tags(),
        **config.tracking.tags,
        "sweep": sweep,
    }
    with _room_for(folder):
        logger = _opened(config, folder, f"{job} {config.model.name} {config.data.name}", tags, resume=False)
    with _ended_by_an_error(logger):
        logger.log_hyperparams(_given(_plain(config)))
        yield logger
    logger.end("FINISHED")


def _plain(config: Config) -> dict[str, Any]:
    """The config as plain values, without the password of its store."""
    container = asdict(config)
    container["tracking"]["uri"] = hide_password(config.tracking.uri) if config.tracking.uri else None
    return container


def _given(container: dict[str, Any]) -> dict[str, Any]:
    """Its dotted keys that have a value."""
    return {key: value for key, value in flatten(container).items() if value not in (None, {}, [])}


def _choices(config: Config) -> dict[str, str]:
    """The tags that runs are grouped by."""
    return {name: getattr(config, name).name for name in ("schedule", "optimizer", "model", "data")}


def _opened(config: Config, folder: Path, run_name: str, tags: dict[str, str], *, resume: bool) -> RunLogger:
    """A logger of the chosen kind, started."""
    node = config.tracking
    try:
        store = open_store(Path(node.root), node.uri) if node.name == "mlflow" else None
        if store is not None:
            mark_dead_runs(store)
        logger = RunLogger(
            folder,
            store,
            experiment=node.experiment,
            run_name=run_name,
            tags=tags,
            csv=node.name == "csv",
            resume=resume,
            end_on_finalize=False,
        )
        logger.start()
        if store is not None and logger.experiment_id is not None:
            keep_view(store, logger.experiment_id)
    except ValueError as e:
        raise ConfigError(f"tracking: {e}") from e
    return logger


@contextmanager
def _ended_by_an_error(logger: RunLogger) -> Iterator[None]:
    """Close the record where something raises: as KILLED where that is an interruption."""
    try:
        yield
    except BaseException as e:
        with suppress(OSError):  # a full disk is what may have raised
            logger.end("FAILED" if isinstance(e, Exception) else "KILLED")
        raise


@contextmanager
def _room_for(folder: Path) -> Iterator[None]:
    """For what is written before a run begins: a disk without room for it is bad input."""
    try:
        yield
    except OSError as e:
        raise ConfigError(
            f"output_root: {e.filename or folder} cannot be written to ({e.strerror}). Make room, or give another one."
        ) from e


def run_id_of(logger: RunLogger | None) -> str | None:
    """The MLflow id of a run, where it has one."""
    return logger.run_id if logger else None


def _tags(config: Config, folder: Path, data: ImageDataModule) -> dict[str, str]:
    """What runs are grouped by, where this one lies, and what it ran on."""
    return {
        **_choices(config),
        "seed": str(config.seed),
        "finder": config.finder.name,
        "output_dir": str(folder),
        "checkpoint.last": str(folder / "checkpoints" / LAST),
        "checkpoint.best": str(folder / "checkpoints" / "best.ckpt"),
        "data.fingerprint": data.fingerprint,
        COLOUR_TAG: style(config.schedule.name).colour,
        **environment_tags(),
        **config.tracking.tags,
    }


# --- A run's record is closed with its true status, whatever ends the run.

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


def recorded(
    config: Config,
    trainer: Trainer,
    logger: RunLogger | None,
    interrupts: Interrupts,
    work: Callable[[], Outcome],
) -> Outcome:
    """Do the work of a run, and give the record its true status, whatever happens."""
    status = "FAILED"
    try:
        outcome = work()
        if logger:
            logger.log_summary(outcome.summary)
        status = "FINISHED"
        return outcome
    except Diverged as e:
        e.outcome = outcome_of(trainer)
        if logger:
            logger.set_tags({"diverged": "true", "diverged_step": str(e.step), "diverged_lr": str(e.lr)})
            logger.log_summary({k: v for k, v in e.outcome.summary.items() if math.isfinite(v)})
        raise
    except OSError as e:
        failed = _disk_failed(e, logger)
        if failed is None:
            raise
        raise failed from e
    except (RuntimeError, MemoryError) as e:
        if not isinstance(e, RunFailed) and is_out_of_memory(e):
            raise RunFailed(_memory_failed(e, config, trainer)) from e
        if str(e).startswith("DataLoader worker"):
            where = f" Go on with resume={logger.output_dir}, and data.num_workers=0." if logger else ""
            raise RunFailed(
                f"data: a worker that decodes images was killed at step {trainer.global_step}, most often for want of "
                f"memory ({str(e).splitlines()[0]}).{where}"
            ) from e
        if trainer.world_size > 1 and not isinstance(e, RunFailed) and _lost(e):
            raise RunFailed(
                f"another process of this run is gone, at step {trainer.global_step}; what it said stands above. "
                "The record says FAILED."
            ) from e
        raise
    except DataError as e:  # an image that no longer can be read, in the middle of the run
        raise ConfigError(str(e)) from e
    except ValueError as e:
        if stepped(trainer):
            raise
        raise ConfigError(str(e)) from e  # what only the trainer can tell, before the first step
    except (SIGTERMException, Interrupted, KeyboardInterrupt) as e:
        status = "KILLED"
        if logger is None:
            # Lightning kills the first rank when another one ends with a status, in the middle of closing its record.
            raise SystemExit(0) from None
        interrupted = e if isinstance(e, Interrupted) else Interrupted(interrupts.signum or signal.SIGINT)
        with suppress(OSError):  # the terminal may be closed
            print_interrupted(config, interrupts.checkpoint, str(interrupted), trainer.global_step)
        raise interrupted from None
    finally:
        if logger:
            _end(logger, status)


def _end(logger: RunLogger, status: str) -> None:
    """Close the record. If its disk is full the store has been told, and what the run itself met matters more."""
    try:
        logger.end(status)
    except OSError as e:
        if status == "FINISHED":
            raise (_disk_failed(e, logger) or e) from None


def _disk_failed(error: OSError, logger: RunLogger | None) -> RunFailed | None:
    """What to say where a disk is full or gone, or the run's folder; None for another error."""
    folder = logger.output_dir if logger else None
    if folder and error.errno == errno.ENOENT and not folder.exists():
        return RunFailed(f"output_root: {folder} was removed while the run was writing to it. Start the run anew.")
    own = folder is not None and error.filename is not None and folder in Path(str(error.filename)).parents
    if error.errno not in _DISK and not (own and error.errno in (errno.EACCES, errno.EPERM)):
        return None
    where = folder or error.filename
    remedy = "make it writable" if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else "make room"
    return RunFailed(
        f"output_root: {where} cannot be written to ({error.strerror}). What is in it is whole: {remedy}, then go on "
        f"with resume={where}."
    )


def _memory_failed(error: Exception, config: Config, trainer: Trainer) -> str:
    """What to say where memory has run out: what takes most of it is a batch's activations."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    data = config.data
    if trainer.evaluating or trainer.sanity_checking:
        remedy = f"Lower data.eval_batch_size ({data.eval_batch_size or 'by default four times data.batch_size'})."
    else:
        remedy = (
            f"Lower data.batch_size ({data.batch_size}) and raise trainer.accumulate_grad_batches "
            f"({config.trainer.accumulate_grad_batches}) by the same factor: updates stay the same."
        )
    return f"out of memory at step {trainer.global_step} ({reason}). {remedy}"


def _lost(error: Exception) -> bool:
    """Whether a collective has failed because a process at its other end is gone."""
    return isinstance(error, DistBackendError | DistNetworkError) or "gloo" in str(error).lower()


def watchdog_of(logger: RunLogger | None, config: Config) -> Watchdog:
    """What closes the record if this process is killed because another rank has died."""
    several = logger is not None and logger.store is not None and world_size(config.trainer) > 1
    return Watchdog(logger.output_dir if several and logger else None)
