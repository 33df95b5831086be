"""Whole searches in this process. Where training itself is not the point, a stand-in trains in no time."""

import errno
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from lr_lightning.app.config import Config
from lr_lightning.app.run import train as train_module
from lr_lightning.app.run.signals import Interrupted
from lr_lightning.app.run.train import RunOutcome
from lr_lightning.errors import ConfigError, Diverged, TrackingError
from lr_lightning.search import cli
from lr_lightning.search.judge import StudyJudge
from lr_lightning.search.run import Result as RunResult
from lr_lightning.search.run import Task
from lr_lightning.search.run import run as run_task
from lr_lightning.search.settings import Search
from lr_lightning.search.study import Study
from lr_lightning.tracking import Store
from tests.leftovers import trials

ROOT = Path(__file__).resolve().parents[2]
Searched = Callable[..., Search]
Run = Callable[..., int]


def valley(config: Config) -> float:
    """An accuracy that is highest, 0.9, at a rate of 0.1."""
    return 0.9 - 0.1 * math.log10(config.optimizer.lr / 0.1) ** 2


class Trainings:
    """Stands in for `train`: notes the configs, and returns what `value` says."""

    def __init__(self, value: Callable[[Config], float] = valley) -> None:
        self.value = value
        self.configs: list[Config] = []

    def __call__(self, config: Config, previous: Any = None, **_: Any) -> RunOutcome:
        self.configs.append(config)
        summary = {"best_val_acc": self.value(config)}
        return RunOutcome(summary, output_dir=Path(config.output_root), run_id=f"run{len(self.configs)}")


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    found = Trainings()
    monkeypatch.setattr(train_module, "train", found)
    monkeypatch.setattr("lr_lightning.search.rehearsal.rehearse", lambda search: None)
    return found


@pytest.fixture
def run(places: list[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`scripts/search.py` in this process."""

    def search(*words: str) -> int:
        argv = [str(ROOT / "scripts" / "search.py"), *places, "workers=0", *words]
        monkeypatch.setattr(sys, "argv", argv)
        return cli.main(ROOT)

    return search


UNTRACKED = ("tracking=none", "sweep=s")


def test_the_grid_trains_each_rate_once_and_again_does_nothing(
    run: Run, trainings: Trainings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search=grid", *UNTRACKED, "trainer.max_epochs=2") == 0
    rates = [config.optimizer.lr for config in trainings.configs]
    assert rates == [0.001, 0.00316, 0.01, 0.0316, 0.1, 0.316, 1.0]
    tags = [config.tracking.tags for config in trainings.configs]
    assert [(t["sweep"], t["trial"]) for t in tags] == [("s", str(i)) for i in range(7)]
    out = capsys.readouterr().out
    command = next(line.split(":  ", 1)[1] for line in out.splitlines() if line.startswith("train with the best:"))
    assert shlex.split(command)[-1] == "optimizer.lr=0.1"
    assert "trainer.max_epochs=2" in command
    assert run("search=grid", *UNTRACKED, "trainer.max_epochs=2") == 0
    assert len(trainings.configs) == 7
    assert "7 of them done" in capsys.readouterr().out


def test_a_server_that_refuses_is_one_error_and_no_trial(
    run: Run, trainings: Trainings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each trial would have failed of it, one after another."""

    def refuse(*_: Any) -> None:
        raise TrackingError("it asks for a user and a password")

    monkeypatch.setattr(Store, "call", refuse)
    assert run("search=grid", "tracking.uri=http://h:5000", "sweep=s") == 2
    assert capsys.readouterr().err == "error: tracking: it asks for a user and a password\n"
    assert not trainings.configs


@pytest.mark.parametrize("uri", ["http://me:secret@h", "postgresql://me:secret@h/db"])
def test_the_best_command_shows_no_password(
    run: Run, trainings: Trainings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    monkeypatch.setattr("lr_lightning.search.conclusion.compare_sweep", lambda *_, **__: None)
    monkeypatch.setattr("lr_lightning.search.conclusion._record", lambda *_: None)
    monkeypatch.setattr(Store, "call", lambda *_: None)
    assert run("search=grid", f"tracking.uri={uri}", "sweep=s") == 0
    out = capsys.readouterr().out
    assert "train with the best:" in out
    assert "me:***@h" in out
    assert "secret" not in out


def test_random_draws_the_same_whoever_takes_the_ticket(run: Run, trainings: Trainings) -> None:
    assert run("search=random", "n_trials=8", "tracking=none", "sweep=a") == 0
    first = [config.optimizer.lr for config in trainings.configs]
    assert run("search=random", "n_trials=5", "tracking=none", "sweep=b") == 0
    assert run("search=random", "n_trials=8", "tracking=none", "sweep=b") == 0  # more of the same search
    assert [config.optimizer.lr for config in trainings.configs[8:]] == first
    assert len(set(first)) == 8
    assert all(1e-4 <= lr <= 1 for lr in first)


def test_bayes_finds_the_valley_better_than_random(searched: Searched) -> None:
    study = Study(searched("search=bayes", "n_trials=20", *UNTRACKED, "search.pruners=[]"))
    study.fill()
    distances = []  # in decades from the best rate
    while (ticket := study.take()) is not None:
        distances.append(abs(math.log10(float(ticket.point["optimizer.lr"] or 0) / 0.1)))
        study.finish(ticket, TrialState.COMPLETE, 0.9 - 0.1 * distances[-1] ** 2)
    assert len(distances) == 20
    by_chance = (3**2 + 1**2) / 2 / 4  # the mean over 0.0001 to 1
    assert sum(distances[12:]) / 8 < 0.6 * by_chance  # the first ten are drawn at random


def test_the_start_comes_first_with_the_finders_rate_in_it(
    run: Run, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lr_lightning.search.rehearsal.suggested", lambda search: 7.0)
    start = "search.start=[{optimizer.lr: finder},{optimizer.lr: 0.02}]"
    assert run("search=random", "n_trials=3", *UNTRACKED, start) == 0
    assert [config.optimizer.lr for config in trainings.configs][:2] == [1.0, 0.02]  # 7 lies beyond the space


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
    assert "the first 3 trials have failed, the last one with: RuntimeError: no disk" in capsys.readouterr().err
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
    rates = [config.optimizer.lr for config in trainings.configs]
    assert len(rates) == 6
    assert rates[3] == rates[2]
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


class Instant:
    """Stands in for a process: its run has ended at once."""

    started: ClassVar[list[Task]] = []
    child: ClassVar[list[int]] = [0, 0]

    @classmethod
    def start(cls, task: Task, *_: Any) -> "Instant":
        cls.started.append(task)
        return cls()

    def result(self) -> RunResult:
        return RunResult("finished", summary={"best_val_acc": 0.5}, epochs=4.0)

    def stop(self) -> None:
        """Nothing runs."""

    kill = stop


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Processes that have ended at once; the tasks they were started with."""
    monkeypatch.setattr("lr_lightning.search.trial.RunProcess", Instant)
    Instant.started.clear()
    return Instant.started


def test_each_seed_of_a_trial_is_a_process_that_trains_with_it(
    run: Run, trainings: Trainings, instant: list[Task]
) -> None:
    assert run("search=random", "n_trials=1", "workers=1", *UNTRACKED, "seed=3,4") == 0
    for task in instant:
        run_task(task)
    assert [config.seed for config in trainings.configs] == [3, 4]


def test_a_limit_ends_a_search_of_processes_too_and_it_can_go_on(
    run: Run, trainings: Trainings, instant: list[Task], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search=random", "n_trials=4", "workers=2", *UNTRACKED]
    assert run(*words, "epochs=3") == 0
    assert 1 <= len(instant) <= 2
    assert "the limit of 3 epochs is reached" in capsys.readouterr().out
    assert run(*words) == 0
    assert len(instant) == 4


def test_a_trial_that_is_stopped_from_outside_again_and_again_ends(
    run: Run, trainings: Trainings, instant: list[Task], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Instant, "result", lambda self: RunResult("interrupted", "stopped by a signal"))
    assert run("search=random", "n_trials=1", "workers=1", *UNTRACKED, "search.retries=2") == 1
    assert len(instant) == 3
    assert trials(tmp_path)[0]["state"] == "failed"


def test_a_full_disk_is_one_error(
    run: Run, trainings: Trainings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/full/task.json")

    monkeypatch.setattr("lr_lightning.search.trial.RunProcess.start", full)
    assert run("search=random", "n_trials=1", "workers=1", *UNTRACKED) == 1
    assert "/full/task.json cannot be written (No space left on device)" in capsys.readouterr().err
    monkeypatch.setattr("lr_lightning.search.trial.RunProcess", Instant)
    assert run("search=random", "n_trials=1", "workers=1", *UNTRACKED) == 0


def test_fewer_trials_than_before_are_enough(run: Run, trainings: Trainings) -> None:
    words = ["search=random", *UNTRACKED]
    assert run(*words, "n_trials=5", "hours=1e-9") == 1
    assert run(*words, "n_trials=2") == 0
    assert len(trainings.configs) == 2


def test_what_another_search_left_under_the_name_is_never_gone_on_with(
    run: Run, trainings: Trainings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outputs" / "s" / "trial-0000").mkdir(parents=True)
    assert run("search=random", "n_trials=1", *UNTRACKED) == 2
    assert "holds trials of another search" in capsys.readouterr().err


def test_a_ticket_taken_by_a_worker_that_died_at_once_comes_back(
    searched: Searched, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lr_lightning.search.study.SILENCE", 0)
    study = Study(searched("search=random", "n_trials=1", *UNTRACKED))
    study.fill()
    assert study._claimed() is not None  # and no sign of life, and nobody's name
    assert study.recover() == [0]
    assert study.take() is not None


def test_a_search_that_was_killed_between_failing_and_putting_back_is_repaired(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = searched("search=random", "n_trials=1", *UNTRACKED)
    study = Study(search)
    study.fill()
    ticket = study.take()
    assert ticket is not None
    monkeypatch.setattr(study, "_clone", lambda *_: None)
    study.put_back(ticket)
    assert study.standing().left == 0
    again = Study(search)
    again.fill()
    back = again.take()
    assert back is not None
    assert back.point == ticket.point


def test_a_resumed_trial_is_compared_at_the_validation_it_is_at(searched: Searched) -> None:
    study = Study(searched("search=random", "n_trials=6", *UNTRACKED))
    study.fill()
    curve = [0.1 * v for v in range(1, 11)]
    for _ in range(5):
        ticket = study.take()
        assert ticket is not None
        ticket.trial.set_user_attr("run", {"phase": "cosine 10"})
        for validation in range(1, 6):
            ticket.trial.report(curve[validation - 1], validation)
        study.put_back(ticket)
        ticket = study.take()  # gone on with: its reports come along
        assert ticket is not None
        for validation in range(6, 11):
            ticket.trial.report(curve[validation - 1], validation)
        study.finish(ticket, TrialState.COMPLETE, 1.0)
    ticket = study.take()
    assert ticket is not None
    ticket.trial.set_user_attr("run", {"phase": "cosine 10"})
    judge = StudyJudge(ticket.trial, ["verdict"], True, 0.25)
    for validation, value in enumerate(curve, 1):
        judge.report(value + 0.001, validation)
        assert judge.verdict(validation / 10, True) is None
    resumed = StudyJudge(ticket.trial, ["verdict"], True, 0.25)
    resumed.report(-1.0, 11)
    assert len(resumed._values) == 11


def test_parallel_draws_of_qmc_differ(searched: Searched) -> None:
    study = Study(searched("search=random", "search.sampler=qmc", "n_trials=4", *UNTRACKED))
    study.fill()
    taken = [ticket.point["optimizer.lr"] for _ in range(4) if (ticket := study.take())]
    assert len(set(taken)) == 4


def test_an_outage_of_the_storage_is_waited_out(
    run: Run, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    outages = iter([True, True])
    original = Study._claimed

    def claimed(self: Study) -> int | None:
        if next(outages, False):
            raise StorageInternalError("server closed the connection unexpectedly")
        return original(self)

    monkeypatch.setattr(Study, "_claimed", claimed)
    monkeypatch.setattr("lr_lightning.search.storage.time.sleep", lambda seconds: None)
    assert run("search=random", "n_trials=2", *UNTRACKED) == 0
    assert len(trainings.configs) == 2


def test_another_search_under_the_same_name_is_refused(
    run: Run, trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search=random", "n_trials=1", *UNTRACKED) == 0
    assert run("search=random", "n_trials=1", *UNTRACKED, "optimizer.lr=interval(0.1,0.2)") == 2
    error = capsys.readouterr().err
    assert "sweep: 's' is another search already (space: there" in error
    assert run("search=random", "n_trials=1", *UNTRACKED, "trainer.max_epochs=3") == 2
    assert 'overrides: there ["tracking=none"' in capsys.readouterr().err


def test_a_worker_that_is_gone_or_silent_gives_its_ticket_back(
    searched: Searched, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lr_lightning.search.storage.SILENCE", 1)
    monkeypatch.setattr("lr_lightning.search.storage.HEARTBEAT", 1)
    search = searched("search=random", "n_trials=2", *UNTRACKED)
    gone, silent, living = Study(search), Study(search), Study(search)
    gone.fill()
    gone._owner |= {"pid": 2**22 + 1}  # no such process
    silent._owner |= {"host": "another machine"}
    monkeypatch.setattr(silent._beats, "start", lambda trial_id: silent._storage.record_heartbeat(trial_id))
    points = {ticket.number: ticket.point for study in (gone, silent) if (ticket := study.take())}
    assert living.take() is None
    found: list[int] = []
    while len(found) < 2:
        living._checked = 0.0
        found += living.recover()
    assert sorted(found) == [0, 1]
    again = [ticket for _ in range(2) if (ticket := living.take())]
    assert {ticket.number: ticket.point for ticket in again} == points
    assert all(ticket.attempt == 1 for ticket in again)
    for ticket in again:
        assert living.finish(ticket, TrialState.COMPLETE, 0.5)
    assert sorted(living.standing().ended) == [0, 1]
    assert living.standing().left == 0


@pytest.mark.parametrize("objective", ["summary/best_val_ac", "val/los"])
def test_an_objective_that_no_run_logs_is_found_before_the_first_trial(
    run: Run, objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search=random", *UNTRACKED, f"search.objective={objective}", "data.train_size=64") == 2
    assert f"no run logs '{objective}'" in capsys.readouterr().err
    assert not (tmp_path / "outputs" / "s").exists()


def test_a_real_search_prunes_what_is_hopeless_and_compares_the_rest(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search=grid", "sweep=s", "optimizer.lr=0.1,0.15,0.2,0.25,1e-6", "search.pruners=[verdict]"]
    assert run(*words, "trainer.max_epochs=4", "data.train_size=400", "test=false") == 0
    rows = {float(row["optimizer.lr"]): row for row in trials(tmp_path)}
    assert rows[1e-6]["state"] == "pruned"
    assert rows[1e-6]["reason"].startswith("dominated: at ")
    assert float(rows[1e-6]["epochs"]) < 4
    assert rows[0.2]["state"] == "complete"
    assert list((tmp_path / "outputs" / "compare").glob("*/report.html"))
    from lr_lightning.tracking import open_store

    client = open_store(tmp_path / "mlruns").client()
    experiment = client.get_experiment_by_name("lr_lightning")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.sweep = 's' and tags.job = 'train'")
    assert sorted(r.data.tags["trial"] for r in runs) == ["0", "1", "2", "3", "4"]
    assert sorted(float(r.data.params["optimizer.lr"]) for r in runs) == sorted(rows)
    assert {r.info.status for r in runs} == {"FINISHED"}
    out = capsys.readouterr().out
    assert "[5/5] trial 4" in out
