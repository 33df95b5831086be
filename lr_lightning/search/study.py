"""One search as a study of Optuna's: its tickets, who has which, and what came out.

A *ticket* is one trial that is to be run, numbered from 0. They are put into the storage when the study is made, so any
number of workers share a budget exactly: taking one is atomic, and when none is left the search is done. A trial whose
worker has gone is failed and its ticket put back, with its parameters, as Optuna does it.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lr_lightning.search.heartbeat import Heartbeats
from lr_lightning.search.opening import Prepare, open_study
from lr_lightning.search.owner import alive, end_child, this_process
from lr_lightning.search.sampling import sampler, suggest
from lr_lightning.search.settings import Search
from lr_lightning.search.space import Value
from lr_lightning.search.standing import Standing, attempt_of, result_of, ticket_of
from lr_lightning.search.storage import HEARTBEAT, SILENCE, connect, lock_of, patient

__all__ = ["GONE", "INTERRUPTED", "Study", "Ticket"]

INTERRUPTED, GONE = "interrupted", "its worker is gone"
"""Why a trial was failed whose ticket was put back."""

_READY_SECONDS = 60.0


@dataclass
class Ticket:
    """A trial that is being run.

    Attributes:
        number: Of the ticket, from 0.
        point: The values of the space's keys.
        trial: Optuna's.
        attempt: How often it has been taken up before.
    """

    number: int
    point: dict[str, Value]
    trial: optuna.Trial = field(repr=False)
    attempt: int = 0


class Study:
    """A study that is open.

    Args:
        search: What is searched.
        prepare: Called if there is no study of that name yet, before it is made: it gives the points of the first
            tickets, or raises, and then there is no study.

    Raises:
        ConfigError: The storage cannot be used, or the name belongs to another search.
    """

    def __init__(self, search: Search, prepare: Prepare = lambda: ()) -> None:
        self.search = search
        self._lock = lock_of(search.storage)
        self._owner = this_process()
        self._checked = 0.0
        self.study, self.is_new = open_study(search, connect(search.storage, self._requeue), prepare)
        self._storage: Any = self.study._storage  # the one above with Optuna's cache around it
        self._beats = Heartbeats(self._storage)

    # -- filling -------------------------------------------------------------------------------------------------------

    @patient
    def fill(self) -> None:
        """Put the tickets into the study: all of them if it is new, more of them if more trials are asked for."""
        if not self.is_new:
            self._wait_until_filled()
        with self._lock:
            there = {ticket_of(trial) for trial in self.trials()}
            for number, point in enumerate(self._points(self.study.user_attrs["start"])):
                if number not in there:
                    self.study.enqueue_trial(dict(point), user_attrs={"ticket": number})
            self.study.set_user_attr("filled", True)
            self._repair()

    def _points(self, start: Sequence[Mapping[str, Value]]) -> list[Mapping[str, Value]]:
        """The values that each ticket fixes, in an order that stays; an empty one leaves them to the sampler."""
        limit = self.search.node.n_trials
        if self.search.node.sampler == "grid":
            rest = [point for point in self.search.space.grid(self.search.base) if point not in start]
            points: list[Mapping[str, Value]] = [*start, *rest]
            return points[:limit] if limit else points
        count = limit if limit is not None else len(start)
        return [*start, *({} for _ in range(count - len(start)))][:count]

    def _wait_until_filled(self) -> None:
        until, there = time.monotonic() + _READY_SECONDS, 0
        while not self.study.user_attrs.get("filled") and time.monotonic() < until:
            time.sleep(0.2)  # its maker is filling it, or has died, and then this process does
            if (now := len(self.trials())) > there:
                until, there = time.monotonic() + _READY_SECONDS, now

    def _repair(self) -> None:
        """Put back the tickets of those that were killed between failing a trial and putting it back."""
        for trial in self.standing().ended.values():
            if trial.state == TrialState.FAIL and result_of(trial).get("reason") in (INTERRUPTED, GONE):
                self._clone(trial, attempt_of(trial) + 1)

    @property
    def _limit(self) -> float:
        """Tickets from this number on are for those who ask for more trials."""
        return math.inf if self.search.node.n_trials is None else self.search.node.n_trials

    # -- tickets -----------------------------------------------------------------------------------------------------

    @patient
    def take(self) -> Ticket | None:
        """Take the next ticket and have its values suggested; None if none is left."""
        with self._lock:
            trial_id = self._claimed()
        if trial_id is None:
            return None
        self._beats.start(trial_id)
        try:
            return self._suggested(trial_id)
        except BaseException:
            self._beats.stop(trial_id)  # it is found and put back as that of a worker that is gone
            raise

    def _suggested(self, trial_id: int) -> Ticket:
        self.study._thread_local.cached_all_trials = None  # as Optuna's own ask: what others have told counts
        number = int(self._storage.get_trial_user_attrs(trial_id).get("ticket", 0))
        self.study.sampler = sampler(self.search, number)
        trial = optuna.Trial(self.study, trial_id)
        trial.set_user_attr("owner", self._owner)  # one attribute: each is a transaction
        point = suggest(trial, self.search.space, self.search.base)
        return Ticket(number, point, trial, int(trial.user_attrs.get("attempt", 0)))

    def _claimed(self) -> int | None:
        """The id of a trial that now is this process's; taking it is atomic in the storage (see Optuna's ask)."""
        study_id = self.study._study_id
        waiting = self._storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.WAITING,))
        for trial in sorted(waiting, key=lambda t: (ticket_of(t), t.number)):
            if ticket_of(trial) >= self._limit:
                break
            try:
                if self._storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING):
                    return int(trial._trial_id)
            except optuna.exceptions.UpdateFinishedTrialError:
                continue
        if self.search.node.n_trials is None and self.search.node.sampler != "grid":
            trial_id = self._storage.create_new_trial(study_id)  # without a limit of trials there are always more
            self._storage.set_trial_user_attr(trial_id, "ticket", self._storage.get_trial(trial_id).number)
            return int(trial_id)
        return None

    @patient
    def finish(
        self, ticket: Ticket, state: TrialState, value: float | None, result: Mapping[str, Any] | None = None
    ) -> bool:
        """Give back what a trial came to.

        Args:
            ticket: Its ticket.
            state: How it ended.
            value: The objective, of one that is complete.
            result: What else is known of it, as plain values.

        Returns:
            Whether it counts: not if its worker had been taken for dead and its ticket given to another one.
        """
        trial_id = ticket.trial._trial_id
        self._beats.stop(trial_id)
        try:
            ticket.trial.set_user_attr("result", dict(result or {}))
            self.study.tell(ticket.trial, value, state=state)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        return True

    @patient
    def put_back(self, ticket: Ticket, *, counted: bool = False) -> None:
        """Give a ticket back whose trial was interrupted: whoever comes next goes on with it.

        Args:
            ticket: The ticket.
            counted: Whether that is one of the times that a ticket may come back: not where the search itself stopped.
        """
        trial_id = ticket.trial._trial_id
        self._beats.stop(trial_id)
        self._fail(self._storage.get_trial(trial_id), INTERRUPTED, attempt=ticket.attempt + counted)

    @patient
    def recover(self) -> list[int]:
        """Put back the tickets of workers that are gone: at once those of this machine, others after a silence.

        Returns:
            Their numbers.
        """
        if time.monotonic() - self._checked < HEARTBEAT and self._checked:
            return []
        self._checked = time.monotonic()
        before = {ticket_of(t) for t in self.trials(TrialState.WAITING)}
        for trial in self.trials(TrialState.RUNNING):
            if trial._trial_id in self._beats:
                continue
            owner = trial.user_attrs.get("owner")
            if owner is None:  # its worker was killed in the moment after it took the trial, or is in it
                started = trial.datetime_start
                gone = started is not None and (datetime.now() - started).total_seconds() > SILENCE
            else:
                gone = owner.get("host") == self._owner["host"] and not alive(owner.get("pid"), owner.get("born"))
            if gone:
                end_child(trial.user_attrs.get("child"))
                self._fail(trial, GONE, attempt=attempt_of(trial) + 1)
        optuna.storages.fail_stale_trials(self.study)
        return sorted({ticket_of(t) for t in self.trials(TrialState.WAITING)} - before)

    def _requeue(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """What Optuna calls for a trial whose worker has gone silent."""
        self._clone(trial, attempt=attempt_of(trial) + 1)

    def _fail(self, trial: FrozenTrial, reason: str, attempt: int) -> None:
        try:
            self._storage.set_trial_user_attr(trial._trial_id, "result", {"reason": reason})
            if self._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
                self._clone(trial, attempt)
        except optuna.exceptions.UpdateFinishedTrialError:
            pass  # another worker was first

    def _clone(self, trial: FrozenTrial, attempt: int) -> None:
        if attempt > self.search.node.retries:
            return
        kept = {key: value for key, value in trial.user_attrs.items() if key in ("ticket", "run")}
        self.study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=trial.intermediate_values,
                user_attrs={**kept, "attempt": attempt},
                system_attrs={k: v for k, v in trial.system_attrs.items() if k == "fixed_params"},
            )
        )

    # -- what there is -----------------------------------------------------------------------------------------------

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in these states, or all."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    @patient
    def standing(self) -> Standing:
        """How far the search has come; one question to the storage."""
        return Standing.of(self.trials(), self._limit, higher=self.search.higher)

    @patient
    def has_waiting(self) -> bool:
        """Whether a ticket waits."""
        return any(ticket_of(trial) < self._limit for trial in self.trials(TrialState.WAITING))

    @patient
    def others_running(self) -> int:
        """Trials that other workers run."""
        return sum(t._trial_id not in self._beats for t in self.trials(TrialState.RUNNING))

    @property
    def patience(self) -> float:
        """Seconds after which a worker that is gone has been found out."""
        return SILENCE + 2 * HEARTBEAT
