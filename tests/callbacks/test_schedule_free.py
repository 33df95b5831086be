"""ScheduleFreeMode in a real Trainer: which weights are trained, validated and saved."""

import random
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.random_state import RandomState
from lr_lightning.callbacks.schedule_free import ScheduleFreeMode
from lr_lightning.schedules import Constant, Cosine, Schedule, Warmup
from tests.callbacks.tiny import QUIET

schedulefree = pytest.importorskip("schedulefree", reason="needs `pip install schedulefree`")

BATCH, BATCHES = 8, 6
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    # The samplers and loaders here are meant to be as they are.
    pytest.mark.filterwarnings("ignore:.*(does not have many workers|The number of training batches).*"),
]


def sgd(parameters: Any) -> Optimizer:
    return schedulefree.SGDScheduleFree(parameters, lr=0.5, weight_decay=1e-3, warmup_steps=4)


def adamw(parameters: Any) -> Optimizer:
    return schedulefree.AdamWScheduleFree(parameters, lr=0.02)


class Tiny(LightningModule):
    """BatchNorm and dropout between two layers; notes the weights it was validated with."""

    def __init__(self, optimizer: Callable[[Any], Optimizer] = sgd) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
        self.make = optimizer
        self.validated: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.validated.append(copied(self))
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Optimizer:
        return self.make(self.parameters())


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def examples(count: int = BATCH * BATCHES, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return TensorDataset(x, (x.sum(dim=1) > 0).long() + (x[:, 0] > 1).long())


class Shuffled:
    """Batches in an order of each epoch's own, and where they stand, as a stateful loader has it."""

    def __init__(self) -> None:
        self.data, self.epoch, self.position, self.resumed = examples(), -1, 0, False

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[list[Tensor]]:
        if not self.resumed or self.position == BATCHES:
            self.epoch, self.position = self.epoch + 1, 0
        self.resumed = False
        order = list(range(BATCH * BATCHES))
        random.Random(self.epoch).shuffle(order)
        while self.position < BATCHES:
            chosen = order[self.position * BATCH : (self.position + 1) * BATCH]
            self.position += 1
            yield [tensor[chosen] for tensor in self.data.tensors]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position, self.resumed = state["epoch"], state["position"], True


def validation() -> DataLoader[Any]:
    # With an own generator: a DataLoader draws a seed from the global one each time it is iterated.
    return DataLoader(examples(12, seed=1), batch_size=12, generator=torch.Generator())


def trainer(*callbacks: Callback, **arguments: Any) -> Trainer:
    defaults: dict[str, Any] = {
        **QUIET,
        "max_epochs": 2,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "callbacks": [*callbacks, RandomState()],
    }
    return Trainer(**defaults | arguments)


def fit(
    module: Tiny,
    *callbacks: Callback,
    train: Any = None,
    val: Any = None,
    mode: ScheduleFreeMode | None = None,
    ckpt_path: str | None = None,
    **arguments: Any,
) -> Trainer:
    ours = ScheduleFreeMode() if mode is None else mode
    used = trainer(*callbacks, ours, **arguments)
    loaders = {
        "train_dataloaders": Shuffled() if train is None else train,
        "val_dataloaders": validation() if val is None else val,
    }
    seed_everything(4, verbose=False)  # of dropout; a resumed fit continues with the state in the checkpoint
    used.fit(module, **loaders, ckpt_path=ckpt_path, weights_only=True)
    return used


def module(optimizer: Callable[[Any], Optimizer] = sgd) -> Tiny:
    seed_everything(3, verbose=False)
    return Tiny(optimizer)


def plain(node: Any) -> Any:
    if isinstance(node, Tensor):
        return node.tolist()
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, list | tuple) else node


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_a_fit_is_the_plain_loop_and_ends_with_the_averages(optimizer: Callable[[Any], Optimizer]) -> None:
    ours = module(optimizer)
    fit(ours, mode=ScheduleFreeMode(num_batches=0), val_check_interval=2)
    theirs = module(optimizer)
    seed_everything(4, verbose=False)
    loop, loader = theirs.configure_optimizers(), Shuffled()
    loop.train()
    theirs.train()
    for _ in range(2):
        for batch in loader:
            loop.zero_grad()
            theirs.training_step(batch, 0).backward()
            loop.step()
    trained = copied(theirs)
    loop.eval()
    assert equal(copied(ours), copied(theirs))
    assert not equal(copied(ours), trained)


def test_validation_probe_and_checkpoint_see_the_same_averages_in_any_order(tmp_path: Path) -> None:
    class Probe(OverfittingMonitor):
        seen: list[dict[str, Tensor]]

        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if not trainer.sanity_checking:
                self.seen.append(copied(pl_module))
            super().on_validation_epoch_end(trainer, pl_module)

    losses = []
    for first in (True, False):
        tiny, probe = module(), Probe(probe=[examples(16, seed=2).tensors])
        probe.seen = []
        mode = ScheduleFreeMode()
        best = ModelCheckpoint(tmp_path / str(first), monitor="val/loss", save_top_k=-1)
        used = trainer(*([mode, probe] if first else [probe, mode]), best)
        used.fit(tiny, Shuffled(), validation())
        assert len(probe.seen) == 2
        for seen, validated in zip(probe.seen, tiny.validated[1:], strict=True):  # the first was the sanity check
            assert equal(seen, validated)
        saved = sorted((tmp_path / str(first)).glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        for path, validated in zip(saved, tiny.validated[1:], strict=True):
            assert equal(torch.load(path, weights_only=True)["state_dict"], validated)
        losses.append(float(used.callback_metrics["probe/loss"]))
    assert losses[0] == losses[1]


def test_neither_validating_nor_saving_changes_the_training(tmp_path: Path) -> None:
    quiet, busy = module(), module()
    first = fit(quiet, limit_val_batches=0)
    often = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    second = fit(busy, often, val_check_interval=2, accumulate_grad_batches=1)
    assert len(busy.validated) == 1 + 6
    assert equal(copied(quiet), copied(busy))
    assert plain(first.optimizers[0].state_dict()) == plain(second.optimizers[0].state_dict())


def test_validation_between_accumulated_batches_changes_nothing() -> None:
    quiet, busy = module(), module()
    fit(quiet, limit_val_batches=0, accumulate_grad_batches=4, max_epochs=4)
    fit(busy, val_check_interval=1, accumulate_grad_batches=4, max_epochs=4)
    assert equal(copied(quiet), copied(busy))


class Stop(Exception):
    pass


class StopAt(Callback):
    """End the fit, as by a kill, after some steps and the checkpoint of the last one."""

    def __init__(self, step: int, after_validation: bool) -> None:
        self.step, self.after_validation = step, after_validation

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.after_validation:
            raise Stop

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.after_validation:
            raise Stop


def savers(folder: Path, every: int | None) -> list[Callback]:
    common: dict[str, Any] = {"dirpath": folder, "filename": "last", "enable_version_counter": False}
    at_end = ModelCheckpoint(every_n_epochs=1, save_on_train_epoch_end=False, **common)
    return [at_end, *([ModelCheckpoint(every_n_train_steps=every, **common)] if every else [])]


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize(("step", "every"), [(1, 1), (4, 1), (4, 2), (6, None), (8, 2), (12, None)])
def test_a_resumed_fit_is_the_uninterrupted_one(
    optimizer: Callable[[Any], Optimizer], step: int, every: int | None, tmp_path: Path
) -> None:
    schedule: Schedule = Warmup(3, Constant())
    whole = module(optimizer)
    # The uninterrupted run saves nothing: that must not matter.
    reference = fit(whole, LRSchedule(schedule), max_epochs=3)
    stopped = module(optimizer)
    with pytest.raises(Stop):
        fit(stopped, LRSchedule(schedule), StopAt(step, every is None), *savers(tmp_path, every), max_epochs=3)
    resumed = Tiny(optimizer)
    checkpoint = tmp_path / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == step
    again = fit(resumed, LRSchedule(schedule), *savers(tmp_path, every), max_epochs=3, ckpt_path=str(checkpoint))
    assert equal(copied(resumed), copied(whole))
    assert plain(again.optimizers[0].state_dict()) == plain(reference.optimizers[0].state_dict())
    assert plain(resumed.validated[-1]) == plain(whole.validated[-1])


def test_a_finished_fit_can_go_on(tmp_path: Path) -> None:
    def in_order() -> DataLoader[Any]:
        return DataLoader(examples(), batch_size=BATCH, generator=torch.Generator())

    whole, short, longer = module(), module(), Tiny()
    fit(whole, train=in_order(), max_epochs=3)
    first = fit(short, train=in_order(), max_epochs=2)
    first.save_checkpoint(tmp_path / "end.ckpt")  # the fit is over, and the averages are in the parameters
    fit(longer, train=in_order(), max_epochs=3, ckpt_path=str(tmp_path / "end.ckpt"))
    assert equal(copied(longer), copied(whole))


@pytest.mark.parametrize("step", [4, 6])
def test_a_checkpoint_is_ready_to_be_evaluated(step: int, tmp_path: Path) -> None:
    whole, stopped = module(), module()
    saver = ModelCheckpoint(tmp_path, filename="at", every_n_train_steps=step, save_top_k=-1)
    with pytest.raises(Stop):
        fit(stopped, saver, StopAt(step + 1, False))
    fit(whole, max_steps=step, max_epochs=-1)
    state = torch.load(tmp_path / "at.ckpt", weights_only=True)
    assert equal(state["state_dict"], copied(whole))
    assert not any(group["train_mode"] for group in state["optimizer_states"][0]["param_groups"])


def test_statistics_are_those_of_the_averages() -> None:
    tiny, batches = module(), [list(examples(16, seed=s).tensors) for s in range(3)]
    before = torch.get_rng_state()
    mode = ScheduleFreeMode(num_batches=2, batches=batches)
    fit(tiny, mode=mode)
    assert not torch.equal(before, torch.get_rng_state())  # dropout did draw
    hidden = [tiny.net[0](batch[0]) for batch in batches[:2]]
    norm = tiny.net[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([h.mean(dim=0) for h in hidden]).mean(dim=0))
    torch.testing.assert_close(norm.running_var, torch.stack([h.var(dim=0) for h in hidden]).mean(dim=0))
    assert norm.momentum == 0.1
    assert int(norm.num_batches_tracked) == 2


class ByKey(Tiny):
    """Takes batches that are dicts; with ``derived``, its inputs are no part of them."""

    derived, updates = False, 0

    def forward(self, x: Any = None, y: Any = None) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self(x=batch["x"] * 2) if self.derived else self(**batch)
        return nn.functional.cross_entropy(logits, batch["y"])

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def on_train_batch_end(self, *_: Any) -> None:
        self.updates += 1


class ByChild(ByKey):
    """Calls two children of its own, one on the other's output."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = self.net[:4], self.net[4]  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.body(batch["x"])), batch["y"])


def keyed(make: Any = dict) -> DataLoader[Any]:
    def collate(rows: Any) -> Any:
        return make(x=torch.stack([x for x, _ in rows]), y=torch.stack([y for _, y in rows]))

    return DataLoader(examples(), BATCH, collate_fn=collate)  # type: ignore[arg-type]


@pytest.mark.parametrize(("make", "kind"), [(ByKey, dict), (ByKey, UserDict), (ByChild, dict)])
def test_statistics_come_from_the_calls_of_the_training_step(make: Any, kind: Any) -> None:
    seed_everything(3, verbose=False)
    tiny, batches = make(), [kind(x=t[0], y=t[1]) for t in (examples(16, seed=s).tensors for s in range(2))]
    fit(tiny, mode=ScheduleFreeMode(batches=batches), train=keyed(kind), val=keyed(kind))
    hidden = [tiny.net[0](batch["x"]) for batch in batches]
    torch.testing.assert_close(tiny.net[1].running_mean, torch.stack([h.mean(dim=0) for h in hidden]).mean(dim=0))
    assert int(tiny.net[1].num_batches_tracked) == 2


def test_where_the_statistics_cannot_be_estimated_it_is_told_before_the_first_update() -> None:
    def told(message: Any) -> None:
        if "ScheduleFreeMode" in str(message):
            updates.append((tiny.updates, str(message)))

    updates: list[tuple[int, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lr_lightning.callbacks.schedule_free.rank_zero_warn", told)
        seed_everything(3, verbose=False)
        tiny = ByKey()
        tiny.derived = True
        fit(tiny, train=keyed(), val=keyed())
        assert [at for at, _ in updates] == [0]
        assert "ScheduleFreeMode(forward=lambda module, batch: module(batch['x']))" in updates[0][1]
        assert int(tiny.net[1].num_batches_tracked) == 2 * BATCHES  # those of the training
        updates.clear()
        tiny = ByKey()
        fit(tiny, mode=ScheduleFreeMode(batches=[{"x": None}]), train=keyed(), val=keyed())
        assert tiny.updates == 2 * BATCHES
        assert [(at, "fails in its estimate" in text) for at, text in updates] == [(BATCHES, True)]
        assert int(tiny.net[1].num_batches_tracked) == 2 * BATCHES


def test_statistics_of_training_go_on_as_if_not_estimated() -> None:
    class Note(Callback):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            assert pl_module.training
            self.seen.append(plain(copied(pl_module)))

    with_estimate, without = Note(), Note()
    fit(module(), with_estimate, mode=ScheduleFreeMode(), val_check_interval=2)
    fit(module(), without, mode=ScheduleFreeMode(num_batches=0), limit_val_batches=0)
    assert with_estimate.seen == without.seen


def test_frozen_layers_keep_their_statistics() -> None:
    class Frozen(Tiny):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.net[1].eval()

        def on_train_epoch_start(self) -> None:
            self.net[1].eval()

    seed_everything(3, verbose=False)
    tiny = Frozen()
    fit(tiny)
    assert plain(tiny.net[1].running_mean) == [0.0] * 8
    assert int(tiny.net[1].num_batches_tracked) == 0


def test_a_small_last_batch_does_not_count() -> None:
    full = [list(examples(16, seed=s).tensors) for s in range(2)]
    last = list(examples(1, seed=9).tensors)  # one example: BatchNorm would refuse it
    one, other = module(), module()
    fit(one, mode=ScheduleFreeMode(batches=full))
    fit(other, mode=ScheduleFreeMode(batches=[*full, last]))
    assert equal(copied(one), copied(other))


class Counted(TensorDataset):
    """Notes which examples were asked for."""

    def __init__(self) -> None:
        super().__init__(*examples().tensors)
        self.asked: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(int(index))
        return super().__getitem__(index)


@pytest.mark.parametrize("subset", [False, True])
def test_default_batches_are_the_training_loaders_examples(subset: bool) -> None:
    data, allowed = Counted(), list(range(0, BATCH * BATCHES, 2))
    sampler = SubsetRandomSampler(allowed) if subset else None
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler, shuffle=None if subset else True)
    quiet, busy = module(), module()
    fit(
        quiet,
        train=DataLoader(Counted(), BATCH, sampler=sampler, shuffle=None if subset else True),
        limit_val_batches=0,
    )
    trained = len(allowed if subset else data) * 2
    fit(busy, mode=ScheduleFreeMode(num_batches=2), train=loader)
    assert len(data.asked) == trained + 2 * 2 * BATCH  # two validations of two batches
    assert set(data.asked) == set(allowed if subset else range(len(data)))
    assert equal(dict(quiet.named_parameters()), dict(busy.named_parameters()))  # and shuffling went on undisturbed


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([examples()[i] for i in range(BATCH * 2)])


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(Stream(), batch_size=BATCH),
        lambda: DataLoader(examples(), BATCH, sampler=WeightedRandomSampler(torch.ones(16), 16)),
        lambda: [Shuffled(), Shuffled()],
    ],
    ids=["stream", "weighted", "several"],
)
def test_a_loader_that_must_not_be_touched_is_said_to_be_one(loader: Callable[[], Any]) -> None:
    class Either(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch[0] if isinstance(batch[0], list | tuple) else batch, batch_idx)

    with pytest.warns(UserWarning, match=r"ScheduleFreeMode\(batches=\.\.\.\)"):
        fit(Either(), train=loader())


def test_other_optimizers_are_left_alone(tmp_path: Path) -> None:
    def make(parameters: Any) -> Optimizer:
        return SGD(parameters, lr=0.1)

    with_callback, without = module(make), module(make)
    fit(with_callback, *savers(tmp_path, 2))
    seed_everything(4, verbose=False)
    trainer().fit(without, Shuffled(), validation())
    assert equal(copied(with_callback), copied(without))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not any("ScheduleFreeMode" in key for key in state["callbacks"])


def test_a_test_of_another_checkpoint_leaves_the_next_fit_alone(tmp_path: Path) -> None:
    tiny, mode = module(), ScheduleFreeMode()
    saver = ModelCheckpoint(tmp_path, filename="early", every_n_train_steps=2, save_top_k=1)
    used = fit(tiny, saver, mode=mode, max_epochs=1)
    end = copied(tiny)
    used.test(tiny, validation(), ckpt_path=str(next(tmp_path.glob("*.ckpt"))), weights_only=True, verbose=False)
    again, plainly = Tiny(), Tiny()
    again.load_state_dict(end)
    plainly.load_state_dict(end)
    fit(again, mode=mode, max_epochs=1)
    fit(plainly, max_epochs=1)
    assert equal(copied(again), copied(plainly))


def test_a_checkpoint_of_another_module_is_refused(tmp_path: Path) -> None:
    used = fit(module(), max_epochs=1)
    used.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)
    state["callbacks"]["ScheduleFreeMode"]["weights"].pop()
    torch.save(state, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"holds 5 parameters of schedule-free optimizers, and they have 6 now"):
        fit(Tiny(), ckpt_path=str(tmp_path / "bad.ckpt"))


@pytest.mark.parametrize(("schedule", "warned"), [(Cosine(), True), (Warmup(3, Constant()), False)])
def test_a_falling_lr_is_warned_of(schedule: Schedule, warned: bool, recwarn: pytest.WarningsRecorder) -> None:
    fit(module(), LRSchedule(schedule), max_epochs=1)
    assert any("instead of lowering the learning rate" in str(w.message) for w in recwarn) is warned


def test_a_moving_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SGDScheduleFree averages its weights by its momentum"):
        fit(module(), LRSchedule(Constant(), momentum=Constant(0.9)))


def test_fast_dev_run_and_bad_arguments() -> None:
    fit(module(), LRSchedule(Warmup("5 epochs", Cosine())), fast_dev_run=True)
    with pytest.raises(ValueError, match="num_batches must be a whole number >= 0, got -1"):
        ScheduleFreeMode(num_batches=-1)
