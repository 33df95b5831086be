"""LRFinder leaves no trace: a run whose finder changes nothing is, bit for bit, the run without it."""

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
)

from lr_lightning import BatchSizeSchedule, LRFinder, LRSchedule, OverfittingMonitor, ScheduleFreeMode, StepRecorder
from lr_lightning.lr_finder.results import RangeTest
from lr_lightning.schedules import Cosine, Plateau, Warmup
from tests.callbacks.finding import STEPS, Nasty, differences, fit, frozen, make_optimizer, random_states, seed
from tests.callbacks.tiny import Memory, X, Y, loader
from tests.callbacks.tiny import trainer as tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def finder(**arguments: Any) -> LRFinder:
    return LRFinder(
        **{"num_steps": STEPS, "apply": False, "retry": False, "early_stop": False, "max_lr": 0.5, **arguments}
    )


def same(tmp_path: Path, *finders: LRFinder, **run: Any) -> None:
    """A run without a finder against one with each of these."""
    bare = fit(tmp_path, None, **run)
    assert bare["files"] == [] or "callbacks" in run or "logger" in run
    for each in finders:
        assert differences(bare, fit(tmp_path, each, **run)) == []
        assert each.results
        for result in each.results.values():
            assert [len(values) for values in result.curves] == [each.num_steps] * each.repeats


# -- optimizers and options of the Trainer -----------------------------------------------------------------------------


def with_validation() -> Any:
    return {"train_dataloaders": loader(), "val_dataloaders": loader(20)}, []


def shuffled() -> Any:
    data = DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True)
    return {"train_dataloaders": data, "val_dataloaders": loader(20)}, [data]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop", "tensor", "schedulefree"])
def test_optimizers(tmp_path: Path, optimizer: str) -> None:
    callbacks = (lambda: [ScheduleFreeMode(num_batches=2)]) if optimizer == "schedulefree" else ()
    run = {"make": lambda: Nasty(optimizer), "data": shuffled, "callbacks": callbacks}
    same(tmp_path, finder(), finder(at_epochs=[0, 1]), **run)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 4, "max_epochs": 3},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"max_steps": 1, "max_epochs": -1},
        {"limit_train_batches": 1, "max_epochs": 3},
        {"limit_train_batches": 0.5, "limit_val_batches": 0},
        {"overfit_batches": 2},
        {"reload_dataloaders_every_n_epochs": 1},
        {"val_check_interval": 2},
        {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0},
        {"detect_anomaly": True},
        {"inference_mode": False, "profiler": "simple", "log_every_n_steps": 3},
    ],
    ids=str,
)
def test_options(tmp_path: Path, options: dict[str, Any]) -> None:
    make = (lambda: Nasty().double()) if options.get("precision") == "64-true" else Nasty
    data = shuffled if options.get("precision") != "64-true" else with_validation
    same(tmp_path, finder(), finder(at_epochs=[0, 1]), make=make, data=data, **options)


@pytest.mark.parametrize("metric", ["loss", "val_loss", "accuracy"])
@pytest.mark.parametrize(("repeats", "mode"), [(1, "linear"), (3, "exponential")])
def test_what_is_measured(tmp_path: Path, metric: Any, repeats: int, mode: Any) -> None:
    measured = {"metric": metric, "repeats": repeats, "mode": mode}
    same(tmp_path, finder(**measured), finder(**measured, at_epochs=[1, 3]), data=shuffled, max_epochs=4)


def test_a_wider_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RangeTest, "wider", lambda self: (1e-6, 0.7))
    twice = finder(retry=True)
    same(tmp_path, twice)
    assert twice.results[0].grid[-1] == 0.7


def test_without_a_logger_and_without_logging(tmp_path: Path) -> None:
    same(tmp_path, finder(), logger=False, make=lambda: Nasty(log=False))


# -- schedulers --------------------------------------------------------------------------------------------------------


class Scheduled(Nasty):
    def __init__(self, scheduler: Callable[[Any], Any], interval: str = "step") -> None:
        super().__init__()
        self.make_scheduler, self.interval = scheduler, interval

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer("sgd", self.parameters(), self.lr)
        scheduler = {"scheduler": self.make_scheduler(optimizer), "interval": self.interval, "monitor": "train/loss"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


lr_scheduler = torch.optim.lr_scheduler
SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 5)),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 9)], [3]
    ),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=12),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.05, step_size_up=3),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.ConstantLR(o, 0.5, 4)]
    ),
    "swa": lambda o: torch.optim.swa_utils.SWALR(o, 0.01),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(tmp_path: Path, name: str) -> None:
    interval = "epoch" if name in ("plateau", "swa") else "step"
    run = {"make": lambda: Scheduled(SCHEDULERS[name], interval), "data": shuffled}
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        same(tmp_path, finder(), finder(at_epochs=[1]), **run)
    assert not [str(w.message) for w in noted if "lr_scheduler.step()" in str(w.message)]


# -- data --------------------------------------------------------------------------------------------------------------


class Noisy(Dataset[Any]):
    """Draw from own generators and from all global ones, and count."""

    def __init__(self) -> None:
        self.numpy_rng, self.torch_rng = np.random.default_rng(3), torch.Generator().manual_seed(3)
        self.calls, self.cache = 0, {}

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        self.calls += 1
        self.cache[index] = self.calls
        noise = self.numpy_rng.normal() + torch.rand(1, generator=self.torch_rng) + np.random.rand() + torch.rand(1)
        return X[index] + 0.01 * noise + 0.001 * self.calls, Y[index]


class Epochs(Sampler[int]):
    """Its order depends on the epoch it was told, as DistributedSampler's, and on how often it was asked."""

    def __init__(self) -> None:
        self.epoch, self.passes, self.told = 0, 0, []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.told.append(epoch)

    def __len__(self) -> int:
        return len(X)

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        generator = torch.Generator().manual_seed(1000 * self.epoch + self.passes)
        return iter(torch.randperm(len(X), generator=generator).tolist())


class Stream(IterableDataset[Any]):
    """Continue at the former position."""

    def __init__(self, length: int | None = None) -> None:
        self.position, self.length = 0, length

    def __iter__(self) -> Iterator[Any]:
        for _ in range(60):
            self.position += 1
            yield X[self.position % 60], Y[self.position % 60]


class OneWay:
    """A loader that is its own iterator and continues at its former position."""

    def __init__(self) -> None:
        self.position, self.end = 0, 6

    def __iter__(self) -> Any:
        self.end = self.position + 6
        return self

    def __next__(self) -> Any:
        if self.position >= self.end:
            raise StopIteration
        self.position += 1
        rows = [(self.position * 7 + k) % 60 for k in range(10)]
        return X[rows], Y[rows]


def collate(rows: Any) -> Any:
    return torch.stack([row[0] for row in rows]) + 0.01 * torch.rand(1), torch.stack([row[1] for row in rows])


def own(**arguments: Any) -> Callable[[], Any]:
    """A loader over noisy data; arguments that are callable are made anew, with the data set."""

    def make() -> Any:
        data = Noisy()
        made = {key: value(data) if key in ("sampler", "batch_sampler") else value for key, value in arguments.items()}
        if made.get("generator"):
            made["generator"] = torch.Generator().manual_seed(11)
        built = DataLoader(data, **({} if "batch_sampler" in made else {"batch_size": 10}), **made)
        state = [vars(data), getattr(built.sampler, "__dict__", {}), built.generator]
        return {"train_dataloaders": built}, state

    return make


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def passed(made: Any) -> Callable[[], Any]:
    def make() -> Any:
        built = made()
        return {"train_dataloaders": built}, []

    return make


DATA: dict[str, Callable[[], Any]] = {
    "plain": own(),
    "shuffled": own(shuffle=True),
    "generator": own(shuffle=True, generator=True),
    "sampler with generator": own(sampler=lambda data: RandomSampler(data, generator=generator())),
    "set_epoch": own(sampler=lambda data: Epochs()),
    "batch_sampler": own(batch_sampler=lambda data: BatchSampler(RandomSampler(data), 7, True)),
    "batch_sampler, set_epoch": own(batch_sampler=lambda data: BatchSampler(Epochs(), 7, False)),
    "collate, drop_last": own(shuffle=True, collate_fn=collate, drop_last=True),
    "workers": own(shuffle=True, num_workers=2),
    "persistent workers": own(shuffle=True, num_workers=2, persistent_workers=True, generator=True),
    "stream": passed(lambda: DataLoader(Stream(), batch_size=10)),
    "stream, workers": passed(lambda: DataLoader(Stream(), batch_size=10, num_workers=2)),
    "one way": passed(OneWay),
}


@pytest.mark.parametrize("name", DATA)
def test_data(tmp_path: Path, name: str) -> None:
    same(tmp_path, finder(num_steps=15), finder(at_epochs=[1], repeats=2), data=DATA[name], max_epochs=3)


class Several(Nasty):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        every = list(batch.values()) if isinstance(batch, dict) else batch
        parts = [part for part in every if part is not None]
        return super().training_step([torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])], batch_idx)


def several(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        one = DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True, generator=generator())
        two = DataLoader(TensorDataset(X, Y), batch_size=25, shuffle=True)
        both: Any = {"a": one, "b": two}
        if kind == "list":
            both = [one, two]
        elif kind != "dict":
            both = CombinedLoader(both, kind)
        return {"train_dataloaders": both}, [one.generator]

    return make


@pytest.mark.parametrize("kind", ["dict", "list", "min_size", "max_size", "max_size_cycle"])
def test_several_loaders(tmp_path: Path, kind: str) -> None:
    same(tmp_path, finder(), finder(at_epochs=[1]), make=Several, data=several(kind))


class Hooked(Nasty):
    """Makes its loaders itself, draws numbers for it, and notes that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def train_dataloader(self) -> Any:
        self.made.append("train")
        order = torch.randperm(60)
        return DataLoader(TensorDataset(X[order], Y[order]), batch_size=10, shuffle=True)

    def val_dataloader(self) -> Any:
        self.made.append("val")
        return DataLoader(TensorDataset(X + torch.rand(1), Y), batch_size=20)


class Module(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.made, self.rng = [], np.random.default_rng(2)

    def setup(self, stage: str) -> None:
        self.data = TensorDataset(X + float(self.rng.random()), Y)

    def train_dataloader(self) -> Any:
        self.made.append("train")
        return DataLoader(self.data, batch_size=10, shuffle=True, generator=torch.Generator().manual_seed(3))

    def val_dataloader(self) -> Any:
        self.made.append(float(self.rng.random()))
        return DataLoader(self.data, batch_size=20)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + 0.01 * float(self.rng.random()), batch[1]]


@pytest.mark.parametrize("where", ["hook", "datamodule"])
@pytest.mark.parametrize("metric", ["loss", "val_loss"])
@pytest.mark.parametrize("reload", [0, 1])
def test_loaders_of_hooks(tmp_path: Path, where: str, metric: Any, reload: int) -> None:
    def data() -> Any:
        if where == "hook":
            return {}, []
        datamodule = Module()
        return {"datamodule": datamodule}, [datamodule.made, datamodule.rng]

    run = {"reload_dataloaders_every_n_epochs": reload, "data": data, "make": Hooked if where == "hook" else Nasty}
    same(tmp_path, finder(metric=metric), finder(metric=metric, at_epochs=[0, 1]), **run)


class Asks(Nasty):
    """Ask for the length in configure_optimizers: the loader and its iterator exist before the test."""

    def configure_optimizers(self) -> Any:
        self.length = self.trainer.estimated_stepping_batches
        return super().configure_optimizers()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert self.trainer.estimated_stepping_batches == self.length
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("name", ["shuffled", "generator", "persistent workers", "set_epoch", "stream"])
def test_a_loader_that_is_there_before(tmp_path: Path, name: str) -> None:
    reload = {"reload_dataloaders_every_n_epochs": 1} if name == "shuffled" else {}
    if name == "stream":
        reload = {"max_steps": 15}
    same(tmp_path, finder(), finder(at_epochs=[0]), make=Asks, data=DATA[name], **reload)


# -- other callbacks ---------------------------------------------------------------------------------------------------


class Backbone(Nasty):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step([self.backbone(batch[0]), batch[1]], batch_idx)

    def configure_optimizers(self) -> Any:
        return make_optimizer("adam", [p for p in self.parameters() if p.requires_grad], self.lr)


class Everything(Callback):
    """Notes every hook by which it is called, with the step."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith(("on_", "setup", "teardown")):
            calls = super().__getattribute__("calls")

            def noted(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
                calls.append((name, trainer.global_step if trainer.state.fn else None))
                return value(trainer, *args, **kwargs)

            return noted
        return value

    def state_dict(self) -> dict[str, Any]:
        return {"calls": list(self.calls)}


OTHERS: dict[str, tuple[Callable[[], list[Any]], dict[str, Any]]] = {
    "early stopping": (lambda: [EarlyStopping("val/loss", patience=0)], {"max_epochs": 6}),
    "schedule": (lambda: [LRSchedule(Warmup(3, Cosine()), plateau=Plateau("val/loss", patience=0))], {"max_epochs": 3}),
    "recorder": (lambda: [StepRecorder()], {}),
    "monitor": (lambda: [OverfittingMonitor()], {}),
    "averaging": (lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=1)], {"max_epochs": 4}),
    "accumulation": (lambda: [GradientAccumulationScheduler({0: 1, 1: 3})], {"max_epochs": 3}),
    "batch size": (lambda: [BatchSizeSchedule(["1 epoch"], factor=2)], {"max_epochs": 3}),
    "batch size, accumulated": (
        lambda: [BatchSizeSchedule(["1 epoch"], factor=3, max_batch_size=10)],
        {"max_epochs": 3},
    ),
    "every hook": (lambda: [Everything()], {}),
    "schedule-free": (lambda: [ScheduleFreeMode(num_batches=2)], {"max_epochs": 3}),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_other_callbacks(tmp_path: Path, name: str, first: bool) -> None:
    callbacks, options = OTHERS[name]
    make = (lambda: Nasty("schedulefree")) if name == "schedule-free" else Nasty
    finders = finder(), finder(at_epochs=[1, 2])
    same(tmp_path, *finders, make=make, data=shuffled, callbacks=callbacks, first=first, **options)


def test_finetuning(tmp_path: Path) -> None:
    callbacks = lambda: [BackboneFinetuning(2, verbose=False, backbone_initial_lr=0.01)]  # noqa: E731
    run = {"make": Backbone, "data": shuffled, "callbacks": callbacks, "max_epochs": 4}
    same(tmp_path, finder(), finder(at_epochs=[1, 3]), **run)


def test_checkpoints_are_the_same_but_for_the_finder(tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        return [ModelCheckpoint(monitor="val/loss", save_top_k=-1, save_last=True, every_n_epochs=1)]

    saved = []
    for each in (None, finder()):
        kept = fit(tmp_path, each, data=shuffled, callbacks=callbacks, enable_checkpointing=True)
        paths = sorted((tmp_path / ("with" if each else "without")).rglob("*.ckpt"))
        checkpoints = [torch.load(path, weights_only=False) for path in paths]
        for checkpoint in checkpoints:
            checkpoint["callbacks"] = {
                key.split("{")[0]: {
                    k: v
                    for k, v in state.items()
                    if k
                    not in ("dirpath", "best_model_path", "last_model_path", "best_k_models", "kth_best_model_path")
                }
                for key, state in checkpoint["callbacks"].items()
                if not key.startswith("LRFinder")
            }
        saved.append((kept["files"], [frozen(checkpoint) for checkpoint in checkpoints]))
    assert len(saved[0][1]) == 3
    assert saved[0] == saved[1]


# -- other people's modules ------------------------------------------------------------------------------------------


class Lazy(Nasty):
    def __init__(self) -> None:
        super().__init__()
        self.lazy = nn.LazyLinear(4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step([self.lazy(batch[0]), batch[1]], batch_idx)


class Averages(Nasty):
    def __init__(self) -> None:
        super().__init__()
        self.average = torch.optim.swa_utils.AveragedModel(self.net)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.average.update_parameters(self.net)


class Normed(Nasty):
    def __init__(self) -> None:
        super().__init__()
        self.net[0] = torch.nn.utils.parametrizations.weight_norm(self.net[0])
        self.net[4] = torch.nn.utils.parametrizations.spectral_norm(self.net[4])

    def on_fit_start(self) -> None: ...


class AddsGroup(Nasty):
    """In a hook and in a step, with its own lr and with the default."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.current_epoch == 0:
            self.trainer.optimizers[0].add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.3})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.calls == 3:
            self.trainer.optimizers[0].add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        return super().training_step(batch, batch_idx)


class Graph(Nasty):
    """Keeps what belongs to a graph, and the loggers' names."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.graph = [loss, {"twice": loss * 2}]
        self.logger.log_metrics({"own": 1.0}, step=self.global_step)  # type: ignore[union-attr]
        return loss


class WarmsUp(Nasty):
    """By hand, after its updates."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        if self.trainer.global_step < 5:
            optimizer.param_groups[0]["lr"] = 0.01 * (self.trainer.global_step + 1)


@pytest.mark.parametrize("make", [Lazy, Averages, Normed, AddsGroup, Graph, WarmsUp])
def test_modules(tmp_path: Path, make: Any) -> None:
    same(tmp_path, finder(), finder(at_epochs=[1]), make=make)


# -- exceptions --------------------------------------------------------------------------------------------------------


class Raises(Nasty):
    def __init__(self, error: BaseException, at: int, where: str = "training_step") -> None:
        super().__init__()
        self.error, self.at, self.where = error, at, where

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.where == "training_step" and self.calls == self.at:
            raise self.error
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *args: Any) -> None:
        if self.where == "on_train_batch_end" and self.calls == self.at:
            raise self.error

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        if self.where == "backward" and self.calls == self.at:
            raise self.error


class Witness(Callback):
    """What there is before the finder, and when the exception arrives."""

    def __init__(self) -> None:
        self.before: Any = None
        self.after: Any = None

    def all(self, trainer: Trainer, module: LightningModule) -> Any:
        hooks = {key: len(value) for key, value in vars(module).items() if key.endswith("hooks")}
        return {
            "module": frozen(module),
            "hooks": hooks,
            "log": "log" in vars(module),
            "grad hooks": [len(p._backward_hooks or {}) for p in module.parameters()],
            "optimizer": frozen(trainer.optimizers[0].state_dict()),
            "optimizer hooks": len(trainer.optimizers[0]._optimizer_step_pre_hooks),
            "random": random_states(),
            "callbacks": list(map(id, trainer.callbacks)),
            "loggers": list(map(id, trainer.loggers)),
            "profiler": id(trainer.profiler),
            "loop": frozen(trainer.fit_loop.state_dict()),
            "loader": id(trainer.fit_loop._combined_loader),
            "fetcher": id(trainer.fit_loop._data_fetcher),
            "max_batches": trainer.fit_loop.max_batches,
            "overridden": [key for key in vars(trainer.fit_loop.epoch_loop) if key == "_should_accumulate"],
            "steps": (trainer.global_step, trainer.current_epoch, trainer.accumulate_grad_batches),
            "stage": str(trainer.state.stage),
            "metrics": frozen(dict(trainer.callback_metrics)),
            "grad": torch.is_grad_enabled(),
            "generator": trainer.fit_loop._data_source.instance.generator.get_state().tolist(),
            "data": frozen(vars(trainer.fit_loop._data_source.instance.dataset)),
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = self.all(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.after = self.all(trainer, pl_module)


@pytest.mark.parametrize(
    ("error", "at", "where", "options"),
    [
        (RuntimeError("boom"), 0, "training_step", {}),
        (RuntimeError("boom"), 7, "training_step", {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}),
        (RuntimeError("boom"), 3, "backward", {"accumulate_grad_batches": 2}),
        (RuntimeError("boom"), 4, "on_train_batch_end", {}),
        (KeyboardInterrupt(), 5, "training_step", {}),
        (SystemExit(3), 5, "backward", {}),
    ],
    ids=str,
)
def test_an_exception_leaves_all_as_it_was(
    tmp_path: Path, error: BaseException, at: int, where: str, options: dict[str, Any]
) -> None:
    seed()
    witness, memory = Witness(), Memory()
    run = tiny_trainer(tmp_path, [witness, finder(repeats=2)], memory, profiler="simple", **options)
    module = Raises(error, at, where)
    data = own(shuffle=True, generator=True)()[0]["train_dataloaders"]
    expected = SystemExit if isinstance(error, KeyboardInterrupt) else type(error)
    with pytest.raises(expected) as caught:
        run.fit(module, data)
    if expected is not SystemExit:
        assert caught.value is error
    assert [key for key in witness.before if witness.before[key] != witness.after[key]] == []
    assert memory.rows == []


def test_an_exception_in_a_later_repeat(tmp_path: Path) -> None:
    class Later(Raises):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            COUNTED.append(1)
            if len(COUNTED) == 20:
                raise self.error
            return super().training_step(batch, batch_idx)

    COUNTED.clear()
    seed()
    witness = Witness()
    run = tiny_trainer(tmp_path, [witness, finder(repeats=2)])
    with pytest.raises(RuntimeError, match="boom"):
        run.fit(Later(RuntimeError("boom"), -1), own(shuffle=True, generator=True)()[0]["train_dataloaders"])
    assert [key for key in witness.before if witness.before[key] != witness.after[key]] == []


COUNTED: list[int] = []


# -- resuming, and fits that are not searched --------------------------------------------------------------------------


@pytest.mark.parametrize("apply", [True, False])
def test_a_resumed_run_is_untouched(tmp_path: Path, apply: bool) -> None:
    def callbacks() -> list[Any]:
        return [LRSchedule(Cosine(), total_steps=40)]

    start = tmp_path / "start"
    start.mkdir()
    run = tiny_trainer(start, callbacks(), max_epochs=2)
    seed()
    run.fit(Nasty("adam"), shuffled()[0]["train_dataloaders"])
    run.save_checkpoint(start / "a.ckpt", weights_only=False)
    resumed = {"make": lambda: Nasty("adam"), "data": shuffled, "callbacks": callbacks, "max_epochs": 4}
    bare = fit(tmp_path, None, ckpt_path=start / "a.ckpt", **resumed)
    searched = LRFinder(num_steps=STEPS, apply=apply)
    assert differences(bare, fit(tmp_path, searched, ckpt_path=start / "a.ckpt", **resumed)) == []
    assert searched.result is None
    middle = finder(at_epochs=[3])
    assert differences(bare, fit(tmp_path, middle, ckpt_path=start / "a.ckpt", **resumed)) == []
    assert list(middle.results) == [3]


@pytest.mark.parametrize("options", [{"fast_dev_run": 2}, {"limit_train_batches": 0}, {"max_epochs": 0}], ids=str)
def test_runs_that_train_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    logger = "fast_dev_run" not in options
    bare = fit(tmp_path, None, logger=logger, **options)
    for each in (finder(), finder(at_epochs=[0])):
        assert differences(bare, fit(tmp_path, each, logger=logger, **options)) == []


def test_a_second_fit_of_the_same_trainer(tmp_path: Path) -> None:
    left = []
    for each in (None, finder()):
        seed()
        module, data = Nasty(), DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True)
        run = tiny_trainer(tmp_path, [each] if each else [])
        run.fit(module, data)
        run.fit_loop.max_epochs = 4
        run.fit(module, data)
        left.append([frozen(module), frozen(run.optimizers[0].state_dict()), random_states()])
    assert left[0] == left[1]


# -- warnings ----------------------------------------------------------------------------------------------------------


def lines() -> Iterator[int]:
    yield from range(10**6)


class Holds(Nasty):
    """Moves what cannot be put back, and holds more of it that does not move."""

    def __init__(self, moving: bool, file: Any) -> None:
        super().__init__()
        self.moving, self.file = moving, file
        self.still = [lines(), iter([1, 2]), iter({"a": 1}.items())]
        self.generator, self.batches = lines(), iter(DataLoader(TensorDataset(torch.arange(1000))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.moving:
            next(self.generator), next(self.batches), self.file.readline()
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("where", [{}, {"at_epochs": [1]}], ids=str)
def test_only_what_moved_is_named(tmp_path: Path, moving: bool, where: dict[str, Any]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\n" * 1000)
    with path.open() as file, warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        run = tiny_trainer(tmp_path, [finder(repeats=2, **where)])
        run.fit(Holds(moving, file), loader())
    said = [str(w.message) for w in noted if "cannot restore" in str(w.message)]
    names = {"module.generator", "module.batches", "module.file"}
    if not moving:
        assert said == []
    else:
        (message,) = said
        assert set(re.findall(r"module\.\w+", message)) == names
        assert "still" not in message


@pytest.mark.parametrize("name", ["generator", "zip"])
def test_an_iterator_in_place_of_a_loader_is_refused(tmp_path: Path, name: str) -> None:
    batches = [(X[:10], Y[:10])] * 5
    data = (batch for batch in batches) if name == "generator" else zip(*zip(*batches, strict=True), strict=True)
    with pytest.raises(ValueError, match=f"the train_dataloader, which is an iterator .{name}"):
        tiny_trainer(tmp_path, [finder()], max_epochs=1).fit(Nasty(), data)
