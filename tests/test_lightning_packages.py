"""The callbacks in a Trainer of either Lightning package, in one process; `make compat` has whole projects of each."""

import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lr_lightning
from lr_lightning import (
    LRFinder,
    LRSchedule,
    OverfittingMonitor,
    RandomState,
    RunCost,
    ScheduleAwareStopping,
    StepRecorder,
)
from lr_lightning.errors import UsageError
from lr_lightning.schedules import Cosine
from tests.callbacks.tiny import QUIET, loader

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


class Steps:
    """A project's module, without the base class."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2))
        self.lr = 0.1

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", cross_entropy(self(batch[0]), batch[1]))  # type: ignore[attr-defined]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=self.lr)


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def fit(package: Any, folder: Path, callbacks: Any, **options: Any) -> Any:
    import_module(f"{package.__name__}").seed_everything(0)
    trainer = package.Trainer(default_root_dir=folder, callbacks=callbacks, **{**QUIET, "max_epochs": 4, **options})
    module = type("Project", (Steps, package.LightningModule), {})()
    trainer.fit(module, loader(), loader(60))
    return trainer


def test_every_callback_does_the_same_in_both(tmp_path: Path) -> None:
    results = []
    for name in PACKAGES:
        package = pytest.importorskip(name)
        finder, schedule, monitor = LRFinder(num_steps=20), LRSchedule(Cosine()), OverfittingMonitor()
        rest = [StepRecorder(), RunCost(), RandomState(), ScheduleAwareStopping("val/loss", patience=2)]
        logger = import_module(f"{name}.loggers").CSVLogger(tmp_path, name)
        trainer = fit(package, tmp_path, [finder, schedule, monitor, *rest], logger=logger)
        logged = sorted(path.name for path in Path(logger.log_dir).rglob("*") if path.is_file())
        weights = [value.tolist() for value in trainer.lightning_module.state_dict().values()]
        results.append([finder.result.state(), schedule.last_lr(), str(monitor.history.points), weights, logged])
    assert results[0] == results[1]


def test_the_accumulation_of_either_package_is_seen(package: Any, tmp_path: Path) -> None:
    accumulation = import_module(f"{package.__name__}.callbacks").GradientAccumulationScheduler({0: 1, 2: 3})
    schedule = LRSchedule(Cosine())
    trainer = fit(package, tmp_path, [accumulation, schedule])
    _, clock = schedule.plan()
    assert clock.total == trainer.global_step == 6 + 6 + 2 + 2


def test_a_callback_is_one_of_the_trainers_own_package(package: Any, tmp_path: Path) -> None:
    callbacks = import_module(f"{package.__name__}.callbacks")
    stopping = ScheduleAwareStopping("val/loss", patience=1, min_delta=10.0)
    assert isinstance(LRSchedule(Cosine()), callbacks.Callback)  # so one may stand without a list, and in a CLI's YAML
    trainer = fit(package, tmp_path, stopping, max_epochs=9)
    assert trainer.early_stopping_callback is stopping
    assert trainer.current_epoch == 2


@pytest.mark.slow
def test_a_package_that_is_imported_later_is_joined() -> None:
    pytest.importorskip("pytorch_lightning")
    code = """
from lr_lightning import LRFinder, ScheduleAwareStopping
import pytorch_lightning.callbacks as theirs
import lr_lightning
print(issubclass(lr_lightning.LRFinder, theirs.Callback), isinstance(ScheduleAwareStopping(), theirs.EarlyStopping))
"""
    environment = {"PYTHONPATH": str(Path(lr_lightning.__file__).parent.parent), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_an_older_lightning_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("pytorch_lightning")
    old.__version__ = "2.4.1"  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "lightning.pytorch", raising=False)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", old)
    with pytest.raises(UsageError, match=r"needs Lightning 2\.5 or newer, and pytorch_lightning is 2\.4\.1"):
        runpy.run_path(str(Path(lr_lightning.__file__).parent / "_lightning.py"))


def test_every_callback_of_the_package_is_for_both() -> None:
    folder = Path(lr_lightning.__file__).parent / "callbacks"
    for path in folder.rglob("*.py"):
        assert not re.search(r"^class \w+\((Callback|EarlyStopping)\b", path.read_text(), flags=re.M), path
