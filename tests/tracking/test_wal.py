import os
from pathlib import Path

import pytest

from lr_lightning.tracking.files import write_atomically
from lr_lightning.tracking.local_log import Artifact, Metric, MetricLog, Param, Record, Status, Tag, decode, encode

RECORDS = [
    Metric("a/b", 0.1 + 0.2, 3, 17),
    Param("p", "ü\n1"),
    Tag("t", "x"),
    Artifact("/f", None),
    Status("FAILED", 9),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_survives_its_line_bit_for_bit(record: Record) -> None:
    line = encode(record)
    assert "\n" not in line
    assert decode(line.encode()) == record


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[1]", b'{"metric":"a"}', b'{"metric":"a","value":"x","step":1,"time":1}', b"7"]
)
def test_a_line_that_is_no_record_is_none(line: bytes) -> None:
    assert decode(line) is None


def test_reading_goes_on_at_every_offset(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "log")
    log.append(RECORDS)
    whole = log.read(0)
    assert [record for record, _ in whole] == RECORDS
    assert whole[-1][1] == log.size
    for n, (_, offset) in enumerate(whole):
        assert [record for record, _ in log.read(offset)] == RECORDS[n + 1 :]
    assert log.count(0) == len(RECORDS)


def test_a_carriage_return_in_a_damaged_line_shifts_no_offset(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "log")
    log.append(RECORDS)
    log.path.write_bytes(b"\x00\rab\r\n" + log.path.read_bytes())
    read = log.read(0)
    assert [record for record, _ in read] == [None, *RECORDS]
    assert read[-1][1] == log.size


def test_a_line_longer_than_the_limit_is_read_whole(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "log")
    log.append([Param("p", "x" * 100), Param("q", "y")])
    assert [record for record, _ in log.read(0, limit=5)] == [Param("p", "x" * 100)]


def test_a_torn_last_line_is_not_read_and_is_cut_on_open(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "log")
    log.append(RECORDS[:2])
    whole = log.size
    with log.path.open("ab") as file:
        file.write(b'{"metric":"a/b","val')
    assert len(log.read(0)) == 2
    log.repair()
    assert log.size == whole
    log.append(RECORDS[2:])
    assert [record for record, _ in log.read(0)] == RECORDS


@pytest.mark.parametrize("content", [b"", b"torn", b"x" * 200_000])
def test_a_file_without_any_whole_line_is_emptied(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    MetricLog(path).repair()
    assert path.read_bytes() == b""


def test_history_knows_highest_steps_first_params_and_last_status(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "log")
    log.append(
        [Metric("a", 1.0, 5, 10), Metric("a", 2.0, 3, 20), Param("p", "1"), Param("p", "2"), Status("KILLED", 30)]
    )
    history = log.history()
    assert log.history().last_steps == {"a": 5}
    assert history.last_values == {"a": 2.0}
    assert history.params == {"p": "1"}
    assert (history.status, history.last_time) == ("KILLED", 30)


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricLog(tmp_path / "log")
    log.append(RECORDS[:1])
    before, write, calls = log.path.read_bytes(), os.write, []

    def fails_halfway(descriptor: int, data: bytes) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:10])

    monkeypatch.setattr(os, "write", fails_halfway)
    with pytest.raises(OSError, match="No space left"):
        log.append(RECORDS)
    assert log.path.read_bytes() == before


def test_writing_atomically_keeps_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(path, "a", mode=0o600)
    write_atomically(path, "b", mode=0o600)
    assert path.read_text() == "b"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
