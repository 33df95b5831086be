"""A run of every choice of conf/schedule resumes bit for bit; what does not fit the run is refused before its start."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig

from lr_lightning.app import build
from lr_lightning.app.composition import validate
from lr_lightning.app.run.resume import stored_config
from lr_lightning.app.run.train import train
from lr_lightning.errors import ConfigError
from tests.app.test_build import CHOICES, MOVING, built
from tests.leftovers import plain, query

Command = Callable[..., Any]

Compose = Callable[..., DictConfig]

STEPS, STOP = 18, 15  # in the third epoch of three

SPECIAL: dict[str, tuple[int, list[str]]] = {
    # so strict that the second validation is no better than the first: the lr falls before the stop
    "plateau": (STOP, ["schedule.patience=0", "schedule.threshold=0.99"]),
    # fewer updates: the stop is in the second epoch, where the batch has grown once
    "batch_growth": (7, ["schedule.growth.factor=2", "schedule.growth.max_batch_size=32"]),
}

TINY = [
    "test=false",
    "tracking=none",
    "model.kwargs.width=4",
    "model.kwargs.dropout=0.2",  # draws from the global generator
    "data.flip=true",
    "data.batch_size=32",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=6",
    "trainer.deterministic=false",  # a global switch; on a CPU these runs are exact without it
    "trainer.progress=none",
    "trainer=cpu",
]


class Watch(Callback):
    """Note what each step uses; save a checkpoint after the step `stop`."""

    def __init__(self, checkpoint: Path | None = None, stop: int = 0) -> None:
        self.checkpoint, self.stop = checkpoint, stop
        self.used: dict[int, list[tuple[float, Any]]] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        groups = optimizer.param_groups
        self.used[trainer.global_step] = [(g["lr"], plain(g.get("momentum", g.get("betas")))) for g in groups]

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if self.checkpoint is not None and trainer.global_step == self.stop and not self.checkpoint.exists():
            trainer.save_checkpoint(self.checkpoint)


def watched(monkeypatch: pytest.MonkeyPatch, watch: Watch, *arguments: Any) -> Path:
    """Train with a watch among the callbacks; the output folder."""
    original = build.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(build, "build_callbacks", lambda *args, **more: [watch, *original(*args, **more)])
        folder = train(*arguments).output_dir
    assert folder is not None
    return folder


RUNS = [
    *[(choice, "sgd", []) for choice in CHOICES if choice != "cooldown"],  # which needs a run to fork
    *[("cosine", name, []) for name in ("adam", "adamw", "rmsprop", "adagrad")],
    ("one_cycle", "sgd", MOVING),
    ("one_cycle", "adam", MOVING),
    ("triangular2", "sgd", ["schedule.base_lr=0.01", "schedule.max_lr=0.05"]),
]


@pytest.mark.parametrize(("choice", "optimizer", "more"), RUNS, ids=[f"{c}-{o}-{len(m)}" for c, o, m in RUNS])
def test_a_run_stopped_in_mid_epoch_resumes_bit_for_bit(
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    choice: str,
    optimizer: str,
    more: list[str],
) -> None:
    stop, special = SPECIAL.get(choice, (STOP, []))
    config, schedule = built(composed, f"schedule={choice}", f"optimizer={optimizer}", *TINY, *more, *special)
    middle = tmp_path / "middle.ckpt"
    watch = Watch(middle, stop)
    folder = watched(monkeypatch, watch, config)
    last = folder / "checkpoints" / "last.ckpt"
    theirs = torch.load(last, weights_only=True)

    shutil.move(middle, last)
    # by way of the stored config, as `resume=` goes: it must name nothing that is not trusted
    again, previous = stored_config(composed(f"resume={folder}", "tracking=none"), [])
    config.tracking.experiment = config.tracking.experiment_name  # named, so that no variable of today changes it
    assert asdict(again) == asdict(config)
    rest = Watch()
    watched(monkeypatch, rest, again, previous)

    assert rest.used == {step: used for step, used in watch.used.items() if step >= stop}
    ours = torch.load(last, weights_only=True)
    assert ours["global_step"] == theirs["global_step"] > stop
    assert plain(ours["state_dict"]) == plain(theirs["state_dict"])
    assert plain(ours["optimizer_states"]) == plain(theirs["optimizer_states"])
    if choice == "plateau":
        assert [watch.used[step][0][0] for step in (0, STOP)] == [0.1, 0.05]
    elif choice == "batch_growth":
        assert len(watch.used) < STEPS
    else:
        assert [used[0][0] for used in watch.used.values()] == [
            config.optimizer.lr * factor for factor in schedule.factors(STEPS, 6)
        ]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["schedule=cosine", "schedule.warmup=30 epochs"], ["schedule: Warmup:", "180", "18 steps in all"]),
        (["schedule=multistep", "schedule.at=[10 epochs]"], ["schedule: MultiStep:", "10 epochs", "18 steps"]),
        (
            ["schedule=plateau", "schedule.monitor=val/los"],
            ["schedule.monitor:", "'val/los'", "Did you mean 'val/loss'"],
        ),
    ],
)
def test_what_does_not_fit_the_run_is_said_before_its_first_step(
    composed: Compose, overrides: list[str], parts: list[str]
) -> None:
    config = validate(composed(*overrides, *TINY))
    with pytest.raises(ConfigError) as caught:
        train(config)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.slow
def test_a_sweep_over_all_choices_finishes_each(tmp_path: Path, train_command: Command) -> None:
    small = ["model.kwargs.width=4", "trainer.max_epochs=3"]
    choices = [choice for choice in CHOICES if choice != "cooldown"]
    train_command(f"schedule={','.join(choices)}", *small, "-m", timeout=900)
    rows = query(
        tmp_path,
        "SELECT tags.value, runs.status FROM runs JOIN tags USING (run_uuid) WHERE tags.key = 'schedule'",
    )
    assert sorted(rows) == [(choice, "FINISHED") for choice in choices]
