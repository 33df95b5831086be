"""What a fit does about SIGTERM, Ctrl-C and the request to cool down; `record.record_run` then writes the status."""

import json
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lr_lightning._lightning import are_stops_held, callbacks_of, is_step_complete, stop_after_batch
from lr_lightning.app.run.checkpoints import validation_follows
from lr_lightning.app.run.signals import WARNINGS, Interrupted, Signals
from lr_lightning.app.world import in_batch_job
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.trainer_clock import trainer_clock, updates_made
from lr_lightning.errors import ArgumentError, UsageError
from lr_lightning.schedules import parse_duration
from lr_lightning.tracking import RunLogger
from lr_lightning.tracking.files import write_atomically


class GracefulStop(Signals, Callback):
    """Turn the first SIGTERM, Ctrl-C or SIGHUP into an orderly stop, and the second into an immediate one.

    During a fit the current optimizer step is completed (and a validation as well), ``checkpoint`` is saved (None on
    ranks other than the first), and the fit ends on all ranks at the same step. Outside of a fit the run ends at once.
    As a context manager it holds the signal handlers for the whole run. List it before the other callbacks, so that
    their state is complete when it saves.

    SIGUSR1 does not stop a training but asks for a cooldown, by ``cooldown_asked``, except in a batch job, which is
    warned by it.
    """

    reads_weights_at_steps = False

    def __init__(self, checkpoint: Path | None = None) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.cools_down, self.cooldown_asked = False, False
        self._trainer: Trainer | None = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGUSR1 and self.cools_down and not in_batch_job():
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
        if is_step_complete(trainer) and not validation_follows(trainer) and not are_stops_held(trainer):
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


# -- a run that is told to cool down: the request, a small file in its folder, and what answers it ---------------------

DEFAULT_LENGTH = "20%"
REQUEST = "cooldown.json"
_SECONDS = 1.0  # between two looks for the request
_STEPS = 10  # from one question to the other ranks to the next


@dataclass(frozen=True)
class CooldownRequest:
    """A request to cool down, and the steps that the run then set for it, so that a resumed run sets the same.

    Attributes:
        over: A duration; percentages are of the updates so far.
        start: The updates made when the cooldown starts; None until it is decided.
        updates: The updates of the cooldown.
    """

    over: str = DEFAULT_LENGTH
    start: int | None = None
    updates: int = 0

    @classmethod
    def read(cls, folder: Path) -> "CooldownRequest | None":
        """Read the request in a run's folder; None if there is none, or none that can be read."""
        try:
            found = cls(**json.loads((folder / REQUEST).read_text(encoding="utf-8")))
            parse_duration(found.over, positive=True)
        except (OSError, ValueError, TypeError):
            return None
        return found

    def write(self, folder: Path) -> None:
        """Write the request to a run's folder, in one step."""
        write_atomically(folder / REQUEST, json.dumps(asdict(self)) + "\n")


class CoolDownOnRequest(Callback):
    """Leave the schedule for a cooldown when the run is told to, by a file in its folder or by SIGUSR1.

    The first rank looks for the file, once a second at most, and the other ranks ask it every few steps. List this
    callback before those that save checkpoints.

    Args:
        stop: Handler of the signals.
        folder: The run's folder; None on ranks other than the first.
    """

    reads_weights_at_steps = False

    def __init__(self, stop: GracefulStop, folder: Path | None) -> None:
        self.stop, self.folder = stop, folder
        stop.cools_down = True
        self._looked = 0.0
        self._decided: CooldownRequest | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read what an earlier part of this run has decided."""
        request = CooldownRequest.read(self.folder) if self.folder else None
        decided = request if request is not None and request.start is not None else None
        self._decided = trainer.strategy.broadcast(decided) if trainer.world_size > 1 else decided
        self._schedule = callbacks_of(trainer, LRSchedule)[0]

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Begin the cooldown between two updates."""
        if self._decided is None and trainer.world_size == 1 and not self._may_look():
            return  # the usual case, checked at every batch
        if self._schedule.is_cooling or not is_step_complete(trainer) or are_stops_held(trainer):
            return
        if self._decided is not None:  # the run was resumed from before the start of its cooldown
            if updates_made(trainer) >= (self._decided.start or 0):
                self._cool_down(trainer, self._decided.updates)
            return
        if trainer.world_size == 1:
            request = self._look()
        else:
            if updates_made(trainer) % _STEPS:
                return
            request = self._look()
            if not trainer.strategy.reduce_boolean_decision(request is not None, all=False):
                return
            request = trainer.strategy.broadcast(request)
        if request is not None:
            self._begin(trainer, request)

    def _may_look(self) -> bool:
        return self.stop.cooldown_asked or time.monotonic() - self._looked >= _SECONDS

    def _look(self) -> CooldownRequest | None:
        """Return the request, if there is one and it is time to look for it."""
        if self.folder is None or not self._may_look():
            return None
        self._looked = time.monotonic()
        request = CooldownRequest.read(self.folder)
        return CooldownRequest() if request is None and self.stop.cooldown_asked else request

    def _begin(self, trainer: Trainer, request: CooldownRequest) -> None:
        step, clock = updates_made(trainer), trainer_clock(trainer)
        try:
            wanted = clock.slice(0, step).steps(request.over)
        except ArgumentError:  # epochs, and the loader has no length
            wanted = clock.slice(0, step).steps(DEFAULT_LENGTH)
        updates = self._cool_down(trainer, max(1, wanted))
        if updates is None or self.folder is None:
            return
        CooldownRequest(request.over, step, updates).write(self.folder)
        print(f"cooling down as told: from step {step} to step {step + updates}, where the run ends", flush=True)
        for logger in (logger for logger in trainer.loggers if isinstance(logger, RunLogger)):
            logger.set_tags({"cooldown.step": step, "cooldown.updates": updates})

    def _cool_down(self, trainer: Trainer, updates: int) -> int | None:
        """Return the length of the cooldown; where another callback sets the lr, say so and return None."""
        try:
            return self._schedule.cool_down(trainer, updates)
        except UsageError as e:
            self.stop.cooldown_asked, self._decided = False, None
            if self.folder is not None:
                (self.folder / REQUEST).unlink(missing_ok=True)
                print(f"not cooling down as told: {e}", flush=True)
        return None
