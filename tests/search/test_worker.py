"""Searches whose trials are processes, and what becomes of them when something is killed."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.leftovers import trials

pytestmark = pytest.mark.slow
Start = Callable[..., "subprocess.Popen[str]"]


def trial_processes(search: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [p for p in psutil.Process(search.pid).children() if "lr_lightning.search.run" in p.cmdline()]


def wait_for(found: Callable[[], object], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.1)


def checkpoints(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "outputs" / "s").glob("trial-*/*/checkpoints/last.ckpt"))


def test_killed_trials_and_a_killed_driver(search_command: Start, tmp_path: Path) -> None:
    words = ["search=random", "n_trials=3", "workers=2", "sweep=s", "tracking=csv", "test=false", "data.train_size=200"]
    words += ["search.pruners=[]", "trainer.max_epochs=60"]
    search = search_command(*words)
    wait_for(lambda: len(checkpoints(tmp_path)) == 2)
    victim = min(trial_processes(search), key=lambda p: p.cmdline())
    victim.kill()  # trial 0: the search records it as failed, and goes on with trial 2
    wait_for(lambda: (tmp_path / "outputs" / "s" / "trial-0002").is_dir())
    left = trial_processes(search)
    os.kill(search.pid, signal.SIGKILL)
    for process in left:  # those that are orphans now, at the worst moment: together with their driver
        process.kill()
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in left))
    out, _ = search_command(*words).communicate(timeout=240)
    assert "its worker is gone; it is taken up again" in out, out
    found = trials(tmp_path)
    assert [row["trial"] for row in found] == ["0", "1", "2"], out
    assert [row["state"] for row in found] == ["failed", "complete", "complete"], out
    assert found[0]["reason"].startswith("killed by SIGKILL")
    folders = list((tmp_path / "outputs" / "s" / "trial-0001").glob("2*"))
    assert len(folders) == 1, "trial 1 had a checkpoint: it goes on in its folder"


def test_ctrl_c_ends_it_in_order_and_a_trial_outlives_no_driver(search_command: Start, tmp_path: Path) -> None:
    words = ["search=random", "n_trials=2", "workers=1", "sweep=s", "tracking=csv", "test=false", "data.train_size=200"]
    words += ["search.pruners=[]", "trainer.max_epochs=40"]
    search = search_command(*words)
    wait_for(lambda: checkpoints(tmp_path))
    (trial,) = trial_processes(search)
    search.send_signal(signal.SIGINT)
    out, _ = search.communicate(timeout=60)
    assert search.returncode == 130, out
    assert "nothing is lost. Go on with it:" in out
    assert not trial.is_running()

    search = search_command(*words)
    wait_for(lambda: trial_processes(search))
    (trial,) = trial_processes(search)
    search.kill()
    wait_for(lambda: not trial.is_running() or trial.status() == psutil.STATUS_ZOMBIE, 30)


def test_four_workers_share_a_database_and_one_is_killed(search_command: Start, tmp_path: Path, postgres: str) -> None:
    words = [
        "search=random",
        "n_trials=12",
        "workers=0",
        "sweep=s",
        f"storage={postgres}",
        "tracking=csv",
        "test=false",
    ]
    words += ["data.train_size=200", "trainer.max_epochs=5", "search.pruners=[]"]
    workers = [search_command(*words) for _ in range(4)]
    import optuna

    def running_of(pid: int) -> bool:
        try:
            study = optuna.load_study(study_name="s", storage=postgres)
        except KeyError:
            return False
        running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        return any(t.user_attrs.get("owner", {}).get("pid") == pid for t in running)

    victim = workers[-1]
    wait_for(lambda: running_of(victim.pid))
    victim.kill()
    outs = [worker.communicate(timeout=240)[0] for worker in workers[:3]]
    assert all(worker.returncode == 0 for worker in workers[:3]), outs
    study = optuna.load_study(study_name="s", storage=postgres)
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert sorted(t.user_attrs["ticket"] for t in complete) == list(range(12))
    assert len({t.params["optimizer.lr"] for t in complete}) == 12
    assert len({t.user_attrs["owner"]["pid"] for t in complete}) > 1
    failed = study.get_trials(states=(optuna.trial.TrialState.FAIL,))
    assert [t.user_attrs["owner"]["pid"] for t in failed] == [victim.pid]
