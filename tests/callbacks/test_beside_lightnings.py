"""Every callback that Lightning ships beside every callback of this package, in both orders."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks as lightnings
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch import __version__ as lightning_version
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import lr_lightning
from lr_lightning import (
    BatchSizeSchedule,
    CooldownPreview,
    LRFinder,
    LRGrid,
    LRRace,
    LRSchedule,
    OverfittingMonitor,
    RandomState,
    RunCost,
    ScheduleAwareStopping,
    ScheduleFreeMode,
    StepRecorder,
)
from lr_lightning.schedules import Cosine
from tests.callbacks.finding import UsedLRs, let_say
from tests.callbacks.tiny import QUIET, Memory

PEAK, FOUND, BATCHES, EPOCHS = 0.1, 0.05, 4, 3
X = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
DATA = TensorDataset(X, (X[:, 0] > 0).long())

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lr = PEAK
        self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x))
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.log("train/mine", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=self.lr, momentum=0.9)


class Data(LightningDataModule):
    batch_size = 8

    def train_dataloader(self) -> Any:
        return DataLoader(DATA, self.batch_size)

    def val_dataloader(self) -> Any:
        return DataLoader(DATA, 16)


class Throughput(lightnings.ThroughputMonitor):
    def __init__(self) -> None:
        super().__init__(batch_size_fn=lambda batch: len(batch[0]))


LIGHTNINGS: dict[str, Any] = {
    "none": lambda path: [],
    "BackboneFinetuning": lambda path: lightnings.BackboneFinetuning(1, backbone_initial_lr=0.02, verbose=False),
    "BatchSizeFinder": lambda path: lightnings.BatchSizeFinder(steps_per_trial=1, max_trials=1, init_val=8),
    "DeviceStatsMonitor": lambda path: lightnings.DeviceStatsMonitor(cpu_stats=False),
    "EarlyStopping": lambda path: lightnings.EarlyStopping("val/loss", patience=9),
    "EMAWeightAveraging": lambda path: lightnings.EMAWeightAveraging(decay=0.9),
    "GradientAccumulationScheduler": lambda path: lightnings.GradientAccumulationScheduler({1: 2}),
    "LambdaCallback": lambda path: lightnings.LambdaCallback(on_train_start=lambda *_: None),
    "LearningRateFinder": lambda path: lightnings.LearningRateFinder(num_training_steps=30, early_stop_threshold=None),
    "LearningRateMonitor": lambda path: lightnings.LearningRateMonitor("step"),
    "ModelCheckpoint": lambda path: lightnings.ModelCheckpoint(path, monitor="val/loss", save_last=True),
    "ModelPruning": lambda path: lightnings.ModelPruning("l1_unstructured", amount=0.5),
    "ModelSummary": lambda path: lightnings.ModelSummary(),
    "OnExceptionCheckpoint": lambda path: lightnings.OnExceptionCheckpoint(path),
    "RichModelSummary": lambda path: lightnings.RichModelSummary(),
    "RichProgressBar": lambda path: lightnings.RichProgressBar(),
    "StochasticWeightAveraging": lambda path: lightnings.StochasticWeightAveraging(0.01, 2, annealing_epochs=1),
    "ThroughputMonitor": lambda path: Throughput(),
    "Timer": lambda path: lightnings.Timer("00:01:00:00"),
    "TQDMProgressBar": lambda path: lightnings.TQDMProgressBar(),
    "WeightAveraging": lambda path: lightnings.WeightAveraging(),
}
LIGHTNINGS = {name: make for name, make in LIGHTNINGS.items() if name == "none" or hasattr(lightnings, name)}
NOT_ALONE = {"BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar", "SpikeDetection"}
SCHEDULE = Cosine(end=0.0)
OURS: dict[str, Any] = {
    "LRFinder": lambda: LRFinder(num_steps=10, progress=False),
    "LRGrid": lambda: LRGrid(num_lrs=3, num_steps=10, progress=False, apply=False),
    "LRRace": lambda: LRRace(50, progress=False),
    "LRSchedule": lambda: LRSchedule(SCHEDULE),
    "BatchSizeSchedule": lambda: BatchSizeSchedule(["2 epochs"], factor=2),
    "CooldownPreview": lambda: CooldownPreview(num_batches=1),
    "OverfittingMonitor": lambda: OverfittingMonitor(),
    "RandomState": lambda: RandomState(),
    "RunCost": lambda: RunCost(),
    "ScheduleAwareStopping": lambda: ScheduleAwareStopping("val/loss", patience=9),
    "ScheduleFreeMode": lambda: ScheduleFreeMode(num_batches=1),
    "StepRecorder": lambda: StepRecorder(),
}
MONITORS = {*OURS} - {"LRFinder", "LRRace", "LRSchedule", "BatchSizeSchedule", "ScheduleFreeMode"}


def test_every_callback_takes_part() -> None:
    shipped = set(lightnings.__all__) - NOT_ALONE
    assert set(LIGHTNINGS) - {"none"} >= shipped
    public = [getattr(lr_lightning, name) for name in lr_lightning.__all__]
    ours = {each.__name__ for each in public if inspect.isclass(each) and issubclass(each, Callback)}
    assert ours == {*OURS}


class Ran:
    """What a run of some callbacks did."""

    def __init__(self, path: Path, callbacks: list[Callback], epochs: int = EPOCHS) -> None:
        self.module, used = Net(), UsedLRs()
        bars = any(isinstance(each, lightnings.ProgressBar) for each in callbacks)
        summary = any(isinstance(each, lightnings.ModelSummary) for each in callbacks)
        saves = any(isinstance(each, lightnings.Checkpoint) for each in callbacks)
        options = {"enable_progress_bar": bars, "enable_model_summary": summary, "enable_checkpointing": saves}
        self.trainer = Trainer(
            **{**QUIET, **options, "logger": Memory()}, callbacks=[*callbacks, used], max_epochs=epochs,
            default_root_dir=path, num_sanity_val_steps=0, log_every_n_steps=1,
        )  # fmt: skip
        torch.manual_seed(3)
        self.trainer.fit(self.module, datamodule=Data())
        self.lrs = [lrs[0] for lrs in used.used]
        self.groups = used.used
        self.weights = torch.cat([parameter.detach().flatten() for parameter in self.module.parameters()])


def ran(tmp_path: Path, lightning: str, *ours: Callback, first: bool = True, epochs: int = EPOCHS) -> Ran:
    other = LIGHTNINGS[lightning](tmp_path)
    others = other if isinstance(other, list) else [other]
    return Ran(tmp_path, [*ours, *others] if first else [*others, *ours], epochs)


@pytest.mark.parametrize("lightning", LIGHTNINGS)
def test_monitors_change_nothing(tmp_path: Path, lightning: str) -> None:
    without = ran(tmp_path, lightning)
    for first in (True, False):
        found = ran(tmp_path, lightning, *(OURS[name]() for name in sorted(MONITORS)), first=first)
        assert found.groups == without.groups, first
        assert torch.equal(found.weights, without.weights), first


@pytest.mark.parametrize("lightning", LIGHTNINGS)
@pytest.mark.parametrize("first", [True, False])
def test_a_schedule_sets_the_lr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lightning: str, first: bool) -> None:
    monkeypatch.setattr("lightning.pytorch.tuner.lr_finder._LRFinder.suggestion", lambda self: 0.7)
    found = ran(tmp_path, lightning, OURS["LRSchedule"](), first=first)
    batches = found.trainer.num_training_batches  # of the BatchSizeFinder of Lightning 2.5 two
    updates = 4 + 2 + 2 if lightning == "GradientAccumulationScheduler" else EPOCHS * int(batches)
    expected = [PEAK * factor for factor in SCHEDULE.factors(updates)]
    if lightning == "StochasticWeightAveraging":  # begins with the second epoch
        expected = [*expected[:4], *[expected[3]] * 4, *[0.01] * 4]
    if lightning == "LearningRateFinder":
        expected = [0.7 * factor for factor in SCHEDULE.factors(updates)]
    assert found.lrs == pytest.approx(expected, rel=1e-12)
    if lightning == "BackboneFinetuning":
        assert [lrs[1] for lrs in found.groups[4:]] == [0.02 * factor for factor in SCHEDULE.factors(updates)[4:]]


@pytest.mark.parametrize("lightning", LIGHTNINGS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["LRFinder", "LRRace"])
def test_a_finder_sets_the_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lightning: str, first: bool, name: str
) -> None:
    let_say(monkeypatch, FOUND)
    finder, epochs = OURS[name](), EPOCHS
    if name == "LRRace":  # which needs 100 updates
        epochs = 51 if lightning in ("GradientAccumulationScheduler", "BatchSizeFinder") else 25
        if lightning == "ThroughputMonitor" and lightning_version.startswith("2.5."):
            pytest.skip("its clock grows fivefold in each epoch there, until no step can be told from the last")
    found = ran(tmp_path, lightning, finder, first=first, epochs=epochs)
    assert finder.applied_lr == FOUND
    expected = [FOUND] * len(found.lrs)
    if lightning == "StochasticWeightAveraging":
        expected[8:] = [0.01] * (len(expected) - 8)
    assert found.lrs == expected
    assert found.module.lr == FOUND


@pytest.mark.parametrize("lightning", LIGHTNINGS)
@pytest.mark.parametrize("first", [True, False])
def test_a_batch_grows(tmp_path: Path, lightning: str, first: bool) -> None:
    callback = OURS["BatchSizeSchedule"]()
    if lightning == "GradientAccumulationScheduler":
        with pytest.raises(ValueError, match="would both set the accumulation"):
            ran(tmp_path, lightning, callback, first=first)
        return
    found = ran(tmp_path, lightning, callback, first=first)
    batches = int(found.trainer.num_training_batches)  # of the last epoch, whose batches are twice as large
    assert len(found.lrs) == 5 * batches


class ScheduleFree(Net):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        import schedulefree

        made: torch.optim.Optimizer = schedulefree.SGDScheduleFree(self.parameters(), lr=PEAK)
        return made


@pytest.mark.parametrize("lightning", LIGHTNINGS)
@pytest.mark.parametrize("first", [True, False])
def test_weights_are_averaged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lightning: str, first: bool
) -> None:
    monkeypatch.setitem(Ran.__init__.__globals__, "Net", ScheduleFree)
    if "WeightAveraging" in lightning:
        with pytest.raises(ValueError, match=f"ScheduleFreeMode and {lightning} would both choose the weights"):
            ran(tmp_path, lightning, OURS["ScheduleFreeMode"](), first=first)
        return
    if lightning in ("BatchSizeFinder", "LearningRateFinder"):  # they train without callbacks
        with pytest.raises(ValueError, match=f"ScheduleFreeMode cannot work beside {lightning}"):
            ran(tmp_path, lightning, OURS["ScheduleFreeMode"](), first=first)
        return
    found = ran(tmp_path, lightning, OURS["ScheduleFreeMode"](), first=first)
    assert len(found.lrs) in (12, 8)


def test_swa_of_a_net_with_batch_norm_trains_no_epoch_more_than_planned(tmp_path: Path) -> None:
    class WithNorm(Net):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))  # type: ignore[assignment]

    for order in (1, -1):
        used = UsedLRs()
        swa = LIGHTNINGS["StochasticWeightAveraging"](tmp_path)
        callbacks: list[Callback] = [LRSchedule(SCHEDULE), BatchSizeSchedule(["1 epoch"]), swa][::order]
        run = Trainer(**QUIET, callbacks=[*callbacks, used], max_epochs=EPOCHS)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="LRSchedule")
            run.fit(WithNorm(), datamodule=Data())
        assert used.used[:4] == [[PEAK * factor] for factor in SCHEDULE.factors(4 + 1 + 1)[:4]]
        assert run.accumulate_grad_batches == 1


def test_swa_resumes_and_leaves(tmp_path: Path) -> None:
    """A resumed run continues SWA's lr; without SWA it is the schedule's again, at its own peak."""

    def run(epochs: int, *callbacks: Callback) -> tuple[Trainer, UsedLRs]:
        used = UsedLRs()
        return Trainer(
            **QUIET, callbacks=[LRSchedule(SCHEDULE, total_steps=20), *callbacks, used], max_epochs=epochs
        ), used

    swa = lambda: lightnings.StochasticWeightAveraging(0.01, 2, annealing_epochs=2, annealing_strategy="linear")  # noqa: E731
    whole, expected = run(5, swa())
    whole.fit(Net(), datamodule=Data())
    start, before = run(3, swa())
    start.fit(Net(), datamodule=Data())
    start.save_checkpoint(tmp_path / "a.ckpt")
    resumed, after = run(5, swa())
    resumed.fit(Net(), datamodule=Data(), ckpt_path=tmp_path / "a.ckpt")
    assert before.used == expected.used[:12]
    assert after.used == expected.used[12:]
    alone, after = run(5)
    alone.fit(Net(), datamodule=Data(), ckpt_path=tmp_path / "a.ckpt")
    assert after.used == [[PEAK * factor] for factor in SCHEDULE.factors(20)[12:]]


def test_a_finder_measures_with_the_batch_that_was_found(tmp_path: Path) -> None:
    sizes: list[int] = []
    measured: list[int] = []

    class Notes(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            sizes.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    class Finder(LRFinder):
        def _find(self, *args: Any) -> Any:
            start = len(sizes)
            found = super()._find(*args)
            measured.extend(sizes[start:])
            return found

    scaling, data = lightnings.BatchSizeFinder(steps_per_trial=1, max_trials=2, init_val=8), Data()
    callbacks = [Finder(num_steps=10, progress=False, apply=False), scaling]
    run = Trainer(**QUIET, callbacks=callbacks, max_epochs=1, default_root_dir=tmp_path)
    run.fit(Notes(), datamodule=data)
    assert data.batch_size > 8
    assert set(measured) == {data.batch_size}
