"""The exported network predicts what the run predicts, in plain torch and in ONNX."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lr_lightning.app.commands import export
from lr_lightning.app.commands.predict import Prediction, Predictor
from lr_lightning.errors import ConfigError, UsageError
from lr_lightning.training.classifier import LitClassifier
from tests.app.commands.test_predict import draw
from tests.app.conftest import short_run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a short run."""
    folder = tmp_path_factory.mktemp("images")
    draw(folder / "fox", (200, 60, 40), 16)
    draw(folder / "sea", (30, 60, 200), 16)
    data = ["data=image_folder", f"data.root={folder}", "data.batch_size=8", "trainer.max_epochs=2"]
    return short_run(folder.parent / "outputs", *data)


def test_every_format_predicts_as_the_run_does(
    run_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = shutil.copytree(run_once, tmp_path / "outputs" / "RUN")
    formats = list(export.FORMATS) if export.find_spec("onnxscript") else ["torchscript", "torch_export"]
    assert export.run(ROOT, str(trained), formats=formats, output_root=trained.parent) == 0
    names = sorted([export.FORMATS[name][0] for name in formats] + ["model.json"])
    assert sorted(path.name for path in (trained / "export").iterdir()) == names
    about = json.loads((trained / "export" / "model.json").read_text())
    assert (about["classes"], about["channels"], about["height"], about["width"]) == (["fox", "sea"], 3, 12, 12)
    pixels = np.random.default_rng(3).integers(0, 256, (20, 15, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "new.png", exif=exif)
    (expected,) = Predictor(trained)([tmp_path / "new.png"])
    assert isinstance(expected, Prediction)
    capsys.readouterr()
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "export.md").read_text(), flags=re.M | re.S)
    monkeypatch.chdir(tmp_path)
    for loading in ('torch.jit.load(folder / "model.ts")', 'torch.export.load(folder / "model.pt2").module()'):
        exec(re.sub(r"net = .*", lambda _, loading=loading: f"net = {loading}", code), {})  # type: ignore[misc]
        label, probability = capsys.readouterr().out.split()
        assert (label, float(probability)) == (expected.label, pytest.approx(expected.probability, abs=0.02))


def test_a_network_that_cannot_be_written_is_one_error(run_once: Path, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operator\nand more")

    def other(*_: object) -> object:
        return lambda pixels: torch.ones(len(pixels), 2) * torch.tensor([9.0, 0.0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(export.FORMATS, "torchscript", ("model.ts", fail))
        with pytest.raises(
            ConfigError, match=r"--format torchscript: this format cannot hold the network \(no such operator\)"
        ):
            export.export(run_once, tmp_path, ["torchscript"])
        (tmp_path / "model.ts").touch()
        patch.setitem(export.FORMATS, "torchscript", ("model.ts", other))
        with pytest.raises(ConfigError, match="the written network predicts otherwise"):
            export.export(run_once, tmp_path, ["torchscript"])
        assert not list(tmp_path.glob("model*"))
        patch.setattr(export, "find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="needs `pip install onnx onnxscript`"):
            export.export(run_once, tmp_path, ["onnx"])


def test_the_averaged_weights_are_exported_with_their_statistics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["data.train_size=320", "data.batch_size=32", "trainer.max_epochs=2", "test=false"]
    trained = short_run(tmp_path, *data, "callbacks.cooldown_preview=true")
    kept = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    preview, raw = kept["callbacks"]["CooldownPreview"], kept["state_dict"]
    found = Predictor(trained, "last", averaged=True).module.state_dict()
    for name, value in preview["average"].items():
        assert torch.equal(found[name].cpu(), value)
    changed = {name for name, value in raw.items() if not torch.equal(found[name].cpu(), value)}
    assert {name for name in raw if name.endswith(("weight", "running_mean", "running_var"))} <= changed
    status = export.run(ROOT, str(trained), formats=["torchscript"], checkpoint="last", averaged=True)
    assert (status, json.loads((trained / "export" / "model.json").read_text())["weights"]) == (0, "averaged")
    plain = short_run(tmp_path, *data, "callbacks.cooldown_preview=false")
    assert export.run(ROOT, str(plain), formats=["torchscript"], averaged=True) == 2
    assert "--weights averaged: " in (said := capsys.readouterr().err)
    assert "has no averaged weights. Train with callbacks.cooldown_preview=true." in said


def test_a_checkpoint_says_what_loads_it(run_once: Path) -> None:
    path = run_once / "checkpoints" / "best.ckpt"
    with pytest.raises(UsageError, match=r"holds the weights and not the network.*Predictor.*scripts/export\.py RUN"):
        LitClassifier.load_from_checkpoint(path)
    predictor = Predictor(run_once)
    assert isinstance(predictor.module, LitClassifier)
    again = LitClassifier.load_from_checkpoint(
        path, map_location="cpu", net=predictor.module.net, optimizer=torch.optim.SGD, num_classes=2
    )
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, stored[name]) for name, value in again.state_dict().items())
