"""find_lr: LRFinder's result without a training, and nothing else."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lr_lightning import LRFinder, find_lr
from lr_lightning.errors import ArgumentError
from tests.callbacks.finding import frozen, random_states
from tests.callbacks.tiny import Memory, Tiny, loader, trainer


def test_it_finds_what_the_callback_finds_and_leaves_no_trace(tmp_path: Path) -> None:
    seed_everything(1)
    module = Tiny()
    module.net[1].eval()
    finder = LRFinder(num_steps=40, apply=False, progress=False)
    seed_everything(2)
    trainer(tmp_path, [finder], max_steps=1).fit(copy.deepcopy(module), loader(), loader())
    seed_everything(2)
    before, states = frozen([module.state_dict(), module.losses, module.lr]), random_states()
    found = find_lr(module, loader(), loader(), num_steps=40, progress=False)
    assert finder.result is not None
    assert found.state() == finder.result.state()
    assert frozen([module.state_dict(), module.losses, module.lr]) == before
    assert random_states() == states
    assert [layer.training for layer in module.modules()] == [True, True, True, False, True, True]


def test_a_trainer_that_is_given_is_as_before(tmp_path: Path) -> None:
    def weights(search: bool) -> tuple[list[Any], list[Any]]:
        seed_everything(3)
        logger, module = Memory(), Tiny()
        callbacks = [GradientAccumulationScheduler({0: 2}), LRFinder(num_steps=10), LearningRateFinder()][: 1 + search]
        fitting = trainer(tmp_path, callbacks, logger, gradient_clip_val=0.5)
        if search:
            listed = list(fitting.callbacks)  # type: ignore[attr-defined]
            found = find_lr(module, loader(), loader(), trainer=fitting, num_steps=20, progress=False)
            assert len(found.lrs) == 20
            assert fitting.callbacks == listed  # type: ignore[attr-defined]
            assert fitting.loggers == [logger]
            assert logger.rows == []
            fitting.callbacks = callbacks[:1]  # type: ignore[attr-defined]
        fitting.fit(module, loader(), loader())
        return [value.tolist() for value in module.state_dict().values()], logger.rows

    assert weights(search=True) == weights(search=False)


def test_a_datamodule_and_a_module_with_no_validation() -> None:
    found = find_lr(BoringModel(), datamodule=BoringDataModule(), num_steps=12, metric="loss", progress=False)
    assert len(found.curves) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"apply": True}, "apply"), ({"at_epochs": [1]}, "at_epochs"), ({"num_steps": 3}, "num_steps")],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        find_lr(Tiny(), loader(), **settings)


def test_a_trainer_that_cannot_measure_is_refused(tmp_path: Path) -> None:
    used = trainer(tmp_path, [], max_steps=1)
    used.fit(Tiny(), loader())
    for bad in (used, trainer(tmp_path, [], fast_dev_run=True), trainer(tmp_path, [], limit_train_batches=0)):
        with pytest.raises(ArgumentError, match="has not trained yet"):
            find_lr(Tiny(), loader(), trainer=bad)


def test_after_an_error_the_trainer_is_as_before(tmp_path: Path) -> None:
    class Broken(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            raise RuntimeError("mine")

    fitting = trainer(tmp_path, [])
    listed = list(fitting.callbacks)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="mine"):
        find_lr(Broken(), loader(), trainer=fitting)
    assert fitting.callbacks == listed  # type: ignore[attr-defined]
    assert fitting.limit_train_batches == 1.0
