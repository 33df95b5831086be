"""LRFinder in two processes: one decision, from the mean of their losses, and no trace in either."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lr_lightning import LRFinder, LRRace, LRSchedule, OverfittingMonitor, RunCost
from lr_lightning.lr_finder.race import RaceTest
from lr_lightning.lr_finder.results import RangeTest
from lr_lightning.schedules import Cosine
from tests.callbacks.finding import Nasty, UsedLRs, frozen, let_say, random_states, seed
from tests.callbacks.tiny import X, Y, loader, trainer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]


class Leaves(Callback):
    """Writes what a process has at the end."""

    def __init__(self, folder: Path, finder: LRFinder | None, lrs: UsedLRs) -> None:
        self.folder, self.finder, self.lrs = folder, finder, lrs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        seed(7 + trainer.global_rank)  # Python has seeded random anew in the forked process

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        result = None if self.finder is None else self.finder.result
        left = {
            "module": frozen(pl_module),
            "optimizer": frozen(trainer.optimizers[0].state_dict()),
            "random": random_states(),
            "lrs": self.lrs.used,
            "losses": pl_module.losses,
            "result": None if result is None else result.state(),
            "applied": None if self.finder is None else self.finder.applied_lr,
            "points": [
                (point.val_loss, point.val_size, point.probe_loss, point.probe_size)
                for callback in trainer.callbacks
                if isinstance(callback, OverfittingMonitor)
                for point in callback.history.points
            ],
        }
        self.folder.mkdir(exist_ok=True)
        torch.save(left, self.folder / f"rank{trainer.global_rank}.pt")


class Losses(Nasty):
    """Writes the loss of every batch of the test."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        del self.expanded  # DDP refuses it

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if any(isinstance(c, LRFinder) and c.result is None for c in self.trainer.callbacks):
            with (self.folder / f"losses{self.global_rank}.txt").open("a") as file:
                file.write(f"{loss.item()!r}\n")
        return loss


class OneBatch:
    """A probe of which the second process has no share."""

    def __iter__(self) -> Any:
        return iter([] if torch.distributed.get_rank() else [(X[:5], Y[:5])])


def run(folder: Path, finder: LRFinder | None, *more: Callback, **options: Any) -> list[dict[str, Any]]:
    folder.mkdir()
    seed()
    Nasty.shared.clear()
    lrs = UsedLRs()
    callbacks = [
        LRSchedule(Cosine()),
        *([] if finder is None else [finder]),
        lrs,
        *more,
        Leaves(folder, finder, lrs),
    ]
    settings = {"devices": 2, "strategy": "ddp_fork_find_unused_parameters_true", "max_epochs": 2, **options}
    data = DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True)
    trainer(folder, callbacks, **settings).fit(Losses(folder), data, loader())
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ({}, {}),
        ({"repeats": 2}, {"accumulate_grad_batches": 3}),
        ({"metric": "val_loss", "monitor": "val/loss"}, {}),
        ({"at_epochs": [1]}, {}),
    ],
    ids=str,
)
def test_two_processes(tmp_path: Path, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    finder = LRFinder(num_steps=12, apply=False, retry=False, early_stop=False, max_lr=0.5, **arguments)
    bare = run(tmp_path / "without", None, **options)
    searched = run(tmp_path / "with", finder, **options)
    for one, other in zip(bare, searched, strict=True):
        for part in ("module", "optimizer", "random", "lrs", "losses"):
            if part == "module":  # knows its folder
                one[part], other[part] = (repr(each[part]).replace("'without'", "") for each in (one, other))
                one[part] = one[part].replace("/without", "/with")
            assert one[part] == other[part], part
    results = [RangeTest.from_state(each["result"]) for each in searched]
    assert results[0] == results[1]
    assert len(results[0].values) == 12
    if arguments == {}:
        ranks = [[float(line) for line in (tmp_path / f"with/losses{rank}.txt").read_text().split()] for rank in (0, 1)]
        means = torch.tensor(ranks).sum(0) / 2
        assert results[0].values == means.tolist()
        assert ranks[0] != ranks[1]


def test_two_processes_run_one_race(tmp_path: Path) -> None:
    one, two = run(tmp_path / "with", LRRace(budget=60), max_epochs=20)
    assert RaceTest.from_state(one["result"]) == RaceTest.from_state(two["result"])
    assert one["applied"] == two["applied"] is not None
    assert one["lrs"] == two["lrs"]
    assert len(one["losses"]) == len(two["losses"]) == 120  # as the race has put them back


def test_two_processes_train_with_the_same_found_lr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_say(monkeypatch, 0.2)
    one, two = run(tmp_path / "with", LRFinder(num_steps=12), OverfittingMonitor(probe=OneBatch()), RunCost())
    assert one["applied"] == two["applied"] == 0.2
    assert one["lrs"] == two["lrs"]
    assert one["lrs"][0] == [0.2]
    # every process takes part where one has no share of the probe
    assert one["points"] == two["points"]
    assert [(val, probe) for _, val, _, probe in one["points"]] == [(60, 5)] * 2
