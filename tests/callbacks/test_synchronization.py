"""No callback waits for the device in a step, which a GPU may still compute, or keeps a tensor from each step."""

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lr_lightning import (
    CooldownPreview,
    LRSchedule,
    OverfittingMonitor,
    RandomState,
    RunCost,
    ScheduleFreeMode,
    StepRecorder,
)
from lr_lightning.schedules import Cosine, Warmup
from tests.callbacks.tiny import QUIET, Tiny, loader

WAITS = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__", "nonzero")


class Plain(Tiny):
    """Without a wait of its own in the step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])


def _counted(method: Callable[..., Any], name: str, found: Counter[str]) -> Callable[..., Any]:
    def call(self: Tensor, *args: Any, **options: Any) -> Any:
        found[name] += 1
        return method(self, *args, **options)

    return call


def waits(callbacks: list[pl.Callback], steps: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a fit of two epochs with so many steps waits for the device, by the method that waits."""
    found: Counter[str] = Counter()
    with monkeypatch.context() as patch:
        for name in WAITS:
            patch.setattr(Tensor, name, _counted(getattr(Tensor, name), name, found))
        patch.setattr(torch.cuda, "synchronize", lambda *_: found.update(["synchronize"]))
        trainer = pl.Trainer(max_epochs=2, limit_val_batches=0, callbacks=callbacks, **QUIET)
        trainer.fit(Plain(), loader(60 // steps))
    return found


def own() -> list[pl.Callback]:
    """Every callback that has a hook of a step."""
    schedule = LRSchedule(Warmup(2, then=Cosine()), momentum=Cosine(0.9, 0.5))
    recorder = StepRecorder(flush_seconds=600.0)
    monitors = [RunCost(), OverfittingMonitor(), CooldownPreview()]
    return [schedule, recorder, *monitors, RandomState(), ScheduleFreeMode()]


class Alive(pl.Callback):
    """Counts the tensors that are alive after each step."""

    def __init__(self) -> None:
        self.tensors: list[int] = []

    def on_train_batch_end(self, *_: Any) -> None:
        gc.collect()
        self.tensors.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))


def test_no_tensor_is_kept_from_each_step() -> None:
    """One that is kept lies between the memory of activations, which the C allocator then cannot use again."""
    alive = Alive()
    trainer = pl.Trainer(max_epochs=1, limit_val_batches=0, callbacks=[*own(), alive], **QUIET)
    trainer.fit(Plain(), loader(3))
    assert len(alive.tensors) == 20
    assert len(set(alive.tensors[3:])) == 1


def test_a_longer_epoch_waits_no_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lr_lightning._threads._TIMED_STEPS", (10**9,))
    extra = {steps: waits(own(), steps, monkeypatch) - waits([], steps, monkeypatch) for steps in (6, 20)}
    assert extra[6] == extra[20]
    assert (
        sum(extra[6].values()) <= 15
    )  # at the ends of epochs and of the fit, and where CooldownPreview learns the loss
