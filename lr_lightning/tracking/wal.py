"""The local log of a run: every metric row, param, tag, artifact and status, one JSON object a line.

The log is complete whatever the store does. A store only ever gets a copy of it, in its order, so whatever was not
sent can be sent later, and a resumed run finds in it what is stored already.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lr_lightning.tracking.files import append_bytes, cut_torn_line

_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Metric(NamedTuple):
    """One metric row: ``time`` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    time: int


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of the run; a key has one value for ever."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag of the run; a later value replaces an earlier one."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file or folder to copy to the store, below ``to`` of the run's artifacts."""

    path: str
    to: str | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """RUNNING, FINISHED, FAILED or KILLED, and since when (milliseconds since 1970)."""

    status: str
    time: int


Record = Metric | Param | Tag | Artifact | Status


def encode(record: Record) -> str:
    """Write ``record`` as one line of JSON, without the newline. Floats keep all their bits."""
    match record:
        case Metric(key, value, step, time):
            return _encode_json({"metric": key, "value": value, "step": step, "time": time})
        case Param(key, value):
            return _encode_json({"param": key, "value": value})
        case Tag(key, value):
            return _encode_json({"tag": key, "value": value})
        case Artifact(path, to):
            return _encode_json({"artifact": path, "to": to})
        case Status(status, time):
            return _encode_json({"status": status, "time": time})


def decode(line: bytes) -> Record | None:
    """Read one line; None where it is not a record (a disk error, or a hand that edited the file)."""
    try:
        d = json.loads(line)
        if "metric" in d:
            return Metric(d["metric"], float(d["value"]), int(d["step"]), int(d["time"]))
        if "param" in d:
            return Param(d["param"], d["value"])
        if "tag" in d:
            return Tag(d["tag"], d["value"])
        if "artifact" in d:
            return Artifact(d["artifact"], d["to"])
        return Status(d["status"], int(d["time"]))
    except (ValueError, KeyError, TypeError):
        return None


@dataclass
class History:
    """What a run has stored so far, for a logger that goes on with it.

    Attributes:
        last_steps: The highest step of each metric.
        last_values: The newest value of each metric.
        params: Every param.
        tags: The newest value of each tag.
        status: The newest status, if any.
        last_time: Time of the newest metric row or status, milliseconds since 1970.
    """

    last_steps: dict[str, int] = field(default_factory=dict)
    last_values: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    last_time: int = 0

    def add(self, record: Record) -> None:
        """Take one more record into account."""
        match record:
            case Metric(key, value, step, time):
                self.last_steps[key] = max(step, self.last_steps.get(key, step))
                self.last_values[key] = value
                self.last_time = max(self.last_time, time)
            case Param(key, value):
                self.params.setdefault(key, value)
            case Tag(key, value):
                self.tags[key] = value
            case Status(status, time):
                self.status = status
                self.last_time = max(self.last_time, time)


class MetricLog:
    """Append-only log of records, one JSON object a line.

    One process appends; the same or another one may read at the same time: only whole lines are read.

    Args:
        path: The file; made at the first append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def repair(self) -> None:
        """Cut a torn last line. Only the one process that holds the run may call it."""
        cut_torn_line(self.path)

    def append(self, records: Iterable[Record]) -> None:
        """Append ``records`` with one write, so that a kill between two calls tears nothing.

        Raises:
            OSError: The disk is full or gone; the file is left as it was before.
        """
        append_bytes(self.path, "".join(encode(record) + "\n" for record in records).encode())

    def sync(self) -> None:
        """Make what was appended survive a power cut."""
        if self.path.exists():
            descriptor = os.open(self.path, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def read(self, offset: int, limit: int = 1 << 18) -> list[tuple[Record | None, int]]:
        """Read whole lines from ``offset`` on.

        Args:
            offset: Where a line starts, in bytes.
            limit: About how many bytes to read at most; one longer line is still read whole.

        Returns:
            Records, each with the offset behind it; None for a line that is not a record.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(limit)
            if data and not data.endswith(b"\n"):
                data += file.readline()
        found: list[tuple[Record | None, int]] = []
        for line in data.split(b"\n")[:-1]:  # no splitlines(): it also ends a line at a carriage return
            offset += len(line) + 1
            found.append((decode(line), offset))
        return found

    def history(self) -> History:
        """Read the whole log and say what is stored in it."""
        history, offset = History(), 0
        while found := self.read(offset, 1 << 22):
            for record, _ in found:
                if record is not None:
                    history.add(record)
            offset = found[-1][1]
        return history

    def count(self, offset: int) -> int:
        """Count the records behind ``offset``."""
        total = 0
        while found := self.read(offset, 1 << 22):
            total += len(found)
            offset = found[-1][1]
        return total
