"""A run whose checkout, folder, store or data moved: it is resumed where it is, and nothing is made where it was."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import DictConfig
from PIL import Image

from lr_lightning.app.run.checkpoints import AtomicCheckpointIO
from lr_lightning.app.run.fork import _name_in_store
from lr_lightning.app.run.resume import run_folder, stored_config
from lr_lightning.app.run.train import RunOutcome, train
from lr_lightning.errors import ConfigError, RunFailed, TrackingError
from lr_lightning.tracking import RunLogger, replay
from lr_lightning.tracking.local_log import STATE_NAME
from tests.app.conftest import Compose, short_run


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """Pictures, a store, and the output folder of a run of one epoch, beside each other."""
    place = tmp_path_factory.mktemp("places") / "old"
    (place / "mlruns").mkdir(parents=True)
    shutil.copy(empty_store, place / "mlruns")
    draw(place / "pictures", seed=0)
    words = [
        "data=image_folder",
        f"data.root={place}/pictures",
        "data.batch_size=8",
        "trainer.max_epochs=1",
        "test=false",
    ]
    words += ["tracking=mlflow", f"tracking.root={place}/mlruns", "callbacks.overfitting=null", "finder=none"]
    short_run(place / "outputs", *words, "data.val_fraction=0.3")
    return place


def draw(folder: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 20, 8, 8), dtype=np.uint8)
    for name, images in zip("ab", pixels, strict=True):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{number}.png")


@pytest.fixture
def moved(checkout: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it at a place of its own, while the first one is gone."""
    hidden = checkout.rename(checkout.with_name("hidden"))
    yield shutil.copytree(hidden, tmp_path / "new place")
    assert not checkout.exists()
    hidden.rename(checkout)


def folder_in(place: Path) -> Path:
    (folder,) = (place / "outputs").iterdir()
    return folder


def resume(composed: Compose, folder: Path, *overrides: str) -> RunOutcome:
    task = [f"resume='{folder}'", "trainer.max_epochs=2", *overrides]
    return train(*stored_config(composed(*task), task))


def query(place: Path, text: str) -> list[Any]:
    connection = sqlite3.connect(f"file:{place}/mlruns/mlflow.db?mode=ro", uri=True)
    try:
        return connection.execute(text).fetchall()
    finally:
        connection.close()


def check_record(place: Path, outcome: RunOutcome) -> None:
    """One run, finished, with its rows once and its files below this store."""
    assert outcome.summary["steps"] == 6
    ((run_id, status, uri),) = query(place, "SELECT run_uuid, status, artifact_uri FROM runs")
    assert (run_id, status) == (outcome.run_id, "FINISHED")
    assert uri == f"{(place / 'mlruns' / 'artifacts').as_uri()}/{run_id}/artifacts"
    assert {path.name for path in (place / "mlruns" / "artifacts" / run_id).rglob("*.*")} >= {"config.yaml", "lr.csv"}
    steps = query(place, "SELECT step FROM metrics WHERE key = 'train/loss' ORDER BY step")
    assert steps == [(step,) for step in range(6)]


def test_a_checkout_that_moved_goes_on_with_its_data_and_its_store(composed: Compose, moved: Path) -> None:
    check_record(moved, resume(composed, folder_in(moved)))
    (places,) = query(moved, "SELECT count(*) FROM experiments WHERE artifact_location NOT LIKE '%new%20place%'")
    assert places == (0,)
    text = (folder_in(moved) / "config.yaml").read_text()
    assert yaml.safe_load(text)["data"]["root"] == f"{moved}/pictures"
    assert "/old/" not in text


def test_a_folder_alone_goes_on_in_the_store_of_the_checkout_it_came_to(
    composed: Compose, moved: Path, empty_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = shutil.copytree(folder_in(moved), tmp_path / "far" / "else" / "run")
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / "mlruns")
    draw(tmp_path / "images", seed=0)
    with pytest.raises(ConfigError, match=r"data\.root: the run's data is not at .*/old/pictures any more\. Give data"):
        resume(composed, there)
    outcome = resume(composed, there, f"++data.root={tmp_path}/images")
    assert "the run's store is gone" in capsys.readouterr().err
    check_record(tmp_path, outcome)


def test_the_run_of_another_user_is_copied_to_be_resumed_and_can_be_forked(
    composed: Compose, moved: Path, tmp_path: Path, foreign: Callable[..., AbstractContextManager[Path]]
) -> None:
    with foreign(folder_in(moved), STATE_NAME) as folder:
        with pytest.raises(
            ConfigError, match=rf"this user may not write to {folder}\. Copy the run's folder, without met"
        ):
            resume(composed, folder)
        with pytest.raises(
            TrackingError, match=r"metrics\.sent: belongs to another user, and may hold a password\. Copy"
        ):
            replay(folder)
        assert _name_in_store(folder) == folder.name  # so that it can be forked
    copy = shutil.copytree(folder_in(moved), tmp_path / "copy", ignore=shutil.ignore_patterns(STATE_NAME))
    words = [f"++data.root='{moved}/pictures'", f"tracking.root='{moved}/mlruns'"]
    assert resume(composed, copy, *words).summary["steps"] == 6
    assert query(moved, "SELECT status FROM runs") == [("FINISHED",)]


def test_a_resume_with_other_pictures_is_refused(composed: Compose, moved: Path, tmp_path: Path) -> None:
    draw(tmp_path / "others", seed=1)
    with pytest.raises(ConfigError, match="fingerprint"):
        resume(composed, folder_in(moved), f"++data.root={tmp_path}/others")


def test_data_that_has_no_such_key_says_so(composed: Compose, tmp_path: Path) -> None:
    folder = short_run(tmp_path / "outputs", "trainer.max_steps=1", "test=false", "data.train_size=96")
    with pytest.raises(ConfigError, match=r"data\.root: there is no such key of the run's data, digits\."):
        resume(composed, folder, "++data.root=/")


def test_a_run_is_found_by_its_id_though_its_tag_names_the_old_place(composed: Compose, moved: Path) -> None:
    folder = folder_in(moved)
    ((run_id,),) = query(moved, "SELECT run_uuid FROM runs")
    (folder / "metrics.sent").unlink()
    cfg: DictConfig = composed(f"output_root='{moved}/outputs'", f"tracking.root='{moved}/mlruns'")
    assert run_folder(run_id, cfg) == folder


def test_a_replay_makes_no_store_where_one_was(moved: Path) -> None:
    assert replay(folder_in(moved)).records == 0
    shutil.rmtree(moved / "mlruns")
    with pytest.raises(TrackingError, match=r"there is no such database\. Put the store back"):
        replay(folder_in(moved))
    assert not (moved / "mlruns").exists()


def test_a_run_whose_folder_moves_under_it_makes_none_in_its_place(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "run", csv=False)
    logger.log_metrics({"a": 1.0}, 1)
    (tmp_path / "run").rename(tmp_path / "there")
    with pytest.raises(OSError, match="run"):
        logger.log_text("x", "notes.txt")
    with pytest.raises(RunFailed, match="was moved or removed while the run was writing to it"):
        AtomicCheckpointIO(tmp_path / "run").save_checkpoint({}, tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(OSError, match="run"):
        logger.end("FAILED")
    assert not (tmp_path / "run").exists()
