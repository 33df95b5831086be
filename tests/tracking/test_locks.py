import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from lr_lightning.errors import RunInUse
from lr_lightning.tracking import RunLogger, Store, mark_dead_runs, open_store
from lr_lightning.tracking.locks import Holder, RunLock, run_lock
from tests import forked
from tests.forked import Forked


def leave_behind(store: Store, run_id: str, **changes: Any) -> Path:
    """Create the files of a run whose process is gone."""
    store.lock_dir.mkdir(parents=True, exist_ok=True)
    path = store.lock_dir / f"{run_id}.lock"
    path.touch()
    holder = {"uri": store.public_uri, "output_dir": "/out", "host": socket.gethostname(), "pid": 1, **changes}
    path.with_suffix(".json").write_text(json.dumps(holder))
    return path


@pytest.fixture
def running(fake_store: Store, client: Any) -> str:
    return str(client.create_run("7", 0, {}, None).info.run_id)


def test_a_run_whose_process_is_gone_is_killed(fake_store: Store, client: Any, running: str) -> None:
    leave_behind(fake_store, running)
    assert mark_dead_runs(fake_store) == [running]
    assert client.runs[running].info.status == "KILLED"
    assert client.runs[running].info.end_time > 0
    assert not list(fake_store.lock_dir.iterdir())
    assert mark_dead_runs(fake_store) == []


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"uri": "http://other"}])
def test_runs_of_other_hosts_and_stores_are_left_alone(
    fake_store: Store, client: Any, running: str, changes: dict[str, str]
) -> None:
    path = leave_behind(fake_store, running, **changes)
    assert mark_dead_runs(fake_store) == []
    assert client.runs[running].info.status == "RUNNING"
    assert path.exists()


def test_a_live_run_is_left_alone(fake_store: Store, client: Any, running: str) -> None:
    lock = run_lock(fake_store.lock_dir, running)
    lock.acquire(Holder.here(fake_store.public_uri, "/out"))
    assert mark_dead_runs(fake_store) == []
    assert client.runs[running].info.status == "RUNNING"
    lock.release()
    assert not list(fake_store.lock_dir.iterdir())


def test_a_run_that_ended_is_not_marked(fake_store: Store, client: Any, running: str) -> None:
    client.set_terminated(running, "FINISHED", 5)
    leave_behind(fake_store, running)
    assert mark_dead_runs(fake_store) == []
    assert client.runs[running].info.status == "FINISHED"


def test_a_dead_store_and_unreadable_files_raise_nothing(fake_store: Store, client: Any, running: str) -> None:
    path = leave_behind(fake_store, running)
    (fake_store.lock_dir / "odd.json").write_text("{")
    client.down = True
    assert mark_dead_runs(fake_store) == []
    assert path.exists()
    client.down = False
    assert mark_dead_runs(fake_store) == [running]


def test_a_held_lock_names_its_holder(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path / "x.lock", "run x"), RunLock(tmp_path / "x.lock", "run x")
    first.acquire(Holder.here("uri", "/out"))
    with pytest.raises(RunInUse, match=rf"run x is still running \(pid {os.getpid()} on host {socket.gethostname()}\)"):
        second.acquire(Holder.here("uri", "/out"), timeout=0)
    first.release()
    first.release()
    second.acquire(Holder.here("uri", "/out"), timeout=0)
    second.release()


LIVE = """
import sys, time
from lr_lightning.tracking import RunLogger, open_store
logger = RunLogger(sys.argv[2], open_store(sys.argv[1]), experiment="exp", end_on_finalize=False)
for step in range(100):
    logger.log_metrics({"loss": float(step)}, step)
logger.flush()
print(logger.run_id, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_process_is_marked_and_its_run_can_be_resumed(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "live.py").write_text(LIVE)
    process = Forked(tmp_path / "live.py", str(store.root), str(out), cwd=tmp_path, env=dict(os.environ))
    while not process.out().endswith("\n"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    run_id = process.out().strip()
    with pytest.raises(RunInUse, match=rf"is still running \(pid {process.pid} on host"):
        RunLogger(out, store, experiment="exp", run_id=run_id).start()
    assert mark_dead_runs(store) == []
    process.kill()
    process.communicate()
    assert mark_dead_runs(store) == [run_id]
    assert store.run(run_id).info.status == "KILLED"
    logger = RunLogger(out, store, experiment="exp", run_id=run_id, end_on_finalize=False)
    for step in range(80, 120):
        logger.log_metrics({"loss": float(step)}, step)
    logger.end("FINISHED")
    assert store.run(run_id).info.status == "FINISHED"
    assert [m.step for m in store.client().get_metric_history(run_id, "loss")] == list(range(120))


LEAVES = """
import sys
from lr_lightning.tracking import RunLogger, open_store
logger = RunLogger(sys.argv[2], open_store(sys.argv[1]), experiment="exp")
logger.log_metrics({"loss": 1.0}, 0)
print(logger.run_id, flush=True)
sys.exit(3)
"""


@pytest.mark.slow
def test_a_process_that_exits_without_ending_its_run_loses_no_row(store: Store, tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text(LEAVES)
    words = [str(store.root), str(tmp_path / "out")]
    done = forked.run(tmp_path / "leaves.py", *words, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == 3
    run = open_store(store.root).run(done.stdout.strip())
    assert run.info.status == "KILLED"
    assert run.data.metrics == {"loss": 1.0}
