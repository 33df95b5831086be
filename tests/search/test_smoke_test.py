"""What is done before the first trial."""

from pathlib import Path

import pytest

from tests.search.stand_ins import UNTRACKED, Run, Trainings


@pytest.mark.parametrize("objective", ["summary/best_val_ac", "val/los"])
def test_an_objective_that_no_run_logs_is_found_before_the_first_trial(
    run: Run, objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("search=random", *UNTRACKED, f"search.objective={objective}", "data.train_size=64") == 2
    assert f"no run logs '{objective}'" in capsys.readouterr().err
    assert not (tmp_path / "outputs" / "s").exists()


def test_the_start_comes_first_with_the_finders_lr_in_it(
    run: Run, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lr_lightning.search.smoke_test.suggested_lr", lambda *_: 7.0)
    start = "search.start=[{optimizer.lr: finder},{optimizer.lr: 0.02}]"
    assert run("search=random", "n_trials=3", *UNTRACKED, start) == 0
    assert [config.optimizer.lr for config in trainings.configs][:2] == [1.0, 0.02]  # 7 lies beyond the space
