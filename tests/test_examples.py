"""The examples, as they stand, in this process: what each of them promises about its rates."""

import csv
import importlib
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from lr_lightning import LRFinder, LRSchedule, OverfittingMonitor

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Rows = list[dict[str, str]]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Import an example as `python examples/NAME.py` does, in an empty folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module
    for name in [path.stem for path in EXAMPLES.glob("*.py")]:
        sys.modules.pop(name, None)


def rates(folder: Path, column: str) -> list[float]:
    """A column of the run's metrics.csv, in the order of the steps."""
    (file,) = folder.rglob("metrics.csv")
    rows: Rows = list(csv.DictReader(file.open()))
    return [float(row[column]) for row in rows if row.get(column)]


def callback(trainer: L.Trainer, kind: type[Callback]) -> Any:
    return next(c for c in trainer.callbacks if isinstance(c, kind))  # type: ignore[attr-defined]


def test_plain_script(example: Any, tmp_path: Path) -> None:
    trainer = example("plain").main(max_epochs=2)
    found = callback(trainer, LRFinder).result.suggestion
    lrs = rates(tmp_path / "logs", "lr/group0")
    assert len(lrs) == trainer.global_step == 40
    assert max(lrs) == pytest.approx(found)  # a warmup of two steps to the found rate, then down
    assert lrs[-1] < 0.01 * found
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))
    assert callback(trainer, OverfittingMonitor).history.points


def test_lightning_cli(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cli.py"])  # LightningCLI warns of arguments from two sides
    arguments = ["fit", "--config", str(EXAMPLES / "cli.yaml"), "--trainer.max_epochs", "2"]
    trainer = example("cli").main(arguments).trainer
    found = callback(trainer, LRFinder).result.suggestion
    assert max(rates(tmp_path / "logs", "lr/group0")) == pytest.approx(found)


def test_gan(example: Any, tmp_path: Path) -> None:
    trainer = example("gan").main(max_epochs=2)
    generator, discriminator = (rates(tmp_path / "logs", f"lr/{name}") for name in ("group0", "opt1_group0"))
    assert len(generator) == 40
    assert trainer.global_step == 120  # Lightning's count of both: one update of the generator, two of the other
    assert max(generator) == pytest.approx(1e-3)
    assert generator[-1] < 0.05 * max(generator)
    assert set(discriminator) == {2e-3}


def test_regression(example: Any, tmp_path: Path) -> None:
    trainer = example("regression").main(max_epochs=3)
    assert callback(trainer, LRFinder).result.suggestion is not None
    measured = rates(tmp_path / "logs", "probe/loss")
    assert len(measured) == 3
    assert measured[-1] < 0.6  # what predicting the mean would have


def test_fine_tuning(example: Any, tmp_path: Path) -> None:
    trainer = example("fine_tuning").main(max_epochs=5)
    head, backbone = (rates(tmp_path / "logs", f"lr/{name}") for name in ("head", "backbone"))
    assert len(head) == len(backbone) == trainer.global_step == 40
    assert backbone[:8] == [0.0] * 8  # frozen for 20 %
    assert max(head) == pytest.approx(1e-2)
    assert max(backbone) == pytest.approx(1e-3)
    assert callback(trainer, LRSchedule).last_lr() == pytest.approx([head[-1], backbone[-1]])
