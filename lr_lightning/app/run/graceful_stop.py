"""A run that is told to stop: it completes the current step, saves a checkpoint, and exits with the right status."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lr_lightning._lightning import is_step_complete, stop_after_batch
from lr_lightning.app.build import validation_follows
from lr_lightning.app.run.signals import WARNINGS, Interrupted, Signals
from lr_lightning.app.world import in_batch_job


class GracefulStop(Signals, Callback):
    """Turn the first SIGTERM, Ctrl-C or SIGHUP into an orderly stop, and the second into an immediate one.

    During a fit the current optimizer step is completed (and a validation as well), ``checkpoint`` is saved (None on
    ranks other than the first), and the fit ends on all ranks at the same step. Outside of a fit the run ends at once.
    As a context manager it holds the signal handlers for the whole run. List it before the other callbacks, so that
    their state is complete when it saves.

    Outside of a batch job, which is warned by it, SIGUSR1 does not stop the run but asks for a cooldown: it sets
    ``cooldown_asked``.
    """

    def __init__(self, checkpoint: Path | None = None) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.cooldown_asked = False
        self._trainer: Trainer | None = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGUSR1 and not in_batch_job():
            self.cooldown_asked = True
            return
        launcher = self._trainer.strategy.launcher if self._trainer is not None else None
        if launcher is not None and signum not in (signal.SIGINT, signal.SIGHUP):  # these reach the other ranks
            launcher.kill(signal.SIGTERM)
        super()._handle(signum, frame)
        if self._trainer is None:
            raise Interrupted(signum)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handlers that Lightning has just installed.

        Its SIGUSR1, under SLURM, starts the command again, which would be another run. Its SIGTERM stops in the middle
        of an accumulated step, and with several processes it starts a collective, which deadlocks with a collective
        already under way.
        """
        self._trainer = trainer
        for number in {signal.SIGTERM, *WARNINGS} & self._before.keys():
            signal.signal(number, self._handle)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop if a signal came and the step is complete; if a validation follows, stop after that one."""
        if self.signum is None and trainer.world_size == 1:
            return  # the usual case, checked at every batch
        if is_step_complete(trainer) and not validation_follows(trainer):
            self._stop_if_told(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after a validation during which the signal came."""
        if not trainer.sanity_checking and self._trainer is not None:
            self._stop_if_told(trainer)

    def _stop_if_told(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self.signum is not None, all=False):
            stop_after_batch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the next signal end the run at once, and end it now if one came too late for the fit to notice."""
        self._trainer = None
        if self.signum is not None:
            raise Interrupted(self.signum)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a checkpoint if the fit stopped in good order."""
        self._trainer = None
        if isinstance(exception, SIGTERMException):
            trainer.save_checkpoint(self.checkpoint or "")
