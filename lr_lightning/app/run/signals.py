"""SIGTERM, Ctrl-C and a closed terminal: stop after the current step, save a checkpoint, exit with the right status."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lr_lightning._lightning import is_step_complete, stop_after_batch
from lr_lightning.app.monitor_checks import validation_follows
from lr_lightning.app.world import external_launch


class Interrupted(SystemExit):
    """The run was told to stop; the exit status is 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


class Signals:
    """Context that notes the first SIGTERM, SIGINT or SIGHUP and raises :class:`Interrupted` at the second one.

    Closing a terminal may send SIGHUP twice, so a repeated SIGHUP does not count; under nohup SIGHUP stays ignored.

    Attributes:
        signum: The number of the last signal, or None if there was none.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again = self.signum is not None and (self.signum, signum) != (signal.SIGHUP, signal.SIGHUP)
        self.signum = signum
        if again:
            raise Interrupted(signum)


class GracefulStop(Signals, Callback):
    """Turn the first SIGTERM, Ctrl-C or SIGHUP into an orderly stop, and the second into an immediate one.

    During a fit the current optimizer step is completed (and a validation as well), ``checkpoint`` is saved, and the
    fit ends on all ranks at the same step. Outside of a fit the run ends at once. As a context manager it holds the
    signal handlers for the whole run. List it before the other callbacks, so that their state is complete when it
    saves.

    Args:
        checkpoint: Path of the checkpoint of a stopped fit; None on ranks other than the first.
    """

    def __init__(self, checkpoint: Path | None = None) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self._trainer: Trainer | None = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        trainer = self._trainer
        launcher = trainer.strategy.launcher if trainer is not None else None
        if launcher is not None and signum == signal.SIGTERM:
            launcher.kill(signum)  # Ctrl-C reaches the other ranks by itself
        super()._handle(signum, frame)
        if trainer is None:
            raise Interrupted(signum)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop in good order from now on.

        Lightning has just installed its own handler for SIGTERM. That handler stops in the middle of an accumulated
        step, and with several processes it starts a collective, which deadlocks with a collective already under way.
        """
        self._trainer = trainer
        if self._before:
            signal.signal(signal.SIGTERM, self._handle)

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
        told = self.signum is not None
        if trainer.world_size > 1:
            told = trainer.strategy.reduce_boolean_decision(told, all=False)
        if told:
            stop_after_batch(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once again, and also for a signal that came too late for the fit to notice."""
        self._trainer = None
        if self.signum is not None:
            raise Interrupted(self.signum)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a checkpoint if the fit stopped in good order."""
        self._trainer = None
        if isinstance(exception, SIGTERMException):
            trainer.save_checkpoint(self.checkpoint or "")


class ParentWatch(threading.Thread):
    """Thread that sends this process SIGTERM when its parent is gone, and ends the process if that does not.

    A rank that outlives its launcher would train, or wait for the other ranks, for nobody.

    Args:
        period: Seconds between two checks.
        grace: Seconds from SIGTERM until the process is ended, enough for the current step and a checkpoint; None:
            never. A process that waits in a collective does not notice SIGTERM.
        parent: The parent's id, for a parent that may be gone already.
    """

    def __init__(self, period: float = 1.0, grace: float | None = 30.0, parent: int | None = None) -> None:
        super().__init__(name="parent-watch", daemon=True)
        self._period, self._grace = period, grace
        self._parent = os.getppid() if parent is None else parent
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def run(self) -> None:
        """Compare the parent's id every ``period`` seconds: it changes when the parent is gone."""
        while os.getppid() == self._parent:
            if self._stopped.wait(self._period):
                return
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._stopped.wait(self._grace):
            os._exit(128 + signal.SIGTERM)


def is_child() -> bool:
    """Check whether a launcher on this machine started this process, and would have to end it.

    SLURM ends its own processes, and the first process of Lightning's launcher is the user's, who may close the
    terminal.
    """
    started = external_launch()
    if started is not None:
        return started.launcher == "torchrun"
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


def watch_parent() -> ParentWatch | None:
    """Start a :class:`ParentWatch` if this process is a launcher's child."""
    if not is_child():
        return None
    watch = ParentWatch()
    watch.start()
    return watch
