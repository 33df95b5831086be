import csv
import json
import logging
import math
import os
from pathlib import Path

import pytest
import yaml

from lr_lightning.errors import TrackingError
from lr_lightning.tracking import RunLogger, Store
from lr_lightning.tracking.local_log import (
    Artifact,
    LocalLog,
    LogEntry,
    LoggedRun,
    Metric,
    Param,
    RowBuffer,
    Status,
    Tag,
    decode_record,
    encode_record,
)

RECORDS = [
    Metric("a/b", 0.1 + 0.2, 3, 17),
    Metric('ü"\\', -5e-324, 0, 17),
    Param("p", "ü\n1"),
    Tag("t", "x"),
    Artifact("/f", None),
    Status("FAILED", 9),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_survives_its_line_bit_for_bit(record: LogEntry) -> None:
    line = encode_record(record)
    assert "\n" not in line
    assert decode_record(line.encode()) == record


@pytest.mark.parametrize("value", [0.1 + 0.2, -0.0, 1e22, 1e-7, 123456789.0, 1.7976931348623157e308])
def test_a_metric_is_written_as_json_writes_it(value: float) -> None:
    row = {"metric": 'ü"\\', "value": value, "step": 3, "time": 17}
    assert encode_record(Metric(*row.values())) == json.dumps(row, ensure_ascii=False, separators=(",", ":"))  # type: ignore[arg-type]


def test_a_metric_that_is_not_finite_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_record(Metric("a", math.inf, 0, 0))


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[1]", b'{"metric":"a"}', b'{"metric":"a","value":"x","step":1,"time":1}', b"7"]
)
def test_a_line_that_is_no_record_is_none(line: bytes) -> None:
    assert decode_record(line) is None


def test_reading_can_start_at_every_record(tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "log")
    log.append(RECORDS)
    whole = log.read(0)
    assert [record for record, _ in whole] == RECORDS
    assert whole[-1][1] == log.size
    for n, (_, offset) in enumerate(whole):
        assert [record for record, _ in log.read(offset)] == RECORDS[n + 1 :]
    assert list(log.records()) == RECORDS


def test_a_carriage_return_in_a_damaged_line_shifts_no_offset(tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "log")
    log.append(RECORDS)
    log.path.write_bytes(b"\x00\rab\r\n" + log.path.read_bytes())
    read = log.read(0)
    assert [record for record, _ in read] == [None, *RECORDS]
    assert read[-1][1] == log.size


def test_a_line_longer_than_the_limit_is_read_whole(tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "log")
    log.append([Param("p", "x" * 100), Param("q", "y")])
    assert [record for record, _ in log.read(0, limit=5)] == [Param("p", "x" * 100)]


def test_a_torn_last_line_is_not_read_and_is_cut_on_open(tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "log")
    log.append(RECORDS[:2])
    whole = log.size
    with log.path.open("ab") as file:
        file.write(b'{"metric":"a/b","val')
    assert len(log.read(0)) == 2
    log.repair()
    assert log.size == whole
    log.append(RECORDS[2:])
    assert [record for record, _ in log.read(0)] == RECORDS


def test_the_summary_of_a_run_knows_highest_steps_first_params_and_last_status(tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "log")
    log.append(
        [Metric("a", 1.0, 5, 10), Metric("a", 2.0, 3, 20), Param("p", "1"), Param("p", "2"), Status("KILLED", 30)]
    )
    logged = LoggedRun.of(log.records())
    assert logged.last_steps == {"a": 5}
    assert logged.last_values == {"a": 2.0}
    assert logged.params == {"p": "1"}
    assert (logged.status, logged.last_time) == ("KILLED", 30)


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LocalLog(tmp_path / "log")
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


def test_epoch_is_kept_only_where_it_changes() -> None:
    buffer = RowBuffer()
    for step in range(6):
        buffer.add_metrics({"loss": 1.0, "epoch": step // 3}, step, 0)
    assert [(r.step, r.value) for r in buffer.rows if r.key == "epoch"] == [(0, 0.0), (3, 1.0)]


def test_after_a_kill_the_repeated_steps_add_nothing() -> None:
    rows = [("loss", 1.0 / (s + 1), s) for s in range(10)]
    killed = LoggedRun(last_steps={"loss": 6, "epoch": 5, "summary/best": 0}, last_values={"loss": 1 / 7, "epoch": 1.0})
    buffer = RowBuffer()
    buffer.resume(killed)
    for key, value, step in rows[4:]:
        buffer.add_metrics({key: value, "epoch": step // 5}, step, 0)
    assert [(r.key, r.step) for r in buffer.rows] == [("loss", 7), ("loss", 8), ("loss", 9)]


def test_a_killed_run_that_repeats_an_epoch_stores_no_epoch_row_twice() -> None:
    buffer = RowBuffer()
    buffer.resume(LoggedRun(last_steps={"epoch": 8}, last_values={"epoch": 2.0}))
    for step in range(5, 13):
        buffer.add_metrics({"epoch": step // 4}, step, 0)
    assert [(r.step, r.value) for r in buffer.rows] == [(12, 3.0)]


def test_a_summary_has_four_digits_as_a_person_writes_it() -> None:
    buffer = RowBuffer()
    given = {"acc": 0.97222221, "loss": 0.00012345678, "seconds": 123456.78, "steps": 12345, "lr": 0.1, "text": "x"}
    buffer.add_summary(given, 5)
    stored = {row.key.removeprefix("summary/"): row.value for row in buffer.rows if isinstance(row, Metric)}
    assert stored == {"acc": 0.9722, "loss": 0.0001235, "seconds": 123457.0, "steps": 12345.0, "lr": 0.1}


def test_summaries_are_stored_again_only_where_they_changed() -> None:
    buffer = RowBuffer()
    buffer.resume(
        LoggedRun(
            last_steps={"summary/best": 0, "summary/same": 0}, last_values={"summary/best": 0.5, "summary/same": 1.0}
        )
    )
    buffer.add_summary({"best": 0.7, "same": 1.0}, 5)
    buffer.add_summary({"summary/best": 0.7}, 6)
    assert buffer.rows == [("summary/best", 0.7, 0, 5)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_values_are_counted_and_dropped(value: float, caplog: pytest.LogCaptureFixture) -> None:
    buffer = RowBuffer()
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            buffer.add("loss", value, step, 0)
            buffer.add("acc", 1.0, step, 0)
    assert buffer.nonfinite == {"loss": 3}
    assert [r.key for r in buffer.rows] == ["acc"] * 3
    assert len(caplog.records) == 1
    assert "'loss'" in caplog.text


def test_text_and_bad_names_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    buffer = RowBuffer()
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            buffer.add("a=b", 1.0, step, 0)
            buffer.add("word", "hello", step, 0)
    assert {r.key for r in buffer.rows} == {"a_b"}
    assert len(caplog.records) == 2


def test_many_rows_are_due() -> None:
    buffer = RowBuffer()
    assert not buffer.is_due()
    for step in range(2000):
        buffer.add("a", 1.0, step, 0)
    assert not buffer.is_due()
    buffer.add("a", 1.0, 2000, 0)
    assert buffer.is_due()


def test_old_rows_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.9, 105.1])
    monkeypatch.setattr("lr_lightning.tracking.local_log.time.monotonic", lambda: next(clock))
    buffer = RowBuffer()
    buffer.add("a", 1.0, 0, 0)
    assert not buffer.is_due()
    assert buffer.is_due()


def test_csv_files_hold_everything(tmp_path: Path) -> None:
    out = tmp_path / "out"
    logger = RunLogger(out, run_name="r", tags={"seed": 0}, csv=True, end_on_finalize=False)
    logger.log_hyperparams({"optimizer": {"lr": 0.1}})
    logger.log_rows([("a,b", 0.1 + 0.2, 1, 1700000000000)])
    logger.log_summary({"best": 0.5})
    logger.end("FINISHED")
    assert (out / "metrics.csv").read_text().splitlines()[:2] == [
        "key,value,step,time_ms",
        "a_b,0.30000000000000004,1,1700000000000",
    ]
    assert yaml.safe_load((out / "params.yaml").read_text()) == {"optimizer.lr": "0.1"}
    assert json.loads((out / "summary.json").read_text()) == {"summary/best": 0.5}
    run = json.loads((out / "run.json").read_text())
    assert (run["run_name"], run["status"], run["tags"]["seed"]) == ("r", "FINISHED", "0")


@pytest.mark.parametrize("lost", ["metrics.csv", "metrics.jsonl"])
def test_a_resumed_run_restores_the_file_that_was_lost(tmp_path: Path, lost: str) -> None:
    def run(steps: range, **options: bool) -> None:
        logger = RunLogger(tmp_path, tags={"seed": 0}, csv=True, end_on_finalize=False, **options)
        logger.log_hyperparams({"a": 1})
        for step in steps:
            logger.log_rows([("loss", 1 / (step + 1), step, 1000 + step)])
        logger.log_summary({"steps": len(steps)})
        logger.end("KILLED")

    run(range(5))
    (tmp_path / lost).unlink()
    if lost == "metrics.jsonl":
        with pytest.raises(TrackingError, match="already holds the log of a run"):
            run(range(5))
    run(range(3, 8), resume=True)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [(row["key"], row["step"], row["value"]) for row in csv.DictReader(file)]
    assert rows == [("loss", str(step), repr(1 / (step + 1))) for step in range(5)] + [
        ("summary/steps", "0", "5.0"),
        *(("loss", str(step), repr(1 / (step + 1))) for step in range(5, 8)),
    ]
    assert json.loads((tmp_path / "run.json").read_text())["tags"] == {
        "output_dir": str(tmp_path),
        "job": "train",
        "seed": "0",
    }
    assert yaml.safe_load((tmp_path / "params.yaml").read_text()) == {"a": "1"}


def test_a_run_keeps_the_lr_of_every_step_as_a_table(store: Store, tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "run", store, experiment="x")
    logger.start()
    logger.log_rows([(f"lr/group{g}", 0.1 / (s + 1) / (g + 1), s, 1000 + s) for s in range(500) for g in (0, 1, 10)])
    logger.log_rows([("train/loss", 1.0, s, 1000 + s) for s in range(500)])
    run_id = logger.run_id
    logger.end("FINISHED")
    path = store.root / "artifacts" / str(run_id) / "artifacts" / "lr.csv"
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["step", "lr/group0", "lr/group1", "lr/group10"]
    assert [[int(row[0]), *map(float, row[1:])] for row in rows] == [
        [s, 0.1 / (s + 1), 0.1 / (s + 1) / 2, 0.1 / (s + 1) / 11] for s in range(500)
    ]


@pytest.mark.parametrize("rows", [[], [("train/loss", 1.0, 0, 1000)]])
def test_a_run_without_lr_keeps_no_table(store: Store, tmp_path: Path, rows: list[tuple[str, float, int, int]]) -> None:
    logger = RunLogger(tmp_path / "run", store, experiment="x")
    logger.log_rows(rows)
    logger.end("FINISHED")
    assert not (tmp_path / "run" / "lr.csv").exists()
