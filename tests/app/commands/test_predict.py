"""Predictions of new images: the network, normalization and class names of the run, and what is left out."""

import csv
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lr_lightning.app import build
from lr_lightning.app.commands import predict
from lr_lightning.app.commands.predict import Prediction, Predictor, images_of
from lr_lightning.training import models
from lr_lightning.training.images import UnreadableImage
from tests import forked
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
    places = {"output_root": trained.parent, "store_root": tmp_path / "mlruns"}
    missing = str(images / "new" / "none.png")
    assert predict.run(ROOT, str(trained), [str(images / "new"), missing], table=table, **places) == 0
    out, err = capsys.readouterr()
    assert out == table.read_text()
    rows = list(csv.DictReader(table.open()))
    assert {Path(row["image"]).parent.name: row["prediction"] for row in rows} == {name: name for name in CLASSES}
    assert len(rows) == 6
    assert all(0.5 < float(row["probability"]) <= 1 for row in rows)
    skipped = sorted(Path(line.split(" ")[1]).name for line in err.splitlines() if line.startswith("skipped: "))
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
        (
            lambda folder: (folder / "checkpoints" / "best.ckpt").unlink(),
            "best.ckpt is not there. Name another one with --checkpoint",
        ),
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


def test_the_run_alone_is_needed(
    run_once: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the data, nor the weights it started from, nor the module of its source, nor the working directory."""
    trained = shutil.copytree(run_once, tmp_path / "elsewhere" / "run")
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["data"] |= {"root": "gone", "_target_": "my_package.my_data"}
    config |= {"ckpt": "gone.ckpt"}
    config["model"]["kwargs"]["pretrained"] = True
    (trained / "config.yaml").write_text(yaml.safe_dump(config))
    plain, seen = models.small_cnn, []
    monkeypatch.setattr(build, "build_net", lambda node, data: seen.append(dict(node.kwargs)) or net_of(data))

    def net_of(data: Any) -> torch.nn.Module:
        return plain(in_channels=data.in_channels, num_classes=data.num_classes, image_size=data.image_size, width=4)

    monkeypatch.chdir(tmp_path)
    assert predict.run(ROOT, str(trained), [str(images / "new")], output_root=tmp_path) == 0
    assert capsys.readouterr().out.count("\n") == 7
    assert [kwargs["pretrained"] for kwargs in seen] == [False]


def test_names_that_are_no_utf8_do_not_cut_the_table_short(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    for name in (b"a.png", b"caf\xe9.png", b"z.png"):
        shutil.copy(images / "new" / "sea" / "00.png", os.fsencode(folder) + b"/" + name)
    table = tmp_path / "table.csv"
    script = [str(ROOT / "scripts" / "predict.py"), str(trained), str(folder), "--csv", str(table), "--top", "2"]
    done = forked.run(*script, "--outputs", str(trained.parent), cwd=tmp_path, env=dict(os.environ), timeout=300)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 4)
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [Path(row["image"]).name for row in rows] == ["a.png", "caf\\udce9.png", "z.png"]
    assert {(row["prediction"], row["prediction_2"]) for row in rows} == {("sea", "red fox")}
    assert all(float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=2e-4) for row in rows)


def test_images_in_folders_named_as_the_classes_are_scored(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = shutil.copytree(images / "new", tmp_path / "mixed")
    shutil.move(mixed / "sea" / "00.png", mixed / "red fox" / "a sea.png")
    shutil.copy(images / "new" / "sea" / "01.png", mixed / "of no class.png")
    table = tmp_path / "t.csv"
    assert predict.run(ROOT, str(trained), [str(mixed)], table=table, output_root=trained.parent) == 0
    said = capsys.readouterr().err
    assert "accuracy 83.33%, of 6 images in folders named as the classes" in said
    matrix = [line.replace("│", " ").split() for line in said.splitlines() if line.startswith("│")]
    assert ["red", "fox", "3", "1"] in matrix
    assert ["sea", "·", "2"] in matrix
    assert "asea.png" in re.sub(r"[│\s]", "", said)
    classes = {Path(row["image"]).name: row["class"] for row in csv.DictReader(table.open())}
    assert (classes["a sea.png"], classes["of no class.png"]) == ("red fox", "")
    assert predict.run(ROOT, str(trained), [str(mixed / "of no class.png")], output_root=trained.parent) == 0
    out, err = capsys.readouterr()
    assert ("accuracy" in err, out.splitlines()[0]) == (False, "image,prediction,probability")


@pytest.mark.parametrize("kind", ["12 bits", "floats", "turned"])
def test_predictions_read_pixels_as_training_did(kind: str, tmp_path: Path) -> None:
    """Two classes that pictures of 8 bits, upright, separate without an error."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("new", 6)):
        for name, mean in (("dark", 60), ("light", 180)):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                values = np.clip(generator.normal(mean, 30, (12, 12)), 0, 255)
                path = tmp_path / split / name / f"{number}"
                if kind == "12 bits":
                    Image.fromarray((values * 16).astype(np.uint16)).save(f"{path}.png")
                elif kind == "floats":
                    Image.fromarray((values / 255).astype(np.float32)).save(f"{path}.tif")
                else:  # the upper half is light or dark, and the picture is stored upside down
                    values[6:] = values[6:].mean() + 240 - 2 * mean
                    exif = Image.Exif()
                    exif[0x0112] = 3 if number % 2 else 1
                    shown = values[::-1, ::-1] if number % 2 else values
                    Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8)).save(f"{path}.png", exif=exif)
    data = ["data=image_folder", f"data.root={tmp_path}/train", "data.batch_size=8", "trainer.max_epochs=8"]
    predictor = Predictor(short_run(tmp_path / "outputs", *data))
    results = list(predictor(images_of([str(tmp_path / "new")])))
    assert [r.label == r.image.parent.name for r in results if isinstance(r, Prediction)] == [True] * 12


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
    assert predict.run(ROOT, "no-such-run", [str(images)], output_root=tmp_path, store_root=tmp_path / "mlruns") == 2
    assert "RUN: no run 'no-such-run'" in capsys.readouterr().err
