"""Whole searches by their command line, whose trials a stand-in trains in no time."""

import errno
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError
from rich.console import Console

from lr_lightning.app.config import Config
from lr_lightning.app.run import train as train_module
from lr_lightning.app.run.signals import Interrupted
from lr_lightning.app.run.train import RunOutcome
from lr_lightning.errors import ConfigError, Diverged
from lr_lightning.search.engine import Engine
from lr_lightning.search.report import Progress
from lr_lightning.search.study import Study
from lr_lightning.search.task import Task, TaskResult, TaskStatus
from lr_lightning.search.worker import run_task
from tests.leftovers import trials
from tests.search.stand_ins import UNTRACKED, InstantWorker, InstantWorkers, Run, Searched, Trainings, valley


def test_the_grid_trains_each_lr_once_and_again_does_nothing(
    run: Run, trainings: Trainings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search=grid", *UNTRACKED, "trainer.max_epochs=2") == 0
    lrs = [config.optimizer.lr for config in trainings.configs]
    assert lrs == [0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316, 1.0]
    tags = [config.tracking.tags for config in trainings.configs]
    assert [(t["sweep"], t["trial"]) for t in tags] == [("s", str(i)) for i in range(7)]
    out = capsys.readouterr().out
    command = next(line.split(":  ", 1)[1] for line in out.splitlines() if line.startswith("train with the best:"))
    assert shlex.split(command)[-1] == "optimizer.lr=0.1"
    assert "trainer.max_epochs=2" in command
    assert run("search=grid", *UNTRACKED, "trainer.max_epochs=2") == 0
    assert len(trainings.configs) == 7
    assert "7 of them done" in capsys.readouterr().out


def test_random_draws_the_same_whoever_runs_the_trial(run: Run, trainings: Trainings) -> None:
    assert run("search=random", "n_trials=8", "tracking=none", "sweep=a") == 0
    first = [config.optimizer.lr for config in trainings.configs]
    assert run("search=random", "n_trials=5", "tracking=none", "sweep=b") == 0
    assert run("search=random", "n_trials=8", "tracking=none", "sweep=b") == 0  # more of the same search
    assert [config.optimizer.lr for config in trainings.configs[8:]] == first
    assert len(set(first)) == 8
    assert all(1e-4 <= lr <= 1 for lr in first)


def test_conditions_and_groups_reach_the_config(run: Run, trainings: Trainings) -> None:
    momentum = "search.space.optimizer.momentum={choice: [0.5], when: {optimizer: sgd}}"
    assert run("search=grid", *UNTRACKED, "optimizer=sgd,adam", "optimizer.lr=0.1,0.2", momentum) == 0
    assert len(trainings.configs) == 4
    seen = {(c.optimizer.name, getattr(c.optimizer, "momentum", None)) for c in trainings.configs}
    assert seen == {("sgd", 0.5), ("adam", None)}


def test_several_seeds_give_the_mean_and_its_error(run: Run, trainings: Trainings, tmp_path: Path) -> None:
    trainings.value = lambda config: 0.5 + 0.1 * config.seed
    named = "tracking.run_name='seed ${seed}'"
    assert run("search=grid", *UNTRACKED, "optimizer.lr=0.1,0.2", "seed=0,1,2", named) == 0
    assert [config.seed for config in trainings.configs] == [0, 1, 2, 0, 1, 2]
    assert [config.tracking.run_name for config in trainings.configs] == [f"seed {i}" for i in (0, 1, 2, 0, 1, 2)]
    for row in trials(tmp_path):
        assert float(row["summary/best_val_acc"]) == pytest.approx(0.6)
        assert float(row["standard_error"]) == pytest.approx(0.1 / math.sqrt(3))
        assert len(row["runs"].split()) == 3


def test_a_trial_that_fails_is_recorded_with_its_reason_and_the_search_goes_on(
    run: Run, trainings: Trainings, tmp_path: Path
) -> None:
    def some_fail(config: Config) -> float:
        if config.optimizer.lr == 0.001:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        if config.optimizer.lr == 0.01:
            raise ConfigError("data.root: no such folder")
        if config.optimizer.lr == 1.0:
            raise Diverged("train/loss", math.nan, 3, 1.0)
        return math.nan if config.optimizer.lr == 0.2 else valley(config)

    trainings.value = some_fail
    assert run("search=grid", *UNTRACKED, "optimizer.lr=0.001,0.01,0.1,0.2,1.0") == 0
    rows = {float(row["optimizer.lr"]): row for row in trials(tmp_path)}
    assert rows[0.001]["reason"].startswith("out of memory: RuntimeError: CUDA")
    assert rows[0.01]["reason"] == "data.root: no such folder"
    assert rows[0.2]["reason"].startswith("it has no finite summary/best_val_acc")
    assert [rows[lr]["state"] for lr in sorted(rows)] == ["failed", "failed", "complete", "failed", "pruned"]
    assert "train/loss became nan at step 3" in rows[1.0]["reason"]


def test_where_all_fail_the_search_ends_and_goes_on_once_it_is_mended(
    run: Run, trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: Config) -> float:
        raise RuntimeError("no disk")

    trainings.value = fail
    assert run("search=random", "n_trials=9", *UNTRACKED, "search.failures=3") == 2
    assert len(trainings.configs) == 3
    assert (
        "3 trials failed in a row, and none is complete. The last one failed with: RuntimeError"
        in capsys.readouterr().err
    )
    trainings.value = valley
    assert run("search=random", "n_trials=9", *UNTRACKED, "search.failures=3") == 0
    assert len(trainings.configs) == 9


def test_an_interrupted_trial_is_taken_up_again_with_its_values(
    run: Run, trainings: Trainings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(config: Config) -> float:
        if len(trainings.configs) == 3:
            raise Interrupted(2)
        return valley(config)

    trainings.value = stopped
    assert run("search=random", "n_trials=5", *UNTRACKED) == 130
    assert "sweep=s" in capsys.readouterr().out
    assert run("search=random", "n_trials=5", *UNTRACKED) == 0
    lrs = [config.optimizer.lr for config in trainings.configs]
    assert len(lrs) == 6
    assert lrs[3] == lrs[2]
    assert [row["trial"] for row in trials(tmp_path)] == ["0", "1", "2", "3", "4"]


def test_limits_of_epochs_and_hours(run: Run, trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    original = trainings.__call__

    def four_epochs(config: Config, previous: Any = None, watching: Any = (), **kwargs: Any) -> RunOutcome:
        watching[0].epochs = 4.0
        return original(config, previous, **kwargs)

    monkeypatch.setattr(train_module, "train", four_epochs)
    assert run("search=random", "n_trials=null", "epochs=10", *UNTRACKED) == 0
    assert len(trainings.configs) == 3
    assert run("search=random", "n_trials=50", "hours=1e-9", "tracking=none", "sweep=t") == 1
    assert len(trainings.configs) == 3


def test_each_seed_of_a_trial_is_a_run_that_trains_with_it(run: Run, trainings: Trainings, instant: list[Task]) -> None:
    assert run("search=random", "n_trials=1", "workers=1", *UNTRACKED, "seed=3,4") == 0
    for task in instant:
        run_task(task)
    assert [config.seed for config in trainings.configs] == [3, 4]


def test_a_limit_ends_a_search_of_several_workers_too_and_it_can_be_resumed(
    run: Run, trainings: Trainings, instant: list[Task], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search=random", "n_trials=4", "workers=2", *UNTRACKED]
    assert run(*words, "epochs=3") == 0
    assert 1 <= len(instant) <= 2
    assert "the limit of 3 epochs is reached" in capsys.readouterr().out
    assert run(*words) == 0
    assert len(instant) == 4


@pytest.mark.parametrize("status", [TaskStatus.INTERRUPTED, TaskStatus.CRASHED])
def test_a_trial_whose_process_ends_again_and_again_has_failed(
    run: Run,
    trainings: Trainings,
    instant: list[Task],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    status: TaskStatus,
) -> None:
    monkeypatch.setattr(InstantWorker, "result", TaskResult(status, "killed by SIGKILL"))
    assert run("search=random", "n_trials=1", "workers=1", *UNTRACKED, "search.retries=2") == 1
    assert len(instant) == 3
    assert len({task.config.optimizer.lr for task in instant}) == 1
    (row,) = trials(tmp_path)
    assert row["state"] == "failed"
    assert row["reason"] == ("killed by SIGKILL" if status == TaskStatus.CRASHED else "interrupted")
    assert "it is resumed" in capsys.readouterr().out


def test_a_full_disk_is_one_error(
    run: Run,
    trainings: Trainings,
    instant: list[Task],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/full/log.txt")

    with monkeypatch.context() as patch:
        patch.setattr(InstantWorker, "start", full)
        assert run("search=random", "n_trials=1", "workers=1", *UNTRACKED) == 1
    assert "/full/log.txt cannot be written (No space left on device)" in capsys.readouterr().err
    assert run("search=random", "n_trials=1", "workers=1", *UNTRACKED) == 0


def test_fewer_trials_than_before_are_enough(run: Run, trainings: Trainings) -> None:
    words = ["search=random", *UNTRACKED]
    assert run(*words, "n_trials=5", "hours=1e-9") == 1
    assert run(*words, "n_trials=2") == 0
    assert len(trainings.configs) == 2


def test_an_outage_of_the_storage_is_waited_out(
    run: Run, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    outages = iter([True, True])
    original = Study._claim

    def claim(self: Study) -> int | None:
        if next(outages, False):
            raise StorageInternalError("server closed the connection unexpectedly")
        return original(self)

    monkeypatch.setattr(Study, "_claim", claim)
    monkeypatch.setattr("lr_lightning.search.study.time.sleep", lambda seconds: None)
    assert run("search=random", "n_trials=2", *UNTRACKED) == 0
    assert len(trainings.configs) == 2


def test_a_trial_stopped_between_two_runs_is_put_back_and_its_worker_given_back(
    searched: Searched, instant: list[Task], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_back: list[Any] = []
    monkeypatch.setattr(InstantWorkers, "give_back", lambda _, worker: given_back.append(worker))
    search = searched("search=random", "n_trials=1", *UNTRACKED, "seed=3,4")
    study, workers = Study(search), InstantWorkers()
    study.fill()
    engine = Engine(search, study, workers, Progress(Console(width=200)))  # type: ignore[arg-type]
    assert engine._start_trial()
    engine._stop_in_order()
    assert len(instant) == len(given_back) == 1
    assert study.has_waiting()
    engine._stop_in_order()  # nothing runs, so nothing is said
    stopping, resumed = capsys.readouterr().out.splitlines()
    assert stopping == "Stopping 1 trial after saving a checkpoint. Press Ctrl-C again to kill it."
    assert resumed == "trial 0: stopped between two of its runs; it is resumed"


def test_pruned_trials_may_come_before_a_run_of_failures(
    run: Run, trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    def first_diverges(config: Config) -> float:
        if len(trainings.configs) == 1:
            raise Diverged("train/loss", math.nan, 3, 1.0)
        raise RuntimeError("no disk")

    trainings.value = first_diverges
    assert run("search=random", "n_trials=9", *UNTRACKED, "search.failures=2") == 2
    assert len(trainings.configs) == 3
    assert "2 trials failed in a row, and none is complete" in capsys.readouterr().err


def test_one_trial_is_singular(run: Run, trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("search=random", "n_trials=1", *UNTRACKED, "hours=1e-9") == 1
    assert run("search=random", "n_trials=1", *UNTRACKED) == 0
    out = capsys.readouterr().out
    assert "s starts: 1 trial, 0 of them done" in out
    assert "1 trial is left or runs elsewhere" in out
