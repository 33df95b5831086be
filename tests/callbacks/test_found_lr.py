"""The places where a run keeps its lr: where the configured peak is read, and where a new one is written."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR

from lr_lightning import LRSchedule
from lr_lightning.callbacks.found_lr import configured_lr, is_cyclical, lr_ratios, set_module_lr, set_peak
from lr_lightning.schedules import Cosine, Triangular, Warmup


class Net(LightningModule):
    def __init__(self, **named: Any) -> None:
        super().__init__()
        for name, value in named.items():
            setattr(self, name, value)


def made(*lrs: Any, schedulers: Any = (), callbacks: Any = (), **options: Any) -> Any:
    """As much of a Trainer as is asked."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    optimizer = torch.optim.SGD(groups, lr=lrs[0], momentum=0.9, **options)
    configs = [SimpleNamespace(scheduler=make(optimizer)) for make in schedulers]
    return SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=configs, callbacks=list(callbacks))


@pytest.mark.parametrize(
    ("lrs", "named", "attribute", "expected"),
    [
        ((0.1, 0.2), {}, None, 0.1),
        ((0.0, 0.2), {}, None, 0.2),
        ((0.1, 0.2), {"lr": 0.2}, None, 0.2),
        ((0.1, 0.2), {"learning_rate": 0.2}, None, 0.2),
        ((0.1, 0.2), {"lr": 0.7}, None, 0.1),  # in no group: of something else
        ((0.1, 0.2), {"lr": 0.7, "learning_rate": 0.2}, None, 0.2),
        ((0.1, 0.2), {"lr": 0.1, "mine": 0.2}, "mine", 0.2),
        ((1.0, 0.2), {"lr": True}, None, 1.0),
        ((1.0, 0.2), {"lr": "0.2"}, None, 1.0),
        ((1, 2), {"lr": 2}, None, 2.0),
    ],
)
def test_the_configured_lr(lrs: Any, named: dict[str, Any], attribute: str | None, expected: float) -> None:
    trainer = made(*lrs)
    reference = configured_lr(trainer, Net(**named), attribute)
    assert reference == expected
    assert lr_ratios(trainer, reference) == [lr / expected for lr in lrs]


def test_an_lr_that_a_scheduler_has_moved_already() -> None:
    warm = made(0.1, 0.4, schedulers=[lambda o: LambdaLR(o, lambda step: 0.01)])
    assert lr_ratios(warm, configured_lr(warm, Net())) == [1.0, 4.0]
    assert configured_lr(warm, Net(lr=0.4)) == 0.4
    cycle = made(0.1, 0.4, schedulers=[lambda o: OneCycleLR(o, [0.3, 0.6], total_steps=10)])
    assert configured_lr(cycle, Net()) == 0.3
    assert lr_ratios(cycle, 0.3) == [1.0, 2.0]
    bounds = made(0.1, 0.1, schedulers=[lambda o: CyclicLR(o, 0.01, [0.5, 0.25])])
    assert lr_ratios(bounds, configured_lr(bounds, Net())) == [1.0, 0.5]


def test_reading_changes_nothing() -> None:
    trainer = made(0.1)
    before = {key: value for key, value in trainer.optimizers[0].param_groups[0].items() if key != "params"}
    configured_lr(trainer, Net(lr=0.1))
    assert {key: value for key, value in trainer.optimizers[0].param_groups[0].items() if key != "params"} == before


@pytest.mark.parametrize(
    ("callbacks", "schedulers", "expected"),
    [
        ([], [], False),
        ([LRSchedule(Cosine())], [], False),
        ([LRSchedule(Triangular(0.1, 5))], [], True),
        ([LRSchedule(Warmup(3, Triangular(0.1, 5)))], [], True),
        ([LRSchedule(Cosine(), groups={0: Triangular(0.1, 5)})], [], True),
        ([LRSchedule([Cosine(), Triangular(0.1, 5)])], [], True),
        ([], [lambda o: CyclicLR(o, 0.01, 0.1)], True),
        ([], [lambda o: OneCycleLR(o, 0.1, total_steps=9)], False),
    ],
)
def test_what_goes_up_and_down(callbacks: Any, schedulers: Any, expected: bool) -> None:
    assert is_cyclical(made(0.1, callbacks=callbacks, schedulers=schedulers)) is expected


def test_the_reference_becomes_exactly_the_new_lr() -> None:
    for old in (0.1, 0.3, 0.7, 1e-3, 3.3e-5):
        for new in (0.3, 1e-4, 0.123456789):
            trainer, module = made(old, old * 3), Net(lr=old)
            set_peak(trainer, module, new)
            first, second = trainer.optimizers[0].param_groups
            assert (first["lr"], first["initial_lr"], module.lr, trainer.optimizers[0].defaults["lr"]) == (new,) * 4
            assert second["lr"] == second["initial_lr"] == pytest.approx(3 * new, rel=1e-15)


def test_twice_is_as_once() -> None:
    trainer, other, module, net = made(0.1, 0.5), made(0.1, 0.5), Net(lr=0.1), Net(lr=0.1)
    set_peak(trainer, module, 0.2)
    set_peak(trainer, module, 0.3)
    set_peak(other, net, 0.3)
    lrs = [[group["lr"] for group in t.optimizers[0].param_groups] for t in (trainer, other)]
    assert lrs[0] == pytest.approx(lrs[1], rel=1e-15)
    assert module.lr == net.lr == 0.3


def test_groups_that_share_a_tensor() -> None:
    shared = torch.tensor(0.1, dtype=torch.float64)
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": shared} for _ in range(2)]
    optimizer = torch.optim.AdamW(groups, lr=shared, foreach=False)
    trainer = SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=[], callbacks=[])
    set_peak(trainer, Net(), 0.4)  # type: ignore[arg-type]
    assert all(group["lr"] is shared for group in optimizer.param_groups)
    assert shared.item() == 0.4
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.4, 0.4]


def test_a_bound_of_zero_ratio_and_other_places() -> None:
    callback = LRSchedule(Triangular(0.5, 5))
    trainer = made(0.1, callbacks=[callback])
    set_peak(trainer, Net(), 0.4, 0.1)
    assert callback.schedule == Triangular(0.25, 5)
    set_peak(made(0.1, callbacks=[LRSchedule(Cosine())]), Net(), 0.4, 0.1)  # takes no notice


def test_the_modules_lr() -> None:
    module = Net(lr=0.1, learning_rate=0.1, mine=0.1)
    set_module_lr(module, 0.2)
    assert (module.lr, module.learning_rate, module.mine) == (0.2, 0.2, 0.1)
    set_module_lr(module, 0.3, "mine")
    assert (module.lr, module.learning_rate, module.mine) == (0.2, 0.2, 0.3)
    set_module_lr(Net(), 0.3)
