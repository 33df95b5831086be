"""Output folders of runs."""

from pathlib import Path

from lr_lightning.app.run.output import new_output_dir


def test_output_folders_are_unique(tmp_path: Path) -> None:
    assert len({new_output_dir(str(tmp_path / "outputs"), "digits") for _ in range(50)}) == 50
