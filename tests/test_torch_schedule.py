"""Schedules as torch schedulers: the same factors, exact resume, and the loops that use them."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import LightningModule

from lr_lightning import LRFinder, TorchSchedule
from lr_lightning.errors import ArgumentError, DurationError
from lr_lightning.schedules import WSD, Constant, Cosine, Join, Linear, OneCycle, Schedule, Triangular, Warmup
from tests.callbacks.finding import let_say
from tests.callbacks.tiny import Tiny, loader, trainer

STEPS = 20


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(3))


def run(scheduler: TorchSchedule, steps: int) -> list[list[float]]:
    used = []
    for _ in range(steps):
        used.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize(
    "schedule",
    [
        Cosine(),
        Warmup("10%", Cosine()),
        WSD(),
        OneCycle(),
        Triangular(0.1, "25%"),
        Join((Linear(0, 1), 5), (Constant(), None), (Linear(1, 0), "1 epochs")),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
@pytest.mark.parametrize("tensor", [False, True])
def test_the_lr_is_the_peak_times_the_factor(schedule: Schedule, tensor: bool) -> None:
    lr: Any = torch.tensor(0.5, dtype=torch.float64) if tensor else 0.5
    optimizer = torch.optim.Adam([{"params": [weight()]}, {"params": [weight()], "lr": 0.25}], lr=lr)
    scheduler = TorchSchedule(optimizer, schedule, STEPS, steps_per_epoch=5)
    factors = schedule.factors(STEPS, 5)
    assert run(scheduler, STEPS) == [[0.5 * factor, 0.25 * factor] for factor in factors]
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) == tensor
    run(scheduler, 5)
    assert scheduler.get_last_lr()[0] == pytest.approx(0.5 * schedule(STEPS, scheduler.clock))


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_a_resumed_run_is_the_run_that_never_stopped(optimizer_first: bool) -> None:
    def make() -> TorchSchedule:
        return TorchSchedule(torch.optim.SGD([weight()], lr=0.3), Warmup(3, Cosine()), STEPS)

    whole = run(make(), STEPS)
    first = make()
    begun = run(first, 8)
    file = io.BytesIO()
    torch.save({"optimizer": first.optimizer.state_dict(), "scheduler": first.state_dict()}, file)
    assert first.state_dict() == {"last_epoch": 8}
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = make()
    for name in ("optimizer", "scheduler") if optimizer_first else ("scheduler", "optimizer"):
        (second if name == "scheduler" else second.optimizer).load_state_dict(state[name])
    assert second.get_last_lr() == whole[8]
    assert begun + run(second, STEPS - 8) == whole


def test_groups_by_index_and_name_and_a_group_that_is_added_later() -> None:
    named: list[dict[str, Any]] = [{"params": [weight()], "name": "head"}, {"params": [weight()]}]
    optimizer = torch.optim.SGD(named, lr=1.0)
    scheduler = TorchSchedule(optimizer, Constant(), groups={"head": Constant(0.5), 1: Constant(0.25)})
    assert run(scheduler, 1) == [[0.5, 0.25]]
    optimizer.add_param_group({"params": [weight()], "lr": 3.0})
    assert run(scheduler, 2)[1] == [0.5, 0.25, 3.0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"schedule": Cosine()}, ArgumentError, "total_steps"),
        ({"schedule": Cosine(), "total_steps": 0}, ArgumentError, "total_steps"),
        ({"schedule": 0.1}, ArgumentError, "schedule"),
        ({"schedule": Warmup("2 epochs", Constant())}, ArgumentError, "epoch"),
        ({"schedule": Warmup(50, Constant()), "total_steps": 20}, DurationError, "50"),
        ({"schedule": Constant(), "groups": {"a": 1.0}}, ArgumentError, "groups"),
    ],
)
def test_what_cannot_be_followed_is_refused_at_once(arguments: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        TorchSchedule(torch.optim.SGD([weight()], lr=1.0), **arguments)


class WithScheduler(Tiny):
    schedule: Schedule = Cosine()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        scheduler = TorchSchedule(optimizer, self.schedule, total_steps=12)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class UsedLRs:
    def __init__(self, module: LightningModule) -> None:
        self.lrs: list[float] = []
        step = module.training_step

        def recorded(*args: Any) -> Any:
            self.lrs.append(module.trainer.optimizers[0].param_groups[0]["lr"])
            return step(*args)

        module.training_step = recorded


def test_in_a_trainer_with_a_resume_and_under_a_finder(tmp_path: Path) -> None:
    expected = [0.1 * factor for factor in Cosine().factors(12)]
    whole = UsedLRs(module := WithScheduler())
    fitted = trainer(tmp_path, [], max_epochs=1)
    fitted.fit(module, loader())
    fitted.save_checkpoint(tmp_path / "6.ckpt")
    rest = UsedLRs(module := WithScheduler())
    trainer(tmp_path, [], max_epochs=2).fit(module, loader(), ckpt_path=tmp_path / "6.ckpt", weights_only=True)
    assert whole.lrs + rest.lrs == expected
    finder = LRFinder(num_steps=30)
    found = UsedLRs(module := WithScheduler())
    trainer(tmp_path, [finder]).fit(module, loader())
    peak = finder.applied_lr or 0.1
    assert found.lrs[-12:] == pytest.approx([peak * factor for factor in Cosine().factors(12)])


def test_a_finder_sets_both_bounds_of_a_cycle_and_a_resume_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_say(monkeypatch, 0.05, cycle_base_lr=0.02, cycle_max_lr=0.08)
    monkeypatch.setattr(WithScheduler, "schedule", Triangular(0.1, "25%"))
    expected = [0.08 * factor for factor in Triangular(0.25, "25%").factors(12)]
    found = UsedLRs(module := WithScheduler())
    start = trainer(tmp_path, [LRFinder(num_steps=10)], max_epochs=1)
    start.fit(module, loader())
    start.save_checkpoint(tmp_path / "a.ckpt")
    assert found.lrs[-6:] == pytest.approx(expected[:6])
    rest = UsedLRs(module := WithScheduler())
    trainer(tmp_path, []).fit(module, loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert rest.lrs == pytest.approx(expected[6:])


def test_in_fabric() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    module = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module, optimizer = fabric.setup(module, optimizer)  # type: ignore[assignment]
    scheduler = TorchSchedule(optimizer, Linear(end=0.0), 4)
    used = []
    for _ in range(4):
        used.append(optimizer.param_groups[0]["lr"])
        fabric.backward(module(torch.ones(2, 4)).sum())
        optimizer.step()
        scheduler.step()
    assert used == [0.5, 0.375, 0.25, 0.125]


def test_in_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.SGD([weight()], lr=0.5)
    optimizer, scheduler = accelerator.prepare(optimizer, TorchSchedule(optimizer, Linear(end=0.0), 4))
    used = []
    for _ in range(4):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert used == [0.5, 0.375, 0.25, 0.125]
    assert scheduler.state_dict() == {"last_epoch": 4}
