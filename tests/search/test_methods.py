"""Pruning: a trial against its peers, and a real search that prunes."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from lr_lightning.search.methods import TrialPruner, ValidationReport
from lr_lightning.search.study import RequeueReason, Study, Trial
from tests.leftovers import trials
from tests.search.stand_ins import UNTRACKED, Run, Searched


def test_a_resumed_trial_is_compared_at_the_validation_it_is_at(searched: Searched) -> None:
    study = Study(searched("search=random", "n_trials=6", *UNTRACKED))
    study.fill()
    curve = [0.1 * v for v in range(1, 11)]
    for _ in range(5):
        trial = taken(study)
        for validation in range(1, 6):
            trial.handle.report(curve[validation - 1], validation)
        study.requeue(trial, RequeueReason.INTERRUPTED)
        trial = taken(study)
        assert trial.resumes
        assert list(trial.reports.values()) == curve[:5]
        for validation in range(6, 11):
            trial.handle.report(curve[validation - 1], validation)
        study.finish(trial, TrialState.COMPLETE, 1.0)
    trial = taken(study)
    pruner = TrialPruner(trial.handle, ["verdict"], higher=True, patience=0.25, reports=trial.reports)
    for validation, value in enumerate(curve, 1):
        assert pruner(ValidationReport(value + 0.001, validation, validation / 10, True)) is None
    study.requeue(trial, RequeueReason.INTERRUPTED)
    trial = taken(study)
    pruner = TrialPruner(trial.handle, ["verdict"], higher=True, patience=0.25, reports=trial.reports)
    found = pruner(ValidationReport(-1.0, 11, 0.5, True))
    assert not (found or "").startswith("dominated")  # no peer has come so far
    assert len(pruner._values) == 11


def test_a_trial_whose_preview_can_no_longer_reach_the_best_is_pruned_in_any_phase() -> None:
    study = optuna.create_study(direction="minimize")
    first = [study.ask() for _ in range(3)]
    for validation in range(1, 12):
        first[0].report(0.7, validation)
    study.tell(first[0], 0.5)
    study.tell(first[1], state=TrialState.PRUNED)
    for rest, pruned in ((1.9, True), (0.9, False)):
        pruner = TrialPruner(study.ask(), ["cooled"], higher=False, patience=0.25, reports={1: 2.0})
        said = [pruner(ValidationReport(value, v, v / 12, False)) for v, value in enumerate((1.95, rest, rest), 2)]
        assert said[0] is None
        assert (said[1] or "").startswith("cooled: a cooldown would have reached ") is pruned
    assert first[2].study.trials[-1].intermediate_values == {2: 1.95, 3: 0.9, 4: 0.9}


def taken(study: Study) -> Trial:
    trial = study.take()
    assert trial is not None
    study.note(trial, phase="cosine 10", folder=Path(), worker=None)
    return trial


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


def test_a_real_search_prunes_by_what_a_cooldown_would_reach(run: Run, tmp_path: Path) -> None:
    words = ["search=grid", "sweep=s", "optimizer.lr=0.15,1e-6", "search.pruners=[cooled]", "schedule=cosine"]
    assert run(*words, "trainer.max_epochs=5", "data.train_size=400", "test=false", "tracking=csv") == 0
    good, hopeless = sorted(trials(tmp_path), key=lambda row: float(row["optimizer.lr"]), reverse=True)
    assert good["state"] == "complete"
    assert hopeless["state"] == "pruned"
    assert hopeless["reason"].startswith("cooled: a cooldown would have reached 0.")
    assert float(hopeless["epochs"]) == 3
