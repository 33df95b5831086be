"""Early stopping asks its criterion only where the schedule lets it, in a real Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import EarlyStopping

from lr_lightning import LRSchedule, OverfittingMonitor, ScheduleAwareStopping
from lr_lightning.schedules import WSD, Constant, Cosine, Plateau, Schedule, Triangular, Warmup
from tests.callbacks.tiny import Tiny, loader, trainer


class Scripted(Tiny):
    """Logs a validation loss of the test's choice."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.script, self.done = losses, 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if not self.trainer.sanity_checking:
            self.log("val/scripted", self.script[self.done])

    def on_validation_epoch_end(self) -> None:
        self.done += not self.trainer.sanity_checking


def _epochs(tmp_path: Path, losses: list[float], schedule: Schedule | None, stop: Any, *more: Any) -> int:
    """After how many epochs a run of at most as many as there are losses ends."""
    seed_everything(5, verbose=False)
    callbacks = [stop, *more, *([LRSchedule(schedule)] if schedule else [])]
    fit = trainer(tmp_path, callbacks, max_epochs=len(losses))
    fit.fit(Scripted(losses), loader(), loader(60))
    return fit.current_epoch


RISING = [1.0 + 0.1 * n for n in range(20)]


def _stop(**settings: Any) -> ScheduleAwareStopping:
    return ScheduleAwareStopping("val/scripted", **{"patience": 2, **settings})


@pytest.mark.parametrize(
    ("schedule", "epochs"),
    [
        (None, 3),  # as Lightning's own
        (Constant(), 3),
        (Warmup("25%", Cosine()), 8),  # five epochs of warmup do not count
        (
            WSD(warmup=0),
            19,
        ),  # the last fifth is its cooldown: the first validation in it is the best, two more are worse
        (Triangular(0.1, "10%"), 12),  # low ends after 4, 8, 12 epochs
    ],
)
def test_patience_waits_for_the_schedule(tmp_path: Path, schedule: Schedule | None, epochs: int) -> None:
    assert _epochs(tmp_path, RISING, schedule, _stop()) == epochs
    assert _epochs(tmp_path, RISING, schedule, EarlyStopping("val/scripted", patience=2)) == 3


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"criterion": "gl", "threshold": 45.0}, 6),  # 1.5 is the first above 1.45
        ({"criterion": "up", "threshold": 2, "strip": 3}, 9),
        ({"criterion": "pq", "threshold": 1e-3, "strip": 4}, 4),
    ],
)
def test_prechelts_criteria(tmp_path: Path, settings: dict[str, Any], epochs: int) -> None:
    stop = _stop(**settings)
    assert _epochs(tmp_path, RISING, Constant(), stop, OverfittingMonitor()) == epochs
    assert stop.stopping_reason_message
    assert stop.stopped_epoch == epochs - 1


@pytest.mark.parametrize("criterion", ["gl", "up", "pq", "patience"])
def test_nothing_stops_a_run_that_gets_better(tmp_path: Path, criterion: str) -> None:
    falling = [2.0 * 0.9**n for n in range(12)]
    assert _epochs(tmp_path, falling, Cosine(), _stop(criterion=criterion), OverfittingMonitor()) == 12


@pytest.mark.parametrize("order", [1, -1])
def test_it_may_monitor_the_monitor_in_any_order(tmp_path: Path, order: int) -> None:
    stop = ScheduleAwareStopping("overfit/gl", patience=1, min_delta=1e9)
    fit = trainer(tmp_path, [OverfittingMonitor(), stop][::order], max_epochs=9)
    fit.fit(Tiny(), loader(), loader())
    assert fit.current_epoch == 2


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"monitor": "overfit/gap_loss", "patience": 2, "min_delta": 1e9}, 5),  # measured after 1, 3 and 5 epochs
        ({"monitor": "val/scripted", "criterion": "pq", "threshold": 1e-9, "strip": 2}, 3),
    ],
)
def test_a_validation_that_did_not_measure_the_metric_does_not_count(
    tmp_path: Path, settings: dict[str, Any], epochs: int
) -> None:
    stop, monitor = ScheduleAwareStopping(**settings), OverfittingMonitor(every_n_validations=2)
    assert _epochs(tmp_path, RISING, Constant(), stop, monitor) == epochs


def test_a_resumed_run_may_begin_with_a_validation_that_does_not_measure(tmp_path: Path) -> None:
    def run(epochs: int, **resumed: Any) -> int:
        stop = ScheduleAwareStopping("overfit/gap_loss", patience=2, min_delta=1e9)
        plateau = Plateau("overfit/gap_loss", patience=0, threshold=1e9, threshold_mode="abs")
        callbacks = [OverfittingMonitor(every_n_validations=2), LRSchedule(Constant(), plateau=plateau), stop]
        fit = trainer(tmp_path, callbacks, max_epochs=epochs)
        fit.fit(Tiny(), loader(), loader(), **resumed)
        fit.save_checkpoint(tmp_path / "a.ckpt")
        return fit.current_epoch

    assert run(1) == 1
    assert run(20, ckpt_path=tmp_path / "a.ckpt") == 7  # of 1, 3, 5, 7 the first is the best; 3 is a drop


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("losses", "patience", "epochs"),
    [
        (RISING, 3, 6),  # a drop at the third; the one at the fifth follows on nothing better
        (RISING, 2, 5),  # it drops where patience ends
        ([1.0, 1.1, 1.2, 0.9, *RISING], 3, 9),  # after something better the drop at the sixth counts as well
    ],
)
def test_patience_begins_anew_where_the_plateau_drops(
    tmp_path: Path, order: int, losses: list[float], patience: int, epochs: int
) -> None:
    schedule = LRSchedule(Constant(), plateau=Plateau("val/scripted", factor=0.5, patience=1))
    fit = trainer(tmp_path, [schedule, _stop(patience=patience)][::order], max_epochs=20)
    fit.fit(Scripted(losses), loader(), loader(60))
    assert fit.current_epoch == epochs


def test_prechelts_criteria_are_not_asked_at_a_drop(tmp_path: Path) -> None:
    schedule = LRSchedule(Constant(), plateau=Plateau("val/scripted", factor=0.5, patience=1))
    stop = _stop(criterion="gl", threshold=15.0)  # 1.2, at the drop, is the first above it
    fit = trainer(tmp_path, [schedule, stop], max_epochs=20)
    fit.fit(Scripted(RISING), loader(), loader(60))
    assert fit.current_epoch == 4


def test_a_resumed_run_stops_where_the_whole_one_does(tmp_path: Path) -> None:
    stop = _stop(criterion="gl", threshold=45.0)
    seed_everything(5, verbose=False)
    first = trainer(tmp_path, [stop, LRSchedule(Constant())], max_epochs=3)
    first.fit(Scripted(RISING), loader(), loader(60))
    first.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    again = Scripted(RISING)
    again.done = 3
    second = trainer(tmp_path, [_stop(criterion="gl", threshold=45.0), LRSchedule(Constant())], max_epochs=20)
    second.fit(again, loader(), loader(60), ckpt_path=tmp_path / "a.ckpt")
    assert second.current_epoch == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "best"}, "criterion must be one of 'patience', 'gl', 'pq', 'up', got 'best'"),
        ({"patience": 0}, "patience must be a whole number >= 1, got 0"),
        ({"strip": 0}, "strip must be a whole number >= 1, got 0"),
        ({"threshold": 0.0}, "threshold must be > 0, got 0.0"),
        ({"criterion": "gl", "mode": "max"}, "takes a loss"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleAwareStopping(**settings)


def test_a_metric_that_is_missing_is_named_beside_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no metric 'probe/loss' was logged. There are: .*val/loss"):
        trainer(tmp_path, [ScheduleAwareStopping(criterion="pq")]).fit(Tiny(), loader(), loader())


@pytest.mark.parametrize("limit", [{"min_epochs": 6}, {"min_steps": 36}])
def test_it_says_when_the_run_really_stops(tmp_path: Path, caplog: Any, limit: dict[str, int]) -> None:
    fit = trainer(tmp_path, [_stop()], max_epochs=9, **limit)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit.fit(Scripted(RISING), loader(), loader(60))
    (name, value), *_ = limit.items()
    assert fit.current_epoch == 6  # as with Lightning's EarlyStopping
    assert (
        f"The run will stop early, but not before {name}={value}. Decided after epoch 3: Monitored metric"
        in caplog.text
    )
    assert "Stopped early after epoch" not in caplog.text


def test_without_a_validation_a_training_metric_stops_and_a_missing_one_is_named(tmp_path: Path) -> None:
    class Worse(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train/worse", float(self.current_epoch), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    fit = trainer(tmp_path, [ScheduleAwareStopping("train/worse", patience=2)], max_epochs=9)
    fit.fit(Worse(), loader())
    assert fit.current_epoch == 3
    with pytest.raises(ValueError, match=r"no metric 'val/loss' was logged. There are: train/worse."):
        trainer(tmp_path, [ScheduleAwareStopping()], max_epochs=9).fit(Worse(), loader())


def test_validations_that_never_come_are_announced(tmp_path: Path) -> None:
    fit = trainer(tmp_path, [_stop()], max_epochs=1, check_val_every_n_epoch=2)
    with pytest.warns(UserWarning, match="ScheduleAwareStopping never read 'val/scripted': no validation ran"):
        fit.fit(Scripted(RISING), loader(), loader())
