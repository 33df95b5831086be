"""BatchSizeSchedule in a real Trainer: which examples each epoch sees, in which batches, for how many updates."""

import copy
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.step_recorder import Row, StepRecorder
from lr_lightning.schedules import Clock, Constant, Cosine, Join, Linear, MultiStep, Restarts, Schedule, Step
from lr_lightning.training.decode import MemoryImages
from lr_lightning.training.loader import BatchLoader
from tests.callbacks.tiny import QUIET

N, SIZE, PEAK = 40, 4, 0.1
TWICE = ["1 epoch", "2 epochs"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Notes(LightningModule):
    """One linear layer; notes the examples of every batch by epoch, and the lr and epoch of every update."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.seen: dict[int, list[list[int]]] = {}
        self.updates: list[int] = []
        self.lrs: list[float] = []
        self.validations: list[tuple[int, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.setdefault(self.current_epoch, []).append(batch[1].tolist())
        return (self.layer(batch[0].float().flatten(1)[:, :4]) - batch[1].float()[:, None] / N).pow(2).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.trainer.sanity_checking and batch_idx == 0:
            self.validations.append((self.current_epoch, self.global_step))

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=PEAK, momentum=0.9)
        optimizer.register_step_pre_hook(self.note)
        return optimizer

    def note(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.updates.append(self.current_epoch)
        self.lrs.append(optimizer.param_groups[0]["lr"])

    def sizes(self) -> list[list[int]]:
        return [[len(batch) for batch in batches] for batches in self.seen.values()]

    def counts(self) -> list[int]:
        return [self.updates.count(epoch) for epoch in range(max(self.updates) + 1)]


class Logged(Callback):
    """Keeps what was logged at each epoch's end, and how long the Trainer took the epoch to be."""

    def __init__(self) -> None:
        self.values: list[tuple[float, float]] = []
        self.batches: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        values = trainer.callback_metrics
        self.values.append((float(values["batch/size"]), float(values["batch/updates"])))
        self.batches.append(trainer.num_training_batches)


def data() -> TensorDataset:
    return TensorDataset(torch.randn(N, 4, generator=torch.Generator().manual_seed(0)), torch.arange(N))


def loader(**arguments: Any) -> DataLoader:
    return DataLoader(data(), **{"batch_size": SIZE, **arguments})


def batch_loader(size: int = SIZE, n: int = N) -> BatchLoader:
    pixels = np.random.default_rng(0).integers(0, 9, (n, 2, 2, 1), dtype=np.uint8)
    return BatchLoader(MemoryImages(pixels), np.arange(n), batch_size=size, train=True, seed=3)


def trainer(*callbacks: Callback, **arguments: Any) -> Trainer:
    return Trainer(**{**QUIET, "callbacks": list(callbacks), "max_epochs": 4, **arguments})


def fitted(callback: Callback, loaders: Any = None, **arguments: Any) -> tuple[Notes, Logged]:
    torch.manual_seed(0)
    module, logged = Notes(), Logged()
    trainer(callback, logged, **arguments).fit(module, loader() if loaders is None else loaders)
    return module, logged


def test_the_batch_grows_between_epochs_and_every_epoch_sees_every_example() -> None:
    module, logged = fitted(BatchSizeSchedule(TWICE, 2))
    assert module.sizes() == [[4] * 10, [8] * 5, [16, 16, 8], [16, 16, 8]]
    assert all(sorted(chain(*batches)) == list(range(N)) for batches in module.seen.values())
    assert module.counts() == [10, 5, 3, 3]
    assert logged.values == [(4, 10), (8, 15), (16, 18), (16, 21)]
    assert logged.batches == [10, 5, 3, 3]


def test_sampler_generator_and_their_order_are_kept() -> None:
    orders = []
    for callbacks in ([], [BatchSizeSchedule(["1 epoch", "3 epochs"], 2.5)]):
        module = Notes()
        generator = torch.Generator().manual_seed(5)
        trainer(*callbacks).fit(module, loader(shuffle=True, generator=generator))
        orders.append([list(chain(*batches)) for batches in module.seen.values()])
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]


def test_the_users_own_loader_is_left_as_it_is() -> None:
    mine = loader(drop_last=True)
    before = dict(vars(mine))
    fitted(BatchSizeSchedule(TWICE, 2), mine)
    assert vars(mine) == before
    assert [len(batch[0]) for batch in mine] == [4] * 10


def test_beyond_the_largest_batch_gradients_are_accumulated() -> None:
    module, logged = fitted(BatchSizeSchedule(TWICE, 2, max_batch_size=8))
    assert module.sizes() == [[4] * 10, [8] * 5, [8] * 5, [8] * 5]
    assert module.counts() == [10, 5, 3, 3]
    assert logged.values == [(4, 10), (8, 15), (16, 18), (16, 21)]


def test_the_trainers_own_accumulation_is_multiplied_and_given_back() -> None:
    module, run = Notes(), trainer(BatchSizeSchedule(TWICE, 2, max_batch_size=8), accumulate_grad_batches=2)
    run.fit(module, loader())
    assert module.sizes() == [[4] * 10, [8] * 5, [8] * 5, [8] * 5]
    assert module.counts() == [5, 3, 2, 2]
    assert run.accumulate_grad_batches == 2


def test_an_update_takes_at_most_an_epoch_and_is_its_mean() -> None:
    whole, logged = fitted(BatchSizeSchedule(["1 epoch"], 1000), max_epochs=3)
    parts, by_parts = fitted(BatchSizeSchedule(["1 epoch"], 1000, max_batch_size=8), max_epochs=3)
    assert whole.sizes()[1:] == [[40], [40]]
    assert parts.sizes()[1:] == [[8] * 5] * 2
    assert logged.values == by_parts.values == [(4, 10), (40, 11), (40, 12)]
    assert torch.allclose(whole.layer.weight, parts.layer.weight, rtol=1e-5)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from zip(*data().tensors, strict=True)


class Batches(torch.utils.data.Sampler):
    """A batch sampler of the user's own."""

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Any:
        yield from torch.arange(N).split(4)


class Plain:
    """Batches from anywhere."""

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Any:
        yield from loader()


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: DataLoader(data(), batch_sampler=Batches()), None),
        (lambda: DataLoader(Stream(), batch_size=4), 4),
        (Plain, None),
    ],
    ids=["batch sampler", "iterable", "plain"],
)
def test_a_loader_that_cannot_be_rebuilt_accumulates(make: Callable[[], Any], size: int | None) -> None:
    module = Notes()
    run = trainer(BatchSizeSchedule(TWICE, 2), LRSchedule(Constant()))
    with pytest.warns(UserWarning, match="cannot be rebuilt .* by gradient accumulation alone"):
        run.fit(module, make())
    assert module.sizes() == [[4] * 10] * 4
    assert module.counts() == [10, 5, 3, 3]
    assert run.callback_metrics.get("batch/size") == (None if size is None else 16)
    assert run.callback_metrics["batch/updates"] == 21


@pytest.mark.parametrize("limit", [5, 0.5])
def test_limited_batches_are_of_the_first_size(limit: float) -> None:
    module, _ = fitted(BatchSizeSchedule(TWICE, 2), limit_train_batches=limit)
    sizes = [[4] * 5, [8] * 2, [16], [16]]
    assert module.sizes() == sizes


@pytest.mark.parametrize(
    ("interval", "expected"), [(1.0, [1, 1, 1]), (0.5, [2, 2, 3]), (4, [2, 1, 1]), (10, [1, 1, 1])]
)
def test_validation_keeps_its_share_of_the_epoch(interval: float, expected: list[int]) -> None:
    module = Notes()
    run = trainer(BatchSizeSchedule(TWICE, 2), max_epochs=3, val_check_interval=interval)
    run.fit(module, loader(), loader())
    epochs = [epoch for epoch, _ in module.validations]
    assert [epochs.count(epoch) for epoch in range(3)] == expected


def test_reloaded_loaders_grow_too() -> None:
    module, _ = fitted(BatchSizeSchedule(TWICE, 2), reload_dataloaders_every_n_epochs=1)
    assert module.sizes() == [[4] * 10, [8] * 5, [16, 16, 8], [16, 16, 8]]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("limit", [None, 8])
@pytest.mark.parametrize(
    "schedule", [Cosine(), Join((Cosine(), "2 epochs"), (Linear(), None)), Step("1 epoch", 0.5)], ids=str
)
def test_a_schedule_of_the_lr_knows_the_updates_there_will_be(
    schedule: Schedule, limit: int | None, first: bool
) -> None:
    module = Notes()
    callbacks = [BatchSizeSchedule(TWICE, 2, max_batch_size=limit), LRSchedule(schedule)]
    trainer(*(callbacks if first else callbacks[::-1])).fit(module, loader())
    clock = Clock(21, epoch_starts=(0, 10, 15, 18, 21))
    assert module.lrs == [PEAK * schedule(step, clock) for step in range(21)]


def test_a_limit_of_steps_is_the_total() -> None:
    module = Notes()
    trainer(BatchSizeSchedule(TWICE, 2), LRSchedule(Cosine()), max_epochs=-1, max_steps=25).fit(module, loader())
    assert module.lrs == [PEAK * factor for factor in Cosine().factors(25)]
    assert module.counts() == [10, 5, 3, 3, 3, 1]


def test_the_lr_is_left_alone() -> None:
    module, _ = fitted(BatchSizeSchedule(TWICE, 2))
    assert module.lrs == [PEAK] * 21


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (MultiStep(("1 epoch", "2 epochs"), gamma=0.5), [4, 8, 16, 16]),
        (Join((Constant(), "50%"), (Constant(0), None)), [4, 4, 40, 40]),
        (Linear(), [4, 5, 8, 16]),
    ],
    ids=str,
)
def test_mirrors_an_lr_schedule(schedule: Schedule, expected: list[int]) -> None:
    module, logged = fitted(BatchSizeSchedule(mirror=schedule))
    assert [sizes[0] for sizes in module.sizes()] == expected
    assert [size for size, _ in logged.values] == expected


@pytest.mark.parametrize("after", [False, True], ids=["LRSchedule first", "LRSchedule last"])
def test_the_lr_falls_by_the_square_root_of_the_growth(after: bool) -> None:
    module, callbacks = Notes(), [LRSchedule(Linear(1, 0.5)), BatchSizeSchedule(TWICE, 2, lr="inverse_sqrt")]
    trainer(*(callbacks[::-1] if after else callbacks)).fit(module, loader())
    growth = [1] * 10 + [2] * 5 + [4] * 6
    expected = [PEAK * f / g**0.5 for f, g in zip(Linear(1, 0.5).factors(21), growth, strict=True)]
    assert module.lrs == pytest.approx(expected)


def test_the_recorded_loss_is_the_mean_over_the_update(tmp_path: Path) -> None:
    kept: list[tuple[int, float]] = []

    class Keeps(StepRecorder):
        def _log(self, trainer: Trainer, rows: list[Row]) -> None:
            kept.extend((step, value) for name, value, step, _ in rows if name == "train/loss")

    module, losses = Notes(), []
    forward = module.training_step
    module.training_step = lambda batch, batch_idx: losses.append(forward(batch, batch_idx)) or losses[-1]
    callback = BatchSizeSchedule(["1 epoch"], 4, max_batch_size=8)
    trainer(callback, Keeps(), max_epochs=2).fit(module, loader())
    values = [float(loss) for loss in losses]
    means = [*values[:10], sum(values[10:12]) / 2, sum(values[12:14]) / 2, values[14]]
    assert [step for step, _ in kept] == list(range(13))
    assert [loss for _, loss in kept] == pytest.approx(means)


# -- resume ----------------------------------------------------------------------------------------------------------


class Flips(Notes):
    """Weights that depend on the order of the examples and on the batches."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", 1.0)


def growing(limit: int | None) -> list[Callback]:
    callback = BatchSizeSchedule(["1 epoch", "3 epochs"], 2, max_batch_size=limit, lr="inverse_sqrt")
    return [callback, LRSchedule(Cosine())]


SAVES: dict[str, Callable[[Path], ModelCheckpoint]] = {
    "steps": lambda folder: ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}"),
    "validation": lambda folder: ModelCheckpoint(
        folder, every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=False, filename="{step}"
    ),
    "epoch": lambda folder: ModelCheckpoint(
        folder, every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True, filename="{step}"
    ),
}


def run_flips(callbacks: list[Callback], ckpt: Path | None = None, **arguments: Any) -> Flips:
    torch.manual_seed(0)
    module = Flips()
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)  # else Lightning adds its own
    arguments = {"max_epochs": 5, "enable_checkpointing": saves, **arguments}
    run = trainer(*callbacks, **arguments)
    run.fit(module, batch_loader(), loader(), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return module


@pytest.mark.parametrize("limit", [None, 4, 8])
@pytest.mark.parametrize("when", SAVES)
def test_resume_equals_never_having_stopped(tmp_path: Path, when: str, limit: int | None) -> None:
    whole = run_flips([*growing(limit), SAVES[when](tmp_path)])
    assert whole.counts() == [10, 5, 5, 2 if limit is None else 3, 2 if limit is None else 3]
    for path in tmp_path.glob("*.ckpt"):
        step = int(path.stem.removeprefix("step="))
        module = run_flips(growing(limit), ckpt=path)
        assert module.lrs == whole.lrs[step:], path.stem
        for name, value in whole.state_dict().items():
            assert torch.equal(module.state_dict()[name], value), path.stem


def test_resume_under_a_limit_of_steps(tmp_path: Path) -> None:
    arguments = {"max_epochs": -1, "max_steps": 23}
    whole = run_flips([*growing(8), SAVES["steps"](tmp_path)], **arguments)
    for step in (4, 12, 21):
        module = run_flips(growing(8), ckpt=tmp_path / f"step={step}.ckpt", **arguments)
        assert module.lrs == whole.lrs[step:]
        assert torch.equal(module.layer.weight, whole.layer.weight)


def test_a_longer_resumed_run_never_shrinks_and_counts_the_past_as_it_was(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [BatchSizeSchedule(["50%"], 2), LRSchedule(Cosine())]

    save = ModelCheckpoint(tmp_path, every_n_train_steps=12, filename="a")
    run_flips([*callbacks(), save], max_epochs=2)  # 10 + 5 updates; the checkpoint is at the second of the five
    module = run_flips(callbacks(), ckpt=tmp_path / "a.ckpt", max_epochs=4)
    clock = Clock(25, epoch_starts=(0, 10, 15, 20, 25))
    assert module.sizes() == [[8] * 3, [8] * 5, [8] * 5]
    assert module.lrs == [PEAK * Cosine()(step, clock) for step in range(12, 25)]


def test_resume_from_a_checkpoint_without_the_callback(tmp_path: Path) -> None:
    run_flips([ModelCheckpoint(tmp_path, every_n_train_steps=14, filename="a")], max_epochs=2)
    module = run_flips([BatchSizeSchedule(TWICE, 2), LRSchedule(Cosine())], ckpt=tmp_path / "a.ckpt", max_epochs=4)
    assert module.sizes() == [[4] * 6, [16] * 2, [16] * 2]  # the epoch in progress ends as it began
    clock = Clock(24, epoch_starts=(0, 10, 20, 22, 24))
    assert module.lrs == [PEAK * Cosine()(step, clock) for step in range(14, 24)]


def test_a_second_fit_goes_on_or_begins_anew() -> None:
    module, callback = Notes(), BatchSizeSchedule(TWICE, 2, max_batch_size=8)
    run = trainer(callback, max_epochs=2)
    run.fit(module, loader())
    run.fit_loop.max_epochs = 4
    run.fit(module, loader())
    assert module.sizes() == [[4] * 10, [8] * 5, [8] * 5, [8] * 5]
    assert module.counts() == [10, 5, 3, 3]
    module.updates.clear()
    trainer(callback, max_epochs=2).fit(module, loader())
    assert module.counts() == [10, 5]


def test_state_is_plain_values() -> None:
    callback = BatchSizeSchedule(TWICE, 2, max_batch_size=8)
    fitted(callback, max_epochs=3)
    state = callback.state_dict()
    assert state == {"epochs": [[4, 1, 10], [8, 1, 5], [8, 2, 5]]}
    fresh = BatchSizeSchedule(TWICE, 2)
    fresh.load_state_dict(copy.deepcopy(state))
    assert fresh.state_dict() == state


def test_says_what_it_will_do_beside_the_ideal() -> None:
    callback = BatchSizeSchedule(TWICE, 2, max_batch_size=8)
    run = trainer(callback, max_epochs=3)
    run.fit(Notes(), loader())
    assert callback.describe(run) == (
        "examples in an update: 4 from epoch 0, 8 from epoch 1, 16 (8 × 2 batches) from epoch 2; "
        "18 updates in 3 epochs (examples × epochs / batch: 17.5)"
    )


# -- several processes -----------------------------------------------------------------------------------------------


class Saves(Notes):
    def on_train_end(self) -> None:
        torch.save([self.seen, self.lrs], f"rank{self.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "own"])
def test_two_processes_grow_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)

    class Sharded(Saves):
        def train_dataloader(self) -> Any:
            if kind == "torch":
                return loader()
            pixels = np.zeros((N, 2, 2, 1), dtype=np.uint8)
            place = {"rank": self.trainer.global_rank, "world": self.trainer.world_size}
            return BatchLoader(MemoryImages(pixels), np.arange(N), batch_size=4, train=True, **place)

    callbacks = [BatchSizeSchedule(TWICE, 2, max_batch_size=8), LRSchedule(Cosine()), Logged()]
    run = trainer(*callbacks, max_epochs=3, devices=2, strategy="ddp_fork")
    run.fit(Sharded())
    seen, lrs = zip(*(torch.load(f"rank{rank}.pt") for rank in (0, 1)), strict=True)
    # on each rank five batches of four; then two of eight, and with torch a rest of four; then two of them an update
    per_epoch = [5, 3, 2] if kind == "torch" else [5, 2, 1]
    assert lrs[0] == lrs[1] == [PEAK * factor for factor in Cosine().factors(sum(per_epoch))]
    for epoch in range(3):
        both = sorted(chain(*seen[0][epoch], *seen[1][epoch]))
        assert len(set(both)) == len(both) == (40 if kind == "torch" or epoch == 0 else 32)
    assert run.callback_metrics["batch/size"] == 32


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_the_smaller_batch_end(persistent: bool) -> None:
    made = loader(num_workers=1, persistent_workers=persistent)
    module, _ = fitted(BatchSizeSchedule(TWICE, 2), made)
    assert module.sizes() == [[4] * 10, [8] * 5, [16, 16, 8], [16, 16, 8]]
    assert made._iterator is None


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "takes either milestones=['30%', ...] or mirror=<an lr schedule>"),
        ({"milestones": TWICE, "mirror": Cosine()}, "takes either milestones=['30%', ...] or mirror=<an lr schedule>"),
        ({"milestones": TWICE, "factor": 1}, "factor must be > 1, got 1"),
        ({"milestones": TWICE[::-1]}, "milestones must rise, got '2 epochs' before '1 epoch'"),
        ({"milestones": [60]}, "got '60 steps'. Write '60 epochs'"),
        ({"mirror": 0.1}, "mirror must be a schedule such as Cosine() or a function(step, clock), got 0.1"),
        ({"milestones": TWICE, "max_batch_size": 0}, "max_batch_size must be a whole number >= 1, got 0"),
        ({"milestones": TWICE, "max_batch_size": 1.5}, "max_batch_size must be a whole number >= 1, got 1.5"),
        ({"milestones": TWICE, "lr": "sqrt"}, "lr must be one of"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        BatchSizeSchedule(**arguments)


class Manual(Notes):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_manual_optimization_grows_the_batch_alone() -> None:
    module = Manual()
    trainer(BatchSizeSchedule(TWICE, 2), LRSchedule(Cosine())).fit(module, loader())
    assert module.sizes() == [[4] * 10, [8] * 5, [16, 16, 8], [16, 16, 8]]
    assert module.lrs == [PEAK * factor for factor in Cosine().factors(21)]
    with pytest.raises(ValueError, match="cannot accumulate gradients under manual optimization"):
        trainer(BatchSizeSchedule(TWICE, 2, max_batch_size=8)).fit(Manual(), loader())


@pytest.mark.parametrize(
    ("callbacks", "arguments", "message"),
    [
        (
            [BatchSizeSchedule(TWICE, max_batch_size=2)],
            {},
            "max_batch_size must be at least the loader's batch size, 4",
        ),
        ([BatchSizeSchedule(["30%"])], {"max_epochs": -1, "max_steps": 9}, "milestones: '30%' of what?"),
        ([BatchSizeSchedule(mirror=Cosine())], {"max_epochs": -1, "max_steps": 9}, "needs a training loader with a"),
        ([BatchSizeSchedule(mirror=Restarts(Cosine(), first="2 epochs"))], {}, "rises again in epoch 2"),
        (
            [BatchSizeSchedule(TWICE), GradientAccumulationScheduler({1: 2})],
            {},
            "would both set the accumulation. Remove one.",
        ),
        ([BatchSizeSchedule(TWICE, lr="inverse_sqrt")], {}, "lr 'inverse_sqrt' needs LRSchedule"),
    ],
)
def test_what_does_not_fit_is_found_before_training(
    callbacks: list[Callback], arguments: dict[str, Any], message: str
) -> None:
    module = Notes()
    with pytest.raises(ValueError, match=re.escape(message)):
        trainer(*callbacks, **arguments).fit(module, loader())
    assert module.updates == []
