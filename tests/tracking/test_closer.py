"""The record of a run whose process can no longer close it: killed, or on a disk that is full."""

import errno
from pathlib import Path
from typing import Any

import pytest

from lr_lightning.errors import TrackingError
from lr_lightning.tracking import MLflowLogger, Store
from lr_lightning.tracking import local_log as state_module
from lr_lightning.tracking import local_log as wal_module
from lr_lightning.tracking.replay import Closer, close
from lr_lightning.tracking.store import explain


def left_behind(store: Store, out: Path) -> MLflowLogger:
    """A logger as its process leaves it that is killed: the log has no end, and the system has freed the locks."""
    logger = MLflowLogger(store, "exp", out, end_on_finalize=False)
    logger.log_metrics({"loss": 1.0}, 3)
    logger.flush()
    logger._close()
    logger._lock.release()
    logger._active = False
    return logger


def test_a_run_without_an_end_is_closed_as_failed(
    fake_store: Store, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_behind(fake_store, tmp_path / "out")
    assert client.runs["run0"].info.status == "RUNNING"
    close(tmp_path / "out")
    assert client.runs["run0"].info.status == "FAILED"
    assert "its record is closed" in capsys.readouterr().err


def test_a_run_with_an_end_keeps_it(fake_store: Store, client: Any, tmp_path: Path) -> None:
    logger = MLflowLogger(fake_store, "exp", tmp_path / "out", end_on_finalize=False)
    logger.start()
    logger.end("FINISHED")
    close(tmp_path / "out")
    assert client.runs["run0"].info.status == "FINISHED"


def test_the_closer_of_a_record_that_was_closed_does_nothing(tmp_path: Path) -> None:
    with Closer(tmp_path) as closer:
        process = closer._process
    assert process is not None
    assert process.returncode == 0  # it has not looked for a run: there is none
    with Closer(None) as closer:
        assert closer._process is None


@pytest.mark.parametrize("where", ["log", "state"])
def test_the_store_learns_the_end_of_a_run_whose_disk_is_full(
    fake_store: Store, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    logger = MLflowLogger(fake_store, "exp", tmp_path / "out", end_on_finalize=False)
    logger.log_metrics({"loss": 1.0}, 3)
    logger.flush()
    assert logger.run_id == "run0"

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "log":
        monkeypatch.setattr(wal_module, "append_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            logger.end("FINISHED")
    else:
        monkeypatch.setattr(state_module, "write_atomically", full)
        logger.end("FAILED")
    assert client.runs["run0"].info.status == "FAILED"


@pytest.mark.parametrize(
    "text",
    [
        "(sqlite3.OperationalError) attempt to write a readonly database",
        "cannot execute INSERT in a read-only transaction",
    ],
)
def test_a_store_that_can_only_be_read_is_an_error_before_training(text: str) -> None:
    assert isinstance(explain(RuntimeError(text), "sqlite:////x/mlflow.db"), TrackingError)
