"""What a run costs is measured without changing it."""

import sys
from collections import UserDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import CombinedLoader
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, IterableDataset

from lr_lightning import LRFinder, RunCost
from lr_lightning.callbacks.run_cost import EnergyMeter
from tests.callbacks.threads import on_ranks
from tests.callbacks.tiny import Memory, Tiny, loader, trainer


class Norms(Tiny):
    """Keeps the norm of the gradient of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[float] = []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        grads = [p.grad.flatten() for p in self.parameters() if p.grad is not None]
        self.norms.append(torch.cat(grads).norm().item())


def _fit(tmp_path: Path, *callbacks: Any, **options: Any) -> tuple[Norms, Memory]:
    seed_everything(5, verbose=False)
    module, memory = Norms(), Memory()
    trainer(tmp_path, list(callbacks), memory, **options).fit(module, loader(), loader(20))
    return module, memory


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 4}, {"gradient_clip_val": 0.01}])
def test_the_run_is_the_same_with_and_without_and_its_numbers_are_right(tmp_path: Path, options: Any) -> None:
    plain, _ = _fit(tmp_path, **options)
    cost = RunCost(price_per_gpu_hour=3600.0)
    module, memory = _fit(tmp_path, cost, **options)
    assert all(torch.equal(plain.state_dict()[key], module.state_dict()[key]) for key in plain.state_dict())
    summary = cost.summary
    measured = module.norms[::5]
    assert cost._norms == pytest.approx(measured, rel=1e-5)  # before clipping
    assert summary["grad_norm_p50"] == pytest.approx(float(torch.tensor(measured, dtype=torch.float64).quantile(0.5)))
    steps = torch.tensor(module.losses).split(options.get("accumulate_grad_batches", 1))
    if "accumulate_grad_batches" not in options:
        assert cost._losses == pytest.approx([s.mean().item() for s in steps], rel=1e-5)
    assert len(cost._losses) == len(module.norms)
    assert summary["price"] == pytest.approx(summary["device_seconds"])
    assert summary["device_seconds"] == summary["train_seconds"] > 0
    assert summary["examples_per_second"] > 0
    assert summary["step_ms_p50"] <= summary["step_ms_p95"] <= summary["step_ms_p99"]
    assert 0 < sum(cost._step_seconds) < summary["train_seconds"]
    assert summary["peak_memory_mb"] > 50
    assert summary["spikes"] == 0
    assert not summary.keys() & {"gpu_seconds", "energy_kj", "target_reached", "seconds_to_target"}
    assert [step for step, _ in memory.of("cost/seconds")] == [step for step, _ in memory.of("val/loss")]
    assert memory.of("summary/train_seconds")[0][1] == summary["train_seconds"]


class ByHand(Norms):
    """Two optimizers, each of which makes so many updates in a batch."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.updates, self.automatic_optimization = updates, False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for _ in range(self.updates):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                loss = super().training_step(batch, batch_idx)
                self.manual_backward(loss)
                optimizer.step()
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.norms.append(torch.cat(grads).norm().item())

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[place].parameters(), lr=0.1) for place in (0, 3)]


@pytest.mark.parametrize("updates", [1, 5])
def test_one_batch_in_five_has_its_norm_over_all_updates_measured(tmp_path: Path, updates: int) -> None:
    module, cost = ByHand(updates), RunCost()
    trainer(tmp_path, [cost], max_epochs=2).fit(module, loader(), loader(20))
    of_batches = torch.tensor(module.norms, dtype=torch.float64).view(12, 2 * updates).square().sum(1).sqrt()
    assert cost._norms == pytest.approx(of_batches[::5].tolist(), rel=1e-5)


def test_the_target_is_reached_in_a_validation_or_censored(tmp_path: Path) -> None:
    cost = RunCost(target="val/loss<=100")
    _fit(tmp_path, cost)
    assert (cost.summary["target_reached"], cost.summary["steps_to_target"]) == (1.0, 6.0)
    assert 0 < cost.summary["seconds_to_target"] < cost.summary["train_seconds"]
    censored = RunCost(target="val/acc>1")
    _fit(tmp_path, censored)
    assert censored.summary["target_reached"] == 0.0
    assert not censored.summary.keys() & {"steps_to_target", "seconds_to_target"}


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_target_that_is_not_logged_is_told_once_and_ends_no_run(tmp_path: Path, sanity: int) -> None:
    text = r"no metric 'val/f1' was logged, for the target val/f1>=1. There are: .*val/acc"
    with pytest.warns(UserWarning, match=text) as warned:
        module, _ = _fit(tmp_path, RunCost(target="val/f1>=1"), num_sanity_val_steps=sanity)
    assert len(module.losses) == 12
    assert sum("val/f1" in str(w.message) for w in warned) == 1


class Graphs:
    """Two molecules or more, whose atoms are in one tensor, as torch_geometric has them."""

    def __init__(self, graphs: list[torch.Tensor]) -> None:
        self.x, self.num_graphs = torch.cat(graphs), len(graphs)

    def to(self, *_: Any, **__: Any) -> "Graphs":
        return self


class Pair(NamedTuple):
    atoms: torch.Tensor
    energy: torch.Tensor


@dataclass
class Record:
    x: Any
    y: Any


ATOMS = [torch.ones(1 + index % 3, 4) for index in range(20)]


def whole(make: Any, size: int = 8) -> Any:
    """A loader of batches that are made elsewhere, so that only the batch tells its size."""
    return DataLoader([make(ATOMS[i : i + size]) for i in range(0, 20, size)], batch_size=None)


class Ones(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(torch.ones(20, 4))


def stacked(atoms: Any) -> torch.Tensor:
    return torch.stack([atom[0] for atom in atoms])


@pytest.mark.parametrize(
    ("train", "mode", "expected"),
    [
        (lambda: DataLoader(ATOMS, 8, collate_fn=lambda rows: UserDict(x=stacked(rows))), None, 20),
        (lambda: DataLoader(ATOMS, 8, collate_fn=lambda rows: Record(torch.cat(rows), None)), None, 20),
        (lambda: DataLoader(ATOMS, 8, collate_fn=lambda rows: (list(rows), ["name"] * len(rows))), None, 20),
        (lambda: DataLoader(ATOMS, 8, drop_last=True, collate_fn=torch.cat), None, 16),
        (lambda: DataLoader(ATOMS, batch_sampler=[[0, 1, 2], [3, 4]], collate_fn=Graphs), None, 5),
        (lambda: DataLoader(Ones(), batch_size=8), None, 20),
        (lambda: whole(Graphs), None, 20),
        (lambda: whole(lambda rows: (Graphs(rows), torch.ones(len(rows)))), None, 20),
        (lambda: whole(lambda rows: {"id": ["a"] * len(rows), "x": stacked(rows)}), None, 20),
        (lambda: whole(lambda rows: pack_sequence(rows, enforce_sorted=False)), None, 20),
        (lambda: whole(lambda rows: Pair(torch.cat(rows), torch.ones(len(rows)))), None, None),
        (lambda: {"a": loader(10), "b": DataLoader(ATOMS, 8, collate_fn=torch.cat)}, "max_size_cycle", 60 + 2 * 20),
        (lambda: [loader(10), DataLoader(ATOMS, 8, collate_fn=torch.cat)], "min_size", 30 + 20),
        (lambda: [loader(10), DataLoader(ATOMS, 8, collate_fn=torch.cat)], "max_size", 60 + 20),
    ],
)
def test_examples_are_counted_whatever_the_batch_or_left_out_with_a_warning(
    tmp_path: Path, train: Any, mode: str | None, expected: int | None, recwarn: pytest.WarningsRecorder
) -> None:
    class Any_(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self(torch.ones(2, 4)).sum()

    cost, loaders = RunCost(), train()
    fit = trainer(tmp_path, [cost], max_epochs=1)
    fit.fit(Any_(), loaders if mode is None else CombinedLoader(loaders, mode))
    assert cost._examples == expected
    assert ("examples_per_second" in cost.summary) is (expected is not None)
    warned = [
        w for w in recwarn if "RunCost does not know the number of examples in a batch of type Pair" in str(w.message)
    ]
    assert len(warned) == (expected is None)


def test_a_resumed_run_sums_up_what_one_that_never_stopped_does(tmp_path: Path) -> None:
    def run(*epochs: int) -> RunCost:
        cost = RunCost(target="val/loss<=100")
        for last in epochs:
            cost = RunCost(target="val/loss<=100")
            seed_everything(5, verbose=False)
            fit = trainer(tmp_path, [cost], max_epochs=last)
            fit.fit(
                Tiny(dropout=0.0), loader(), loader(20), ckpt_path=None if last == epochs[0] else tmp_path / "a.ckpt"
            )
            fit.save_checkpoint(tmp_path / "a.ckpt")
        assert torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
        return cost

    whole, resumed = run(4), run(2, 4)
    assert resumed._losses == whole._losses
    assert resumed._norms == whole._norms
    assert resumed._examples == whole._examples
    assert len(resumed._step_seconds) == len(whole._step_seconds)
    for name in ("steps_to_target", "spikes", "grad_norm_p95"):
        assert resumed.summary[name] == whole.summary[name]
    assert resumed.summary["seconds_to_target"] < resumed.summary["train_seconds"]


def test_a_run_that_fails_has_cost_as_well(tmp_path: Path) -> None:
    class Fails(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if len(self.losses) == 8:
                raise RuntimeError("no more")
            return super().training_step(batch, batch_idx)

    cost = RunCost()
    with pytest.raises(RuntimeError, match="no more"):
        trainer(tmp_path, [cost]).fit(Fails(), loader(), loader())
    assert cost.summary["train_seconds"] > 0
    assert len(cost._losses) == 8


def test_energy_is_that_between_two_readings_of_the_device_with_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1000, 5000, 5000])
    fake = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(readings) if handle == "GPU-abc" else None,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    meter = EnergyMeter(torch.device("cuda", 0))
    assert meter.joules() == 4.0
    assert meter.gpu == EnergyMeter(torch.device("cuda", 0)).gpu > 0
    assert meter.joules() is None  # the driver no longer answers
    assert EnergyMeter(torch.device("cpu")).joules() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter(torch.device("cuda", 0)).joules() is None


@pytest.mark.parametrize(
    ("ranks", "kilojoules"),
    [
        ([(4000.0, 7), (2000.0, 8)], 6.0),
        ([(4000.0, 7), (3900.0, 7)], 4.0),  # both on one GPU
        ([(4000.0, 7), (None, 7)], 4.0),
        ([(4000.0, 7), (None, 8)], None),  # NVML failed on one: no part is given for the whole, and no rank waits
        ([(None, 0), (None, 0)], None),
        ([(1000.0, 0), (1000.0, 0)], 2.0),  # GPUs without a UUID are taken for different ones
    ],
)
def test_all_ranks_sum_up_the_energy_of_each_gpu_once(
    ranks: list[tuple[float | None, int]], kilojoules: float | None
) -> None:
    def work(trainer: Any) -> Any:
        cost = RunCost()
        joules, gpu = ranks[trainer.global_rank]
        cost._meter = SimpleNamespace(joules=lambda: joules, gpu=gpu)  # type: ignore[assignment]
        trainer.is_global_zero = False
        cost.on_train_end(trainer, Tiny())
        return cost.summary.get("energy_kj")

    assert on_ranks(work) == [kilojoules] * 2


@pytest.mark.parametrize("order", [1, -1])
def test_a_range_test_between_epochs_is_no_step(tmp_path: Path, order: int) -> None:
    class Slow(LRFinder):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_start(trainer, pl_module)
            clock[0] += 1000.0

    clock = [0.0]

    def now() -> float:
        clock[0] += 1.0
        return clock[0]

    cost, finder = RunCost(), Slow(num_steps=10, at_epochs=[0, 1, 2], early_stop=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lr_lightning.callbacks.run_cost.time", SimpleNamespace(perf_counter=now))
        _fit(tmp_path, *[cost, finder][::order], max_epochs=3, check_val_every_n_epoch=3)
    assert len(finder.results) == 3
    assert max(cost._step_seconds) < 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "val/acc"}, "target must be a metric"),
        ({"price_per_gpu_hour": -1.0}, "price_per_gpu_hour must be >= 0, got -1.0"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunCost(**settings)
