import csv
import errno
import logging
import pickle
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities import rank_zero_only
from lightning.pytorch.demos.boring_classes import BoringModel

from lr_lightning._commands import replay_command
from lr_lightning._loggers import DRAWING
from lr_lightning.errors import ArgumentError, RunInUse, TrackingError
from lr_lightning.tracking import RunLogger, Store, local_log, replay, uploader
from lr_lightning.tracking.local_log import Artifact, LocalLog, Metric, Status, UploadState

KINDS = ["mlflow", "csv", "none"]


def make(kind: str, store: Store, out: Path, **options: Any) -> RunLogger:
    options.setdefault("end_on_finalize", False)
    return RunLogger(out, store if kind == "mlflow" else None, experiment="exp", csv=kind == "csv", **options)


def stored(kind: str, out: Path, key: str) -> list[tuple[int, float]]:
    """(step, value) of ``key`` in the local log, in order; a CSV file has the same rows."""
    metrics = [record for record in LocalLog(out / "metrics.jsonl").records() if isinstance(record, Metric)]
    assert (out / "metrics.csv").exists() == (kind == "csv")
    if kind == "csv":
        with (out / "metrics.csv").open() as file:
            rows = [(r["key"], float(r["value"]), int(r["step"]), int(r["time_ms"])) for r in csv.DictReader(file)]
        assert rows == metrics
    return [(metric.step, metric.value) for metric in metrics if metric.key == key]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_before_the_first_use(kind: str, fake_store: Store, client: Any, tmp_path: Path) -> None:
    logger = make(kind, fake_store, tmp_path / "out")
    assert logger.save_dir == str(tmp_path / "out")
    pickle.loads(pickle.dumps(logger))
    logger.finalize("success")
    assert not (tmp_path / "out").exists()
    assert client.calls == []


@pytest.mark.parametrize("kind", KINDS)
def test_rows_wait_in_memory_until_a_flush(kind: str, fake_store: Store, tmp_path: Path) -> None:
    logger = make(kind, fake_store, tmp_path / "out")
    logger.log_metrics({"loss": 1.5}, 3)
    logger.save()
    assert stored(kind, tmp_path / "out", "loss") == []
    logger.flush()
    assert stored(kind, tmp_path / "out", "loss") == [(3, 1.5)]
    logger.end("FINISHED")


@pytest.mark.parametrize("kind", KINDS)
def test_old_rows_are_written_at_the_next_log_call(kind: str, fake_store: Store, tmp_path: Path) -> None:
    logger = make(kind, fake_store, tmp_path / "out")
    logger.log_metrics({"loss": 1.5}, 3)
    logger._buffer._oldest -= 6
    assert stored(kind, tmp_path / "out", "loss") == []
    logger.log_metrics({"loss": 1.0}, 4)
    assert stored(kind, tmp_path / "out", "loss") == [(3, 1.5), (4, 1.0)]
    logger.end("FINISHED")


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_stores_no_row_twice_and_misses_none(kind: str, fake_store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    logger = make(kind, fake_store, out)
    for step in range(10):
        logger.log_metrics({"loss": 1 / (step + 1), "epoch": step // 4}, step)
    logger.log_summary({"best": 0.5})
    logger.end("KILLED")
    again = make(kind, fake_store, out, resume=True)
    for step in range(6, 14):
        again.log_metrics({"loss": 1 / (step + 1), "epoch": step // 4}, step)
    again.log_rows([("loss", 9.0, 2, 5), ("loss", 9.0, 14, 5)])
    again.log_summary({"best": 0.75})
    again.end("FINISHED")
    assert stored(kind, out, "loss") == [(s, 1 / (s + 1)) for s in range(14)] + [(14, 9.0)]
    assert stored(kind, out, "epoch") == [(0, 0.0), (4, 1.0), (8, 2.0), (12, 3.0)]
    assert stored(kind, out, "summary/best") == [(0, 0.5), (0, 0.75)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_torn_line_is_cut_when_a_run_is_resumed(kind: str, fake_store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    logger = make(kind, fake_store, out)
    logger.log_metrics({"loss": 1.0}, 1)
    logger.end("KILLED")
    for name, torn in (("metrics.jsonl", '{"metric":"lo'), *([("metrics.csv", "loss,2.")] if kind == "csv" else [])):
        with (out / name).open("a") as file:
            file.write(torn)
    again = make(kind, fake_store, out, resume=True)
    again.log_metrics({"loss": 2.0}, 2)
    again.end("FINISHED")
    assert stored(kind, out, "loss") == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("kind", KINDS)
def test_another_run_in_the_same_folder_is_refused(kind: str, fake_store: Store, tmp_path: Path) -> None:
    first = make(kind, fake_store, tmp_path / "out")
    first.start()
    with pytest.raises(RunInUse, match=r"is still running \(pid \d+ on host .+\)"):
        make(kind, fake_store, tmp_path / "out", resume=True).start()
    first.end("FINISHED")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_with_a_run_needs_resume(kind: str, fake_store: Store, tmp_path: Path) -> None:
    logger = make(kind, fake_store, tmp_path / "out")
    logger.log_metrics({"a": 1.0}, 0)
    logger.end("FINISHED")
    with pytest.raises(TrackingError, match="already holds the log of a run"):
        make(kind, fake_store, tmp_path / "out").start()


@pytest.mark.parametrize("kind", KINDS)
def test_end_is_final_and_idempotent(
    kind: str, fake_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = make(kind, fake_store, tmp_path / "out")
    with pytest.raises(ValueError, match="status must be one of 'FINISHED', 'FAILED', 'KILLED', got 'done'"):
        logger.end("done")
    logger.log_metrics({"a": 1.0}, 0)
    logger.end("FAILED")
    logger.end("FINISHED")
    logger.log_metrics({"a": 2.0}, 1)
    assert "the run has ended" in caplog.text
    assert stored(kind, tmp_path / "out", "a") == [(0, 1.0)]


@pytest.mark.parametrize("kind", KINDS)
def test_other_ranks_do_nothing(
    kind: str, fake_store: Store, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = make(kind, fake_store, tmp_path / "out")
    logger.start()
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_hyperparams({"a": 1})
    logger.set_tags({"a": 1})
    logger.log_text("x", "f.txt")
    logger.end("FINISHED")
    assert logger.run_id is None
    assert not (tmp_path / "out").exists()
    assert client.calls == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ""])
def test_an_artifact_cannot_leave_its_folder(fake_store: Store, tmp_path: Path, name: str) -> None:
    logger = make("mlflow", fake_store, tmp_path / "out")
    with pytest.raises(ValueError, match="must be a relative path"):
        logger.log_text("x", name)
    logger.end("FAILED")


@pytest.mark.parametrize("folder", ["../../evil", "/evil", "a/../../evil"])
@pytest.mark.parametrize("source", ["out/f.txt", "f.txt"])
def test_an_artifact_folder_is_checked_wherever_the_file_lies(source: str, folder: str, tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "out", end_on_finalize=False)
    logger.start()
    (tmp_path / source).write_text("x")
    before = sorted(tmp_path.rglob("*")), (tmp_path / "out" / "metrics.jsonl").read_bytes()
    with pytest.raises(ArgumentError, match="must be a relative path"):
        logger.log_artifact(tmp_path / source, folder)
    assert (sorted(tmp_path.rglob("*")), (tmp_path / "out" / "metrics.jsonl").read_bytes()) == before
    logger.end("FAILED")


def test_a_file_that_only_seems_to_lie_in_the_run_is_copied(fake_store: Store, tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("x")
    logger = make("mlflow", fake_store, tmp_path / "out")
    logger.log_artifact(tmp_path / "out" / ".." / "f.txt")
    logger.end("FINISHED")
    assert (tmp_path / "out" / "artifacts" / "f.txt").read_text() == "x"


@pytest.mark.parametrize("to", [None, "a/b"])
@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_folder_is_not_copied_into_itself(through_a_link: bool, to: str | None, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    logger = RunLogger(runs / "out", end_on_finalize=False)
    logger.start()
    source = runs
    if through_a_link:
        source = tmp_path / "link"
        source.symlink_to(runs)
    with pytest.raises(ArgumentError, match=r"log_artifact: .* would be copied into itself, to .*out/artifacts"):
        logger.log_artifact(source, to)
    assert not (runs / "out" / "artifacts").exists()
    logger.end("FAILED")


def test_artifacts_from_elsewhere_are_copied_and_all_are_sent(fake_store: Store, client: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    outside = tmp_path / "f.txt"
    outside.write_text("x")
    logger = make("mlflow", fake_store, tmp_path / "out")
    logger.log_artifact(outside, "notes")
    outside.unlink()
    logger.log_text("y", "config/c.yaml")
    logger.log_figure(Figure(), "plots/lr.png")
    with pytest.raises(FileNotFoundError, match="no such file"):
        logger.log_artifact(tmp_path / "nothing")
    logger.end("FINISHED")
    assert client.artifacts == [("f.txt", "notes"), ("c.yaml", "config"), ("lr.png", "plots")]
    assert (tmp_path / "out" / "artifacts" / "plots" / "lr.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_is_slow_to_draw_holds_up_nothing_but_the_end(
    fake_store: Store, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    may_draw, drawn_in = threading.Event(), []

    class Slow:
        def savefig(self, path: Path, **kwargs: Any) -> None:
            assert may_draw.wait(10)
            drawn_in.append(threading.current_thread())
            path.write_text("drawn")

    class Bad:
        def savefig(self, path: Path, **kwargs: Any) -> None:
            raise ValueError("no such font")

    logger = make("mlflow", fake_store, tmp_path / "out")
    logger.log_figure(Slow(), "slow.png")  # type: ignore[arg-type]
    logger.log_figure(Bad(), "bad.png")  # type: ignore[arg-type]
    logger.log_metrics({"a": 1.0}, 0)
    logger.flush()
    assert drawn_in == []
    may_draw.set()
    with caplog.at_level(logging.WARNING):
        logger.end("FINISHED")
    assert drawn_in != [threading.main_thread()]
    assert client.artifacts == [("slow.png", None)]
    assert "bad.png could not be drawn: ValueError: no such font" in caplog.text


def test_one_figure_is_drawn_by_one_thread_at_a_time(tmp_path: Path) -> None:
    inside, most = [0], [0]

    class Watched:
        def savefig(self, path: Path, **kwargs: Any) -> None:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.1)
            inside[0] -= 1
            path.write_text("drawn")

    loggers = [RunLogger(tmp_path / name, end_on_finalize=False) for name in ("a", "b")]
    with DRAWING:  # as another logger has it while it draws
        for logger in loggers:
            logger.log_figure(Watched(), "same.png")  # type: ignore[arg-type]
        time.sleep(0.2)
        assert most == [0]
    while not all((logger.output_dir / "artifacts" / "same.png").exists() for logger in loggers):
        time.sleep(0.01)
    assert most == [1]
    time.sleep(0.05)
    loggers[0].log_metrics({"a": 1.0}, 0)  # from here on a kill does not lose the figure
    assert any(isinstance(record, Artifact) for record in LocalLog(tmp_path / "a" / "metrics.jsonl").records())
    for logger in loggers:
        logger.end("FINISHED")
        pickle.dumps(logger._drawings)


def test_params_are_long_dotted_and_never_change(fake_store: Store, client: Any, tmp_path: Path) -> None:
    logger = make("mlflow", fake_store, tmp_path / "out")
    logger.log_hyperparams({"optimizer": {"lr": 0.1}, "long": "x" * 6001, "fits": "x" * 6000})
    logger.end("KILLED")
    again = make("mlflow", fake_store, tmp_path / "out", resume=True)
    again.log_hyperparams({"optimizer": {"lr": 0.2}, "new": None})
    again.end("FINISHED")
    data = client.runs["run0"].data
    assert data.params["optimizer.lr"] == "0.1"
    assert data.params["new"] == "None"
    assert data.params["fits"] == "x" * 6000
    assert data.params["long"].endswith("... (6001 characters, cut)")
    assert data.tags["resumed.optimizer.lr"] == "0.2"


def test_a_resumed_run_is_the_same_run_and_ends_finished(fake_store: Store, client: Any, tmp_path: Path) -> None:
    logger = make("mlflow", fake_store, tmp_path / "out", tags={"seed": 0}, run_name="r")
    assert logger.version == logger.run_id == "run0"
    logger.end("FAILED")
    assert client.runs["run0"].info.status == "FAILED"
    again = RunLogger(tmp_path / "out", fake_store, experiment="exp", run_id="run0")
    again.start()
    assert again.run_id == "run0"
    again.end("FINISHED")
    assert client.runs["run0"].statuses == ["RUNNING", "FAILED", "RUNNING", "FINISHED"]
    assert client.runs["run0"].data.tags["output_dir"] == str(tmp_path / "out")
    assert client.runs["run0"].data.tags["seed"] == "0"


def test_a_run_of_another_folder_or_of_no_store_is_refused(fake_store: Store, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="there is no run 'nope'"):
        RunLogger(tmp_path / "new", fake_store, experiment="exp", run_id="nope").start()
    for name in ("one", "two"):
        logger = make("mlflow", fake_store, tmp_path / name)
        logger.start()
        logger.end("FINISHED")
    with pytest.raises(TrackingError, match="holds run run1, not run0"):
        RunLogger(tmp_path / "two", fake_store, experiment="exp", run_id="run0").start()


def test_a_dead_server_stops_nothing_and_replay_is_named(
    fake_store: Store, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client.down = True
    logger = make("mlflow", fake_store, tmp_path / "out")
    with caplog.at_level(logging.WARNING):
        logger.log_metrics({"loss": 1.0}, 0)
        assert logger.run_id is None
        assert logger.version == "out"
        logger.experiment.log_text("run", "x", "y")  # a stand-in: Lightning touches it before every fit
        logger.end("FINISHED")
    assert stored("mlflow", tmp_path / "out", "loss") == [(0, 1.0)]
    assert sum("does not answer" in r.message and "Training continues" in r.message for r in caplog.records) == 1
    assert replay_command(tmp_path / "out") in caplog.records[-1].message
    assert "6 records were not uploaded" in caplog.records[-1].message


def test_a_server_that_went_away_and_came_back_has_everything(fake_store: Store, client: Any, tmp_path: Path) -> None:
    logger = make("mlflow", fake_store, tmp_path / "out")
    for step in range(60):
        client.down = 20 <= step < 40
        logger.log_metrics({"loss": float(step)}, step)
        logger.flush()
    logger.end("FINISHED")
    assert [row[2] for row in client.runs["run0"].rows] == list(range(60))
    assert client.runs["run0"].info.status == "FINISHED"


def test_a_new_store_gets_the_whole_log(fake_store: Store, client: Any, make_store: Any, tmp_path: Path) -> None:
    logger = make("mlflow", fake_store, tmp_path / "out")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.end("KILLED")
    other = make_store("other")
    again = RunLogger(tmp_path / "out", other, experiment="exp", resume=True)
    again.log_metrics({"loss": 2.0}, 1)
    run_id = again.run_id
    assert isinstance(run_id, str)
    again.end("FINISHED")
    assert [(m.step, m.value) for m in other.client().get_metric_history(run_id, "loss")] == [(0, 1.0), (1, 2.0)]


def test_without_its_folder_a_run_is_resumed_from_the_store(store: Store, tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "out", store, experiment="exp", end_on_finalize=False)
    for step in range(5):
        logger.log_metrics({"loss": float(step)}, step)
    logger.log_hyperparams({"a": 1})
    logger.end("KILLED")
    run_id = logger.run_id
    again = RunLogger(tmp_path / "elsewhere", store, experiment="exp", run_id=run_id, end_on_finalize=False)
    for step in range(3, 8):
        again.log_metrics({"loss": float(step)}, step)
    again.log_hyperparams({"a": 2})
    again.end("FINISHED")
    assert again.run_id == run_id
    run = store.run(str(run_id))
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1"}
    assert run.data.tags["resumed.a"] == "2"
    assert [m.step for m in store.client().get_metric_history(run_id, "loss")] == list(range(8))


def first_half(store: Store, out: Path) -> str:
    """Log four steps of a run, stop it, and return its id."""
    logger = RunLogger(out, store, experiment="exp", end_on_finalize=False)
    for step in range(4):
        logger.log_metrics({"loss": float(step)}, step)
    logger.end("KILLED")
    return str(logger.run_id)


def resume(store: Store, out: Path, end: int) -> str:
    again = RunLogger(out, store, experiment="exp", resume=True, end_on_finalize=False)
    for step in range(2, end):
        again.log_metrics({"loss": float(step)}, step)
    again.end("FINISHED")
    return str(again.run_id)


def test_a_state_of_another_run_is_refused_and_one_that_was_removed_is_found_again(
    store: Store, tmp_path: Path
) -> None:
    mine, other = first_half(store, tmp_path / "mine"), first_half(store, tmp_path / "other")
    state = tmp_path / "mine" / "metrics.sent"
    shutil.copy(tmp_path / "other" / "metrics.sent", state)
    for starts in (lambda: resume(store, tmp_path / "mine", 6), lambda: replay(tmp_path / "mine")):
        with pytest.raises(TrackingError, match=r"metrics.sent: is of another run than metrics.jsonl"):
            starts()
    state.unlink()
    assert resume(store, tmp_path / "mine", 6) == mine
    rows = {run: [m.step for m in store.client().get_metric_history(run, "loss")] for run in (mine, other)}
    assert rows == {mine: list(range(6)), other: list(range(4))}


def test_rows_that_a_log_has_lost_are_not_stored_twice(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_id = first_half(store, out)
    log = out / "metrics.jsonl"
    log.write_bytes(log.read_bytes().split(b'{"metric":"loss","value":2.0')[0])
    assert resume(store, out, 6) == run_id
    assert [m.step for m in store.client().get_metric_history(run_id, "loss")] == list(range(6))
    assert store.run(run_id).info.status == "FINISHED"


def test_a_stale_copy_of_a_resumed_run_is_refused(store: Store, tmp_path: Path) -> None:
    run_id = first_half(store, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    assert resume(store, tmp_path / "copy", 6) == run_id
    with pytest.raises(TrackingError, match=r"was resumed in .*copy, and has rows that .*out lacks"):
        resume(store, tmp_path / "out", 6)
    assert resume(store, tmp_path / "copy", 8) == run_id
    shutil.move(tmp_path / "copy", tmp_path / "moved")
    assert resume(store, tmp_path / "moved", 9) == run_id
    assert [m.step for m in store.client().get_metric_history(run_id, "loss")] == list(range(9))


def test_a_run_whose_store_was_replaced_says_how_to_resume_it(store: Store, tmp_path: Path, make_store: Any) -> None:
    out = tmp_path / "out"
    run_id = first_half(store, out)
    other = make_store("other")
    replace(UploadState.load(out), uri=other.uri).save(out)  # type: ignore[type-var]
    with pytest.raises(TrackingError, match=r"there is no run .*remove .*metrics.sent and resume"):
        resume(other, out, 6)
    (out / "metrics.sent").unlink()
    new = resume(other, out, 6)
    assert new != run_id
    assert [m.step for m in other.client().get_metric_history(new, "loss")] == list(range(6))


def test_a_disk_without_room_at_the_start_holds_no_lock(
    fake_store: Store, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for written in ("local_log.append_bytes", "local_log.write_atomically", "locks.write_atomically"):
        with monkeypatch.context() as patch:
            patch.setattr(f"lr_lightning.tracking.{written}", full)
            with pytest.raises(OSError, match="No space left"):
                make("mlflow", fake_store, tmp_path / written).start()
        again = make("mlflow", fake_store, tmp_path / written, resume=True)
        again.start()
        again.end("FINISHED")
        assert [run.info.status for run in client.runs.values() if run.info.run_id == again.run_id] == ["FINISHED"]


@pytest.mark.parametrize("folder", ["out", "elsewhere"])
def test_a_clock_set_back_leaves_the_newest_summary_and_a_duration(
    folder: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = RunLogger(tmp_path / "out", store, experiment="exp", end_on_finalize=False)
    logger.log_summary({"best": 0.5})
    logger.end("KILLED")
    run_id = str(logger.run_id)
    an_hour_ago = time.time() - 3600
    monkeypatch.setattr(local_log.time, "time", lambda: an_hour_ago)
    again = RunLogger(tmp_path / folder, store, experiment="exp", run_id=run_id, end_on_finalize=False)
    again.log_summary({"best": 0.25})
    again.end("FINISHED")
    run = store.run(run_id)
    assert run.data.metrics == {"summary/best": 0.25}
    assert run.info.end_time > run.info.start_time


@pytest.mark.parametrize("where", ["log", "state"])
def test_the_store_learns_the_end_of_a_run_whose_disk_is_full(
    fake_store: Store, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    logger = RunLogger(tmp_path / "out", fake_store, experiment="exp", end_on_finalize=False)
    logger.log_metrics({"loss": 1.0}, 3)
    logger.flush()
    assert logger.run_id == "run0"

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "log":
        monkeypatch.setattr(local_log, "append_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            logger.end("FINISHED")
    else:
        monkeypatch.setattr(local_log, "write_atomically", full)
        logger.end("FAILED")
    assert client.runs["run0"].info.status == "FAILED"


@pytest.mark.parametrize("kind", ["csv", "none"])
def test_a_run_without_a_store_that_gets_one_uploads_its_whole_log(
    kind: str, fake_store: Store, client: Any, tmp_path: Path
) -> None:
    logger = make(kind, fake_store, tmp_path / "out", tags={"seed": 0})
    logger.log_metrics({"loss": 1.0}, 0)
    assert (logger.run_id, logger.experiment_id, logger.version) == (None, None, "out")
    logger.experiment.log_text("run", "x", "y")  # a stand-in, for code that expects MLflow's client
    logger.end("KILLED")
    again = make("mlflow", fake_store, tmp_path / "out", resume=True)
    again.log_metrics({"loss": 2.0}, 1)
    again.end("FINISHED")
    assert [(row[1], row[2]) for row in client.runs["run0"].rows] == [(1.0, 0), (2.0, 1)]
    assert (client.runs["run0"].data.tags["seed"], client.runs["run0"].data.tags["job"]) == ("0", "train")
    first = next(LocalLog(tmp_path / "out" / "metrics.jsonl").records())
    assert isinstance(first, Status)
    assert client.runs["run0"].info.start_time == first.time


def test_code_that_looks_for_lightnings_mlflow_logger_finds_this_one(fake_store: Store, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import MLFlowLogger

    assert isinstance(make("mlflow", fake_store, tmp_path / "out"), MLFlowLogger)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "output_dir must be given if there is no store"),
        ({"output_dir": "out", "run_id": "r"}, "run_id 'r' needs the store of that run"),
        ({"output_dir": "out", "experiment": " "}, "experiment must be a name, got ' '"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RunLogger(**options)


def test_a_deleted_experiment_is_an_error_at_the_start(fake_store: Store, client: Any, tmp_path: Path) -> None:
    client.deleted = True
    with pytest.raises(TrackingError, match="was deleted"):
        RunLogger(tmp_path / "out", fake_store, experiment="exp").start()


class Model(BoringModel):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("test/loss", self(batch).sum())


def trainer(logger: RunLogger, root: Path, **options: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    limits = {"limit_train_batches": 4, "limit_val_batches": 1, "limit_test_batches": 1}
    return L.Trainer(
        logger=logger,
        default_root_dir=root,
        max_epochs=2,
        log_every_n_steps=1,
        accelerator="cpu",
        **limits,
        **quiet,
        **options,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_trainer_fit_and_test_are_one_run(
    kind: str, fake_store: Store, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    out = tmp_path / "out"
    logger = make(kind, fake_store, out, end_on_finalize=True)
    t = trainer(logger, tmp_path / "root")
    t.fit(Model())
    t.test(Model())
    assert [step for step, _ in stored(kind, out, "train/loss")] == list(range(8))
    assert len(stored(kind, out, "test/loss")) == 1
    assert [value for _, value in stored(kind, out, "epoch")] == [0.0, 1.0, 2.0]
    assert not list((tmp_path / "cwd").iterdir())
    assert list(out.rglob("*.ckpt"))
    if kind == "mlflow":
        assert client.runs["run0"].statuses == ["RUNNING", "FINISHED", "RUNNING", "FINISHED"]
        assert list(client.runs) == ["run0"]
        assert client.artifacts == []


def test_an_exception_in_training_ends_the_run_failed(fake_store: Store, client: Any, tmp_path: Path) -> None:
    class Failing(Model):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            if self.global_step == 3:
                raise RuntimeError("boom")
            return super().training_step(batch, batch_idx)

    logger = RunLogger(tmp_path / "out", fake_store, experiment="exp")
    with pytest.raises(RuntimeError, match="boom"):
        trainer(logger, tmp_path / "root", enable_checkpointing=False).fit(Failing())
    assert client.runs["run0"].info.status == "FAILED"
    assert [r[2] for r in client.runs["run0"].rows if r[0] == "train/loss"] == [0, 1, 2]


@pytest.fixture
def ready(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A local store that has the experiment, as a process finds it that has not imported MLflow."""
    store.experiment_id("exp")
    monkeypatch.setattr(uploader, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(uploader, "_LATE_START_SECONDS", 600.0)
    return store


def test_a_ready_store_is_not_waited_for_and_gets_everything_at_the_end(ready: Store, tmp_path: Path) -> None:
    logger = make("mlflow", ready, tmp_path / "out")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.flush()
    assert not logger.is_connected
    assert not ready.call("search_runs", [ready.experiment_id("exp")])
    logger.end("FINISHED")
    assert logger.run_id is not None
    run = ready.run(logger.run_id)
    assert (run.info.status, run.data.metrics["loss"]) == ("FINISHED", 1.0)


def test_who_asks_for_the_run_of_a_ready_store_waits_for_it(ready: Store, tmp_path: Path) -> None:
    by_id, by_client = (make("mlflow", ready, tmp_path / name) for name in ("id", "client"))
    client = by_client.experiment  # Lightning does this before every fit
    assert not by_client.is_connected
    assert client.get_experiment_by_name("exp") is not None
    assert by_client.is_connected
    assert by_id.run_id is not None
    for logger in (by_id, by_client):
        logger.end("FINISHED")


def test_a_ready_store_that_is_gone_is_a_warning(
    ready: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = make("mlflow", ready, tmp_path / "out")
    logger.log_metrics({"loss": 1.0}, 0)
    ready.call("delete_experiment", ready.experiment_id("exp"))
    with caplog.at_level(logging.WARNING):
        logger.end("FINISHED")
    assert any("upload to the tracking store has stopped" in r.message for r in caplog.records)
    assert "python scripts/replay.py" in caplog.records[-1].message
