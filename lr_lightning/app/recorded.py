"""A run's record is closed with its true status, whatever ends the run."""

import errno
import math
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import DistBackendError, DistNetworkError

from lr_lightning.app.config import Config
from lr_lightning.app.errors import ConfigError, RunFailed, is_out_of_memory
from lr_lightning.app.interrupt import Interrupted, Interrupts
from lr_lightning.app.printing import print_interrupted
from lr_lightning.app.processes import world_size
from lr_lightning.app.summary import Outcome, outcome_of, stepped
from lr_lightning.callbacks.diverged import Diverged
from lr_lightning.tracking import MLflowLogger, RunLogger
from lr_lightning.tracking.closer import Closer
from lr_lightning.training.images import DataError

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


def closer_of(logger: RunLogger | None, config: Config) -> Closer:
    """What closes the record if this process is killed because another rank has died."""
    several = isinstance(logger, MLflowLogger) and world_size(config.trainer) > 1
    return Closer(logger.output_dir if several and logger else None)
