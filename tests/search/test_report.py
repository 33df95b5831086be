"""What a search says at its end."""

from typing import Any

import pytest

from lr_lightning._plotting import colour_ramp
from lr_lightning.tracking import Store
from tests.search.stand_ins import Run, Trainings


@pytest.mark.parametrize("uri", ["http://me:secret@h", "postgresql://me:secret@h/db"])
def test_the_best_command_shows_no_password(
    run: Run, trainings: Trainings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    monkeypatch.setattr("lr_lightning.search.report.compare_and_record", lambda *_: None)
    monkeypatch.setattr(Store, "call", lambda *_: None)
    assert run("search=grid", f"tracking.uri={uri}", "sweep=s") == 0
    out = capsys.readouterr().out
    assert "train with the best:" in out
    assert "me:***@h" in out
    assert "secret" not in out


@pytest.mark.parametrize(
    ("words", "by", "metric", "higher"),
    [
        (["search=random", "n_trials=2"], ["optimizer.lr"], "val/acc", True),
        (["search=grid", "optimizer.lr=0.01,0.1,1.0"], ["optimizer.lr"], "val/acc", True),
        (
            [
                "search=grid",
                "optimizer.lr=0.01,0.1,1.0",
                "search.objective=summary/best_val_loss",
                "search.direction=minimize",
            ],
            *(["optimizer.lr"], "val/loss", False),
        ),
    ],
)
def test_the_comparison_is_by_the_searched_values_and_the_searchs_objective(
    run: Run,
    trainings: Trainings,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    by: list[str],
    metric: str,
    higher: bool,
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("lr_lightning.search.report.compare_and_record", lambda *given: asked.append(given[2]))
    monkeypatch.setattr(Store, "call", lambda *_: None)
    run(*words, "sweep=s")
    assert asked == [{"by": by, "metric": metric, "higher_is_better": higher}]
    named = {config.tracking.run_name: config.tracking.tags["mlflow.runColor"] for config in trainings.configs}
    assert all(name.startswith("lr=") for name in named)
    if len(named) == 3:
        assert named == {"lr=0.01": colour_ramp(0.0), "lr=0.1": colour_ramp(0.5), "lr=1": colour_ramp(1.0)}
