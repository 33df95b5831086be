"""SIGTERM and Ctrl-C: stop at the next step, save a checkpoint, leave with the right exit status."""

import signal
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """The run was told to stop; the exit status is 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


class Interrupts(Callback):
    """Turn the first SIGTERM or Ctrl-C into an orderly stop, the second into an immediate one.

    During a fit the step that runs is completed (a validation as well), ``checkpoint`` is saved, and the fit ends;
    at any other time the run ends at once. As a context manager it holds the handlers for the whole run.

    Args:
        checkpoint: Where the checkpoint of a stopped fit goes; None on ranks that save none by themselves.
    """

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.checkpoint = checkpoint
        self.signum: int | None = None
        self._trainer: Trainer | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._trainer is None or self.signum is not None:
            self.signum = signum
            raise Interrupted(signum)
        self.signum = signum
        # Lightning's own handler has just asked for a stop after this very batch. In the middle of an accumulated step
        # that would lose the gradients so far, so the stop waits for the step's end.
        self._ask(self._trainer, False)

    @staticmethod
    def _ask(trainer: Trainer, stop: bool) -> None:
        # Lightning looks at this at the end of every batch and raises; it knows SIGTERM alone.
        trainer._signal_connector.received_sigterm = stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on a stop is orderly."""
        self._trainer = trainer

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop now if told so, and if the step is complete."""
        if self.signum is not None and not trainer.fit_loop._should_accumulate():
            self._ask(trainer, True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after a validation in which the signal came."""
        if self.signum is not None and not trainer.sanity_checking:
            self._ask(trainer, True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The fit is over: a stop is immediate again."""
        self._trainer = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where the run stands, if it stopped in good order."""
        self._trainer = None
        if isinstance(exception, SIGTERMException):
            trainer.save_checkpoint(self.checkpoint or "")
