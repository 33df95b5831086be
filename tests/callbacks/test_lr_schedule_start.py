"""LRSchedule(start="here"): any checkpoint can be forked, in anybody's script."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from lr_lightning import LRSchedule
from lr_lightning.errors import ArgumentError
from lr_lightning.schedules import Clock, Constant, Cosine, Join, Linear, Plateau, Schedule
from lr_lightning.schedules.compose import Shifted
from tests.callbacks.test_lr_schedule import BATCHES, PEAK, Gan, Tiny, expected, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class SaveAt(Callback):
    """Save a checkpoint after some steps."""

    def __init__(self, path: Path, *steps: int) -> None:
        self.path, self.steps = path, steps

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.path / f"{trainer.global_step}.ckpt")


def fit(path: Path, callback: LRSchedule, *, start: int = 0, save: int = 0, epochs: int = 3, **arguments: Any) -> Tiny:
    module = Tiny()
    ckpt = path / f"{start}.ckpt" if start else None
    trainer(callback, SaveAt(path, save), max_epochs=epochs, **arguments).fit(module, loader(), ckpt_path=ckpt)
    return module


def test_a_schedule_starts_at_the_checkpoint_and_ends_with_the_run(tmp_path: Path) -> None:
    fit(tmp_path, LRSchedule(Constant()), save=15)
    module = fit(tmp_path, LRSchedule(Linear(end=0.5), start="here"), start=15)
    assert module.lrs() == expected(Linear(end=0.5), Clock(15))


def test_a_fork_that_was_stopped_keeps_its_start_and_one_with_another_schedule_does_not(tmp_path: Path) -> None:
    fit(tmp_path, LRSchedule(Constant()), save=12)
    fit(tmp_path, LRSchedule(Linear(), start="here"), start=12, save=20)
    resumed = fit(tmp_path, LRSchedule(Linear(), start="here"), start=20)
    assert resumed.lrs() == expected(Linear(), Clock(18), range(8, 18))
    other = fit(tmp_path, LRSchedule(Cosine(), start="here"), start=20)
    assert other.lrs() == expected(Cosine(), Clock(10))


def test_durations_are_of_the_steps_that_are_left_and_epochs_count_from_the_start(tmp_path: Path) -> None:
    schedule = Join((Constant(), "1 epoch"), (Linear(), "50%"), (Constant(0.1), None))
    fit(tmp_path, LRSchedule(Constant()), save=20)
    module = fit(tmp_path, LRSchedule(schedule, start="here"), start=20, epochs=6)
    assert module.lrs() == expected(schedule, Clock(40, BATCHES))


def test_a_given_step_is_the_start_whatever_the_checkpoint(tmp_path: Path) -> None:
    whole = fit(tmp_path, LRSchedule(Linear(), start=10), save=20)
    assert whole.lrs() == [PEAK] * 10 + expected(Linear(), Clock(20))
    assert fit(tmp_path, LRSchedule(Linear(), start=10), start=20).lrs() == whole.lrs()[20:]


def test_the_plateau_of_the_forked_run_does_not_lower_the_fork(tmp_path: Path) -> None:
    plateau = Plateau("val/loss", factor=0.5, patience=0)
    run = trainer(LRSchedule(Constant(), plateau=plateau), SaveAt(tmp_path, 25), max_epochs=3)
    module = Tiny()
    run.fit(module, loader(), loader(1))
    assert module.lrs()[-1] < PEAK
    assert fit(tmp_path, LRSchedule(Linear(), start="here"), start=25).lrs() == expected(Linear(), Clock(5))


def test_each_optimizer_starts_at_its_own_count(tmp_path: Path) -> None:
    first = trainer(LRSchedule(Constant(), total_steps=[20, 10]), max_epochs=1)
    first.fit(Gan(every=2), loader())
    first.save_checkpoint(tmp_path / "a.ckpt")
    module = Gan(every=2)
    run = trainer(LRSchedule(Linear(), total_steps=[20, 10], start="here"), max_epochs=2)
    run.fit(module, loader(), ckpt_path=tmp_path / "a.ckpt")
    assert module.used[0] == expected(Linear(), Clock(10))
    assert module.used[1] == expected(Linear(), Clock(5), peak=2 * PEAK)


@pytest.mark.parametrize("start", [-1, 2.5, "now", True])
def test_a_bad_start_is_named(start: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^start must be 'here' or a whole number >= 0, got"):
        LRSchedule(Constant(), start=start)


@pytest.mark.parametrize("schedule", [Linear(), Join((Constant(), "50%"), (Cosine(), None))], ids=repr)
def test_a_shifted_schedule_is_the_schedule_on_the_rest(schedule: Schedule) -> None:
    clock = Clock(30, 10)
    shifted = Shifted(10, schedule)
    assert [shifted(step, clock) for step in range(31)] == [schedule(0, Clock(20, 10))] * 10 + [
        schedule(step, clock.slice(10, 20)) for step in range(21)
    ]
    assert shifted.describe(clock).startswith("from step 10 on ")
    assert shifted.needs_total is schedule.needs_total
