"""LRSchedule's peak after a resume and beside a module's own scheduler, and its plan where a run goes otherwise."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as torchs
from torch.utils.data import DataLoader, TensorDataset

from lr_lightning import LRFinder, LRSchedule
from lr_lightning.schedules import Clock, Constant, Cosine, Linear, Step
from tests.callbacks.finding import let_say
from tests.callbacks.test_lr_schedule import PEAK, Gan, Tiny, expected, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class WithScheduler(Tiny):
    """As a module whose author has chosen a scheduler."""

    def __init__(self, make: Any = None, lr: float = PEAK, interval: str = "step", **optimizer: Any) -> None:
        super().__init__(**optimizer)
        self.scheduler, self.lr, self.interval = make, lr, interval

    def make(self) -> Optimizer:
        return SGD(self.parameters(), lr=self.lr, **self.optimizer_arguments)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        if self.scheduler is None:
            return optimizer
        config = {"scheduler": self.scheduler(optimizer), "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": config}


SCHEDULERS: dict[str, Any] = {
    "OneCycleLR": (lambda o: torchs.OneCycleLR(o, PEAK, total_steps=20), PEAK),
    "CyclicLR": (lambda o: torchs.CyclicLR(o, PEAK / 10, PEAK, step_size_up=5), PEAK),
    "LambdaLR": (lambda o: torchs.LambdaLR(o, lambda step: min(step + 1, 5) / 10), PEAK / 2),
    "MultiplicativeLR": (lambda o: torchs.MultiplicativeLR(o, lambda step: 2.0 if step < 3 else 0.9), 4 * PEAK),
    "SequentialLR": (
        lambda o: torchs.SequentialLR(o, [torchs.LinearLR(o, 0.1, 1.0, 4), torchs.CosineAnnealingLR(o, 16)], [4]),
        PEAK,
    ),
    "ChainedScheduler": (lambda o: torchs.ChainedScheduler([torchs.ConstantLR(o, 0.5, 3)], optimizer=o), PEAK),
    "ReduceLROnPlateau": (lambda o: torchs.ReduceLROnPlateau(o), PEAK),
}


def saved(tmp_path: Path, module: Tiny, *callbacks: Callback, epochs: int = 1) -> Path:
    run = trainer(*callbacks, max_epochs=epochs)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_run_that_began_with_a_cyclic_scheduler_resumes_at_its_peak(
    tmp_path: Path, name: str, momentum: float
) -> None:
    make = lambda o: SCHEDULERS[name][0](o) if momentum else _without_momentum(name, o)  # noqa: E731
    path = saved(tmp_path, WithScheduler(make, momentum=momentum))
    module = WithScheduler(momentum=momentum)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="LRSchedule")
        trainer(LRSchedule(Constant()), max_epochs=2).fit(module, loader(), ckpt_path=path)
    assert module.lrs() == [PEAK] * 10
    assert {groups[0]["momentum"] for groups in module.used} == {momentum}


def _without_momentum(name: str, optimizer: Optimizer) -> Any:
    if name == "OneCycleLR":
        return torchs.OneCycleLR(optimizer, PEAK, total_steps=20, cycle_momentum=False)
    return torchs.CyclicLR(optimizer, PEAK / 10, PEAK, step_size_up=5, cycle_momentum=False)


@pytest.mark.parametrize("first", ["ours", "none"])
def test_a_new_lr_in_the_module_is_announced_or_taken(tmp_path: Path, first: str) -> None:
    path = saved(tmp_path, WithScheduler(), *([LRSchedule(Linear())] if first == "ours" else []))
    module = WithScheduler(lr=0.01)
    message = "keeps the checkpoint's peak, though WithScheduler.configure_optimizers gives another lr now: a peak lr"
    with pytest.warns(UserWarning, match=re.escape(f"{message} of 0.1, not a peak lr of 0.01.")):
        trainer(LRSchedule(Linear()), max_epochs=2).fit(module, loader(), ckpt_path=path)
    assert module.lrs() == expected(Linear(), Clock(20, 10), range(10, 20))
    module = WithScheduler(lr=0.01)
    callback = LRSchedule(Linear(), peak_on_resume="module")
    trainer(callback, max_epochs=2).fit(module, loader(), ckpt_path=path)
    assert module.lrs() == expected(Linear(), Clock(20, 10), range(10, 20), peak=0.01)
    path = saved(tmp_path, WithScheduler(lr=0.01), callback)
    with warnings.catch_warnings():  # an lr that has not changed since the checkpoint needs no word
        warnings.filterwarnings("error", message="LRSchedule")
        trainer(LRSchedule(Linear()), max_epochs=2).fit(WithScheduler(lr=0.01), loader(), ckpt_path=path)


@pytest.mark.parametrize("mode", ["checkpoint", "module"])
def test_a_found_peak_is_resumed_without_a_word_or_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    let_say(monkeypatch, 0.7)
    callbacks = lambda: (LRFinder(num_steps=10, progress=False), LRSchedule(Linear(), peak_on_resume=mode))  # noqa: E731
    path = saved(tmp_path, WithScheduler(), *callbacks())
    module = WithScheduler()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="LRSchedule")
        trainer(*callbacks(), max_epochs=2).fit(module, loader(), ckpt_path=path)
    peak = 0.7 if mode == "checkpoint" else PEAK
    assert module.lrs() == expected(Linear(), Clock(20, 10), range(10, 20), peak=peak)
    assert module.lr == peak


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("position", [None, 0, 1])
def test_it_takes_the_place_of_a_scheduler_at_its_highest_lr(
    monkeypatch: pytest.MonkeyPatch, caplog: Any, name: str, position: int | None
) -> None:
    make, peak = SCHEDULERS[name]
    callbacks: list[Any] = [LRSchedule(Cosine(), replace=True)]
    if position is not None:
        let_say(monkeypatch, 0.7)
        callbacks.insert(position, LRFinder(num_steps=10, progress=False))
        peak = 0.7
    module = WithScheduler(make, momentum=0.5, interval="epoch" if name == "ReduceLROnPlateau" else "step")
    if name == "ReduceLROnPlateau":
        module.configure_optimizers = _monitored(module)  # type: ignore[method-assign]
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        trainer(*callbacks, max_epochs=2).fit(module, loader())
    assert module.lrs() == pytest.approx(expected(Cosine(), Clock(20, 10), peak=peak))
    assert {groups[0]["momentum"] for groups in module.used} == {0.5}
    assert (
        f"LRSchedule takes the place of {name}, which WithScheduler.configure_optimizers returns; a peak" in caplog.text
    )


def _monitored(module: WithScheduler) -> Any:
    def configure() -> Any:
        optimizer = Tiny.configure_optimizers(module)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": module.scheduler(optimizer), "monitor": "x"}}

    return configure


def test_a_scheduler_that_a_module_steps_itself_is_not_replaced() -> None:
    class Manual(Gan):
        def configure_optimizers(self) -> Any:
            optimizers = super().configure_optimizers()
            return optimizers, [torchs.StepLR(optimizers[0], 1)]

    with pytest.raises(ValueError, match="cannot take the place of StepLR, since Manual steps it itself"):
        trainer(LRSchedule(Linear(), replace=True), max_epochs=1).fit(Manual(), loader())


class NoLR(Tiny):
    """As transformers.Adafactor(relative_step=True), or no optimizer at all."""

    def __init__(self, optimizer: bool = True) -> None:
        super().__init__()
        self.has_optimizer = optimizer

    def make(self) -> Optimizer:
        made = SGD(self.parameters(), lr=PEAK)
        made.param_groups[0]["lr"] = None
        return made

    def configure_optimizers(self) -> Any:
        return self.make() if self.has_optimizer else None


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [(True, "SGD has lr=None and chooses its own learning rate"), (False, "there is no optimizer")],
)
def test_an_optimizer_without_lr_is_refused(optimizer: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(LRSchedule(Linear()), max_epochs=1).fit(NoLR(optimizer), loader())


class Growing(Tiny):
    """As progressive resizing or curriculum learning: the epochs have 2, 4, 6 batches."""

    def train_dataloader(self) -> Any:
        return loader(2 * (self.trainer.current_epoch + 1))


def planned(run: Any, module: Any, *data: Any) -> list[str]:
    """What LRSchedule says of its plan."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, *data)
    return [str(each.message) for each in caught if "LRSchedule planned" in str(each.message)]


def test_epochs_that_grow_are_announced_at_the_first() -> None:
    options: dict[str, Any] = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}
    text = "LRSchedule planned 2 updates in epoch 1, and it has 4. So the schedule ends too early or too late: give"
    assert [line[: len(text)] for line in planned(trainer(LRSchedule(Linear()), **options), Growing())] == [text]
    module = Growing()
    assert planned(trainer(LRSchedule(Linear(), total_steps=12), **options), module) == []
    assert module.lrs() == expected(Linear(), Clock(12))


class Accumulates(Tiny):
    """By hand, over four batches."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        self.manual_backward(self.layer(batch[0]).pow(2).mean() / 4)
        if batch_idx % 4 == 3:
            self.optimizers().step()
            self.optimizers().zero_grad()


def test_accumulation_by_hand_is_announced_or_planned() -> None:
    assert planned(trainer(LRSchedule(Linear()), max_epochs=2), Accumulates(), loader(20)) == [
        "LRSchedule planned 3 updates by now, one a batch, and the module has made 0. So the schedule ends too early "
        "or too late: give LRSchedule(total_steps=...) the updates of the whole run."
    ]
    module, schedule = Accumulates(), Step("1 epoch", 0.5)
    assert planned(trainer(LRSchedule(schedule, total_steps=10), max_epochs=2), module, loader(20)) == []
    assert module.lrs() == [PEAK] * 5 + [PEAK / 2] * 5


@pytest.mark.parametrize(
    ("every", "times", "which"), [(2, 1, "optimizer 1 has made 3"), (1, 2, "optimizer 1 has made 6")]
)
def test_optimizers_at_another_pace_are_announced(every: int, times: int, which: str) -> None:
    (line,) = planned(trainer(LRSchedule(Linear()), max_epochs=2), Gan(every, times), loader())
    assert which in line


def test_a_run_that_goes_as_planned_gets_no_word() -> None:
    for options in ({"max_epochs": 2}, {"max_steps": 7}, {"max_epochs": 2, "accumulate_grad_batches": 4}):
        assert planned(trainer(LRSchedule(Linear()), **options), Tiny(), loader()) == []
    assert planned(trainer(LRSchedule(Linear()), max_epochs=2), Gan(), loader()) == []


def test_epochs_that_end_early_are_announced() -> None:
    class Ends(Tiny):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 5 else None

    (line,) = planned(trainer(LRSchedule(Linear()), max_epochs=2), Ends(), loader())
    assert line.startswith("LRSchedule planned 10 updates up to epoch 0, and there were 5.")


def test_a_tensor_lr_survives_the_replacing() -> None:
    class TensorLR(WithScheduler):
        def make(self) -> Optimizer:
            return AdamW(self.parameters(), lr=torch.tensor(PEAK), foreach=False)

    module = TensorLR(SCHEDULERS["LambdaLR"][0])
    data = DataLoader(TensorDataset(torch.ones(20, 4)), 2)
    trainer(LRSchedule(Linear(), replace=True), max_epochs=1).fit(module, data)
    assert isinstance(module.trainer.optimizers[0].param_groups[0]["lr"], Tensor)
    assert module.trainer.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(PEAK / 2)
