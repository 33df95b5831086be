"""LRSchedule in a real Trainer: the lr used at each update against the formula."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW, Optimizer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.schedules import (
    Clock,
    Constant,
    Cosine,
    InverseSqrt,
    Join,
    Linear,
    MultiStep,
    Plateau,
    Schedule,
    Step,
    Warmup,
)
from tests.callbacks.tiny import QUIET

PEAK = 0.1
BATCHES = 10
SCHEDULE = Warmup(3, Cosine(end=0.1))

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Tiny(LightningModule):
    """One linear layer; notes what the optimizer really used at each update."""

    def __init__(self, **optimizer: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.optimizer_arguments = optimizer
        self.used: list[list[dict[str, Any]]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", 1.0)

    def make(self) -> Optimizer:
        return SGD(self.parameters(), lr=PEAK, **self.optimizer_arguments)

    def configure_optimizers(self) -> Any:
        optimizer = self.make()
        optimizer.register_step_pre_hook(self.note)
        return optimizer

    def note(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.used.append([{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups])

    def lrs(self, group: int = 0) -> list[float]:
        return [float(groups[group]["lr"]) for groups in self.used]


def loader(batches: int = BATCHES) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(2 * batches, 4, generator=generator)), batch_size=2)


def trainer(*callbacks: Callback, **arguments: Any) -> Trainer:
    return Trainer(**{**QUIET, "callbacks": list(callbacks), **arguments})


def expected(schedule: Schedule, clock: Clock, steps: range | int | None = None, peak: float = PEAK) -> list[float]:
    steps = range(clock.total or 0) if steps is None else range(steps) if isinstance(steps, int) else steps
    return [peak * schedule(step, clock) for step in steps]


@pytest.mark.parametrize(
    ("arguments", "clock"),
    [
        ({"max_epochs": 2}, Clock(20, 10)),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, Clock(6, 3)),
        ({"max_epochs": 3, "limit_train_batches": 4}, Clock(12, 4)),
        ({"max_steps": 13}, Clock(13, 10)),
        ({"max_steps": 30, "max_epochs": 2}, Clock(20, 10)),
        ({"max_steps": 7, "max_epochs": 2}, Clock(7, 10)),
        ({"max_epochs": 1, "max_time": "00:01:00:00"}, Clock(10, 10)),
    ],
    ids=str,
)
def test_lr_used_at_every_update(arguments: dict[str, Any], clock: Clock) -> None:
    module = Tiny()
    trainer(LRSchedule(SCHEDULE), **arguments).fit(module, loader())
    assert module.lrs() == expected(SCHEDULE, clock)


def test_changing_accumulation_has_the_right_total_and_epochs() -> None:
    # Lightning's own estimate is 30 here.
    schedule = Join((Cosine(), "2 epochs"), (Linear(), None))
    module = Tiny()
    trainer(LRSchedule(schedule), GradientAccumulationScheduler({1: 2, 2: 4}), max_epochs=3).fit(module, loader())
    assert module.lrs() == expected(schedule, Clock(18, epoch_starts=(0, 10, 15, 18)))


def test_epochs_reach_the_schedule() -> None:
    module = Tiny()
    trainer(LRSchedule(Step("1 epoch", 0.5)), max_epochs=3).fit(module, loader())
    assert module.lrs() == pytest.approx([PEAK] * 10 + [PEAK / 2] * 10 + [PEAK / 4] * 10)


def test_early_stopping_follows_the_planned_length() -> None:
    module = Tiny()
    stop = EarlyStopping("val/loss", patience=2)
    trainer(LRSchedule(SCHEDULE), stop, max_epochs=50).fit(module, loader(), loader(1))
    assert module.lrs() == expected(SCHEDULE, Clock(500, 10), 30)


def test_fast_dev_run_accepts_durations_longer_than_itself() -> None:
    module = Tiny()
    schedule = Warmup(500, Cosine())
    trainer(LRSchedule(schedule), fast_dev_run=2).fit(module, loader())
    assert module.lrs() == expected(schedule, Clock(512), 2)


class Groups(Tiny):
    """Weights at a tenth of the lr of the bias, which has a name."""

    def make(self) -> Optimizer:
        groups = [
            {"params": [self.layer.weight], "lr": PEAK / 10, "weight_decay": 0.3},
            {"params": [self.layer.bias], "name": "bias"},
        ]
        return AdamW(groups, lr=PEAK, weight_decay=0.0)


def test_groups_keep_their_ratio_and_their_own_weight_decay() -> None:
    module = Groups()
    callback = LRSchedule(SCHEDULE, momentum=Linear(0.95, 0.85), weight_decay=Linear(1.0, 0.5))
    trainer(callback, max_epochs=1).fit(module, loader())
    clock = Clock(10, 10)
    assert module.lrs(0) == expected(SCHEDULE, clock, peak=PEAK / 10)
    assert module.lrs(1) == expected(SCHEDULE, clock)
    assert [groups[0]["weight_decay"] for groups in module.used] == expected(Linear(1.0, 0.5), clock, peak=0.3)
    assert [groups[1]["weight_decay"] for groups in module.used] == [0.0] * 10
    assert [groups[0]["betas"] for groups in module.used] == [(beta, 0.999) for beta in Linear(0.95, 0.85).factors(10)]
    assert callback.last_lr() == [module.lrs(0)[-1], module.lrs(1)[-1]]


@pytest.mark.parametrize("key", ["bias", 1])
def test_a_group_may_have_a_schedule_of_its_own(key: Any) -> None:
    module = Groups()
    trainer(LRSchedule(SCHEDULE, groups={key: Linear()}), max_epochs=1).fit(module, loader())
    assert module.lrs(0) == expected(SCHEDULE, Clock(10, 10), peak=PEAK / 10)
    assert module.lrs(1) == expected(Linear(), Clock(10, 10))


def test_an_absent_group_is_named() -> None:
    with pytest.warns(UserWarning, match=re.escape("no param group is called ['head'] now")):
        trainer(LRSchedule(SCHEDULE, groups={"head": Linear()}), max_epochs=1).fit(Groups(), loader())


def test_momentum_of_sgd() -> None:
    module = Tiny(momentum=0.5)
    trainer(LRSchedule(SCHEDULE, momentum=Linear(0.95, 0.85)), max_epochs=1).fit(module, loader())
    assert [groups[0]["momentum"] for groups in module.used] == Linear(0.95, 0.85).factors(10)


def test_momentum_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("the momentum must be < 1, got 1 at step 0")):
        trainer(LRSchedule(SCHEDULE, momentum=Constant()), max_epochs=1).fit(Tiny(), loader())


class WithAdagrad(Tiny):
    def make(self) -> Optimizer:
        return Adagrad(self.parameters(), lr=PEAK)


def test_an_optimizer_without_momentum_is_named() -> None:
    with pytest.raises(ValueError, match="Adagrad has neither momentum nor betas"):
        trainer(LRSchedule(SCHEDULE, momentum=Constant(0.9)), max_epochs=1).fit(WithAdagrad(), loader())


class TensorLR(Tiny):
    def make(self) -> Optimizer:
        self.lr = torch.tensor(PEAK, dtype=torch.float64)
        return AdamW(self.parameters(), lr=self.lr, foreach=False)

    def note(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        assert optimizer.param_groups[0]["lr"] is self.lr
        self.used.append([{"lr": self.lr.item()}])


def test_a_tensor_lr_is_filled_in_place() -> None:
    module = TensorLR()
    trainer(LRSchedule(SCHEDULE), max_epochs=1).fit(module, loader())
    assert module.lrs() == expected(SCHEDULE, Clock(10, 10))
    assert type(module.optimizers().param_groups[0]["initial_lr"]) is float


class AddsGroup(Callback):
    """As BackboneFinetuning: a second group from the second epoch on."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.optimizers[0].add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5})


def test_a_group_added_later_joins_in() -> None:
    module = Tiny()
    callback = LRSchedule(SCHEDULE)
    trainer(callback, AddsGroup(), max_epochs=2).fit(module, loader())
    clock = Clock(20, 10)
    assert module.lrs() == expected(SCHEDULE, clock)
    late = [groups[1]["lr"] for groups in module.used[10:]]
    assert late == expected(SCHEDULE, clock, range(10, 20), peak=0.5)
    assert len(callback.last_lr()) == 2


class WithBackbone(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 4)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.layer(self.backbone(batch[0])).pow(2).mean()

    def make(self) -> Optimizer:
        return SGD(self.layer.parameters(), lr=PEAK)


def test_backbone_finetuning_joins_in_and_resumes(tmp_path: Path) -> None:
    def run(epochs: int) -> Trainer:
        return trainer(LRSchedule(Linear(), total_steps=30), BackboneFinetuning(1, verbose=False), max_epochs=epochs)

    whole, first, second = WithBackbone(), WithBackbone(), WithBackbone()
    run(3).fit(whole, loader())
    late = whole.used[10][1]["initial_lr"]
    assert whole.lrs() == expected(Linear(), Clock(30))
    assert [groups[1]["lr"] for groups in whole.used[10:]] == expected(Linear(), Clock(30), range(10, 30), peak=late)
    start = run(2)
    start.fit(first, loader())
    start.save_checkpoint(tmp_path / "a.ckpt")
    run(3).fit(second, loader(), ckpt_path=tmp_path / "a.ckpt")
    assert first.used + second.used == whole.used


def test_initial_lr_written_before_training_is_the_peak() -> None:
    class Finder(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.optimizers[0].param_groups[0]["initial_lr"] = 0.7

    for order in (0, 1):
        module = Tiny()
        callbacks: list[Callback] = [LRSchedule(SCHEDULE), Finder()]
        trainer(*callbacks[:: -1 if order else 1], max_epochs=1).fit(module, loader())
        assert module.lrs() == expected(SCHEDULE, Clock(10, 10), peak=0.7)


class Gan(LightningModule):
    """Two optimizers; the first steps on every batch, the second ``times`` on each, or on every second one."""

    automatic_optimization = False

    def __init__(self, every: int = 1, times: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
        self.every, self.times = every, times
        self.used: list[list[float]] = [[], []]
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        first, second = self.optimizers()
        self.update(0, first, batch)
        if batch_idx % self.every == 0:
            for _ in range(self.times):
                self.update(1, second, batch)

    def update(self, index: int, optimizer: Any, batch: list[Tensor]) -> None:
        optimizer.zero_grad()
        self.manual_backward(self.layers[index](batch[0]).pow(2).mean())
        optimizer.step()
        self.used[index].append(optimizer.param_groups[0]["lr"])  # the lr stays after it was used

    def configure_optimizers(self) -> Any:
        return [SGD(self.layers[0].parameters(), lr=PEAK), SGD(self.layers[1].parameters(), lr=2 * PEAK)]


def test_two_optimizers_each_end_at_their_end() -> None:
    module = Gan()
    trainer(LRSchedule([SCHEDULE, Linear()]), max_epochs=2).fit(module, loader())
    assert module.used[0] == expected(SCHEDULE, Clock(20, 10))
    assert module.used[1] == expected(Linear(), Clock(20, 10), peak=2 * PEAK)


def test_two_optimizers_share_max_steps() -> None:
    module = Gan()
    trainer(LRSchedule(Linear()), max_steps=12).fit(module, loader())
    assert module.used == [expected(Linear(), Clock(6, 10)), expected(Linear(), Clock(6, 10), peak=2 * PEAK)]


@pytest.mark.parametrize(("every", "times", "total"), [(2, 1, 10), (1, 3, 60)])
def test_two_optimizers_at_their_own_pace(every: int, times: int, total: int) -> None:
    module = Gan(every, times)
    trainer(LRSchedule(Linear(), total_steps=[20, total]), max_epochs=2).fit(module, loader())
    assert module.used[0] == expected(Linear(), Clock(20))
    assert module.used[1] == expected(Linear(), Clock(total), peak=2 * PEAK)


def test_counts_of_two_optimizers_survive_a_resume(tmp_path: Path) -> None:
    whole, first, second = Gan(every=2), Gan(every=2), Gan(every=2)
    callback = lambda: LRSchedule(Linear(), total_steps=[20, 10])  # noqa: E731
    trainer(callback(), max_epochs=2).fit(whole, loader())
    start = trainer(callback(), max_epochs=1)
    start.fit(first, loader())
    start.save_checkpoint(tmp_path / "a.ckpt")
    trainer(callback(), max_epochs=2).fit(second, loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert [a + b for a, b in zip(first.used, second.used, strict=True)] == whole.used


def test_counts_that_cannot_be_known_are_an_error(tmp_path: Path) -> None:
    start = trainer(max_epochs=1)
    start.fit(Gan(), loader())
    start.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="cannot know how many updates each of the 2 optimizers has made"):
        trainer(LRSchedule(Linear()), max_epochs=2).fit(Gan(), loader(), ckpt_path=tmp_path / "a.ckpt")


@pytest.mark.parametrize("arguments", [{"schedule": [Linear()]}, {"schedule": Linear(), "total_steps": [1, 2, 3]}])
def test_one_entry_for_each_optimizer(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"LRSchedule: \w+ has [13] entries for 2 optimizers; give 2"):
        trainer(LRSchedule(**arguments), max_epochs=1).fit(Gan(), loader())


class BringsScheduler(Tiny):
    def configure_optimizers(self) -> Any:
        optimizer = self.make()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def test_a_module_with_its_own_scheduler_is_told_which_to_remove() -> None:
    message = (
        "LRSchedule and an lr_scheduler would both set the lr: BringsScheduler.configure_optimizers returns StepLR."
        " Remove it there (return the optimizer alone), take its place by LRSchedule(replace=True), or remove"
        " LRSchedule from the Trainer's callbacks."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer(LRSchedule(SCHEDULE), max_epochs=1).fit(BringsScheduler(), loader())


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        while True:
            yield [torch.ones(4)]


@pytest.mark.parametrize("arguments", [{"max_epochs": 1}, {"max_time": "00:00:01:00"}], ids=str)
def test_an_unknown_total_is_an_error_where_it_is_needed(arguments: dict[str, Any]) -> None:
    message = "needs the number of steps, and nothing says it here (a loader without a length, or only max_time)."
    with pytest.raises(ValueError, match=re.escape(message) + r" Give LRSchedule\(total_steps=...\)"):
        trainer(LRSchedule(SCHEDULE), **arguments).fit(Tiny(), DataLoader(Endless(), batch_size=2))


@pytest.mark.parametrize(
    ("callback", "arguments", "clock"),
    [
        (LRSchedule(SCHEDULE, total_steps=30), {"max_epochs": 1, "limit_train_batches": 9}, Clock(30)),
        (LRSchedule(SCHEDULE), {"max_steps": 9}, Clock(9)),
        (LRSchedule(InverseSqrt(3)), {"max_epochs": 1, "limit_train_batches": 9}, Clock()),
    ],
    ids=["given", "max_steps", "not needed"],
)
def test_a_loader_without_length(callback: LRSchedule, arguments: dict[str, Any], clock: Clock) -> None:
    module = Tiny()
    trainer(callback, **arguments).fit(module, DataLoader(Endless(), batch_size=2))
    assert module.lrs() == expected(callback.schedule, clock, 9)  # type: ignore[arg-type]


def test_only_max_time_with_epochs_known() -> None:
    module = Tiny()
    stop = StopsAt(15)
    trainer(LRSchedule(Step("1 epoch", 0.5)), stop, max_epochs=-1, max_time="00:01:00:00").fit(module, loader())
    assert module.lrs() == pytest.approx([PEAK] * 10 + [PEAK / 2] * 5)


class StopsAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.step


def test_durations_that_do_not_fit_are_found_before_training() -> None:
    module = Tiny()
    schedule = Join((Constant(), None), (Warmup(9, Linear()), 8))
    with pytest.raises(ValueError, match=re.escape("Warmup: 9 (9 steps) > 8 steps in all")):
        trainer(LRSchedule(schedule), max_epochs=2).fit(module, loader())
    assert module.used == []


def test_a_second_fit_goes_on_or_begins_anew() -> None:
    module, callback = Tiny(), LRSchedule(SCHEDULE)
    run = trainer(callback, max_epochs=1)
    run.fit(module, loader())
    run.fit_loop.max_epochs = 3
    run.fit(module, loader())
    assert module.lrs() == expected(SCHEDULE, Clock(10, 10)) + expected(SCHEDULE, Clock(30, 10), range(10, 30))
    module.used.clear()
    trainer(callback, max_epochs=1).fit(module, loader())
    assert module.lrs() == expected(SCHEDULE, Clock(10, 10))


class Stateful:
    """Shuffled batches that know where they are."""

    def __init__(self, batches: int = BATCHES) -> None:
        self.batches, self.epoch, self.next = batches, 0, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Any:
        data = torch.randn(self.batches, 2, 4, generator=torch.Generator().manual_seed(self.epoch))
        for index in range(self.next, self.batches):
            # Lightning never asks for what comes after the last batch, so the epoch turns with it
            last = index + 1 == self.batches
            self.epoch, self.next = (self.epoch + 1, 0) if last else (self.epoch, index + 1)
            yield [data[index]]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.next = state["epoch"], state["next"]


def seeded(kind: type[Tiny] = Groups) -> Tiny:
    torch.manual_seed(0)
    return kind()


def interrupted(
    tmp_path: Path, callback: Any, stop: int, epochs: tuple[int, int] = (3, 3), **arguments: Any
) -> tuple[Tiny, Tiny]:
    """Train to ``stop``, save in mid-epoch, and resume with a new Trainer and module."""
    first, second = seeded(), seeded()
    save = ModelCheckpoint(tmp_path, every_n_train_steps=stop, save_top_k=-1, save_weights_only=False)
    end = StopsAt(stop)
    run = trainer(callback(), save, end, max_epochs=epochs[0], enable_checkpointing=True, **arguments)
    run.fit(first, Stateful())
    path = next(iter(tmp_path.glob(f"*step={stop}.ckpt")))
    run = trainer(callback(), max_epochs=epochs[1], **arguments)
    run.fit(second, Stateful(), ckpt_path=path, weights_only=True)
    return first, second


@pytest.mark.parametrize(("stop", "accumulate"), [(13, 1), (5, 4), (10, 1)])
def test_resume_in_mid_epoch_equals_never_having_stopped(tmp_path: Path, stop: int, accumulate: int) -> None:
    def callback() -> LRSchedule:
        return LRSchedule(SCHEDULE, momentum=Linear(0.95, 0.85), weight_decay=Linear(1.0, 0.5))

    whole = seeded()
    trainer(callback(), max_epochs=3, accumulate_grad_batches=accumulate).fit(whole, Stateful())
    assert len(whole.used) == 3 * -(-BATCHES // accumulate)
    first, second = interrupted(tmp_path, callback, stop, accumulate_grad_batches=accumulate)
    assert first.used[:stop] + second.used == whole.used
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


@pytest.mark.parametrize(("on_resume", "length"), [("rebase", 60), ("keep", 30)])
def test_resume_with_more_epochs(tmp_path: Path, on_resume: Any, length: int) -> None:
    first, second = interrupted(tmp_path, lambda: LRSchedule(SCHEDULE, on_resume=on_resume), 13, epochs=(3, 6))
    assert first.lrs(1)[:13] == expected(SCHEDULE, Clock(30, 10), 13)
    assert second.lrs(1) == expected(SCHEDULE, Clock(length, 10), range(13, 60))


def test_resume_from_a_checkpoint_without_a_schedule(tmp_path: Path) -> None:
    start = trainer(max_epochs=1)
    start.fit(Tiny(), loader())
    start.save_checkpoint(tmp_path / "a.ckpt")
    module = Tiny()
    run = trainer(LRSchedule(SCHEDULE, on_resume="keep"), max_epochs=2)
    with pytest.warns(UserWarning, match="the checkpoint holds no length"):
        run.fit(module, loader(), ckpt_path=tmp_path / "a.ckpt")
    assert module.lrs() == expected(SCHEDULE, Clock(20, 10), range(10, 20))


class Worsens(Tiny):
    """A validation loss that is best in the second epoch."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", [1.0, 0.5, 0.6, 0.7, 0.8, 0.9][self.trainer.current_epoch])


@pytest.mark.parametrize("split", [None, 2, 3, 4])
def test_plateau_multiplies_and_resumes(tmp_path: Path, split: int | None) -> None:
    def callback() -> LRSchedule:
        return LRSchedule(Linear(), total_steps=60, plateau=Plateau("val/loss", factor=0.5, patience=1))

    used = []
    path = None
    for epochs in ([split] if split else []) + [6]:
        module = Worsens()
        save = ModelCheckpoint(tmp_path, save_last=True, save_top_k=-1, monitor="val/loss")
        run = trainer(callback(), save, max_epochs=epochs, enable_checkpointing=True)
        run.fit(module, loader(), loader(1), ckpt_path=path)
        used += module.lrs()
        path = tmp_path / "last.ckpt"
    factors = [1.0] * 40 + [0.5] * 20  # epochs 3 and 4 are bad: halved from the fifth on
    assert used == [PEAK * (a * b) for a, b in zip(Linear().factors(60), factors, strict=True)]


def test_plateau_on_a_training_metric_where_there_is_no_validation() -> None:
    module = Tiny()
    plateau = Plateau("train/loss", factor=0.5, patience=0, threshold=10.0, threshold_mode="abs")
    trainer(LRSchedule(Constant(), plateau=plateau), max_epochs=3).fit(module, loader())
    assert module.lrs() == pytest.approx([PEAK] * 20 + [PEAK / 2] * 10)


def test_a_new_trainer_begins_with_an_empty_history() -> None:
    callback = LRSchedule(Constant(), plateau=Plateau("val/loss", factor=0.5, patience=0))
    for _ in range(2):
        module = Worsens()
        trainer(callback, max_epochs=4).fit(module, loader(), loader(1))
        assert module.lrs() == pytest.approx([PEAK] * 30 + [PEAK / 2] * 10)


def test_plateau_names_the_metrics_there_are() -> None:
    callback, module = LRSchedule(Constant(), plateau=Plateau("val/los")), Tiny()
    text = re.escape("plateau.monitor: no metric 'val/los' was logged. There are: val/loss.")
    with pytest.warns(UserWarning, match=text), pytest.raises(ValueError, match=text):  # first in the sanity check
        trainer(callback, max_epochs=1).fit(module, loader(), loader(1))


def test_learning_rate_monitor_works_beside_it(tmp_path: Path) -> None:
    module = Tiny()
    run = trainer(
        LRSchedule(SCHEDULE),
        LearningRateMonitor("step"),
        max_epochs=1,
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
    )
    run.fit(module, loader())
    text = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    column = text[0].split(",").index("lr-SGD")
    seen = [float(line.split(",")[column]) for line in text[1:] if line.split(",")[column]]
    assert seen == pytest.approx(expected(SCHEDULE, Clock(10, 10)))


class NotesByRank(Worsens):
    """A validation loss that differs between the processes: only its mean has a plateau."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        epoch, sign = self.current_epoch, 1 - 2 * self.global_rank
        self.log("val/loss", 1.0 + sign * 0.1 * epoch, sync_dist=False)

    def on_train_end(self) -> None:
        torch.save(self.lrs(), f"rank{self.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_use_the_same_lr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plateau = Plateau("val/loss", factor=0.5, patience=1)
    run = trainer(LRSchedule(SCHEDULE, plateau=plateau), max_epochs=4, devices=2, strategy="ddp_fork")
    run.fit(NotesByRank(), loader(), loader(2))
    ranks = [torch.load(f"rank{rank}.pt") for rank in (0, 1)]
    factors = [1.0] * 15 + [0.5] * 5
    assert ranks[0] == ranks[1]
    assert ranks[0] == [PEAK * (a * b) for a, b in zip(SCHEDULE.factors(20), factors, strict=True)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": 0.1}, "schedule must be a schedule such as Cosine() or a function(step, clock), got 0.1"),
        ({"schedule": [Linear(), 3]}, "each entry of schedule must be a schedule such as Cosine()"),
        ({"schedule": "cosine"}, "(step, clock), got 'cosine'; a list gives one for each optimizer"),
        ({"schedule": Linear(), "momentum": 0.9}, "momentum must be a schedule such as Cosine()"),
        ({"schedule": Linear(), "weight_decay": 0.9}, "weight_decay must be a schedule such as Cosine()"),
        ({"schedule": Linear(), "plateau": "val/loss"}, "plateau must be a Plateau, got 'val/loss'"),
        ({"schedule": Linear(), "total_steps": 0}, "total_steps must be a whole number >= 1"),
        ({"schedule": Linear(), "total_steps": 1.5}, "total_steps must be a whole number >= 1"),
        ({"schedule": Linear(), "total_steps": [3, True]}, "each entry of total_steps must be a whole number >= 1"),
        ({"schedule": Linear(), "groups": {"head": 0.1}}, "groups['head'] must be a schedule such as Cosine()"),
        ({"schedule": Linear(), "groups": {0.5: Linear()}}, "groups must map indices or names of param groups to"),
        ({"schedule": Linear(), "on_resume": "stop"}, "on_resume must be one of 'rebase', 'keep', got 'stop'"),
        ({"schedule": Linear(), "peak_on_resume": "new"}, "peak_on_resume must be one of 'checkpoint', 'module', got"),
        ({"schedule": Linear(), "replace": 1}, "replace must be True or False, got 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LRSchedule(**arguments)


def test_a_plain_function_is_a_schedule_in_every_place() -> None:
    half = lambda step, clock: 0.5  # noqa: E731
    module = Tiny(momentum=0.9, weight_decay=0.1)
    callback = LRSchedule([half], momentum=half, weight_decay=half, groups={0: half})
    trainer(callback, max_epochs=1).fit(module, loader())
    (group,) = module.trainer.optimizers[0].param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (PEAK / 2, 0.5, 0.05)


def test_state_is_plain_values() -> None:
    callback = LRSchedule(MultiStep((3,)), plateau=Plateau("train/loss"))
    trainer(callback, GradientAccumulationScheduler({1: 2}), max_epochs=2).fit(Tiny(), loader())
    state = callback.state_dict()
    assert state["clocks"] == [[15, None, [0, 10, 15]]]
    assert [type(value) for value in state["plateau"]] == [float, float]
    fresh = LRSchedule(MultiStep((3,)))
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state
