"""Copies the local log to the store, in order and in batches.

The log is read from where the store's last confirmation stands, so the sender keeps nothing in memory, goes on where a
dead process stopped, and is the same code for a live run and for a replay. Rows sent twice (a crash between sending and
confirming) are not stored twice: MLflow drops a row that equals a stored one in key, step, time and value.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lr_lightning.errors import NotInStore, Rejected, StoreUnavailable, TrackingError
from lr_lightning.tracking.local_log import (
    LOG_NAME,
    RUN_KEY_TAG,
    STATE_NAME,
    Artifact,
    Metric,
    MetricLog,
    Param,
    Record,
    SendState,
    Status,
    Tag,
)
from lr_lightning.tracking.store import Store

__all__ = ["SenderThread"]

log = logging.getLogger(__name__)

# MLflow's limits for one call of log_batch.
_LIMITS: dict[type, int] = {Metric: 1000, Param: 100, Tag: 100}


class Abandoned(Exception):
    """The sender was abandoned; another may be at the same log by now."""


class Sender:
    """Sends the next part of a log; keeps ``metrics.sent`` up to date.

    Args:
        output_dir: Folder of the log and its state.
        store: Where to send it.
        state: The state to go on from.
        on_run: Called with the run's id as soon as the store has given one.
    """

    def __init__(
        self, output_dir: Path, store: Store, state: SendState, on_run: Callable[[str], None] | None = None
    ) -> None:
        self.state = state
        self.experiment_id: str | None = None
        self._output_dir = output_dir
        self._log = MetricLog(output_dir / LOG_NAME)
        self._store = store
        self._on_run = on_run
        self._checked = False
        self._named: set[str] = set()
        self._abandoned = False
        self._lock = threading.Lock()

    def abandon(self) -> None:
        """Let go of the log and the run: a call that is under way in another thread ends without leaving a mark.

        What that call still brings to the store is sent once more by whoever goes on, and not stored twice.
        """
        with self._lock:
            self._abandoned = True

    def pending(self) -> int:
        """Count the records that the store has not confirmed."""
        return self._log.count(self.state.offset)

    def ensure_run(self) -> str:
        """Find the run in the store, or make it.

        Returns:
            Its id.

        Raises:
            TrackingError: The run is not there, or the experiment was deleted.
            StoreUnavailable: The store does not answer.
        """
        run_id = self.state.run_id
        if run_id is None:
            run_id = self._make_run()
            self._remember(run_id=run_id)
        elif not self._checked:
            self.experiment_id = self._experiment_of(run_id)
        if not self._checked:
            self._checked = True
            if self._on_run is not None:
                with self._lock:
                    self._refuse_if_abandoned()
                    self._on_run(run_id)
        return run_id

    def _experiment_of(self, run_id: str) -> str:
        try:
            return str(self._store.run(run_id).info.experiment_id)
        except NotInStore as error:
            raise NotInStore(
                f"{error}. Put the store back as it was; if it is gone, remove {self._output_dir / STATE_NAME} and "
                "go on with the run: its whole log goes to a new record"
            ) from None

    def _make_run(self) -> str:
        self.experiment_id = self._store.experiment_id(self.state.experiment)
        if self.state.asked:
            found = self._store.call(
                "search_runs", [self.experiment_id], f"tags.`{RUN_KEY_TAG}` = '{self.state.key}'", max_results=1
            )
            if found:
                return str(found[0].info.run_id)
        self._remember(asked=True)
        run = self._store.call(
            "create_run",
            self.experiment_id,
            start_time=self.state.started,
            tags={RUN_KEY_TAG: self.state.key},
            run_name=self.state.run_name,
        )
        return str(run.info.run_id)

    def send_next(self) -> int:
        """Send the next batch and confirm it.

        Returns:
            How many records were dealt with; 0 when there is nothing left.

        Raises:
            TrackingError: Trying again cannot help.
            StoreUnavailable: The store does not answer; nothing is lost, call again later.
            Abandoned: :meth:`abandon` was called.
        """
        self._refuse_if_abandoned()
        run_id = self.ensure_run()
        batch, count, end = self._next_batch()
        if count:
            self._send(run_id, batch)
            self._remember(offset=end)
        return count

    def _remember(self, **changes: object) -> None:
        with self._lock:
            self._refuse_if_abandoned()
            self.state = replace(self.state, **changes)  # type: ignore[arg-type]
            self.state.save(self._output_dir)

    def _refuse_if_abandoned(self) -> None:
        if self._abandoned:
            raise Abandoned

    def _next_batch(self) -> tuple[list[Record], int, int]:
        """Take records up to MLflow's limits; an artifact or a status goes alone, so that order is kept."""
        batch: list[Record] = []
        counts = dict.fromkeys(_LIMITS, 0)
        count, end = 0, self.state.offset
        for record, behind in self._log.read(self.state.offset):
            if isinstance(record, (Artifact, Status)):
                if count:
                    break
                return [record], 1, behind
            if record is None:
                self._name_once("unreadable line", f"{self._log.path}: a line before byte {behind} is not a record")
            else:
                kind = type(record)
                if counts[kind] == _LIMITS[kind]:
                    break
                counts[kind] += 1
                batch.append(record)
            count, end = count + 1, behind
        return batch, count, end

    def _send(self, run_id: str, batch: Sequence[Record]) -> None:
        """Send ``batch``; where the store refuses it, halve it until the bad record stands alone, and skip that one."""
        if not batch:
            return
        try:
            self._send_at_once(run_id, batch)
        except Rejected as error:
            self._store.run(run_id)  # a deleted run refuses everything: that is no fault of a record
            if len(batch) > 1:
                middle = len(batch) // 2
                self._send(run_id, batch[:middle])
                self._send(run_id, batch[middle:])
                return
            self._name_once(_name(batch[0]), f"{_name(batch[0])} was refused by the store and skipped: {error}")

    def _send_at_once(self, run_id: str, batch: Sequence[Record]) -> None:
        first = batch[0]
        if isinstance(first, Artifact):
            self._send_artifact(run_id, first)
        elif isinstance(first, Status):
            if first.status == "RUNNING":
                self._store.call("update_run", run_id, status="RUNNING")
            else:
                self._store.call("set_terminated", run_id, first.status, first.time)
        else:
            self._log_batch(run_id, batch)

    def _log_batch(self, run_id: str, batch: Sequence[Record]) -> None:
        from mlflow import entities

        metrics = [entities.Metric(r.key, r.value, r.time, r.step) for r in batch if isinstance(r, Metric)]
        # Of two tags with one key the later holds; of two params the first, since MLflow never changes one.
        tags = {r.key: r.value for r in batch if isinstance(r, Tag)}
        params = {r.key: r.value for r in reversed(batch) if isinstance(r, Param)}
        self._store.call(
            "log_batch",
            run_id,
            metrics=metrics,
            params=[entities.Param(key, value) for key, value in params.items()],
            tags=[entities.RunTag(key, value) for key, value in tags.items()],
            synchronous=True,
        )

    def _send_artifact(self, run_id: str, artifact: Artifact) -> None:
        path = Path(artifact.path)
        if not path.exists():
            raise Rejected(f"no such file: {path}")
        self._store.call("log_artifacts" if path.is_dir() else "log_artifact", run_id, str(path), artifact.to)

    def _name_once(self, name: str, text: str) -> None:
        if name not in self._named:
            self._named.add(name)
            log.warning("%s", text)


def _name(record: Record) -> str:
    match record:
        case Artifact(path):
            return f"artifact {path!r}"
        case Status(status):
            return f"status {status}"
        case _:
            return f"{type(record).__name__.lower()} {record.key!r}"


# --- The thread that sends while training goes on, and its patience with a store that does not answer.

log = logging.getLogger(__name__)


class SenderThread(threading.Thread):
    """Runs a :class:`Sender` in the background, so that training never waits for the store.

    While the store does not answer it warns once, waits and tries again, ever more rarely, until it is closed.

    Args:
        sender: What sends.
        first_wait: Seconds before the first retry; doubled each time.
        longest_wait: Seconds between two retries at most.
        patience: How many attempts may fail in a row before it warns. A database file that is busy is no news.
    """

    def __init__(self, sender: Sender, first_wait: float = 1.0, longest_wait: float = 30.0, patience: int = 1) -> None:
        super().__init__(name="lr_lightning-sender", daemon=True)
        self.sender = sender
        self.contact = threading.Event()
        """Set when the store has answered, or has failed to, for the first time."""
        self.error: TrackingError | StoreUnavailable | None = None
        """Why nothing is being sent just now; None while all is well."""
        self.disk_error: OSError | None = None
        """What the run's own disk has said, where that is why, while the store is well."""
        self._first_wait, self._longest_wait = first_wait, longest_wait
        self._work = threading.Event()
        self._closing = threading.Event()
        self._drain = self._deadline = float("inf")
        self._patience = patience
        self._failures = 0
        self._warned = False

    def wake(self) -> None:
        """Say that there is something new to send."""
        self._work.set()

    def close(self, patience: float) -> bool:
        """Send what is left, then stop. A call that the store never answers is abandoned, and leaves no mark.

        Args:
            patience: Seconds that may pass without the store taking anything. While it takes rows, they are all sent.

        Returns:
            Whether the store has everything.
        """
        self._drain = patience
        self._deadline = time.monotonic() + patience
        self._work.set()  # before the other: a thread that sees it closing has seen the last work too
        self._closing.set()
        while self.is_alive() and (left := self._deadline - time.monotonic()) > 0:
            self.join(left)
        self.sender.abandon()
        return not self.is_alive() and self.sender.pending() == 0

    def run(self) -> None:
        """Send until closed and empty, or until it is certain that trying again cannot help."""
        wait = self._first_wait
        while True:
            self._work.clear()
            try:
                while self.sender.send_next():
                    self._deadline = time.monotonic() + self._drain
                self._recovered()
                wait = self._first_wait
            except Abandoned:
                return
            except StoreUnavailable as error:
                self._failed(error)
                if time.monotonic() + min(wait, self._first_wait) > self._deadline:
                    return
                self._pause(wait)
                wait = min(2 * wait, self._longest_wait)
                continue
            except (TrackingError, Rejected, OSError) as error:
                problem = error if isinstance(error, TrackingError) else TrackingError(str(error))
                self.disk_error = error if isinstance(error, OSError) else None
                if self.contact.is_set():
                    log.warning("nothing more is sent to the tracking store: %s. Rows are kept locally.", problem)
                self.error = problem
                self.contact.set()
                return
            self.contact.set()
            if self._closing.is_set() and not self._work.is_set():
                return
            self._work.wait()

    def _recovered(self) -> None:
        if self.error is not None:
            log.info("the tracking store answers again; everything was sent")
        self.error = None
        self._failures = 0

    def _failed(self, error: StoreUnavailable) -> None:
        self.error = error
        self.contact.set()
        self._failures += 1
        if not self._warned and self._failures >= self._patience:
            self._warned = True
            log.warning(
                "the tracking store does not answer (%s). Training goes on; rows are kept and sent later.", error
            )

    def _pause(self, seconds: float) -> None:
        """Wait before a retry; when closing, only the shortest time, since there is a deadline."""
        if not self._closing.wait(seconds):
            return
        threading.Event().wait(min(seconds, self._first_wait))
