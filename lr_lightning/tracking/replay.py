"""Sends what a stopped run could not send."""

from dataclasses import dataclass
from pathlib import Path

from lr_lightning.tracking.errors import TrackingError
from lr_lightning.tracking.locks import Holder, RunLock, run_lock
from lr_lightning.tracking.sender import Sender
from lr_lightning.tracking.state import LOCK_NAME, LOG_NAME, SendState, load_state, refuse_state_of_other_run
from lr_lightning.tracking.store import Store
from lr_lightning.tracking.wal import MetricLog, Status


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
        RunningError: The run is still alive.
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
