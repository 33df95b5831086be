"""The loop of a search: take a ticket, have it run, tell the study; stop in order, whatever happens."""

import os
import sys
import time
from dataclasses import dataclass, field

from optuna.trial import TrialState

from lr_lightning.app.run.signals import Interrupted, Signals
from lr_lightning.errors import ConfigError
from lr_lightning.search.progress import Progress
from lr_lightning.search.settings import Search
from lr_lightning.search.standing import result_of
from lr_lightning.search.storage import StorageGone
from lr_lightning.search.study import Study, Ticket
from lr_lightning.search.trial import Ending, TrialRuns

__all__ = ["Driver", "TooManyFailures"]

_POLL_SECONDS = 0.05
_LOOK_SECONDS = 2.0  # between questions whether a ticket has come back
_STOP_SECONDS = 60.0


class TooManyFailures(ConfigError):
    """So many trials in a row have failed that the next ones would as well."""


@dataclass
class Driver:
    """Runs the trials of a study, as many at a time as were asked for.

    Attributes:
        search: The search.
        study: Its study.
        progress: What is told of each trial.
        trial_seconds: What its own trials took so far, one after another.
        limited: Whether a limit of time or epochs has ended it.
        told_last: Whether it was this process that ended the last trial of all.
    """

    search: Search
    study: Study
    progress: Progress
    trial_seconds: float = 0.0
    told_last: bool = False
    limited: bool = False
    _running: list[TrialRuns] = field(default_factory=list)
    _failed_in_a_row: int = 0
    _started: float = field(default_factory=time.monotonic)
    _look: float = 0.0

    def run(self) -> None:
        """Run trials until none is left, or a limit is reached.

        Raises:
            Interrupted: On SIGTERM or Ctrl-C; the tickets of the trials that ran are put back.
            TooManyFailures: All of the last trials have failed.
        """
        with self.progress:
            if self.search.node.workers == 0:
                self._run_here()
            else:
                self._run_in_processes()

    def _may_start(self) -> bool:
        """Whether the limits allow another trial."""
        node = self.search.node
        if node.hours is not None and time.monotonic() - self._started > 3600 * node.hours:
            return self._reached(f"{node.hours:g} hours")
        if node.epochs is not None:
            spent = sum(float(result_of(t).get("epochs", 0)) for t in self.study.standing().ended.values())
            if spent >= node.epochs:
                return self._reached(f"{node.epochs:g} epochs")
        return True

    def _reached(self, limit: str) -> bool:
        self.limited = True
        self.progress.say(f"the limit of {limit} is reached: no further trial starts")
        return False

    def _recover(self) -> None:
        for number in self.study.recover():
            self.progress.say(f"trial {number}: its worker is gone; it is taken up again")

    # -- one after another, in this process --------------------------------------------------------------------------

    def _run_here(self) -> None:
        self._recover()
        while self._may_start():
            ticket = self.study.take()
            if ticket is None:
                if not self._await_others():
                    return
                continue
            runs = TrialRuns(self.search, ticket)
            runs.describe()
            began = time.monotonic()
            try:
                ending = runs.run_here()
            except (Interrupted, KeyboardInterrupt):
                self.study.put_back(ticket)
                raise
            self.trial_seconds += time.monotonic() - began
            self._tell(ticket, ending)
            self._recover()

    # -- several at a time, each in a process ------------------------------------------------------------------------

    def _run_in_processes(self) -> None:
        with Signals() as signals:
            try:
                self._loop(signals)
                if signals.signum is not None:
                    self._stop_in_order()
                    raise Interrupted(signals.signum)
            finally:
                for runs in self._running:  # only after an error or a second signal
                    if runs.process is not None:
                        runs.process.kill()
                if not isinstance(sys.exception(), StorageGone):  # it would not answer to this either
                    for runs in self._running:
                        self.study.put_back(runs.ticket)

    def _loop(self, signals: Signals) -> None:
        more = True
        while signals.signum is None:
            self._recover()
            while more and self._has_room():
                more = self._may_start() and self._start_one()
            self._reap()
            if not self._running and not more:
                if self.limited or not self._await_others(signals):
                    return
                more = True
            elif not more and not self.limited and self._has_room() and time.monotonic() > self._look:
                self._look = time.monotonic() + _LOOK_SECONDS
                more = self.study.has_waiting()
            time.sleep(_POLL_SECONDS)

    def _has_room(self) -> bool:
        return len(self._running) < self.search.node.workers

    def _start_one(self) -> bool:
        ticket = self.study.take()
        if ticket is None:
            return False
        runs = TrialRuns(self.search, ticket, self._environment())
        self._running.append(runs)
        runs.describe()
        runs.start()
        return True

    def _environment(self) -> dict[str, str]:
        """One GPU of its own for each trial, and its share of the processors."""
        workers = self.search.node.workers
        found: dict[str, str] = {}
        if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
            found["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // workers))
        devices = str(self.search.config.trainer.devices)
        if workers > 1 and devices in ("auto", "1") and self.search.config.trainer.accelerator != "cpu":
            gpus = _gpus()
            if gpus:
                used = [runs.environment.get("CUDA_VISIBLE_DEVICES") for runs in self._running]
                found["CUDA_VISIBLE_DEVICES"] = min(gpus, key=used.count)
        return found

    def _reap(self, *, stopping: bool = False) -> None:
        for runs in list(self._running):
            ending = runs.poll(stopping=stopping)
            if ending is None:
                continue
            self._running.remove(runs)
            if runs.was_interrupted:
                self.study.put_back(runs.ticket, counted=not stopping)
                self.progress.say(f"trial {runs.ticket.number}: stopped by a signal; it is taken up again")
            else:
                self.trial_seconds += sum(result.seconds for result in runs.results)
                self._tell(runs.ticket, ending)

    def _stop_in_order(self) -> None:
        """Have the runs save a checkpoint; put their tickets back."""
        self.progress.say(f"stopping {len(self._running)} trials, with a checkpoint each (again: at once)")
        for runs in self._running:
            if runs.process is not None:
                runs.process.stop()
        until = time.monotonic() + _STOP_SECONDS
        while self._running and time.monotonic() < until:
            self._reap(stopping=True)
            time.sleep(_POLL_SECONDS)

    # -- both --------------------------------------------------------------------------------------------------------

    def _tell(self, ticket: Ticket, ending: Ending) -> None:
        counts = self.study.finish(ticket, ending.state, ending.value, ending.attributes)
        if not counts:
            self.progress.say(f"trial {ticket.number}: was given to another worker meanwhile; this result is left out")
            return
        self._failed_in_a_row = self._failed_in_a_row + 1 if ending.state == TrialState.FAIL else 0
        standing = self.study.standing()
        self.progress.tell(ticket, ending, standing)
        self.told_last = standing.left == 0
        limit = self.search.node.failures
        if self._failed_in_a_row >= limit and standing.best is None:
            raise TooManyFailures(
                f"the first {limit} trials have failed, the last one with: {ending.reason}\n"
                f"search.failures={limit} ends the search there. Mend it, and start it under another sweep=NAME."
            )

    def _await_others(self, signals: Signals | None = None) -> bool:
        """Wait whether the trials of other workers come back: True if one did, False if none can."""
        until = time.monotonic() + self.study.patience
        said = False
        while (others := self.study.others_running()) and time.monotonic() < until:
            if signals is not None and signals.signum is not None:
                return False
            if not said:
                self.progress.say(
                    f"no trial is left; waiting up to {self.study.patience:.0f} s in case one of the {others} of other "
                    "workers must be taken over"
                )
                said = True
            self._recover()
            if self.study.has_waiting():
                return True
            time.sleep(0.5)
        return self.study.has_waiting()


def _gpus() -> list[str]:
    """The GPUs that trials may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]
