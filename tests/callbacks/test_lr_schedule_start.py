"""LRSchedule from the middle of a run: a schedule that starts at a checkpoint, and one that is left for a cooldown."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging

from lr_lightning import LRSchedule
from lr_lightning.callbacks.early_stopping import ScheduleAwareStopping
from lr_lightning.errors import ArgumentError, UsageError
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


class CoolDown(Callback):
    """Call cool_down after a step."""

    def __init__(self, schedule: LRSchedule, after: int, updates: int) -> None:
        self.schedule, self.after, self.updates = schedule, after, updates

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.after:
            self.schedule.cool_down(trainer, self.updates)
            self.schedule.cool_down(trainer, 1)  # a second call changes nothing


def cooled(schedule: LRSchedule, *, after: int, updates: int, module: Any = None, **arguments: Any) -> Any:
    module = module or Tiny()
    run = trainer(schedule, CoolDown(schedule, after, updates), **{"max_epochs": 3, **arguments})
    run.fit(module, loader())
    assert schedule.is_cooling
    return module


LINE = [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(("after", "accumulate"), [(13, 1), (10, 1), (5, 2)])  # in an epoch, at its end, accumulating
def test_a_cooldown_is_a_line_from_the_lr_now_to_zero_and_ends_the_run(after: int, accumulate: int) -> None:
    clock = Clock(30 // accumulate, BATCHES / accumulate)
    module = cooled(LRSchedule(Cosine()), after=after, updates=4, accumulate_grad_batches=accumulate)
    now = Cosine()(after, clock)
    assert module.lrs() == pytest.approx(expected(Cosine(), clock, after) + [PEAK * now * share for share in LINE])


def test_groups_keep_their_ratios_and_momentum_and_weight_decay_their_values() -> None:
    schedule = LRSchedule(
        Cosine(), groups={0: Linear()}, momentum=Linear(0.9, 0.5), weight_decay=Linear(1, 0.5), on_resume="keep"
    )
    module = cooled(schedule, after=12, updates=4, module=Tiny(momentum=0.9, weight_decay=0.1))
    used = [groups[0] for groups in module.used[12:]]
    assert [group["lr"] for group in used] == pytest.approx([PEAK * Linear()(12, Clock(30)) * share for share in LINE])
    assert [group["momentum"] for group in used] == [Linear(0.9, 0.5)(12, Clock(30))] * 4
    assert [group["weight_decay"] for group in used] == pytest.approx([0.1 * Linear(1, 0.5)(12, Clock(30))] * 4)


def test_a_cooldown_ends_with_the_run_that_was_planned() -> None:
    assert len(cooled(LRSchedule(Constant()), after=27, updates=10).lrs()) == 30


def test_a_run_stopped_in_its_cooldown_resumes_in_it(tmp_path: Path) -> None:
    schedule = LRSchedule(Constant())
    whole = Tiny()
    saving = SaveAt(tmp_path, 15)
    trainer(schedule, CoolDown(schedule, 12, 6), saving, max_epochs=3).fit(whole, loader())
    assert len(whole.lrs()) == 18
    again = LRSchedule(Constant())
    module = Tiny()
    trainer(again, max_epochs=3).fit(module, loader(), ckpt_path=tmp_path / "15.ckpt")
    assert module.lrs() == whole.lrs()[15:]
    assert again.plan()[1].total == 18
    assert fit(tmp_path, LRSchedule(Linear(), start="here"), start=15).lrs() == expected(Linear(), Clock(15))  # a fork


def test_each_of_two_optimizers_cools_down_and_a_new_fit_follows_its_schedule() -> None:
    schedule = LRSchedule(Constant(), total_steps=[40, 40])
    module = cooled(schedule, after=20, updates=4, module=Gan(), max_epochs=4)
    assert module.used[0][10:] == pytest.approx([PEAK * share for share in LINE])
    assert module.used[1][10:] == pytest.approx([2 * PEAK * share for share in LINE])
    trainer(schedule, max_epochs=1).fit(again := Gan(), loader())
    assert again.used[0] == [PEAK] * BATCHES


def test_early_stopping_lets_a_cooldown_come_to_its_end() -> None:
    schedule = LRSchedule(Constant())
    stopping = ScheduleAwareStopping("val/loss", patience=2)
    module = Tiny()  # its validation loss never changes
    run = trainer(schedule, stopping, CoolDown(schedule, 15, 10), max_epochs=9, val_check_interval=5)
    run.fit(module, loader(), loader(1))
    assert len(module.lrs()) == 25


def test_a_cooldown_of_no_update_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^updates must be a whole number >= 1, got 0"):
        LRSchedule(Constant()).cool_down(trainer(), 0)


def test_a_cooldown_beside_a_callback_that_sets_the_lr_is_refused_and_the_run_goes_on() -> None:
    schedule, said = LRSchedule(Constant()), []

    class Asks(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step in (5, 25):  # before and after the averaging begins
                with pytest.raises(UsageError) as caught:
                    schedule.cool_down(trainer, 2)
                said.append(str(caught.value))

    swa = StochasticWeightAveraging(0.01, swa_epoch_start=2)
    trainer(schedule, swa, Asks(), max_epochs=3).fit(module := Tiny(), loader())
    assert len(module.lrs()) == 30
    assert (
        said
        == [
            "LRSchedule cannot cool down, since StochasticWeightAveraging sets the lr. Let the run reach its end.",
        ]
        * 2
    )
