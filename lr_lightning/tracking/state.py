"""``metrics.sent``: which run of which store a local log belongs to, and how much of it has arrived there."""

import json
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lr_lightning.tracking.errors import TrackingError
from lr_lightning.tracking.files import write_atomically
from lr_lightning.tracking.wal import History

LOG_NAME = "metrics.jsonl"
STATE_NAME = "metrics.sent"
LOCK_NAME = "metrics.lock"
RUN_KEY_TAG = "lr_lightning.run_key"
"""Tag of a run, in its log and in the store: the key of the state that goes with them."""


@dataclass(frozen=True)
class SendState:
    """Where a log goes and how far it has got.

    Attributes:
        uri: The store, password included if it has one (the file is readable by its owner only).
        root: Local folder of the store: locks, and artifacts where the store is local.
        artifact_root: Folder of artifacts, or None where a server keeps them.
        experiment: Name of the experiment.
        run_name: Name of the run, or None to let MLflow invent one.
        run_id: The run, once the store has made it.
        asked: Whether the store has been asked to make the run. If so and there is no ``run_id``, the answer was lost.
        offset: Bytes of the log that the store has confirmed.
        key: Marks the run in the store, so that one whose id got lost on the way back is found and not made twice.
        started: When the run began, milliseconds since 1970.
    """

    uri: str
    root: str
    artifact_root: str | None
    experiment: str
    run_name: str | None = None
    run_id: str | None = None
    asked: bool = False
    offset: int = 0
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: int = field(default_factory=lambda: int(time.time() * 1000))

    def save(self, output_dir: Path) -> None:
        """Write the state below ``output_dir`` in one step."""
        write_atomically(output_dir / STATE_NAME, json.dumps(asdict(self), indent=1) + "\n", mode=0o600)


def load_state(output_dir: Path) -> SendState | None:
    """Read the state below ``output_dir``.

    Returns:
        The state, or None where no run was logged.

    Raises:
        TrackingError: The file is not one that this package wrote.
    """
    path = output_dir / STATE_NAME
    if not path.exists():
        return None
    try:
        return SendState(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise TrackingError(f"{path}: not readable as the state of a run ({error}). Restore it or remove it.") from None


def refuse_state_of_other_run(output_dir: Path, state: SendState, history: History) -> None:
    """Refuse a state that does not go with the log beside it: the log would be sent to another run's record.

    Raises:
        TrackingError: It does not.
    """
    if history.tags.get(RUN_KEY_TAG, state.key) != state.key:
        raise TrackingError(
            f"{output_dir / STATE_NAME}: is of another run than {LOG_NAME} beside it. Restore it, or remove it and go "
            "on with the run: the store finds its record again."
        )


def unique_dir(parent: Path) -> Path:
    """Name a folder below ``parent`` that no other run has, e.g. ``20260131-235959-1a2b3c4d``."""
    return parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"


def refuse_other_run(output_dir: Path, resume: bool) -> None:
    """Refuse an output directory that holds a run, unless it is to be resumed.

    Raises:
        TrackingError: ``resume`` is not set.
    """
    if not resume:
        raise TrackingError(
            f"{output_dir}: holds the log of a run already. Give resume=True to go on with it, or another folder."
        )
