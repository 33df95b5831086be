"""A run's record: its config, parameters, tags and summary, and its true status whatever ends the run."""

import errno
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch.distributed import DistBackendError, DistNetworkError

from lr_lightning._commands import python_command, resume_argument
from lr_lightning._lightning import align_logging_step, callbacks_of, is_resuming
from lr_lightning._plotting import style
from lr_lightning.app.config import PLACES_OF_DATA, Config
from lr_lightning.app.error_messages import config_error, is_out_of_memory
from lr_lightning.app.run.checkpoints import LAST, folder_gone, write_config
from lr_lightning.app.run.fork import ForkedRun
from lr_lightning.app.run.graceful_stop import GracefulStop
from lr_lightning.app.run.predictions import SplitPredictions
from lr_lightning.app.run.resume import resume_arguments
from lr_lightning.app.run.signals import Interrupted
from lr_lightning.app.schemas.trainer import TrackingConfig
from lr_lightning.app.world import effective_batch_size, is_rank_zero, world_size
from lr_lightning.callbacks.base_finder import BaseLRFinder
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.run_cost import RunCost
from lr_lightning.diagnosis import History, Verdict
from lr_lightning.errors import ConfigError, DataError, Diverged, Rejected, RunFailed, StoreUnavailable, TrackingError
from lr_lightning.tracking import RunLogger, Store, environment_tags, mark_dead_runs, open_store
from lr_lightning.tracking.keys import COLOUR_TAG, LOG_LR, LR_EFFECTS_TAG, flatten, hide_password
from lr_lightning.tracking.replay import watchdog
from lr_lightning.tracking.ui import keep_view
from lr_lightning.training.datamodule import ImageDataModule

_BETTER = {"val/loss": min, "val/acc": max}
_LAST_VALUES = ("probe/loss", "probe/acc", "overfit/gap_loss", "overfit/gap_acc")
_GROUPS = ("schedule", "optimizer", "model", "data")
_RUN_ID, MODEL_ID = "MLFLOW_RUN_ID", "MLFLOW_ACTIVE_MODEL_ID"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


@dataclass(frozen=True)
class RunOutcome:
    """The result of a run."""

    summary: dict[str, float] = field(default_factory=dict)  # logged as summary/*
    history: History | None = None
    verdict: Verdict | None = None
    output_dir: Path | None = None  # None on ranks other than the first
    run_id: str | None = None  # in MLflow
    applied_lr: float | None = None  # the peak learning rate that a finder has set
    found_for: str | None = None  # the length and the schedule that it was found for
    predictions: SplitPredictions | None = None  # if the config asks for them

    @property
    def objective(self) -> float | None:
        """The best validation accuracy, which a search maximizes."""
        return self.summary.get("best_val_acc")


class Summary(Callback):
    """Keep the best and last validation values and the seconds of a run, across all its resumes."""

    reads_weights_at_steps = False

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._seconds_before = 0.0
        self._started: float | None = None
        self.stepped = False

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Note that training has begun: from now on an error is not bad input."""
        align_logging_step(trainer)
        self.stepped = True
        self.on_train_batch_start = None  # type: ignore[assignment,method-assign]  # not called again

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep this validation's values."""
        if trainer.sanity_checking:
            return
        for key, better in _BETTER.items():
            value = trainer.callback_metrics.get(key)
            if value is not None and math.isfinite(value):
                name = key.replace("/", "_")
                self.values[f"last_{name}"] = float(value)
                self.values[f"best_{name}"] = better(self.values.get(f"best_{name}", float(value)), float(value))
        for key in _LAST_VALUES:
            if key in trainer.callback_metrics:
                self.values[key.removeprefix("overfit/").replace("/", "_")] = float(trainer.callback_metrics[key])

    @property
    def seconds(self) -> float:
        """Wall time of the fit in seconds, including the parts before a resume."""
        return self._seconds_before + (time.monotonic() - self._started if self._started is not None else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Serialize the values and seconds for a checkpoint."""
        return {"values": dict(self.values), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the values and seconds."""
        self.values, self._seconds_before = dict(state_dict["values"]), state_dict["seconds"]


def outcome_of(trainer: Trainer) -> RunOutcome:
    """Return a fit's best and last validation values, probe, gap, steps, seconds and cost, and the verdict on it."""
    callback = callbacks_of(trainer, Summary)[0]
    summary = {**callback.values, "steps": float(trainer.global_step), "seconds": callback.seconds}
    summary |= next((cost.summary for cost in callbacks_of(trainer, RunCost)), {})
    monitor = next(iter(callbacks_of(trainer, OverfittingMonitor)), None)
    return RunOutcome(summary) if monitor is None else RunOutcome(summary, monitor.history, monitor.verdict)


def stepped(trainer: Trainer) -> bool:
    """Check whether this process has begun a training step."""
    return callbacks_of(trainer, Summary)[0].stepped


def open_logger(
    config: Config,
    folder: Path,
    data: ImageDataModule,
    module: LightningModule,
    *,
    resume: bool = False,
    job: str = "train",
    scaling: Mapping[str, float] = MappingProxyType({}),
    forked: ForkedRun | None = None,
) -> RunLogger:
    """Open a run's record, which locks its output folder, and store the config there.

    ``scaling`` is the change of the learning rate by ``optimizer.lr_rule``, from ``scale_lr``. The record of a run that
    was ``forked`` begins with what the other run logged up to there.
    """
    container, stale = _public(config), config.keys_set_by_finder()
    lr = config.finder.name if stale else f"{config.optimizer.lr:.4g}"
    name = config.tracking.run_name or (_run_name(config.schedule.name, lr, config.seed) if job == "train" else job)
    if forked and not config.tracking.run_name:
        name += f" fork@{forked.point}"
    tags = _tags(container, job) | {
        **(forked.tags if forked else {}),
        "seed": str(config.seed),
        "finder": config.finder.name,
        "output_dir": str(folder),
        "data.fingerprint": data.fingerprint,
    }
    if job == "train":
        kept = {f"checkpoint.{Path(file).stem}": str(folder / "checkpoints" / file) for file in (LAST, "best.ckpt")}
        tags |= {**kept, COLOUR_TAG: style(config.schedule.name).colour}
    else:  # it follows no schedule and makes no checkpoints
        del tags["schedule"]
    tags |= config.tracking.tags
    with _disk_errors_as_input(folder):
        # a run that something else has created; the runs of a sweep are several
        run_id = None if resume or "sweep" in tags or config.tracking.name != "mlflow" else os.environ.get(_RUN_ID)
        logger = _started_logger(config.tracking, folder, name, tags, resume=resume, run_id=run_id)
        with _ended_by_an_error(logger):
            artifact = write_config(folder, container)  # only with the lock: the folder may belong to a live run
            logger.log_hyperparams({key: value for key, value in _given(container).items() if key not in stale})
            measured = {
                "model.parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
                **{f"dataset.{key}": value for key, value in data.describe().items()},
                "processes": world_size(config.trainer),
                "update_batch_size": effective_batch_size(config.data, config.trainer),
            }
            logger.log_hyperparams({**measured, **scaling})
            if forked:
                logger.copy_rows(forked.rows_before())
            if job == "train" and not stale and not resume:
                logger.log_metrics({LOG_LR: math.log10(config.optimizer.lr)}, 0)
            logger.log_artifact(artifact)
    return logger


@contextmanager
def sweep_record(config: Config, folder: Path, sweep: str, job: str) -> Iterator[RunLogger]:
    """Open the record of a sweep itself, which holds its table. It is closed at the end, with its true status."""
    container = _public(config)
    group = {LR_EFFECTS_TAG: job} if job == "lr_effects" else {}
    tags = _tags(container, job) | group | config.tracking.tags | {"sweep": sweep}
    with _disk_errors_as_input(folder):
        name = f"{job} {config.model.name} {config.data.name}"
        logger = _started_logger(config.tracking, folder, name, tags, resume=False)
    with _ended_by_an_error(logger):
        logger.log_hyperparams(_given(container))
        yield logger
    logger.end("FINISHED")


def _public(config: Config) -> dict[str, Any]:
    """Return the config as plain values, with absolute paths and without its store's password."""
    container = asdict(config)
    for node, key in ((container, "output_root"), (container["tracking"], "root")):
        node[key] = str(Path(node[key]).expanduser().absolute())
    for key in PLACES_OF_DATA:
        place = container["data"].get(key)
        if isinstance(place, str) and Path(place).expanduser().exists():  # not the name of a data set on the hub
            container["data"][key] = str(Path(place).expanduser().absolute())
    container["tracking"]["uri"] = hide_password(config.tracking.uri) if config.tracking.uri else None
    return container


def _tags(container: dict[str, Any], job: str) -> dict[str, str]:
    return {"job": job, **{group: container[group]["name"] for group in _GROUPS}, **environment_tags()}


def _given(container: dict[str, Any]) -> dict[str, Any]:
    """Return a config's dotted keys that have a value."""
    return {key: value for key, value in flatten(container).items() if value not in (None, {}, [])}


def _run_name(schedule: str, lr: str, seed: int) -> str:
    return f"{schedule} lr={lr} seed={seed}"


def _started_logger(
    node: TrackingConfig,
    folder: Path,
    run_name: str,
    tags: dict[str, str],
    *,
    resume: bool,
    run_id: str | None = None,
) -> RunLogger:
    try:
        store = open_store(Path(node.root), node.uri) if node.name == "mlflow" else None
        if store is not None:
            mark_dead_runs(store)
            if model_id := os.environ.get(MODEL_ID):
                _call(
                    MODEL_ID, store, "get_logged_model", model_id
                )  # the store would reject every metric of a wrong one
            if run_id and _call(_RUN_ID, store, "get_run", run_id).data.metrics:
                raise ConfigError(f"{_RUN_ID}: run {run_id} has metrics already. Unset it, or give resume={run_id}.")
        csv = node.name == "csv"
        about: dict[str, Any] = {"experiment": node.experiment_name, "run_name": run_name, "tags": tags}
        logger = RunLogger(folder, store, **about, run_id=run_id or None, csv=csv, resume=resume, end_on_finalize=False)
        logger.start()
        if logger.is_connected:
            _keep_view(logger)
    except ConfigError:
        raise
    except (ValueError, StoreUnavailable) as e:
        raise ConfigError(f"tracking: {e}") from e
    return logger


def _call(variable: str, store: Store, method: str, value: str) -> Any:
    """Look up in the store what a variable of MLflow names."""
    try:
        return store.call(method, value)
    except (TrackingError, Rejected) as e:
        reason = str(e).removesuffix(".")
        raise ConfigError(f"{variable}: {value}: {reason}. Unset it, or name what that store has.") from e


@contextmanager
def _ended_by_an_error(logger: RunLogger) -> Iterator[None]:
    """Close the record if the block raises: as KILLED after an interruption, else as FAILED."""
    try:
        yield
    except BaseException as e:
        with suppress(OSError):  # a full disk may be what raised
            logger.end("FAILED" if isinstance(e, Exception) else "KILLED")
        raise


@contextmanager
def _disk_errors_as_input(folder: Path) -> Iterator[None]:
    """Turn a disk error before the run begins into one of bad input."""
    try:
        yield
    except OSError as e:
        at = Path(str(e.filename or folder))
        key = "output_root" if at.is_relative_to(folder) else "tracking.root"
        raise ConfigError(f"{key}: {at} cannot be written to ({e.strerror}). Make room, or give another one.") from e


class FoundLR(Callback):
    """Record the learning rate that a run trains with, once its finder is done, and ``report`` it.

    List it after the finder.
    """

    def __init__(self, config: Config, finder: BaseLRFinder[Any], *, report: bool = True) -> None:
        self.config, self.finder, self.report = config, finder, report

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the learning rate; print it unless the run is resumed."""
        if not is_rank_zero():
            return
        node, finder, resumed = self.config, self.finder, is_resuming(trainer)
        lr = node.optimizer.lr if finder.applied_lr is None else finder.applied_lr
        lrs = dict.fromkeys(node.keys_set_by_finder() - {"schedule.base_lr"}, lr)
        if finder.applied_base_lr is not None:
            lrs["schedule.base_lr"] = finder.applied_base_lr
        for logger in (logger for logger in trainer.loggers if isinstance(logger, RunLogger)):
            logger.log_hyperparams(lrs)
            if not resumed:
                if lrs:  # else it was logged when the run was opened
                    logger.log_metrics({LOG_LR: math.log10(lr)}, 0)
                logger.log_summary({"search_seconds": finder.seconds})  # no other number of the run contains them
            if logger.store is not None and node.tracking.run_name is None:
                logger.set_tags({"mlflow.runName": _run_name(node.schedule.name, f"{lr:.4g}", node.seed)})
        found = next(reversed(finder.results.values()), None)
        if found is None or resumed or not self.report:
            return
        console = Console(soft_wrap=True, highlight=False, markup=False)
        console.print(f"{node.finder.name}: {found.describe().removesuffix('.')}")
        if finder.apply:
            how = "found" if finder.applied_lr is not None else "as configured"
            console.print(f"training with a peak lr of {lr:.4g} ({how})")


def record_run(
    config: Config, trainer: Trainer, logger: RunLogger | None, stop: GracefulStop, work: Callable[[], RunOutcome]
) -> RunOutcome:
    """Do a run's work, and give its record (None on ranks other than the first) the true status whatever happens."""
    may_be_killed = logger is not None and logger.store is not None and world_size(config.trainer) > 1  # by a lost rank
    status = "FAILED"
    with stop, watchdog(logger.output_dir if logger and may_be_killed else None):
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
        except (SIGTERMException, Interrupted, KeyboardInterrupt) as e:
            status = "KILLED"
            if logger is None:
                # Lightning kills the first rank while it closes its record if another rank exits with a status.
                raise SystemExit(0) from None
            interrupted = e if isinstance(e, Interrupted) else Interrupted(stop.signum or signal.SIGINT)
            with suppress(OSError):  # the terminal may be closed
                console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
                console.print(f"{interrupted} at step {trainer.global_step}")
                if stop.checkpoint is not None and stop.checkpoint.is_file():
                    arguments = resume_arguments(stop.checkpoint.parent.parent, asdict(config))
                    console.print(f"resume it:  {hide_password(python_command(Path(sys.argv[0]), *arguments))}")
            raise interrupted from None
        except Exception as e:
            known = _known_error(e, trainer, logger, config)
            if known is None:
                raise
            raise known from e
        finally:
            if logger:
                late = not logger.is_connected
                _end(logger, status)
                if late and logger.is_connected:  # the start did not wait for the store
                    _keep_view(logger)


def _keep_view(logger: RunLogger) -> None:
    if logger.store is not None and logger.experiment_id is not None:
        keep_view(logger.store, logger.experiment_id)


def _end(logger: RunLogger, status: str) -> None:
    """Close the record. On a full disk the store has been told the status, and the run's error matters more."""
    try:
        logger.end(status)
    except OSError as e:
        if status == "FINISHED":
            raise (_disk_error(e, logger) or e) from None


def _known_error(
    error: Exception, trainer: Trainer, logger: RunLogger | None, config: Config
) -> RunFailed | ConfigError | None:
    """Return the error that tells the user what to do, or None for an error that needs its traceback.

    torch raises a plain RuntimeError for most of what can end a run; only its text tells the cause.
    """
    text, step = (str(error).strip().splitlines() or [type(error).__name__])[0], trainer.global_step
    if isinstance(error, RunFailed):
        return None
    if isinstance(error, OSError):
        return _disk_error(error, logger)
    if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
        if trainer.evaluating or trainer.sanity_checking:
            size = config.data.eval_batch_size or "by default four times data.batch_size"
            remedy = f"Lower data.eval_batch_size ({size})."
        else:
            remedy = (
                f"Lower data.batch_size ({config.data.batch_size}) and raise trainer.accumulate_grad_batches "
                f"({config.trainer.accumulate_grad_batches}) by the same factor: updates stay the same."
            )
        return RunFailed(f"out of memory at step {step} ({text}). {remedy}")
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        remedy = f" Resume with {resume_argument(logger.output_dir)}, and data.num_workers=0." if logger else ""
        return RunFailed(
            f"data: a worker that decodes images was killed at step {step}, mostly for lack of memory ({text}).{remedy}"
        )
    if isinstance(error, RuntimeError) and trainer.world_size > 1 and _lost_process(error):
        return RunFailed(
            f"another process of this run is gone, at step {step}; its own output stands above. The record says FAILED."
        )
    if isinstance(error, DataError):  # an image that can no longer be read, in the middle of the run
        return ConfigError(str(error))
    if isinstance(error, ValueError) and not stepped(trainer):  # what only the trainer can tell, before the first step
        return config_error(error)
    return None


def _disk_error(error: OSError, logger: RunLogger | None) -> RunFailed | None:
    """Return the error for a full or lost disk, or a folder of the run that was removed; None for other OSErrors."""
    folder = logger.output_dir if logger else None
    if folder and error.errno == errno.ENOENT and not folder.exists():
        return folder_gone(folder)
    own = folder is not None and error.filename is not None and folder in Path(str(error.filename)).parents
    denied = error.errno in (errno.EACCES, errno.EPERM)
    if error.errno not in _DISK_ERRORS and not (own and denied):
        return None
    where = folder or error.filename
    remedy = "make it writable" if denied or error.errno == errno.EROFS else "make room"
    return RunFailed(
        f"output_root: {where} cannot be written to ({error.strerror}). The files in it are undamaged: {remedy}, then "
        f"resume with {resume_argument(str(where))}."
    )


def _lost_process(error: Exception) -> bool:
    """Check whether a collective failed because another process of the run is gone."""
    return isinstance(error, DistBackendError | DistNetworkError) or "gloo" in str(error).lower()
