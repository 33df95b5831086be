"""Searches in real processes, and what becomes of them when one is killed."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.leftovers import trials

pytestmark = pytest.mark.slow
Start = Callable[..., "subprocess.Popen[str]"]


def workers_of(search: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that train, which the search's fork server has forked."""
    servers = [p for p in psutil.Process(search.pid).children() if "lr_lightning.search.worker" in p.cmdline()]
    return [worker for server in servers for worker in server.children()]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_for(found: Callable[[], object], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.1)


def checkpoints(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "outputs" / "s").glob("trial-*/*/checkpoints/last.ckpt"))


def test_a_killed_worker_and_a_killed_search(search_command: Start, tmp_path: Path) -> None:
    words = ["search=random", "n_trials=3", "workers=2", "sweep=s", "tracking=csv", "test=false", "data.train_size=200"]
    words += ["search.pruners=[]", "trainer.max_epochs=60"]
    search = search_command(*words)
    wait_for(lambda: len(checkpoints(tmp_path)) == 2)
    victim, other = workers_of(search)
    victim.kill()  # its trial is put back, and another worker resumes it
    wait_for(lambda: len(workers_of(search)) == 2 and victim not in workers_of(search))
    assert other in workers_of(search)
    left = workers_of(search)
    os.kill(search.pid, signal.SIGKILL)
    for process in left:  # at the worst moment: the workers together with their search
        process.kill()
    wait_for(lambda: all(map(is_gone, left)))
    out, _ = search.communicate(timeout=60)
    assert "killed by SIGKILL, perhaps because memory ran out" in out
    assert "it is resumed" in out
    out, _ = search_command(*words).communicate(timeout=240)
    assert "its worker is gone; it is resumed" in out, out
    assert [(row["trial"], row["state"]) for row in trials(tmp_path)] == [(n, "complete") for n in "012"], out
    for number in (0, 1):
        folders = list((tmp_path / "outputs" / "s" / f"trial-000{number}").glob("2*"))
        assert len(folders) == 1, "it had a checkpoint, and is resumed in its folder"


def test_ctrl_c_ends_it_in_order_and_a_worker_outlives_no_search(search_command: Start, tmp_path: Path) -> None:
    words = ["search=random", "n_trials=2", "workers=1", "sweep=s", "tracking=csv", "test=false", "data.train_size=200"]
    words += ["search.pruners=[]", "trainer.max_epochs=40"]
    search = search_command(*words)
    wait_for(lambda: checkpoints(tmp_path))
    wait_for(lambda: len(workers_of(search)) == 1)  # the smoke test's worker is gone
    (worker,) = workers_of(search)
    search.send_signal(signal.SIGINT)
    out, _ = search.communicate(timeout=60)
    assert search.returncode == 130, out
    assert "nothing is lost. Resume it:" in out
    wait_for(lambda: is_gone(worker), 10)

    before = checkpoints(tmp_path)[0].stat().st_mtime_ns
    search = search_command(*words)
    wait_for(lambda: checkpoints(tmp_path)[0].stat().st_mtime_ns > before)  # then the smoke test's worker is gone
    (worker,) = workers_of(search)
    search.kill()
    wait_for(lambda: is_gone(worker), 30)


def test_two_searches_share_a_study_and_its_budget(search_command: Start, tmp_path: Path) -> None:
    words = ["search=random", "n_trials=7", "workers=1", "sweep=s", "tracking=csv", "test=false", "data.train_size=200"]
    searches = [search_command(*words, "search.pruners=[]", "trainer.max_epochs=3") for _ in range(2)]
    outs = [search.communicate(timeout=240)[0] for search in searches]
    assert [search.returncode for search in searches] == [0, 0], outs
    assert [(row["trial"], row["state"]) for row in trials(tmp_path)] == [(str(n), "complete") for n in range(7)]
    assert sum(out.count("] trial ") for out in outs) == 7


def test_four_machines_share_a_database_and_one_is_killed(search_command: Start, tmp_path: Path, postgres: str) -> None:
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
    assert sorted(t.user_attrs["trial"] for t in complete) == list(range(12))
    assert len({t.params["optimizer.lr"] for t in complete}) == 12
    assert len({t.user_attrs["owner"]["pid"] for t in complete}) > 1
    failed = study.get_trials(states=(optuna.trial.TrialState.FAIL,))
    assert [t.user_attrs["owner"]["pid"] for t in failed] == [victim.pid]


def test_a_trial_with_two_processes_is_a_process_group_that_ends_with_it(search_command: Start, tmp_path: Path) -> None:
    words = ["search=random", "n_trials=1", "sweep=s", "tracking=csv", "test=false", "data.train_size=200"]
    words += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=2"]
    search = search_command(*words)

    pairs: list[tuple[psutil.Process, psutil.Process]] = []  # each leader with its rank, seen at one moment
    groups: set[tuple[int, int, int]] = set()

    def seen() -> bool:
        with suppress(psutil.NoSuchProcess, ProcessLookupError):  # one that has just ended
            for leader in psutil.Process(search.pid).children():
                for rank in leader.children() if "worker" in leader.cmdline() else ():
                    groups.add((leader.pid, os.getpgid(leader.pid), os.getpgid(rank.pid)))
                    pairs.append((leader, rank))
        return bool(pairs)

    wait_for(seen)
    assert all(leader == group == rank for leader, group, rank in groups)
    out, _ = search.communicate(timeout=240)
    assert [row["state"] for row in trials(tmp_path)] == ["complete"], out
    assert all(map(is_gone, pairs[0]))
