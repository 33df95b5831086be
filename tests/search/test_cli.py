"""The command: what it refuses before the first trial, and what it does without."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lr_lightning.errors import TrackingError
from lr_lightning.tracking import Store
from tests.search.stand_ins import UNTRACKED, Run, Trainings


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


def test_what_another_search_left_under_the_name_is_never_gone_on_with(
    run: Run, trainings: Trainings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outputs" / "s" / "trial-0000").mkdir(parents=True)
    assert run("search=random", "n_trials=1", *UNTRACKED) == 2
    assert "holds trials of another search" in capsys.readouterr().err


def test_the_searchs_own_process_imports_neither_torch_nor_lightning() -> None:
    """They are for the workers, which import them meanwhile."""
    modules = [f"lr_lightning.search.{name}" for name in ("cli", "engine", "report", "smoke_test")]
    code = f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'lightning', 'mlflow'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found == "[]\n"


def test_a_storage_that_cannot_be_written_names_what_to_give_instead(
    run: Run, trainings: Trainings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run("search=random", "n_trials=1", *UNTRACKED, f"storage=sqlite:///{tmp_path}/file/search.db") == 2
    error = capsys.readouterr().err
    assert f"storage: no database can be written in {tmp_path}/file" in error
    assert "Give another tracking.root, or another place with storage=sqlite:////absolute/file.db." in error
