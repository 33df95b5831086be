"""A note reaches the loggers that have a place for it: MLflow shows it as the description of a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lr_lightning
from lr_lightning._loggers import log_note, log_tags
from tests.callbacks.tiny import Memory


def _trainer(*loggers: Any) -> Any:
    return SimpleNamespace(is_global_zero=True, loggers=loggers, global_step=0)


@pytest.mark.slow
def test_a_note_is_the_description_in_lightnings_mlflow_logger(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger("exp", tracking_uri=f"sqlite:///{tmp_path}/m.db", artifact_location=str(tmp_path / "a"))
    log_note(_trainer(logger), "verdict: healthy")
    log_tags(_trainer(logger), {"verdict": "healthy"})
    tags = logger.experiment.get_run(logger.run_id).data.tags
    assert (tags["mlflow.note.content"], tags["verdict"]) == ("verdict: healthy", "healthy")


def test_a_logger_of_ours_gets_the_note_itself_and_one_without_notes_nothing() -> None:
    kept: list[str] = []
    logger = Memory()
    logger.log_note = kept.append  # type: ignore[attr-defined]
    log_note(_trainer(logger, Memory()), "verdict: healthy")
    assert kept == ["verdict: healthy"]


def test_no_callback_names_a_tag_of_mlflow() -> None:
    root = Path(lr_lightning.__file__).parent
    assert not [str(path) for path in (root / "callbacks").glob("*.py") if "mlflow." in path.read_text()]
