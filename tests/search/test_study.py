"""A study: what its trials come to, who has which trial, and what becomes of one whose worker is gone."""

import math
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from lr_lightning.search.study import RequeueReason, Study, StudySummary, rank_key
from tests.search.stand_ins import UNTRACKED, Run, Searched, Trainings


def frozen(number: int, state: TrialState, value: float | None = None, of: int | None = None, **result: Any) -> Any:
    attributes: dict[str, Any] = {"trial": number if of is None else of, "result": result}
    made = optuna.create_trial(state=state, value=value, user_attrs=attributes)
    made.number = number
    return made


TRIALS: list[FrozenTrial] = [
    frozen(0, TrialState.FAIL),
    frozen(1, TrialState.COMPLETE, 0.9, val_loss=0.4),
    frozen(2, TrialState.COMPLETE, 0.9, val_loss=0.3),
    frozen(3, TrialState.COMPLETE, 0.9),
    frozen(4, TrialState.COMPLETE, 0.5, val_loss=0.1),
    frozen(5, TrialState.PRUNED),
    frozen(6, TrialState.WAITING),
    frozen(7, TrialState.COMPLETE, 0.7, of=0),  # taken up again
]


@pytest.mark.parametrize(("higher", "first"), [(True, [2, 1, 3, 7, 4]), (False, [4, 7, 2, 1, 3])])
def test_the_best_come_first_and_the_lowest_loss_decides_between_equals(higher: bool, first: list[int]) -> None:
    ranked = sorted(TRIALS, key=lambda t: (rank_key(t, higher=higher), t.number))
    assert [t.number for t in ranked][:5] == first
    best = StudySummary.of(TRIALS, 10, higher=higher).best
    assert best is not None
    assert best.number == first[0]


def test_a_trial_is_ended_by_its_last_attempt_and_those_beyond_the_limit_are_not_left() -> None:
    summary = StudySummary.of(TRIALS, 10, higher=True)
    assert {n: t.number for n, t in summary.ended.items()} == {0: 7, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
    assert (summary.left, summary.equal) == (1, 3)
    assert StudySummary.of(TRIALS, 6, higher=True).left == 0
    assert StudySummary.of([], 6, higher=True).best is None


def test_bayes_finds_the_valley_better_than_random(searched: Searched) -> None:
    study = Study(searched("search=bayes", "n_trials=20", *UNTRACKED, "search.pruners=[]"))
    study.fill()
    distances = []  # in decades from the best learning rate
    while (trial := study.take()) is not None:
        distances.append(abs(math.log10(float(trial.point["optimizer.lr"] or 0) / 0.1)))
        study.finish(trial, TrialState.COMPLETE, 0.9 - 0.1 * distances[-1] ** 2)
    assert len(distances) == 20
    by_chance = (3**2 + 1**2) / 2 / 4  # the mean over 0.0001 to 1
    assert sum(distances[12:]) / 8 < 0.6 * by_chance  # the first ten are drawn at random


def test_parallel_draws_of_qmc_differ(searched: Searched) -> None:
    study = Study(searched("search=random", "search.sampler=qmc", "n_trials=4", *UNTRACKED))
    study.fill()
    taken = [trial.point["optimizer.lr"] for _ in range(4) if (trial := study.take())]
    assert len(set(taken)) == 4


def test_a_trial_claimed_by_a_worker_that_died_at_once_comes_back(
    searched: Searched, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(searched("search=random", "n_trials=1", *UNTRACKED))
    study.fill()
    monkeypatch.setattr("lr_lightning.search.study.SILENCE", 0)
    assert study._claim() is not None  # and no sign of life, and nobody's name
    assert study.recover() == [0]
    assert study.take() is not None


def test_a_search_that_was_killed_between_failing_and_putting_back_is_repaired(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = searched("search=random", "n_trials=1", *UNTRACKED)
    study = Study(search)
    study.fill()
    trial = study.take()
    assert trial is not None
    monkeypatch.setattr(study, "_replace", lambda *_: False)
    study.requeue(trial, RequeueReason.INTERRUPTED)
    assert study.summary().left == 0
    again = Study(search)
    again.fill()
    back = again.take()
    assert back is not None
    assert back.point == trial.point


def test_a_worker_that_is_gone_or_silent_gives_its_trial_back(
    searched: Searched, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lr_lightning.search.study.SILENCE", 1)
    monkeypatch.setattr("lr_lightning.search.study.HEARTBEAT", 1)
    search = searched("search=random", "n_trials=2", *UNTRACKED)
    gone, silent, living = Study(search), Study(search), Study(search)
    gone.fill()
    gone._owner |= {"pid": 2**22 + 1}  # no such process
    silent._owner |= {"host": "another machine"}
    monkeypatch.setattr(silent, "_beat", lambda: None)  # one heartbeat and no more
    points = {trial.number: trial.point for study in (gone, silent) if (trial := study.take())}
    assert living.take() is None
    found: list[int] = []
    while len(found) < 2:
        living._checked = 0.0
        found += living.recover()
    assert sorted(found) == [0, 1]
    again = [trial for _ in range(2) if (trial := living.take())]
    assert {trial.number: trial.point for trial in again} == points
    assert all(trial.attempt == 1 for trial in again)
    for trial in again:
        assert living.finish(trial, TrialState.COMPLETE, 0.5)
    assert sorted(living.summary().ended) == [0, 1]
    assert living.summary().left == 0


def test_another_search_under_the_same_name_is_refused(
    run: Run, trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search=random", "n_trials=1", *UNTRACKED) == 0
    assert run("search=random", "n_trials=1", *UNTRACKED, "optimizer.lr=interval(0.1,0.2)") == 2
    error = capsys.readouterr().err
    assert "sweep: 's' is another search already (space: there" in error
    assert run("search=random", "n_trials=1", *UNTRACKED, "trainer.max_epochs=3") == 2
    assert 'overrides: there ["tracking=none"' in capsys.readouterr().err
