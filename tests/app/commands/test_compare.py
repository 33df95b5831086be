"""The command that compares runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lr_lightning.app.commands import compare as app_compare
from lr_lightning.app.config import Config

Configured = Callable[..., Config]


def test_the_experiments_folder_needs_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app_compare.run(tmp_path / "mlruns", "nonsense", tmp_path / "out", by=["schedule"]) == 2
    assert "is no address of a store" in capsys.readouterr().err
