import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lr_lightning._commands import replay_command
from lr_lightning.errors import RunInUse, StoreUnavailable, TrackingError
from lr_lightning.tracking import RunLogger, Store, open_store, replay, uploader
from lr_lightning.tracking.local_log import LocalLog, Metric, Tag
from lr_lightning.tracking.replay import _start_watchdog, close_record, watchdog
from tests import forked

SCRIPT = Path(__file__).parents[2] / "scripts" / "replay.py"


def log_while_down(store: Store, client: Any, out: Path, status: str = "FINISHED") -> None:
    client.down = True
    logger = RunLogger(out, store, experiment="exp", run_name="r", end_on_finalize=False)
    for step in range(20):
        logger.log_metrics({"loss": float(step)}, step)
    logger.end(status)
    client.down = False


def test_a_run_the_store_never_saw_is_made_and_complete(fake_store: Store, client: Any, tmp_path: Path) -> None:
    log_while_down(fake_store, client, tmp_path / "out", "FAILED")
    assert client.runs == {}
    done = replay(tmp_path / "out")
    assert (done.records, done.run_id, done.uri) == (25, "run0", "http://fake.test")
    assert [row[2] for row in client.runs["run0"].rows] == list(range(20))
    assert client.runs["run0"].info.status == "FAILED"
    assert replay(tmp_path / "out").records == 0


def test_a_killed_run_is_ended_as_killed(fake_store: Store, client: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    log_while_down(fake_store, client, out)
    log = LocalLog(out / "metrics.jsonl")
    records = [r for r, _ in log.read(0) if isinstance(r, (Metric, Tag))]
    log.path.unlink()
    log.append(records)
    with log.path.open("a") as file:
        file.write('{"metric":"lo')
    assert replay(out).records == 24
    assert client.runs["run0"].info.status == "KILLED"
    assert client.runs["run0"].info.end_time == records[-1].time  # type: ignore[union-attr]


def test_an_answer_after_the_end_of_the_run_leaves_its_lock_free(
    fake_store: Store, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()
    create = client.create_run

    def slow(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        assert answer.wait(30)
        return create(*args, **kwargs)

    monkeypatch.setattr(client, "create_run", slow)
    monkeypatch.setattr(uploader, "_SERVER_CONTACT_SECONDS", 0.01)
    logger = RunLogger(tmp_path / "out", fake_store, experiment="exp", end_on_finalize=False)
    logger.log_metrics({"loss": 1.0}, 0)
    assert asked.wait(30)
    assert logger._upload is not None
    sending = logger._upload
    logger.end("FINISHED")
    left = (tmp_path / "out" / "metrics.sent").read_text()
    answer.set()
    sending.join(30)
    assert not sending.is_alive()
    assert (tmp_path / "out" / "metrics.sent").read_text() == left
    done = replay(tmp_path / "out")
    assert (done.run_id, len(client.runs)) == ("run0", 1)
    assert [row[2] for row in client.runs["run0"].rows] == [0]
    assert client.runs["run0"].info.status == "FINISHED"


def test_a_store_that_is_still_down_is_an_error(fake_store: Store, client: Any, tmp_path: Path) -> None:
    log_while_down(fake_store, client, tmp_path / "out")
    client.down = True
    with pytest.raises(StoreUnavailable):
        replay(tmp_path / "out")
    client.down = False
    assert replay(tmp_path / "out").records == 25


def test_a_live_run_is_refused(fake_store: Store, tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "out", fake_store, experiment="exp")
    logger.start()
    with pytest.raises(RunInUse, match="is still running"):
        replay(tmp_path / "out")
    logger.end("FINISHED")


def test_folders_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no such folder"):
        replay(tmp_path / "nothing")
    with pytest.raises(TrackingError, match="holds no log for a store"):
        replay(tmp_path)
    (tmp_path / "metrics.sent").write_text("{")
    with pytest.raises(TrackingError, match="not readable as the state of a run"):
        replay(tmp_path)


def left_behind(store: Store, out: Path) -> RunLogger:
    """Leave a run as a killed process does: the log has no final status, and the system has freed the locks."""
    logger = RunLogger(out, store, experiment="exp", end_on_finalize=False)
    logger.log_metrics({"loss": 1.0}, 3)
    logger.flush()
    assert logger._upload is not None
    logger._upload.close()
    logger._lock.release()
    logger._active = False
    return logger


def test_a_run_without_an_end_is_closed_as_failed(
    fake_store: Store, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_behind(fake_store, tmp_path / "out")
    assert client.runs["run0"].info.status == "RUNNING"
    close_record(tmp_path / "out")
    assert client.runs["run0"].info.status == "FAILED"
    assert "its record is closed" in capsys.readouterr().err


def test_a_run_with_an_end_keeps_it(fake_store: Store, client: Any, tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "out", fake_store, experiment="exp", end_on_finalize=False)
    logger.start()
    logger.end("FINISHED")
    close_record(tmp_path / "out")
    assert client.runs["run0"].info.status == "FINISHED"


def test_the_watchdog_of_a_record_that_was_closed_does_nothing(tmp_path: Path) -> None:
    with watchdog(tmp_path) as process:
        assert process is not None
    assert process.returncode == 0  # it did not look for a run: there is none
    with watchdog(None) as process:
        assert process is None


@pytest.mark.slow
def test_the_watchdog_closes_the_record_if_its_pipe_closes_without_a_word(store: Store, tmp_path: Path) -> None:
    run_id = left_behind(store, tmp_path / "out").run_id
    assert run_id is not None
    assert store.run(run_id).info.status == "RUNNING"
    _start_watchdog(tmp_path / "out").communicate()
    assert store.run(run_id).info.status == "FAILED"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Server:
    """A real MLflow server on loopback that can be stopped and started again."""

    def __init__(self, database: Path, cwd: Path) -> None:
        self.uri = f"http://127.0.0.1:{free_port()}"
        self._database, self._cwd = database, cwd
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", self.uri.rsplit(":", 1)[1],
            "--workers", "1", "--backend-store-uri", f"sqlite:///{self._database}",
            "--artifacts-destination", str(self._cwd / "served"),
        ]  # fmt: skip
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            command, cwd=self._cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    def wait(self, logger: RunLogger) -> None:
        """Wait until everything is uploaded; the upload thread tries again until the server is up."""
        assert logger._upload is not None
        logger._upload.close(120)


@pytest.mark.slow
def test_a_real_server_down_at_the_start_in_the_middle_and_back(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copyfile(empty_store, tmp_path / "server.db")
    server = Server(tmp_path / "server.db", tmp_path)
    store = open_store(tmp_path / "mlruns", server.uri)
    out = tmp_path / "out"
    logger = RunLogger(out, store, experiment="exp", end_on_finalize=False)
    logger.log_metrics({"loss": 0.0}, 0)
    logger.flush()
    assert logger.run_id is None
    try:
        server.start()
        server.wait(logger)
        run_id = logger.run_id
        assert run_id is not None
        assert store.run(run_id).data.metrics == {"loss": 0.0}
        server.stop()
        monkeypatch.setattr("lr_lightning.tracking.uploader._SERVER_DRAIN_SECONDS", 0.5)
        for step in range(1, 50):
            logger.log_metrics({"loss": float(step)}, step)
        logger.log_text("hello", "f.txt")
        logger.end("FINISHED")
        assert replay_command(out) in caplog.text
        gone = forked.run(SCRIPT, str(out), cwd=tmp_path, env=dict(os.environ))
        assert gone.returncode == 1
        assert "does not answer" in gone.stderr
        assert "Traceback" not in gone.stderr
        server.start()
        wait_for_port(server.uri)
        done = forked.run(SCRIPT, str(out), cwd=tmp_path, env=dict(os.environ))
        assert (done.returncode, done.stderr) == (0, "")
        assert f"sent 51 records (run {run_id} of {server.uri})" in done.stdout
        assert [m.step for m in store.client().get_metric_history(run_id, "loss")] == list(range(50))
        assert store.run(run_id).info.status == "FINISHED"
        assert [f.path for f in store.client().list_artifacts(run_id)] == ["f.txt"]
    finally:
        server.stop()


def wait_for_port(uri: str) -> None:
    """Wait until the server answers, for a limited number of attempts."""
    store = Store(uri, Path("/nowhere"), None)
    for _ in range(600):
        try:
            store.call("search_experiments", max_results=1)
        except StoreUnavailable:
            threading.Event().wait(0.2)
        else:
            return
    raise AssertionError(f"{uri} does not answer")


@pytest.mark.slow
def test_the_script_reports_what_it_did(store: Store, tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "out", store, experiment="exp")
    logger.log_metrics({"a": 1.0}, 0)
    logger.end("FINISHED")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing was left to send" in done.stdout
    missing = forked.run(SCRIPT, str(tmp_path / "no"), cwd=tmp_path, env=dict(os.environ))
    assert missing.returncode == 1
    assert "no such folder" in missing.stderr
