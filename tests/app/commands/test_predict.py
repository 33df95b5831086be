"""Predictions of new images: the network, normalisation and class names of the run, and what is left out."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lr_lightning.app.commands import predict
from lr_lightning.app.commands.predict import Prediction, Predictor, images_of
from lr_lightning.training.images import UnreadableImage
from tests.app.conftest import short_run

ROOT = Path(__file__).resolve().parents[3]
CLASSES = {"red fox": (200, 60, 40), "sea": (30, 60, 200)}


def draw(folder: Path, colour: tuple[int, int, int], count: int, size: int = 12) -> None:
    """Noisy images of one colour."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(count)
    for i in range(count):
        pixels = np.clip(np.array(colour) + generator.normal(0, 40, (size, size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` with a folder a class; `new/` with images of other sizes, one of them cut off, and a text."""
    folder = tmp_path_factory.mktemp("images")
    for name, colour in CLASSES.items():
        draw(folder / "train" / name, colour, 30)
        draw(folder / "new" / name, colour, 3, size=20)
    (folder / "new" / "note.txt").write_text("no image")
    whole = (folder / "new" / "sea" / "00.png").read_bytes()
    (folder / "new" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def run_once(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a short run on them."""
    data = ["data=image_folder", f"data.root={images}/train", "data.batch_size=8"]
    return short_run(tmp_path_factory.mktemp("outputs"), *data, "seed=1", "trainer.max_epochs=4")


@pytest.fixture
def trained(run_once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(run_once, tmp_path / "outputs" / run_once.name)


def test_the_classes_are_those_of_training_and_what_is_no_image_is_named(
    trained: Path, images: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "predictions.csv"
    places = {"output_root": trained.parent, "store": tmp_path / "mlruns"}
    missing = str(images / "new" / "none.png")
    assert predict.run(ROOT, str(trained), [str(images / "new"), missing], table=table, **places) == 0
    out, err = capsys.readouterr()
    assert out == table.read_text()
    rows = list(csv.DictReader(table.open()))
    assert {Path(row["image"]).parent.name: row["prediction"] for row in rows} == {name: name for name in CLASSES}
    assert len(rows) == 6
    assert all(0.5 < float(row["probability"]) <= 1 for row in rows)
    skipped = sorted(Path(line.split(" ")[1]).name for line in err.splitlines())
    assert skipped == ["cut.png", "none.png", "note.txt"]
    assert f"skipped: {images}/new/note.txt is not an image\n" in err
    nothing = [missing, str(images / "new" / "note.txt")]
    assert predict.run(ROOT, str(trained), nothing, **places) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("skipped: ") for line in lines] == [True, True, False]
    assert lines[-1].startswith("error: IMAGES: no image could be read (2 skipped). Give image files")


def test_an_image_is_fed_as_it_was_in_training(trained: Path, images: Path) -> None:
    predictor = Predictor(trained, "last")
    path = images / "train" / "sea" / "03.png"
    (result,) = predictor([path])
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    state = checkpoint["ImageDataModule"]
    pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        logits = predictor.module((pixels - state["offset"]) * state["scale"])
    assert isinstance(result, Prediction)
    assert result.label == sorted(CLASSES)[int(logits.argmax())]
    assert result.probability == pytest.approx(float(logits.softmax(1).max()), rel=1e-5)
    (unreadable,) = predictor([images / "new" / "cut.png"])
    assert isinstance(unreadable, UnreadableImage)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "checkpoints" / "best.ckpt").unlink(), "best.ckpt is not there. --checkpoint takes"),
        (lambda folder: (folder / "config.yaml").unlink(), "is no run's output folder: it has no config.yaml"),
        (lambda folder: _rename_target(folder / "config.yaml"), "If you trust it, add --trust os.system"),
        (lambda folder: _without_classes(folder / "checkpoints" / "best.ckpt"), "does not name its classes"),
    ],
)
def test_a_run_that_cannot_predict_says_why(
    trained: Path, images: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(trained)
    assert predict.run(ROOT, str(trained), [str(images / "new")], output_root=trained.parent) == 2
    assert message in capsys.readouterr().err


def _rename_target(path: Path) -> None:
    path.write_text(path.read_text().replace("lr_lightning.training.models.small_cnn", "os.system"))


def _without_classes(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["ImageDataModule"]["class_names"]
    torch.save(checkpoint, path)


def test_an_empty_folder_and_an_unknown_run_are_errors(
    tmp_path: Path, images: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no files in it"):
        images_of([str(tmp_path / "empty")])
    assert predict.run(ROOT, "no-such-run", [str(images)], output_root=tmp_path, store=tmp_path / "mlruns") == 2
    assert "RUN: no run 'no-such-run'" in capsys.readouterr().err
