"""LRFinder answers for the planned run: it tries that run's schedule, leaves no trace, and says for which run it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, lr_scheduler

from lr_lightning import LRFinder, LRSchedule
from lr_lightning.callbacks.found_lr import decay_message
from lr_lightning.errors import ArgumentError
from lr_lightning.lr_finder.planned_run import trial_steps
from lr_lightning.lr_finder.results import RangeTest
from lr_lightning.schedules import Constant, Cosine, Linear, Schedule, Triangular, Warmup
from tests.callbacks.finding import differences, fit
from tests.callbacks.tiny import loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

STEPS, RANGE = 120, 12  # updates of the run and of the range test
LONG, SHORT = 30, 8  # a quarter of the run, and a quarter of that


class Net(LightningModule):
    """Notes the lr and momentum of every update in a list that nobody restores."""

    def __init__(self, scheduled: bool = False, adam: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net, self.scheduled, self.adam = (
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)),
            scheduled,
            adam,
        )
        used: list[tuple[float, float]] = []
        self.used = lambda: used
        self.note = lambda o, *_: used.append((o.param_groups[0]["lr"], o.param_groups[0].get("momentum", 0.0)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        make = AdamW if self.adam else SGD
        optimizer = make(self.parameters(), lr=0.05, **({} if self.adam else {"momentum": 0.5}))
        optimizer.register_step_pre_hook(self.note)
        return [optimizer], [lr_scheduler.ConstantLR(optimizer)] if self.scheduled else []


def found(tmp_path: Path, *callbacks: Any, module: Net | None = None, steps: int = STEPS, **arguments: Any) -> LRFinder:
    finder = LRFinder(min_lr=1e-3, num_steps=RANGE, **{"apply": False, "retry": False, **arguments})
    run = trainer(tmp_path, [finder, *callbacks], max_steps=steps, max_epochs=-1, limit_train_batches=6)
    run.fit(module or Net(), loader())
    return finder


def test_trials_take_the_runs_own_schedule_from_the_start(tmp_path: Path) -> None:
    module, schedule = Net(), Warmup("5%", then=Cosine())
    momentum = Linear(0.9, 0.1)
    result = found(tmp_path, LRSchedule(schedule, momentum=momentum), module=module, early_stop=False).result
    assert isinstance(result, RangeTest)
    used, whole = module.used()[RANGE:-STEPS], schedule.factors(STEPS)
    assert [trials.num_steps for trials in result.trials] == [SHORT, LONG]
    assert len(used) == sum(len(trials.lrs) * trials.num_steps for trials in result.trials)
    steps = trial_steps(LONG, STEPS)
    last, peaks = used[-LONG:], result.trials[1].lrs
    assert any([lr for lr, _ in last] == pytest.approx([peak * whole[step] for step in steps]) for peak in peaks)
    assert [value for _, value in last] == pytest.approx([momentum.factors(STEPS)[step] for step in steps])
    (losses,) = result.trials[1].curves[0]
    assert losses[0] == result.curves[0][0]  # the same weights and the same first batch
    assert module.used()[-STEPS:] == [
        (pytest.approx(0.05 * factor), pytest.approx(momentum.factors(STEPS)[step]))
        for step, factor in enumerate(whole)
    ]


def test_it_says_for_which_run_it_answers(tmp_path: Path) -> None:
    result = found(tmp_path, LRSchedule(Linear(1, 0))).result
    assert result is not None
    assert result.suggestion is not None
    assert "for 20 epochs (120 steps) of linear 1 to 0 over 120 steps" in result.describe()
    assert result.if_constant == pytest.approx(result.suggestion * result.planned.constant)
    assert f"; {result.if_constant:.2g} if constant" in result.describe()
    assert RangeTest.from_state(json.loads(json.dumps(result.state()))) == result
    assert result.plot() is not None


@pytest.mark.parametrize(
    ("callbacks", "arguments"),
    [
        ([], {"steps": 90}),
        ([], {"budget": None}),
        ([LRSchedule(Triangular(0.2, 8))], {}),
        ([], {"module": Net(scheduled=True)}),
        ([], {"at_epochs": [0]}),
    ],
    ids=["a short run", "no budget", "a cycle", "a scheduler of the module", "in the middle"],
)
def test_without_a_run_to_try_the_range_test_answers(
    tmp_path: Path, callbacks: list[Any], arguments: dict[str, Any]
) -> None:
    result = found(tmp_path, *callbacks, **arguments).result
    assert (result.trials, result.planned, result.suggestion) == ((), None, result.reading.suggestion)


def test_an_unknown_length(tmp_path: Path) -> None:
    finder = LRFinder(num_steps=RANGE, apply=False, retry=False)
    trainer(tmp_path, [finder], max_time={"seconds": 0}, max_epochs=-1).fit(Net(), loader())
    assert finder.result.planned is None


@pytest.mark.parametrize(("budget", "lengths"), [("10%", [11, 44]), (500, [23, 92]), ("100%", [56, 226])])
def test_the_budget_sets_the_length_of_trials(budget: Any, lengths: list[int], tmp_path: Path) -> None:
    finder = LRFinder(num_steps=RANGE, apply=False, retry=False, budget=budget)
    finder.answer_for(LRSchedule(Constant()), 1200, -1)
    trainer(tmp_path, [finder], max_steps=0).fit(Net(), loader())  # a Trainer that only searches
    assert [trials.num_steps for trials in finder.result.trials] == lengths
    assert finder.result.planned.steps == 1200


@pytest.mark.parametrize(("budget", "message"), [(0.1, "budget must have a unit"), (0, "budget must be > 0")])
def test_a_wrong_budget(budget: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        LRFinder(budget=budget)


@pytest.mark.parametrize("metric", ["loss", "val_loss"])
def test_trials_leave_no_trace(tmp_path: Path, metric: Any) -> None:
    def data() -> Any:
        return {"train_dataloaders": loader(), "val_dataloaders": loader(20)}, []

    def callbacks() -> list[Any]:
        return [LRSchedule(Warmup("5%", then=Cosine()), momentum=Linear(0.9, 0.5))]

    run = {"callbacks": callbacks, "data": data, "max_steps": 100, "max_epochs": -1}
    finder = LRFinder(num_steps=RANGE, apply=False, retry=False, max_lr=0.5, metric=metric)
    assert differences(fit(tmp_path, None, **run), fit(tmp_path, finder, **run)) == []
    assert [trials.num_steps for trials in finder.result.trials] == [6, 25]


def test_a_resumed_run_with_another_schedule_says_what_the_lr_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lr_lightning.callbacks.lr_finder.rank_zero_info", said.append)

    def train(schedule: Schedule, path: Path | None = None) -> Trainer:
        finder = LRFinder(min_lr=1e-3, num_steps=RANGE, retry=False)
        steps = STEPS if path is None else STEPS + 1
        run = trainer(tmp_path, [finder, LRSchedule(schedule)], max_steps=steps, max_epochs=-1)
        run.fit(Net(), loader(), ckpt_path=path, weights_only=True if path else None)
        return run

    first = train(Cosine())
    first.save_checkpoint(tmp_path / "a.ckpt")
    train(Cosine(), tmp_path / "a.ckpt")
    assert said == []
    train(Constant(), tmp_path / "a.ckpt")
    (line,) = said
    assert "cosine 1 to 0 over 120 steps. For 20.2 epochs (121 steps) at a constant lr it becomes" in line


def test_adamw_is_told_what_becomes_of_its_decay() -> None:
    parts = [nn.Parameter(torch.ones(1))]
    text = decay_message(AdamW(parts, lr=0.001, weight_decay=0.1), old=0.001, new=0.01, steps_per_epoch=100)
    assert text == (
        " With this lr the weight decay of 0.1 averages over 1 / (lr · decay) = 1,000 updates (10 epochs). Before, it "
        "was 10,000 updates (100 epochs), which weight_decay=0.01 would restore."
    )
    assert decay_message(SGD(parts, lr=0.001, weight_decay=0.1), 0.001, 0.01) == ""
    assert decay_message(AdamW(parts, lr=0.001, weight_decay=0.0), 0.001, 0.01) == ""
