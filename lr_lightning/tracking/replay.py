"""Sends what a stopped run could not send."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lr_lightning.errors import StoreUnavailable, TrackingError
from lr_lightning.tracking.local_log import (
    LOCK_NAME,
    LOG_NAME,
    MetricLog,
    SendState,
    Status,
    load_state,
    refuse_state_of_other_run,
)
from lr_lightning.tracking.locks import Holder, RunLock, run_lock
from lr_lightning.tracking.store import Store
from lr_lightning.tracking.uploader import Sender


@dataclass(frozen=True)
class Replayed:
    """What a replay did: ``records`` were sent to run ``run_id`` of the store at ``uri`` (without its password)."""

    records: int
    run_id: str
    uri: str


def replay(output_dir: Path, left: str = "KILLED", lock_seconds: float = 0) -> Replayed:
    """Send the unsent records of the run logged below ``output_dir``; make the run first if the store never saw it.

    Args:
        output_dir: Output directory of a run that has stopped.
        left: Status of a run whose process was killed before it could give one.
        lock_seconds: How long to wait for the run to end.

    Returns:
        What was sent.

    Raises:
        TrackingError: There is no such folder or no log in it, or the store cannot take it.
        RunInUse: The run is still alive.
        StoreUnavailable: The store does not answer; what arrived before is confirmed, so a later call goes on there.
    """
    output_dir = output_dir.expanduser().absolute()
    if not output_dir.is_dir():
        raise TrackingError(f"{output_dir}: no such folder. Give the output directory of a run.")
    state = load_state(output_dir)
    if state is None:
        raise TrackingError(f"{output_dir}: holds no log for a store. Give the output directory of an MLflow run.")
    store = Store(state.uri, Path(state.root), Path(state.artifact_root) if state.artifact_root else None)
    holder = Holder.here(store.public_uri, str(output_dir))
    lock = RunLock(output_dir / LOCK_NAME, f"the run in {output_dir}")
    lock.acquire(holder, timeout=lock_seconds)
    in_store: list[RunLock] = []

    def hold(run_id: str) -> None:
        of_run = run_lock(store.lock_dir, run_id)
        of_run.acquire(holder)
        in_store.append(of_run)

    try:
        _end_if_killed(output_dir, state, left)
        sender = Sender(output_dir, store, state, hold)
        records = 0
        while count := sender.send_next():
            records += count
        return Replayed(records, sender.ensure_run(), store.public_uri)
    finally:
        for held in [*in_store, lock]:
            held.release()


def _end_if_killed(output_dir: Path, state: SendState, left: str) -> None:
    metric_log = MetricLog(output_dir / LOG_NAME)
    metric_log.repair()
    history = metric_log.history()
    refuse_state_of_other_run(output_dir, state, history)
    if history.status in (None, "RUNNING") and history.last_time:
        metric_log.append([Status(left, history.last_time)])


# --- A process beside a run of several that closes the run's record if the first rank is killed. A process that
# gets SIGKILL can close nothing, and that is what Lightning's launcher, torchrun and SLURM send to the other ranks
# when one of them has died. So a process that does nothing but wait holds the ot

# Bare Python until something is to be done: torch and MLflow take seconds, and hundreds of megabytes.
_WAIT = """
import sys
if not sys.stdin.buffer.read():
    from lr_lightning.tracking.closer import close
    close(sys.argv[1])
"""
_LOCK_SECONDS = 20.0  # children that a killed process has forked hold its locks until they notice


class Closer:
    """Holds the process for as long as the record is open; on leaving, the record must have been closed.

    Args:
        output_dir: The run's folder; None for nothing to watch.
    """

    def __init__(self, output_dir: Path | None) -> None:
        self._output_dir = output_dir
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self._output_dir is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WAIT, str(self._output_dir)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # a signal to the run's process group is not for it
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None:
            try:
                self._process.communicate(b"closed", timeout=5)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()


def close(output_dir: Path | str) -> None:
    """Give a run whose first rank is gone the status FAILED, and send what it had not sent."""
    try:
        done = replay(Path(output_dir), left="FAILED", lock_seconds=_LOCK_SECONDS)
    except (TrackingError, StoreUnavailable) as error:
        print(f"the record of the run in {output_dir} is not closed: {error}", file=sys.stderr)
        return
    print(
        f"the first process of run {done.run_id} is gone: its record is closed. Go on with it by resume={output_dir}",
        file=sys.stderr,
    )
