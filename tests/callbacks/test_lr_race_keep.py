"""LRRace(keep=True): the run that goes on from the race is the run that had its lr from the start, bit for bit."""

import signal
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MaxMetric, MeanMetric

from lr_lightning import LRRace, LRSchedule, OverfittingMonitor
from lr_lightning._lightning import stop_after_batch
from lr_lightning.callbacks.step_recorder import StepRecorder
from lr_lightning.errors import ArgumentError, UsageError
from lr_lightning.schedules import WSD, Constant, Cosine, Linear, Schedule
from tests.callbacks.finding import Nasty, differences, fit
from tests.callbacks.tiny import Memory, Tiny, X, Y, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

STEPS = 102
BUDGET = 82
LENGTH = 10  # updates of each training of the race
wsd = WSD(warmup="3 steps", cooldown="20%")


class Net(Tiny):
    """Logs every step's loss, under several param groups of an optimizer with a state."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(lr)
        self.seen = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.seen += 1
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"train/seen": float(self.seen)}, on_step=True, on_epoch=False)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        first, *others = self.parameters()
        return AdamW([{"params": [first]}, {"params": others, "lr": self.lr / 2}], lr=self.lr, weight_decay=0.1)


class Draws(Callback):
    """Draws a random number where a dry run does not know of it."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, lambda *_: torch.rand(1))


def data() -> Any:
    return {"train_dataloaders": loader(), "val_dataloaders": loader(20)}, []


def compare(
    tmp_path: Path,
    schedule: Schedule = wsd,
    make: Any = Net,
    others: Any = list,
    metric: Any = "val_loss",
    **options: Any,
) -> tuple[LRRace, list[str]]:
    """Race and go on, train with the same lr from the start, and return what differs between the two runs."""
    found = LRRace(budget=BUDGET, metric=metric, keep=True)
    run = {"callbacks": lambda: [LRSchedule(schedule), *others()], "data": data, "max_epochs": -1, "max_steps": STEPS}
    kept = fit(tmp_path, found, make=make, **run, **options)
    assert found.applied_lr is not None
    whole = fit(tmp_path, None, make=partial(make, lr=found.applied_lr), **run, **options)
    # a schedule's state holds the lr that was configured, and a checkpoint's path is another one
    return found, [key for key in differences(whole, kept) if key not in ("files", "others")]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, LENGTH - 2),  # the first update of each epoch is trained again
        ({"val_check_interval": 2}, LENGTH - 5),  # and the first one after each validation
        ({"check_val_every_n_epoch": None, "val_check_interval": 5}, LENGTH - 3),
        ({"accumulate_grad_batches": 2}, LENGTH - 4),
        ({"accumulate_grad_batches": 2, "val_check_interval": 3, "gradient_clip_val": 0.5}, LENGTH - 7),
        ({"limit_train_batches": 4, "check_val_every_n_epoch": 2}, LENGTH - 3),
    ],
    ids=str,
)
def test_the_run_is_the_one_that_had_its_lr_from_the_start(options: dict[str, Any], kept: int, tmp_path: Path) -> None:
    found, differing = compare(tmp_path, **options)
    assert (differing, found.kept) == ([], kept)


@pytest.mark.parametrize("schedule", [Constant(), WSD(warmup="1 step", cooldown="30%")], ids=str)
def test_schedules_that_begin_with_a_plateau(schedule: Schedule, tmp_path: Path) -> None:
    found, differing = compare(tmp_path, schedule, lambda lr=0.1: Nasty(lr=lr, log=False))
    assert differing == []
    assert found.kept == 5  # of the first epoch: the module's on_train_epoch_start does something at the next
    assert found.applied_lr in found.result.trials[-1].lrs


def test_recorders_and_checkpoints_get_what_they_would_have(tmp_path: Path) -> None:
    saved: list[dict[str, Any]] = []

    def others() -> list[Callback]:
        folder = tmp_path / f"checkpoints{len(list(tmp_path.glob('checkpoints*')))}"
        folder.mkdir()
        every = ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1, save_on_train_epoch_end=False)
        return [StepRecorder(flush_steps=1), LearningRateMonitor("step"), OverfittingMonitor(), every]

    found, differing = compare(tmp_path, others=others, enable_checkpointing=True)
    assert (differing, found.kept) == ([], LENGTH - 4)
    for folder in ("checkpoints0", "checkpoints1"):
        saved.append(torch.load(tmp_path / folder / "step=8.ckpt", weights_only=False))
    one, other = ({name: values for name, values in each.items() if name != "callbacks"} for each in saved)
    assert str(one) == str(other)


@pytest.mark.parametrize(("hook", "kept"), [("on_train_start", 0), ("on_train_epoch_end", 5), ("on_validation_end", 5)])
def test_a_run_that_differs_from_the_race_goes_on_by_itself(hook: str, kept: int, tmp_path: Path) -> None:
    found, differing = compare(tmp_path, others=lambda: [Draws(hook)])
    assert (differing, found.kept) == ([], kept)


def test_it_says_what_it_took_from_the_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lr_lightning.callbacks.lr_race.rank_zero_info", said.append)
    compare(tmp_path)
    assert said == [f"LRRace: the run trains by itself from update {LENGTH} on. It took 8 updates from the race."]


class Saves(Callback):
    reads_weights_at_steps = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.save_checkpoint(f"{trainer.default_root_dir}/{trainer.global_step}.ckpt")


def test_no_checkpoint_gets_the_weights_of_another_step(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"LRRace\(keep=True\) repeats .* weights of step 2 are not known"):
        compare(tmp_path, others=lambda: [Saves()])
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["1.ckpt"]  # the first step is trained again


def test_after_a_kill_the_run_trains_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lr_lightning.callbacks.lr_race.rank_zero_info", said.append)
    with monkeypatch.context() as killed:
        killed.setattr("lr_lightning.lr_finder.race.KeptRace.remove", _die)
        with pytest.raises(InterruptedError):
            compare(tmp_path)
    found, differing = compare(tmp_path)
    assert (differing, found.kept) == ([], 0)
    assert said[-1].endswith("since the trainings of a race that was interrupted are not kept.")


def _die(self: Any) -> None:
    raise InterruptedError


class AtBatchEnd(Net):
    def on_train_batch_end(self, *_: Any) -> None:
        pass


class LogsMetric(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.mean(loss)
        self.log("mean", self.mean)
        return loss


class Writes(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.logger.log_metrics({"own": 1.0})
        return super().training_step(batch, batch_idx)


class Skips(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 0 else loss


class SkipsLater(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 2 else loss


class Iterates(Net):
    def __init__(self) -> None:
        super().__init__()
        self.it = (float(n) for n in range(10_000))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * (1 + next(self.it))


class IteratesLater(Iterates):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return Net.training_step(self, batch, batch_idx) * (1 + (next(self.it) if batch_idx == 3 else 0))


class Average(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        pass


@pytest.mark.parametrize(
    ("module", "callbacks", "options", "message"),
    [
        (Net, [LRSchedule(Cosine())], {}, "needs a schedule that is constant at first, .* This one is cosine 1 to 0"),
        (Net, [LRSchedule(Linear(1, 0))], {}, "needs a schedule that is constant at first"),
        (Net, [LRSchedule(WSD(warmup="40%"))], {}, "trainings of 10 updates are too short for a warmup of 40"),
        (Net, [LRSchedule(wsd), Average()], {}, "cannot show Average the weights and gradients of every step"),
        (AtBatchEnd, [LRSchedule(wsd)], {}, r"cannot repeat AtBatchEnd\.on_train_batch_end"),
        (LogsMetric, [], {}, r"a step that logs a metric object \('mean': MeanMetric\)"),
        (Writes, [], {}, "a step that uses the logger itself"),
        (Skips, [], {}, "a step that returns no loss"),
        (Iterates, [], {}, r"a step that changes objects that cannot be restored \(module\.it"),
        (
            Net,
            [ModelCheckpoint(train_time_interval=timedelta(1))],
            {"enable_checkpointing": True},
            "cannot save after a t",
        ),
        (Net, [], {"max_time": "00:01:00:00"}, "cannot end after a max_time"),
        (Net, [], {"accumulate_grad_batches": 4}, "4 accumulated batches do not divide its 6 batches"),
    ],
)
def test_it_refuses_what_it_cannot_repeat(
    module: Any, callbacks: list[Callback], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    net = module()
    run = trainer(
        tmp_path, [LRRace(budget=BUDGET, keep=True), *callbacks], Memory(), max_steps=STEPS, max_epochs=-1, **options
    )
    with pytest.raises(ArgumentError, match=rf"^LRRace\(keep=True\).*{message}"):
        run.fit(net, loader(), loader(20))
    assert len(net.losses) == 0


class Unlike(TensorDataset):
    """Gives other examples each time."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + torch.rand(1, generator=_own), y


_own = torch.Generator()


def test_a_loader_that_gives_other_batches_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lr_lightning.callbacks.lr_race.rank_zero_info", said.append)
    found = LRRace(budget=BUDGET, keep=True)
    run = trainer(tmp_path, [found, LRSchedule(wsd)], max_steps=STEPS, max_epochs=-1)
    run.fit(Net(), DataLoader(Unlike(X, Y), 10), loader(20))
    assert found.kept == 0
    assert said[-1].endswith("with the lr that was found, since the loader gives other batches each time.")


@pytest.mark.parametrize("arguments", [{"keep": "yes"}, {"keep": True, "apply": False}], ids=str)
def test_wrong_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"^keep must be True or False"):
        LRRace(**arguments)


def test_without_validation_the_training_loss_judges(tmp_path: Path) -> None:
    class Blind(Net):
        validation_step = LightningModule.validation_step

    found, differing = compare(tmp_path, make=Blind, metric="loss")
    assert (differing, found.kept) == ([], LENGTH - 2)


# -- what happens between the steps ------------------------------------------------------------------------------------


class CountsValidations(Net):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(lr)
        self.vals = 0

    def on_validation_epoch_end(self) -> None:
        self.vals += 1
        self.log("vals", float(self.vals))


class Best(Net):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(lr)
        self.highest = MaxMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.highest.update(self.losses[-1] if self.losses else 0.0)

    def on_validation_epoch_end(self) -> None:
        self.log("highest", self.highest.compute())


class CountsElsewhere(Callback):
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.seen += 100


@pytest.mark.parametrize("sanity", [0, 1])
@pytest.mark.parametrize(
    ("make", "others"), [(CountsValidations, list), (Best, list), (Net, lambda: [CountsElsewhere()])]
)
def test_what_a_validation_changes_in_the_module_is_not_undone(
    make: Any, others: Any, sanity: int, tmp_path: Path
) -> None:
    found, differing = compare(tmp_path, make=make, others=others, num_sanity_val_steps=sanity)
    assert (differing, found.kept) == ([], 0 if sanity else 5)  # to the first validation


def test_a_graceful_stop_waits_until_the_weights_are_in_place(tmp_path: Path) -> None:
    pytest.importorskip("hydra")
    pytest.importorskip("lightning")  # the app is made for that package alone
    from lr_lightning.app.run.graceful_stop import GracefulStop

    found, stop = LRRace(budget=BUDGET, keep=True), GracefulStop(tmp_path / "stopped.ckpt")
    told = Ends(lambda _: setattr(stop, "signum", signal.SIGTERM))
    run = trainer(tmp_path, [stop, told, found, LRSchedule(wsd)], max_steps=STEPS, max_epochs=-1)
    with pytest.raises(SIGTERMException):
        run.fit(Net(), loader(), loader(20))
    assert torch.load(tmp_path / "stopped.ckpt", weights_only=False)["global_step"] == 6


class UsesLoggerInValidation(Net):
    def on_validation_epoch_end(self) -> None:
        if self.logger is not None:
            self.logger.log_metrics({"own": 1.0})


class Outputs(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "logits": self.net(batch[0])}


class Sparse(Net):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0].to_sparse(), batch[1]] if self.training else batch

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step([batch[0].to_dense(), batch[1]], batch_idx)


class LogsMetricInValidation(Net):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(lr)
        self.mean, self.own, self.outs = MeanMetric(), MeanMetric(), [0.0]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.mean(batch[0])
        self.own.update(batch[0])
        self.outs.append(float(batch[0].sum()))
        self.log("mean", self.mean)

    def on_validation_epoch_end(self) -> None:
        self.log("own", self.own.compute() + sum(self.outs))
        self.own.reset()
        del self.outs[1:]


@pytest.mark.parametrize("make", [UsesLoggerInValidation, LogsMetricInValidation, Outputs, Sparse])
def test_modules_whose_steps_can_be_repeated(make: Any, tmp_path: Path) -> None:
    found, differing = compare(tmp_path, make=make)
    assert (differing, found.kept) == ([], LENGTH - 2)


class TakesOutputs(Callback):
    reads_weights_at_steps = False

    def __init__(self) -> None:
        self.taken: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.taken.append(outputs)


def test_repeated_outputs_hold_no_graph(tmp_path: Path) -> None:
    callbacks: list[TakesOutputs] = []

    def others() -> list[Callback]:
        callbacks.append(TakesOutputs())
        return [callbacks[-1]]

    compare(tmp_path, make=Outputs, others=others)
    kept, whole = (callback.taken for callback in callbacks)
    assert [torch.equal(one["logits"], other["logits"]) for one, other in zip(kept, whole, strict=True)] == [
        True
    ] * STEPS
    assert not any(outputs["logits"].requires_grad for outputs in kept[1:6])


@pytest.mark.parametrize(("make", "why"), [(SkipsLater, "returns no loss"), (IteratesLater, "cannot be restored")])
def test_a_later_step_that_cannot_be_repeated(
    make: Any, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lr_lightning.callbacks.lr_race.rank_zero_info", said.append)
    found = LRRace(budget=BUDGET, keep=True)
    run = trainer(tmp_path, [found, LRSchedule(wsd)], max_steps=STEPS, max_epochs=-1)
    run.fit(make(), loader(), loader(20))
    assert (found.kept, run.global_step > 80) == (0, True)
    assert "trains from its start" in said[-1]
    assert why in said[-1]
    assert said[-1].endswith("cannot be repeated (keep=False spares the memory).")


class Ends(Callback):
    """Asks for an end of the run among the steps that are repeated."""

    reads_weights_at_steps = False

    def __init__(self, ask: Any) -> None:
        self.ask = ask

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            self.ask(trainer)


def stopped_at_6(tmp_path: Path, run: Any, found: LRRace, net: Net) -> bool:
    """Return whether a run under a constant lr is the one that had its lr from the start and ended after 6 steps."""
    assert found.applied_lr is not None
    whole = Net(found.applied_lr)
    whole.load_state_dict(torch.load(tmp_path / "start.pt"))
    torch.manual_seed(3)
    trainer(tmp_path, [LRSchedule(Constant())], max_steps=6, max_epochs=-1).fit(whole, loader(), loader(20))
    same = (torch.equal(one, other) for one, other in zip(net.parameters(), whole.parameters(), strict=True))
    return run.global_step == 6 and all(same)


@pytest.mark.parametrize("how", ["should_stop", "sigterm"])
def test_a_stop_waits_until_the_weights_are_in_place(how: str, tmp_path: Path) -> None:
    found, net = LRRace(budget=BUDGET, keep=True), Net()
    torch.save(net.state_dict(), tmp_path / "start.pt")
    ask = stop_after_batch if how == "sigterm" else lambda trainer: setattr(trainer, "should_stop", True)
    run = trainer(tmp_path, [Ends(ask), found, LRSchedule(Constant())], max_steps=STEPS, max_epochs=-1)
    torch.manual_seed(3)
    if how == "sigterm":
        with pytest.raises(SIGTERMException):
            run.fit(net, loader(), loader(20))
    else:
        run.fit(net, loader(), loader(20))
    assert stopped_at_6(tmp_path, run, found, net)
    run.save_checkpoint(tmp_path / "stopped.ckpt")
    saved = torch.load(tmp_path / "stopped.ckpt", weights_only=False)["callbacks"]
    assert next(state["kept"] for name, state in saved.items() if name.startswith("LRRace")) == 5
    assert run.fit_loop.epoch_loop.min_steps is None


def _interrupt(trainer: Any) -> None:
    raise InterruptedError


def test_a_crash_among_the_repeated_steps_leaves_the_race(tmp_path: Path) -> None:
    run = trainer(tmp_path, [LRRace(budget=BUDGET, keep=True), Ends(_interrupt)], max_steps=STEPS, max_epochs=-1)
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match="stopped at step 3"), pytest.raises(InterruptedError):
        run.fit(Net(), loader(), loader(20))
    assert len(list(tmp_path.glob(".lr_race-*.json"))) == 1
    with pytest.raises(UsageError, match="weights of step 3 are not known"):
        run.save_checkpoint(tmp_path / "wrong.ckpt")
    found = LRRace(budget=BUDGET, keep=True)
    run = trainer(tmp_path, [found], max_steps=STEPS, max_epochs=-1)
    torch.manual_seed(3)
    run.fit(Net(), loader(), loader(20))
    assert (run.global_step, found.kept) == (STEPS, 0)
    assert list(tmp_path.glob(".lr_race-*.json")) == []


class ChangesLater(TensorDataset):
    """Gives other examples once the run itself has begun, from the third batch on."""

    live = False

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + (1.0 if self.live and index >= 20 else 0.0), y


def test_another_batch_among_the_repeated_steps_ends_the_run_and_leaves_the_race(tmp_path: Path) -> None:
    examples = ChangesLater(X, Y)

    class Begins(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            examples.live = True

    run = trainer(tmp_path, [LRRace(budget=BUDGET, keep=True), Begins()], max_steps=STEPS, max_epochs=-1)
    with pytest.raises(UsageError, match=r"gives other batches than in the race\. Start the run again"):
        run.fit(Net(), DataLoader(examples, 10), loader(20))
    assert len(list(tmp_path.glob(".lr_race-*.json"))) == 1


def test_a_failure_between_the_race_and_the_first_step_is_the_one_that_is_seen(tmp_path: Path) -> None:
    class Fails(Callback):
        def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
            raise InterruptedError

    run = trainer(tmp_path, [LRRace(budget=BUDGET, keep=True), Fails()], max_steps=STEPS, max_epochs=-1)
    with pytest.raises(InterruptedError):
        run.fit(Net(), loader(), loader(20))
    assert len(list(tmp_path.glob(".lr_race-*.json"))) == 1
