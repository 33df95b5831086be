"""Upload of a local log to the MLflow store, in order and in batches, without ever blocking training.

Artifacts follow on their own: one that the store does not take never holds a row back.

The log is read from the store's last confirmation on, so the uploader keeps nothing in memory, continues where a dead
process stopped, and is the same for a live run and for a replay. A row that is sent twice (after a crash between
sending and confirming) is stored once: a row that equals a stored one in key, step, time and value is dropped.
"""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lr_lightning._commands import replay_command
from lr_lightning.errors import NotInStore, Rejected, StoreUnavailable, TrackingError
from lr_lightning.tracking import local_log
from lr_lightning.tracking.keys import RUN_KEY_TAG
from lr_lightning.tracking.local_log import Artifact, LocalLog, LogEntry, LoggedRun, Metric, Param, Status, UploadState
from lr_lightning.tracking.locks import Holder, RunLock, run_lock
from lr_lightning.tracking.store import Store

log = logging.getLogger(__name__)

# MLflow's limits for one call of log_batch.
_LIMITS: dict[type, int] = {Metric: 1000, Param: 100, local_log.Tag: 100}

# Seconds to wait for the store's first answer: the first start on a machine creates the database, one process after
# another; a server answers or is down.
_LOCAL_CONTACT_SECONDS = 120.0
_SERVER_CONTACT_SECONDS = 10.0
_LATE_START_SECONDS = 1.0  # after which MLflow is imported beside a run that does not wait for it
# Seconds without progress after which the end of a run stops waiting for the store.
_LOCAL_DRAIN_SECONDS = 60.0  # another program may hold the database, and will release it
_SERVER_DRAIN_SECONDS = 15.0


class Abandoned(Exception):
    """The uploader was abandoned; another process may upload the same log by now."""


class Uploader:
    """Upload a log part by part, and keep ``metrics.sent`` up to date.

    ``on_run`` is called with the run's id as soon as the store has confirmed it.
    """

    def __init__(
        self, output_dir: Path, store: Store, state: UploadState, on_run: Callable[[str], object] = lambda run_id: None
    ) -> None:
        self.state = state
        self.experiment_id: str | None = None
        self._output_dir, self._store, self._on_run = output_dir, store, on_run
        self._log = LocalLog(output_dir / local_log.LOG_NAME)
        self._run_is_checked = self._artifacts_are_checked = False
        self._warned: set[str] = set()
        self._abandoned = False
        self._lock = threading.Lock()
        if state.run_id is not None and store.is_lost:
            raise NotInStore(f"{store.public_uri}: there is no such database. {self._remedy}")

    @property
    def _remedy(self) -> str:
        return (
            f"Put the store back in its place. If it is gone, remove {self._output_dir / local_log.STATE_NAME} and "
            "resume the run: its whole log is then uploaded to a new run"
        )

    def abandon(self) -> None:
        """Release the log and the run: a call in progress in another thread ends without changing the state.

        What that call still brings to the store is uploaded again by the next uploader, and not stored twice.
        """
        with self._lock:
            self._abandoned = True

    def pending(self) -> int:
        """Count the records that the store has not confirmed."""
        behind = self._log.lines(self.state.artifacts, self.state.offset)
        artifacts = sum(isinstance(record, Artifact) for record, _ in behind)
        return artifacts + sum(1 for _ in self._log.records(self.state.offset))

    def ensure_run(self) -> str:
        """Find the run in the store, or create it, and return its id."""
        run_id = self.state.run_id
        if run_id is not None and self._run_is_checked:
            return run_id
        if run_id is None:
            run_id = self._create_run()
            self._update(run_id=run_id)
        else:
            try:
                self.experiment_id = str(self._store.run(run_id).info.experiment_id)
            except NotInStore as error:
                raise NotInStore(f"{error}. {self._remedy}") from None
        self._run_is_checked = True
        with self._lock:
            self._raise_if_abandoned()
            self._on_run(run_id)
        return run_id

    def _create_run(self) -> str:
        self.experiment_id = self._store.experiment_id(self.state.experiment)
        if self.state.asked:
            found = self._store.call(
                "search_runs", [self.experiment_id], f"tags.`{RUN_KEY_TAG}` = '{self.state.key}'", max_results=1
            )
            if found:
                return str(found[0].info.run_id)
        self._update(asked=True, offset=0, artifacts=0)  # this store has none of it
        run = self._store.call(
            "create_run",
            self.experiment_id,
            start_time=self.state.started,
            tags={RUN_KEY_TAG: self.state.key},
            run_name=self.state.run_name,
        )
        return str(run.info.run_id)

    def upload_next(self) -> int:
        """Upload the next batch without its artifacts, and return its number of records; 0 if nothing is left."""
        self._raise_if_abandoned()
        run_id = self.ensure_run()
        batch, count, end = self._next_batch()
        if count:
            self._send(run_id, batch)
            self._update(offset=end)
        return count

    def upload_artifact(self) -> int:
        """Upload the next artifact behind the uploaded batches, and return 1; 0 if none is left.

        Raises:
            TrackingError: The store will take no artifact of this run from this process.
            StoreUnavailable: It takes none at the moment.
        """
        self._raise_if_abandoned()
        run_id, end = self.ensure_run(), self.state.offset
        for record, line_end in self._log.lines(self.state.artifacts, end):
            if isinstance(record, Artifact):
                if not self._artifacts_are_checked:
                    self._store.check_artifacts(run_id)
                    self._artifacts_are_checked = True
                self._send(run_id, [record])
                self._update(artifacts=line_end)
                return 1
        if self.state.artifacts < end:
            self._update(artifacts=end)
        return 0

    def _update(self, **changes: object) -> None:
        with self._lock:
            self._raise_if_abandoned()
            self.state = replace(self.state, **changes)  # type: ignore[arg-type]
            self.state.save(self._output_dir)

    def _raise_if_abandoned(self) -> None:
        if self._abandoned:
            raise Abandoned

    def _next_batch(self) -> tuple[list[LogEntry], int, int]:
        """Return the next records up to MLflow's limits, the number of lines read, and the offset after them.

        A status forms a batch alone, so that the order is kept. Artifacts are counted and left out.
        """
        batch: list[LogEntry] = []
        counts = Counter[type]()
        count, end = 0, self.state.offset
        for record, line_end in self._log.read(self.state.offset):
            if isinstance(record, Status):
                if count:
                    break
                return [record], 1, line_end
            if record is None:
                self._warn_once("damaged line", f"{self._log.path}: the line before byte {line_end} is not a record")
            elif not isinstance(record, Artifact):
                kind = type(record)
                if counts[kind] == _LIMITS[kind]:
                    break
                counts[kind] += 1
                batch.append(record)
            count, end = count + 1, line_end
        return batch, count, end

    def _send(self, run_id: str, batch: Sequence[LogEntry]) -> None:
        """Send ``batch``. If the store rejects it, split it until the bad record stands alone, and skip that one."""
        if not batch:
            return
        try:
            match batch[0]:
                case Artifact(name, to):
                    path = self._output_dir / name
                    if not path.exists():
                        raise Rejected(f"no such file: {path}")
                    self._store.call("log_artifacts" if path.is_dir() else "log_artifact", run_id, str(path), to)
                case Status("RUNNING"):
                    self._store.call("update_run", run_id, status="RUNNING")
                case Status(status, at):
                    self._store.call("set_terminated", run_id, status, at)
                case _:
                    self._send_batch(run_id, batch)
        except Rejected as error:
            self._store.run(run_id)  # raises if the run was deleted: then the store rejects every record
            if len(batch) > 1:
                middle = len(batch) // 2
                self._send(run_id, batch[:middle])
                self._send(run_id, batch[middle:])
                return
            record = batch[0]
            name = f"{type(record).__name__.lower()} {getattr(record, record.__match_args__[0])!r}"
            self._warn_once(name, f"{name} was rejected by the store and skipped: {error}")

    def _send_batch(self, run_id: str, batch: Sequence[LogEntry]) -> None:
        from mlflow import entities

        from lr_lightning.tracking.database import insert_rows

        # Of two tags with one key the later holds; of two params the first, since MLflow never changes one.
        tags = {r.key: r.value for r in batch if isinstance(r, local_log.Tag)}
        params = {r.key: r.value for r in reversed(batch) if isinstance(r, Param)}
        rows = insert_rows(self._store, run_id, [r for r in batch if isinstance(r, Metric)])
        self._store.call(
            "log_batch",
            run_id,
            metrics=[entities.Metric(r.key, r.value, r.time, r.step) for r in rows],
            params=[entities.Param(key, value) for key, value in params.items()],
            tags=[entities.RunTag(key, value) for key, value in tags.items()],
            synchronous=True,
        )

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            log.warning("%s", text)


class UploadThread(threading.Thread):
    """Upload the log of a live run in the background, and hold the lock that shows that the run is alive.

    While the store does not answer, the thread warns once and tries again until it is closed: first after
    ``first_wait`` seconds, then each time after twice as long, up to ``longest_wait``.
    """

    def __init__(
        self,
        output_dir: Path,
        store: Store,
        state: UploadState,
        holder: Holder,
        first_wait: float = 1.0,
        longest_wait: float = 30.0,
    ) -> None:
        super().__init__(name="lr_lightning-uploader", daemon=True)
        self.error: TrackingError | StoreUnavailable | None = None  # why nothing is uploaded at the moment
        self.artifact_error: Exception | None = None  # why no artifact is uploaded at the moment
        self.disk_error: OSError | None = None  # set if the run's own disk is the reason
        self._output_dir, self._store, self._holder = output_dir, store, holder
        self._first_wait, self._longest_wait = first_wait, longest_wait
        self._begin = threading.Event()  # importing MLflow, and uploading
        self._waits = True  # whether the start of the run waits for the store
        self._contact = threading.Event()  # the store has answered, or failed to, for the first time
        self._work, self._artifact_work = threading.Event(), threading.Event()
        self._artifacts = threading.Thread(target=self._upload_artifacts, name="lr_lightning-artifacts", daemon=True)
        self._ended = threading.Event()
        self._closing = threading.Event()
        self._drain_seconds = self._deadline = float("inf")
        self._failures = 0
        self._warned = False
        self._run_lock: RunLock | None = None
        self.uploader = Uploader(output_dir, store, state, self._hold)
        state.save(output_dir)
        if state.run_id is not None:
            self._hold(state.run_id)

    def _hold(self, run_id: str) -> None:
        if self._run_lock is None:
            lock = run_lock(self._store.lock_dir, run_id)
            lock.acquire(self._holder)
            self._run_lock = lock

    @property
    def run_id(self) -> str | None:
        """The run's id, or None while the store has not answered."""
        return self.uploader.state.run_id

    @property
    def has_contact(self) -> bool:
        """Whether the store has answered, or failed to, at least once."""
        return self._contact.is_set()

    @property
    def is_connected(self) -> bool:
        """Whether the store answered when it was last asked."""
        return self.error is None and self._contact.is_set()

    def connect(self, *, at_once: bool = True) -> None:
        """Start, and wait briefly for the store, so that a wrong address or name is an error before training.

        A local store that is known to work is not waited for: MLflow, whose import takes seconds, is imported while the
        run trains, unless it is wanted ``at_once``.
        """
        self._waits = at_once or "mlflow" in sys.modules or not self._store.is_ready(self.uploader.state.experiment)
        if self._waits:
            self._begin.set()
        self.start()
        if self._waits:
            self.await_contact()
            if isinstance(self.error, TrackingError):
                raise self.disk_error or self.error

    def await_contact(self) -> None:
        """Wait until the store has answered, or failed to, for the first time; warn if it takes long."""
        self._begin.set()
        patience = _LOCAL_CONTACT_SECONDS if self._store.is_local else _SERVER_CONTACT_SECONDS
        if not self._contact.wait(patience):
            log.warning(
                "the tracking store %s has not answered in %.0f s. Training continues; rows are uploaded later.",
                *(self._store.public_uri, patience),
            )

    def with_rows_of_store(self, logged: LoggedRun) -> LoggedRun:
        """Add to ``logged`` what only the store has of the run, because the local log was lost or cut short."""
        run_id = self.run_id
        if run_id is None or (logged.last_time and not self.is_connected):
            return logged
        if not self.is_connected:
            raise TrackingError(
                f"run {run_id} cannot be resumed: {self._output_dir} has no log of it, and the store does not answer."
            )
        run = self._store.run(run_id)
        newest = {
            metric.key: metric
            for metric in run.data._metric_objs
            if int(metric.step) > logged.last_steps.get(metric.key, -1)
        }
        if not newest:
            return logged
        if logged.last_time:
            self._refuse_stale_copy(run_id, run.data.tags.get("output_dir"))
            log.warning("the store has rows of this run that %s lacks: they are not logged again", self._output_dir)
        return replace(
            logged,
            last_steps=logged.last_steps | {key: int(metric.step) for key, metric in newest.items()},
            last_values=logged.last_values | {key: float(metric.value) for key, metric in newest.items()},
            params=dict(run.data.params) | logged.params,
            status=logged.status or run.info.status,
            last_time=max(logged.last_time, *(int(metric.timestamp) for metric in newest.values())),
        )

    def _refuse_stale_copy(self, run_id: str, tag: str | None) -> None:
        """Refuse a copy of a run's folder if the run was resumed in the folder of ``tag``, which has more rows."""
        other = Path(tag or self._output_dir)
        if not other.is_dir() or other.samefile(self._output_dir):
            return
        state = UploadState.load(other)
        if state is not None and state.run_id == run_id:
            raise TrackingError(
                f"run {run_id} was resumed in {other}, and has rows that {self._output_dir} lacks. Resume that folder "
                "instead, or give another tracking.root to this one."
            )

    def wake(self) -> None:
        """Announce new records."""
        self._work.set()

    def run(self) -> None:
        """Upload until closed and finished, or until trying again cannot help."""
        try:
            self._upload_rows()
        finally:
            self._ended.set()
            self._artifact_work.set()

    def _upload_rows(self) -> None:
        wait = self._first_wait
        self._begin.wait(_LATE_START_SECONDS)
        while True:
            self._work.clear()
            try:
                while self.uploader.upload_next():
                    self._deadline = time.monotonic() + self._drain_seconds
                if self.error is not None:
                    log.info("the tracking store answers again; everything was uploaded")
                self.error, self._failures = None, 0
                wait = self._first_wait
                self._artifact_work.set()
                if not self._artifacts.ident:
                    self._artifacts.start()
            except Abandoned:
                return
            except StoreUnavailable as error:
                self._count_failure(error)
                if not self._may_retry_after(wait):
                    return
                wait = min(2 * wait, self._longest_wait)
                continue
            except (TrackingError, Rejected, OSError) as error:
                problem = error if isinstance(error, TrackingError) else TrackingError(str(error))
                self.disk_error = error if isinstance(error, OSError) else None
                if self._contact.is_set() or not self._waits:
                    log.warning("the upload to the tracking store has stopped: %s. Rows are kept locally.", problem)
                self.error = problem
                self._contact.set()
                return
            self._contact.set()
            if self._closing.is_set() and not self._work.is_set():
                return
            self._work.wait()

    def _upload_artifacts(self) -> None:
        """Upload artifacts beside the rows, until those have ended, or until trying again cannot help."""
        wait = self._first_wait
        while True:
            ended = self._ended.is_set()  # before the work: what is uploaded after it is the last
            self._artifact_work.clear()
            try:
                while self.uploader.upload_artifact():
                    self._deadline, wait = time.monotonic() + self._drain_seconds, self._first_wait
                self.artifact_error = None
            except Abandoned:
                return
            except StoreUnavailable as error:
                self._note_artifact_error(error, "at the moment")
                if not self._may_retry_after(wait):
                    return
                wait = min(2 * wait, self._longest_wait)
                continue
            except (TrackingError, Rejected, OSError) as error:
                self._note_artifact_error(error, "by this process")
                return
            if ended:
                return
            self._artifact_work.wait()

    def _may_retry_after(self, wait: float) -> bool:
        """Wait, and return whether to try again: not if the deadline comes first."""
        shortest = min(wait, self._first_wait)
        if time.monotonic() + shortest > self._deadline:
            return False
        if self._closing.wait(wait):  # then there is a deadline: wait only the shortest time
            time.sleep(shortest)
        return True

    def _note_artifact_error(self, error: Exception, when: str) -> None:
        if self.artifact_error is None:
            log.warning("no file can be stored with the run %s (%s). Its metrics are stored.", when, error)
        self.artifact_error = error

    def _count_failure(self, error: StoreUnavailable) -> None:
        self.error = error
        self._contact.set()
        self._failures += 1
        # A database file that is busy for a moment is no news.
        if not self._warned and self._failures > (2 if self._store.is_local else 0):
            self._warned = True
            log.warning(
                "the tracking store does not answer (%s). Training continues; rows are kept and uploaded later.", error
            )

    def close(self, patience: float | None = None) -> bool:
        """Upload the rest, then stop and release the run's lock; warn and return False if something is left.

        As long as the store takes rows, all are sent; ``patience`` is in seconds without progress. A call that the
        store never answers is abandoned without a trace.
        """
        if patience is None:
            patience = _LOCAL_DRAIN_SECONDS if self._store.is_local else _SERVER_DRAIN_SECONDS
        self._drain_seconds = patience
        self._deadline = time.monotonic() + self._drain_seconds
        self._begin.set()
        self._work.set()  # before _closing: a thread that sees it closing has seen the last records too
        self._closing.set()
        for thread in (self, self._artifacts):
            while thread.is_alive() and (left := self._deadline - time.monotonic()) > 0:
                thread.join(left)
        self.uploader.abandon()
        pending = self.uploader.pending()
        complete = not self.is_alive() and pending == 0
        reason = self.error or self.artifact_error
        if not complete:
            count = "1 record was" if pending == 1 else f"{pending} records were"
            why, later = f" ({reason})" if reason else "", replay_command(self._output_dir)
            log.warning("%s not uploaded to the tracking store%s. Upload later: %s", count, why, later)
        if self._run_lock is not None:
            self._run_lock.release()
            self._run_lock = None
        return complete

    def set_status(self, status: str) -> None:
        """Set the run's status in the store directly, because the disk has no room for it in the local log."""
        if self.run_id is not None:
            with suppress(StoreUnavailable):
                self._store.end_if_running(self.run_id, status)
