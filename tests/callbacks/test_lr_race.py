"""LRRace: what it leaves, what it costs, what it does after a kill, what it shows, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import SGD, lr_scheduler

from lr_lightning import LRRace, LRSchedule
from lr_lightning.errors import ArgumentError
from lr_lightning.lr_finder.planned_run import trial_steps
from lr_lightning.lr_finder.race import RaceTest
from lr_lightning.schedules import Cosine, Linear, Triangular, Warmup
from tests.callbacks.finding import differences, fit
from tests.callbacks.tiny import Memory, Tiny, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

STEPS = 200


class Killed(RuntimeError):
    pass


class Net(Tiny):
    """Counts the calls of training_step, and notes the lr of every update, where no finder puts them back."""

    def __init__(self, seed: int = 3, dies_at: int = -1, scheduled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.dies_at, self.scheduled = dies_at, scheduled
        calls: list[float] = []
        used: list[float] = []
        self.calls, self.used = (lambda: calls), (lambda: used)
        self.note = lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.calls().append(loss.item())
        if len(self.calls()) == self.dies_at:
            raise Killed
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.05, momentum=0.5)
        optimizer.register_step_pre_hook(self.note)
        return [optimizer], [lr_scheduler.ConstantLR(optimizer)] if self.scheduled else []


class Blind(Net):
    """Validates nothing."""

    validation_step = LightningModule.validation_step


def race(tmp_path: Path, module: Net | None = None, *callbacks: Any, **arguments: Any) -> tuple[LRRace, list[float]]:
    """Train with a race; return it and the training losses of its own calls of training_step."""
    found, module = LRRace(**arguments), module or Net()
    run = trainer(tmp_path, [found, *(callbacks or [LRSchedule(Cosine())])], max_steps=STEPS, max_epochs=-1)
    run.fit(module, loader(), loader(20))
    return found, module.calls()[:-STEPS]


@pytest.mark.parametrize("metric", ["val_loss", "loss"])
def test_a_race_leaves_no_trace(tmp_path: Path, metric: Any) -> None:
    def data() -> Any:
        return {"train_dataloaders": loader(), "val_dataloaders": loader(20)}, []

    def callbacks() -> list[Any]:
        return [LRSchedule(Warmup("5%", then=Cosine()), momentum=Linear(0.9, 0.5))]

    run = {"callbacks": callbacks, "data": data, "max_steps": 110, "max_epochs": -1}
    found = LRRace(apply=False, max_lr=0.5, metric=metric)
    assert differences(fit(tmp_path, None, **run), fit(tmp_path, found, **run)) == []
    assert isinstance(found.result, RaceTest)
    assert found.result.judged == metric


@pytest.mark.parametrize(
    ("budget", "most"), [("50%", STEPS // 2), (60, 60), ("100%", STEPS), ("10 epochs", 60)], ids=str
)
def test_it_keeps_to_its_budget_and_uses_most_of_it(tmp_path: Path, budget: Any, most: int) -> None:
    _, calls = race(tmp_path, budget=budget)
    assert 0.8 * most <= len(calls) <= most


def test_every_training_starts_alike_and_takes_the_runs_schedule(tmp_path: Path) -> None:
    module, schedule = Net(), Warmup("5%", then=Cosine())
    result = race(tmp_path, module, LRSchedule(schedule))[0].result
    assert isinstance(result, RaceTest)
    first = {curve[0] for rung in result.trials for (curve,) in rung.curves}
    assert first == {result.curves[0][0]}  # the same weights and the same first batch
    whole, last = schedule.factors(STEPS), result.trials[-1]
    used = module.used()[:-STEPS][-last.num_steps :]
    assert any(
        used == pytest.approx([peak * whole[step] for step in trial_steps(last.num_steps, STEPS)]) for peak in last.lrs
    )
    assert module.used()[-STEPS:] == pytest.approx([result.suggestion * factor for factor in whole])
    for shorter, longer in zip(result.trials, result.trials[1:], strict=False):
        assert longer.num_steps >= 2 * shorter.num_steps
        assert len(longer.lrs) < len(shorter.lrs) + 3
    assert 4 <= len(result.trials[0].lrs) <= 8


def test_it_says_and_shows_what_it_found(tmp_path: Path) -> None:
    memory = Memory()
    found = LRRace()
    run = trainer(tmp_path, [found, LRSchedule(Linear(1, 0))], memory, max_steps=STEPS, max_epochs=-1)
    run.fit(Net(), loader(), loader(20))
    result = found.result
    assert isinstance(result, RaceTest)
    assert result.suggestion is not None
    assert result.interval is not None
    assert result.interval[0] < result.suggestion < result.interval[1]
    assert "(200 steps) of linear 1 to 0 over 200 steps" in result.describe()
    assert RaceTest.from_state(json.loads(json.dumps(result.state()))) == result
    assert len(result.to_csv().splitlines()) == 1 + sum(len(rung.lrs) for rung in result.trials)
    ends, curves, *_ = result.plot().axes
    assert [line.get_label() for line in ends.lines][:-1] == [f"after {r.num_steps} updates" for r in result.trials]
    assert ends.lines[-1].get_label() == f"answer {result.suggestion:.3g}"
    assert len(curves.lines) == sum(len(rung.lrs) for rung in result.trials)
    assert result.describe() in result.plot().get_suptitle().replace("\n", "; ")


def test_a_killed_race_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lr_lightning.callbacks.lr_race.rank_zero_info", said.append)
    whole, calls = race(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(whole.result, RaceTest)
    with pytest.raises(Killed):
        race(tmp_path, Net(dies_at=len(calls) - 1))
    (kept,) = tmp_path.iterdir()
    resumed, again = race(tmp_path)
    done = sum(len(rung.lrs) * rung.num_steps for rung in whole.result.trials) - whole.result.trials[-1].num_steps
    assert len(again) == len(calls) - done  # the range test, and the training in which it was killed
    assert resumed.result == whole.result
    assert said == [f"LRRace: continues a race that was interrupted after {_count(whole) - 1} trainings ({kept})."]
    assert list(tmp_path.iterdir()) == []


def _count(found: LRRace) -> int:
    return sum(len(rung.lrs) for rung in found.result.trials)


@pytest.mark.parametrize("other", ["weights", "budget", "damaged"])
def test_a_kept_race_of_another_run_is_not_used(tmp_path: Path, other: str) -> None:
    with pytest.raises(Killed):
        race(tmp_path, Net(dies_at=90))
    (kept,) = tmp_path.iterdir()
    seed, budget = (4 if other == "weights" else 3), ("45%" if other == "budget" else "50%")
    (tmp_path / "fresh").mkdir()
    fresh, _ = race(tmp_path / "fresh", Net(seed), budget=budget)
    if other == "damaged":
        kept.write_text(kept.read_text()[:50])
    found, _ = race(tmp_path, Net(seed), budget=budget)
    assert found.result == fresh.result
    assert kept.exists() == (other == "budget")


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert race(tmp_path, folder=tmp_path / "file")[0].applied_lr is not None


def test_a_resumed_run_keeps_the_lr_and_does_not_race_again(tmp_path: Path) -> None:
    found = LRRace(budget=60)
    run = trainer(tmp_path, [found, LRSchedule(Cosine())], max_steps=STEPS, max_epochs=-1)
    run.fit(Net(), loader(), loader(20))
    run.save_checkpoint(tmp_path / "a.ckpt")
    module, again = Net(), LRRace(budget=60)
    run = trainer(tmp_path, [again, LRSchedule(Cosine())], max_steps=STEPS + 5, max_epochs=-1)
    run.fit(module, loader(), loader(20), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert len(module.calls()) == 5
    assert (again.applied_lr, again.result) == (found.applied_lr, found.result)
    assert module.lr == found.applied_lr


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (Blind(), {}, "metric='val_loss' needs a validation loader and a validation_step, and there is none"),
        (Net(), {"max_steps": -1, "max_time": {"seconds": 0}}, "LRRace must know how long the run is"),
        (Net(), {"max_steps": 90}, "LRRace needs a run of 100 updates or more"),
        (
            Net(),
            {"budget": "20%"},
            "LRRace: budget must be 50 updates or more, and '20%' of this run of 200 updates is 40",
        ),
        (Net(scheduled=True), {"callbacks": []}, "LRRace tries the schedule of LRSchedule or a constant lr"),
        (Net(), {"callbacks": [LRSchedule(Triangular(0.2, 8))]}, "LRRace finds one peak, and the schedule goes up"),
    ],
    ids=["no validation", "unknown length", "short run", "small budget", "a scheduler", "a cycle"],
)
def test_it_refuses_before_any_step(module: Net, arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = dict(arguments)
    found = LRRace(budget=given.pop("budget", "50%"))
    callbacks = given.pop("callbacks", [])
    run = trainer(tmp_path, [found, *callbacks], **{"max_steps": STEPS, "max_epochs": -1, **given})
    with pytest.raises(ArgumentError) as error:
        run.fit(module, loader(), loader(20))
    assert message in str(error.value)
    assert module.calls() == []


@pytest.mark.parametrize("budget", [0, 0.5, "150%", None])
def test_a_wrong_budget(budget: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^budget must"):
        LRRace(budget=budget)


def test_without_validation_the_training_loss_can_judge(tmp_path: Path) -> None:
    found, _ = race(tmp_path, Blind(), metric="loss")
    assert isinstance(found.result, RaceTest)
    assert math.isclose(found.result.level, found.result.start)
    assert all(rung.finals is None for rung in found.result.trials)
