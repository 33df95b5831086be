"""What a search says at its end."""

import pytest

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
