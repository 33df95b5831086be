"""The learning rate for a larger batch, hooks of a step that a callback lacks, and batch norm over processes."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.profilers import SimpleProfiler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lr_lightning import _threads
from lr_lightning.app import build
from lr_lightning.app.build import STEP_HOOKS, skip_empty_hooks
from lr_lightning.app.config import Config
from lr_lightning.app.run.checkpoints import AtomicCheckpointIO
from lr_lightning.app.run.train import build_data_and_module, check_batch_norm, train
from lr_lightning.app.world import lr_rule_factor, scale_lr
from lr_lightning.errors import ConfigError
from lr_lightning.training.datamodule import ImageDataModule
from tests.callbacks.tiny import QUIET, Tiny, X, Y


@pytest.mark.parametrize(("overrides", "during", "after"), [([], 6, 1), (["data.batch_size=900"], 6, 6),
    (["trainer.threads=5"], 5, 5), (["trainer.devices=2", "trainer=ddp", "data.batch_size=900"], 3, 3)])  # fmt: skip
def test_the_threads_are_set_before_the_data_is_loaded_and_recorded(
    monkeypatch: pytest.MonkeyPatch, configured: Callable[..., Config], overrides: list[str], during: int, after: int
) -> None:
    used: list[int] = []
    prepare = ImageDataModule.prepare
    monkeypatch.setattr(ImageDataModule, "prepare", lambda data: used.append(torch.get_num_threads()) or prepare(data))
    monkeypatch.setattr(_threads, "usable_cores", lambda: 6)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("OMP_NUM_THREADS", None)
    config, before = configured("trainer=cpu", *overrides), torch.get_num_threads()
    try:
        build_data_and_module(config)
        assert (used, torch.get_num_threads(), config.trainer.threads) == ([during], after, after)
        assert os.environ.get("OMP_NUM_THREADS") == (str(after) if "trainer=ddp" in overrides else None)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", ["0", "-1", "many"])
def test_a_bad_number_of_threads_is_refused(configured: Callable[..., Config], threads: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.threads: .*auto, or a number of threads"):
        configured(f"trainer.threads={threads}")


class Counts(Callback):
    """Has one of the hooks."""

    def __init__(self) -> None:
        self.ended = 0

    def on_train_batch_end(self, *_: object) -> None:
        self.ended += 1


class Inherits(Counts):
    """Has the hook of the class above, and calls one that nobody has."""

    def on_after_backward(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
        super().on_after_backward(trainer, pl_module)
        self.ended += 100


class Late(Callback):
    """Has a hook in the instance, as LambdaCallback does."""

    def __init__(self) -> None:
        self.ended = 0
        self.on_train_batch_end = self._end  # type: ignore[method-assign]

    def _end(self, *_: object) -> None:
        self.ended += 1


def called(callback: Callback) -> list[str]:
    return [hook for hook in STEP_HOOKS if callable(getattr(callback, hook))]


def test_what_a_callback_has_is_called_and_the_rest_is_not() -> None:
    own, below, late, none = Counts(), Inherits(), Late(), Callback()
    trainer = Trainer(max_epochs=1, callbacks=[own, below, late, none], **QUIET)
    skip_empty_hooks(trainer.callbacks)  # type: ignore[attr-defined]
    trainer.fit(Tiny(), DataLoader(TensorDataset(X, Y), batch_size=20))
    steps = trainer.global_step
    assert steps > 1
    assert (own.ended, below.ended, late.ended) == (steps, 101 * steps, steps)
    assert called(none) == []
    assert called(below) == ["on_after_backward", "on_train_batch_end"]


class Calls(Callback):
    """Counts the calls of Python functions in some steps."""

    def __init__(self) -> None:
        self.calls = 0

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step in (20, 40):
            sys.setprofile(self._count if trainer.global_step == 20 else None)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        self.calls += event == "call"


def test_a_step_of_the_app_calls_hardly_more_functions_than_one_of_lightning(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    alone, app = Calls(), Calls()
    words = ["trainer=cpu", "trainer.max_steps=41", "trainer.max_epochs=-1", "data.batch_size=32", "test=false"]
    config = configured(*words, "trainer.progress=none", f"output_root={tmp_path}", "tracking=csv")
    data, module = build_data_and_module(config)
    trainer = Trainer(max_steps=41, callbacks=[alone], limit_val_batches=0, **QUIET)
    trainer.fit(module, datamodule=data)
    train(config, report=False, watching=[app])
    assert app.calls > 0
    assert app.calls < 1.15 * alone.calls


def test_a_profiler_of_the_users_is_kept(configured: Callable[..., Config], tmp_path: Path) -> None:
    for words, kind in ([], build.NoProfiler), (["+trainer.kwargs.profiler=simple"], SimpleProfiler):
        node = configured("trainer=cpu", *words).trainer
        trainer = build.build_trainer(node, tmp_path, [], AtomicCheckpointIO(tmp_path), enable_checkpointing=False)
        assert type(trainer.profiler) is kind  # type: ignore[attr-defined]  # set outside the class


def test_batch_norm_over_processes_is_refused_on_cpus_before_the_start(
    configured: Callable[..., Config],
) -> None:
    several = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.sync_batchnorm=true"]
    with pytest.raises(ConfigError, match=r"trainer\.sync_batchnorm: true, but .* on GPUs only"):
        check_batch_norm(configured(*several, "trainer.devices=2").trainer, nn.Sequential(nn.BatchNorm2d(4)))
    check_batch_norm(configured(*several, "trainer.devices=2").trainer, nn.Sequential(nn.GroupNorm(2, 4)))
    check_batch_norm(configured(*several, "trainer.devices=1").trainer, nn.Sequential(nn.BatchNorm2d(4)))


def test_bad_input_is_not_its_own_cause(configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    bad = ConfigError("data: bad")

    def build_data(config: Config) -> None:
        raise bad

    monkeypatch.setattr(build, "build_data", build_data)
    with pytest.raises(ConfigError, match=r"^data: bad$") as caught:
        build_data_and_module(configured())
    assert caught.value is bad
    assert bad.__cause__ is None


@pytest.mark.parametrize(("rule", "expected"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_rule_scales_every_absolute_lr(configured: Callable[..., Config], rule: str, expected: float) -> None:
    assert lr_rule_factor(rule, 256, 64) == expected
    own = ["schedule=triangular", "schedule.max_lr=0.4", "schedule.base_lr=0.1", "data.batch_size=256"]
    given = configured(*own, f"optimizer.lr_rule={rule}", "optimizer.lr_reference_batch=64", "trainer=cpu")
    config, said = scale_lr(given)
    assert config.optimizer.lr == pytest.approx(0.4 * expected)
    assert config.schedule.max_lr == pytest.approx(0.4 * expected)  # type: ignore[attr-defined]
    assert config.schedule.base_lr == pytest.approx(0.1 * expected)  # type: ignore[attr-defined]
    assert said == ({} if rule == "none" else {"lr_rule.given_lr": 0.4, "lr_rule.factor": expected})
    assert given.optimizer.lr == 0.4
