"""LRFinder measures what it says: the grid, the updates and the losses of a loop written by hand, float for float."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lr_lightning import LRFinder
from lr_lightning.lr_finder import results as result_module
from lr_lightning.lr_finder.curve import Abstention, Cause, Reading
from tests.callbacks.finding import make_optimizer
from tests.callbacks.tiny import X, Y, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

STEPS = 15


class Net(LightningModule):
    """No random numbers; notes what was used in a list that nobody puts back."""

    def __init__(self, optimizer: str = "sgd", groups: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.optimizer_name, self.groups = optimizer, groups
        used: list[list[float]] = []
        self.read = lambda: used
        self.note = lambda o, *_: used.append([float(group["lr"]) for group in o.param_groups])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.loss(batch), "other": 1}

    def loss(self, batch: Any) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        if self.groups:
            parts: Any = [
                {"params": self.net[0].parameters(), "lr": 0.01},
                {"params": self.net[2].parameters()},
                {"params": self.net[3].parameters(), "lr": 0.5},
            ]
        else:
            parts = self.parameters()
        optimizer = make_optimizer(self.optimizer_name, parts, 0.1)
        optimizer.register_step_pre_hook(self.note)
        return optimizer


def search(tmp_path: Path, module: LightningModule, data: Any = None, val: Any = None, **arguments: Any) -> LRFinder:
    """Only the test: there are no epochs."""
    own = {key: arguments.pop(key) for key in list(arguments) if key in ("accumulate_grad_batches", "precision")}
    finder = LRFinder(**{"num_steps": STEPS, "apply": False, "retry": False, "early_stop": False, **arguments})
    trainer(tmp_path, [finder], max_epochs=0, num_sanity_val_steps=0, **own).fit(module, data or loader(), val)
    return finder


def by_hand(optimizer: str, lrs: tuple[float, ...], accumulate: int = 1) -> list[float]:
    """A loop in plain torch."""
    module = Net(optimizer)
    made = make_optimizer(optimizer, module.parameters(), 0.1)
    batches = list(loader())
    losses, number = [], 0
    for lr in lrs:
        made.param_groups[0]["lr"] = lr
        micro = []
        made.zero_grad()
        for _ in range(accumulate):
            loss = module.loss(batches[number % len(batches)])
            (loss / accumulate).backward()
            micro.append(loss.detach())
            number += 1
        made.step()
        losses.append(float(torch.stack(micro).mean()))
    return losses


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("accumulate", [1, 3, 7])
def test_the_curve_is_that_of_a_plain_loop(tmp_path: Path, optimizer: str, accumulate: int) -> None:
    finder = search(tmp_path, Net(optimizer), max_lr=1.0, accumulate_grad_batches=accumulate)
    assert finder.result.values == by_hand(optimizer, finder.grid, accumulate)
    assert finder.result.lrs == list(finder.grid)


def test_a_module_that_returns_double_precision_is_measured_in_it(tmp_path: Path) -> None:
    module = Net().double()
    data = DataLoader(TensorDataset(X.double(), Y), batch_size=10)
    losses = search(tmp_path, module, data, precision="64-true").result.values
    assert losses != [float(np.float32(loss)) for loss in losses]


@pytest.mark.parametrize("mode", ["exponential", "linear"])
@pytest.mark.parametrize("steps", [10, 37])
def test_every_lr_of_the_grid_is_used_once(tmp_path: Path, mode: Any, steps: int) -> None:
    module = Net()
    finder = search(tmp_path, module, mode=mode, min_lr=1e-3, max_lr=0.7, num_steps=steps)
    grid = [lr for (lr,) in module.read()]
    assert grid == list(finder.grid)
    assert (len(grid), grid[0], grid[-1]) == (steps, 1e-3, 0.7)
    move = np.diff(np.log(grid)) if mode == "exponential" else np.diff(grid)
    assert move == pytest.approx([move[0]] * (steps - 1), rel=1e-9)


def test_repeats_use_the_grid_again_and_other_batches(tmp_path: Path) -> None:
    module = Net()
    data = DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True)
    finder = search(tmp_path, module, data, repeats=3, max_lr=1.0)
    assert module.read() == [[lr] for lr in finder.grid] * 3
    runs = finder.result.curves
    assert len(runs) == 3
    assert len(set(runs)) == 3
    assert finder.result.values == [float(np.mean(values)) for values in zip(*runs, strict=True)]


@pytest.mark.parametrize(
    ("cause", "retry", "ranges"),
    [
        (Cause.NO_UPPER_EDGE, True, [(1e-3, 0.1), (1e-3, 1.0)]),
        (Cause.TOO_FEW_POINTS, True, [(1e-3, 0.1), (1e-4, 0.1)]),
        (Cause.WITHIN_NOISE, True, [(1e-3, 0.1)]),
        (Cause.NO_UPPER_EDGE, False, [(1e-3, 0.1)]),
    ],
)
def test_a_wider_range_is_tested_once_where_the_curve_asks_for_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cause: Cause,
    retry: bool,
    ranges: list[tuple[float, float]],
) -> None:
    silent = Reading(None, Abstention(cause), None, None, None, np.ones(1), {})
    monkeypatch.setattr(result_module, "read_curve", lambda *_, **__: silent)
    module = Net()
    finder = search(tmp_path, module, min_lr=1e-3, max_lr=0.1, retry=retry)
    used = [lr for (lr,) in module.read()]
    assert used == pytest.approx(np.concatenate([np.geomspace(*ends, STEPS) for ends in ranges]).tolist())
    grid = finder.result.grid
    assert (len(finder.results), grid[0], grid[-1]) == (1, *(pytest.approx(end) for end in ranges[-1]))
    # from the same start and over the same batches: what a test of that range alone would find
    alone = search(tmp_path, Net(), min_lr=grid[0], max_lr=grid[-1])
    assert alone.result.curves == finder.result.curves


def test_the_first_run_sees_what_training_is_about_to_see(tmp_path: Path) -> None:
    for metric in ("loss", "val_loss"):
        torch.manual_seed(5)
        seen: list[float] = []

        class Sees(Net):
            def training_step(self, batch: Any, batch_idx: int, seen: list[float] = seen) -> Any:
                seen.append(float(batch[0].sum()))
                return super().training_step(batch, batch_idx)

            def validation_step(self, batch: Any, batch_idx: int) -> None:
                torch.rand(3)
                self.log("val_loss", self.loss(batch))

        data = DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True)
        val = DataLoader(TensorDataset(X, Y), batch_size=10)
        finder = LRFinder(num_steps=10, metric=metric, early_stop=False, apply=False)  # type: ignore[arg-type]
        torch.manual_seed(5)
        trainer(tmp_path, [finder], max_epochs=2, num_sanity_val_steps=0).fit(Sees(), data, val)
        assert seen[:6] == seen[10:16], metric


def test_groups_keep_their_ratios(tmp_path: Path) -> None:
    module = Net(groups=True)
    finder = search(tmp_path, module, min_lr=1e-4, max_lr=0.1)
    # the reference is the first group's: the module has no lr
    assert module.read() == [[lr * 1.0, lr * (0.1 / 0.01), lr * (0.5 / 0.01)] for lr in finder.grid]
    module = Net(groups=True)
    module.lr = 0.1
    finder = search(tmp_path, module, min_lr=1e-4, max_lr=0.1)
    assert module.read() == [[lr * (0.01 / 0.1), lr * 1.0, lr * (0.5 / 0.1)] for lr in finder.grid]


def test_a_tensor_lr_is_filled_in_place_and_comes_back(tmp_path: Path) -> None:
    module = Net("tensor")
    finder = search(tmp_path, module, max_lr=0.5)
    assert module.read() == [[float(np.float32(lr))] for lr in finder.grid]
    lr = module.optimizers().param_groups[0]["lr"]
    assert isinstance(lr, Tensor)
    assert lr.item() == pytest.approx(0.1)


class Planted(Net):
    def __init__(self, value: float, at: int) -> None:
        super().__init__()
        self.value, self.at, self.calls = value, at, 0

    def loss(self, batch: Any) -> Tensor:
        self.calls += 1
        return super().loss(batch) + (self.value if self.calls == self.at else 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [1, 7])
def test_what_is_not_finite_ends_the_test_and_is_no_point(tmp_path: Path, value: float, at: int) -> None:
    finder = search(tmp_path, Planted(value, at), max_lr=0.1)
    assert len(finder.result.values) == at - 1
    assert finder.result.values == search(tmp_path, Net(), max_lr=0.1).result.values[: at - 1]
    if at == 1:
        assert finder.result.suggestion is None
        assert finder.result.to_csv().count("\n") == 1


def test_one_repeat_that_ends_early_shortens_the_mean_only(tmp_path: Path) -> None:
    calls = [0]

    class Once(Net):
        def loss(self, batch: Any) -> Tensor:
            calls[0] += 1
            return super().loss(batch) + (math.nan if calls[0] == STEPS + 5 else 0.0)

    result = search(tmp_path, Once(), repeats=3).result
    assert [len(run) for run in result.curves] == [STEPS, 4, STEPS]
    assert len(result.values) == len(result.lrs) == 4


def test_negative_losses(tmp_path: Path) -> None:
    class Negative(Net):
        def loss(self, batch: Any) -> Tensor:
            return super().loss(batch) - 1000.0

    finder = search(tmp_path, Negative(), max_lr=0.1, early_stop=True)
    assert len(finder.result.values) == STEPS
    assert max(finder.result.values) < -990


def test_no_validation_for_the_training_loss(tmp_path: Path) -> None:
    asked: list[str] = []

    class Validates(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            asked.append("step")

        def val_dataloader(self) -> Any:
            asked.append("loader")
            return loader()

    search(tmp_path, Validates())
    assert asked == []


# -- skipped batches, and hooks that a step goes through ---------------------------------------------------------------


class Skips(Net):
    """No loss for every third batch."""

    def __init__(self, optimizer: str = "sgd", **how: int) -> None:
        super().__init__(optimizer)
        self.count, self.how = 0, how

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.count += 1
        return None if self.count % 3 == 0 else super().training_step(batch, batch_idx)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_batches_without_a_loss(tmp_path: Path, accumulate: int) -> None:
    finder = search(tmp_path, Skips(), max_lr=1.0, accumulate_grad_batches=accumulate)
    assert len(finder.result.values) == STEPS
    # as Lightning: such a batch counts for the accumulation
    module, batches = Net(), list(loader())
    made, number, expected = make_optimizer("sgd", module.parameters(), 0.1), 0, []
    for lr in finder.grid:
        micro: list[Tensor] = []
        made.param_groups[0]["lr"] = lr
        while not micro:
            made.zero_grad()
            for _ in range(accumulate):
                number += 1
                if number % 3:
                    micro.append(module.loss(batches[(number - 1) % len(batches)]))
                    (micro[-1] / accumulate).backward()
            made.step()
        expected.append(float(torch.stack(micro).detach().mean()))
    assert finder.result.values == expected


def test_a_module_that_never_gives_a_loss(tmp_path: Path) -> None:
    class Never(Net):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

    with pytest.raises(ValueError, match="got no loss from training_step for 100 batches in a row"):
        search(tmp_path, Never())


def test_batches_that_are_none_are_passed_over(tmp_path: Path) -> None:
    class Gaps:
        def __iter__(self) -> Any:
            for batch in loader():
                yield None
                yield batch

    assert (
        search(tmp_path, Net(), Gaps(), max_lr=1.0).result.values == search(tmp_path, Net(), max_lr=1.0).result.values
    )


def test_an_epoch_that_the_module_cuts_short(tmp_path: Path) -> None:
    class Cuts(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    module, batches = Net(), list(loader())
    made, expected = make_optimizer("sgd", module.parameters(), 0.1), []
    finder = search(tmp_path, Cuts(), max_lr=1.0)
    for number, lr in enumerate(finder.grid):
        made.param_groups[0]["lr"] = lr
        made.zero_grad()
        loss = module.loss(batches[number % 2])
        loss.backward()
        made.step()
        expected.append(loss.item())
    assert finder.result.values == expected


def test_an_optimizer_that_asks_more_than_once_gives_the_loss_at_its_start(tmp_path: Path) -> None:
    class Quasi(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    finder = search(tmp_path, Quasi(), max_lr=1.0)
    module, batches, expected = Net(), list(loader()), []
    made = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3)
    for number, lr in enumerate(finder.grid):
        made.param_groups[0]["lr"] = lr
        batch, asked = batches[number % len(batches)], []  # type: ignore[var-annotated]

        def closure(batch: Any = batch, asked: list[float] = asked) -> Tensor:
            made.zero_grad()
            loss = module.loss(batch)
            loss.backward()
            asked.append(loss.item())
            return loss

        made.step(closure)  # type: ignore[arg-type]
        expected.append(asked[0])
    assert finder.result.values == expected


def test_hooks_are_called_as_in_a_fit(tmp_path: Path) -> None:
    calls: list[str] = []

    class Hooks(Net):
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("on_") and name not in calls:
                calls.append(name)
            return super().__getattribute__(name)

        def on_train_start(self) -> None:
            starts.append("train")

        def on_train_epoch_start(self) -> None:
            starts.append("epoch")

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert outputs["other"] == 1
            assert float(self.trainer.callback_metrics["train/loss"]) == pytest.approx(float(outputs["loss"]))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            outputs = super().training_step(batch, batch_idx)
            self.log("train/loss", outputs["loss"])
            return outputs

    starts: list[str] = []
    search(tmp_path, Hooks())
    assert starts == ["train", "epoch"]
    middle = LRFinder(num_steps=STEPS, at_epochs=[0, 1])
    starts.clear()
    trainer(tmp_path, [middle], max_epochs=2).fit(Hooks(), loader())
    # the module's own on_train_start has been called when the first epoch's test begins: never again
    assert starts == ["train", "epoch", "epoch", "epoch", "epoch"]
    assert {"on_before_zero_grad", "on_before_optimizer_step", "on_train_batch_start"} <= set(calls)


# -- validation --------------------------------------------------------------------------------------------------------


class Validated(Net):
    """Logs in one of the ways there are."""

    def __init__(self, how: str = "val_loss") -> None:
        super().__init__()
        self.how, self.accuracy, self.mean = how, MulticlassAccuracy(2, average="micro"), MeanMetric()

    def on_validation_start(self) -> None:
        self.outputs: list[Any] = []

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append((outputs, len(batch[0])))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        assert not self.training
        assert self.trainer.validating
        logits = self.net(batch[0])
        loss = cross_entropy(logits, batch[1])
        if self.how == "metric":
            self.mean.update(loss, len(batch[0]))
            self.accuracy(logits, batch[1])
            self.log("val/loss", self.mean)
            self.log("val/acc", self.accuracy)
        elif self.how == "own":
            self.log_dict({"mine": loss, "other": 1.0})
        elif self.how in ("val_loss", "valid/loss"):
            self.log(self.how, loss, prog_bar=True)
            self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())
        return loss

    def on_validation_epoch_end(self) -> None:
        if self.how == "end":
            total = sum(count for _, count in self.outputs)
            self.log("val_loss", sum(float(loss) * count for loss, count in self.outputs) / total)


def validated_by_hand(lrs: Any, what: str, batches: list[Any]) -> list[float]:
    module, data = Net(), list(loader())
    made, values = make_optimizer("sgd", module.parameters(), 0.1), []
    for number, lr in enumerate(lrs):
        modes = [(layer, layer.training) for layer in module.modules()]
        with torch.no_grad():
            parts = []
            for layer, _ in modes:
                layer.training = isinstance(layer, nn.BatchNorm1d)  # statistics of the batch
            for x, y in batches:
                logits = module.net(x)
                value = cross_entropy(logits, y) if what == "val_loss" else (logits.argmax(1) == y).float().mean()
                parts.append((float(value), len(x)))
            for layer, mode in modes:
                layer.training = mode
        values.append(sum(value * count for value, count in parts) / sum(count for _, count in parts))
        made.param_groups[0]["lr"] = lr
        made.zero_grad()
        module.loss(data[number % len(data)]).backward()
        made.step()
    return values


@pytest.mark.parametrize("how", ["val_loss", "valid/loss", "metric", "own", "returned", "end"])
def test_validation_loss_before_each_update(tmp_path: Path, how: str) -> None:
    val = DataLoader(TensorDataset(X, Y), batch_size=25)
    monitor = "mine" if how == "own" else None
    finder = search(tmp_path, Validated(how), val=val, metric="val_loss", max_lr=1.0, val_batches=3, monitor=monitor)
    assert finder.result.values == pytest.approx(validated_by_hand(finder.grid, "val_loss", list(val)), rel=1e-6)
    assert finder.result.metric == "val_loss"


@pytest.mark.parametrize("how", ["val_loss", "metric"])
@pytest.mark.parametrize("batches", [1, 2])
def test_accuracy_before_each_update(tmp_path: Path, how: str, batches: int) -> None:
    val = DataLoader(TensorDataset(X, Y), batch_size=25)
    finder = search(tmp_path, Validated(how), val=val, metric="accuracy", max_lr=1.0, val_batches=batches)
    expected = validated_by_hand(finder.grid, "accuracy", list(val)[:batches])
    assert finder.result.values == pytest.approx(expected, rel=1e-6)


def test_validation_batches_of_one_example_with_batch_norm(tmp_path: Path) -> None:
    val = DataLoader(TensorDataset(X, Y), batch_size=1)
    assert len(search(tmp_path, Validated(), val=val, metric="val_loss").result.values) == STEPS


def test_several_validation_loaders(tmp_path: Path) -> None:
    class Two(Validated):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            assert dataloader_idx == 0
            return super().validation_step(batch, batch_idx)

        def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            return super().on_validation_batch_end(outputs, batch, batch_idx)

    val = DataLoader(TensorDataset(X, Y), batch_size=25)
    finder = search(tmp_path, Two(), val=[val, loader()], metric="val_loss", max_lr=1.0)
    assert finder.result.values == pytest.approx(validated_by_hand(finder.grid, "val_loss", list(val)), rel=1e-6)


@pytest.mark.parametrize(
    ("module", "val", "arguments", "message"),
    [
        (Net, None, {"metric": "val_loss"}, "metric='val_loss' needs a validation loader and a validation_step"),
        (Validated, None, {"metric": "accuracy"}, "needs a validation loader"),
        (lambda: Validated("own"), loader(), {"metric": "accuracy"}, "logs 'mine', 'other', none of which is val_acc"),
        (Validated, loader(), {"metric": "val_loss", "monitor": "x"}, "none of which is x"),
        (lambda: Validated("returned"), loader(), {"metric": "accuracy"}, "logs nothing, none of which"),
    ],
)
def test_a_metric_that_is_not_there(
    tmp_path: Path, module: Any, val: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        search(tmp_path, module(), val=val, **arguments)


# -- what cannot be measured -------------------------------------------------------------------------------------------


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Two(Net):
    def configure_optimizers(self) -> Any:
        self.automatic_optimization = True
        return [torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.SGD(self.net[3].parameters(), lr=0.1)]


class ManualTwo(Two):
    def configure_optimizers(self) -> Any:
        made = super().configure_optimizers()
        self.automatic_optimization = False
        return made


class Iterates(Net):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        raise AssertionError


class NoRate(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        del optimizer.param_groups[0]["lr"]
        return optimizer


class Nothing(Net):
    def configure_optimizers(self) -> None:
        return None


class Zero(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Manual, "LRFinder works with automatic optimization, and Manual has automatic_optimization=False"),
        (ManualTwo, "ManualTwo has automatic_optimization=False"),
        (Iterates, "does not support Iterates.training_step"),
        (NoRate, "works with an optimizer that has an lr, but SGD has no lr"),
        (Nothing, "there is no optimizer"),
        (Zero, "every param group of SGD has lr = 0"),
    ],
)
@pytest.mark.parametrize("at_epochs", [None, [3]])
def test_is_refused_before_anything_runs(tmp_path: Path, module: Any, message: str, at_epochs: Any) -> None:
    made = module()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, [LRFinder(num_steps=STEPS, at_epochs=at_epochs)], max_epochs=1).fit(made, loader())
    assert made.read() == []


def test_several_optimizers_are_refused(tmp_path: Path) -> None:
    # Lightning itself refuses several under automatic optimization, but only when a step is made
    with pytest.raises((ValueError, RuntimeError), match=r"one optimizer|multiple optimizers"):
        search(tmp_path, Two())


def test_a_module_that_sets_the_lr_itself_is_refused(tmp_path: Path) -> None:
    class Sets(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.param_groups[0]["lr"] = 0.01
            optimizer.step(closure=optimizer_closure)

    with pytest.raises(ValueError, match="cannot control the lr: Sets sets it itself"):
        search(tmp_path, Sets())


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_lr": 0.0}, r"min_lr must be > 0, got 0\.0"),
        ({"min_lr": -1.0}, r"min_lr must be > 0, got -1\.0"),
        ({"min_lr": math.nan}, "min_lr must be > 0, got nan"),
        ({"max_lr": math.inf}, "max_lr must be > 0, got inf"),
        ({"max_lr": "1"}, "max_lr must be > 0, got '1'"),
        ({"min_lr": 1.0, "max_lr": 1.0}, r"max_lr must be > min_lr, got min_lr=1\.0 and max_lr=1\.0"),
        ({"min_lr": 2.0, "max_lr": 1.0}, r"max_lr must be > min_lr, got min_lr=2\.0 and max_lr=1\.0"),
        ({"num_steps": 9}, "num_steps must be a whole number >= 10, got 9"),
        ({"num_steps": 20.0}, r"num_steps must be a whole number >= 10, got 20\.0"),
        ({"num_steps": True}, "num_steps must be a whole number >= 10, got True"),
        ({"mode": "log"}, "mode must be one of 'exponential', 'linear', got 'log'"),
        ({"metric": "val/loss"}, "metric must be one of 'loss', 'val_loss', 'accuracy', got 'val/loss'"),
        ({"repeats": 0}, "repeats must be a whole number >= 1, got 0"),
        ({"retry": 1}, "retry must be True or False, got 1"),
        ({"val_batches": 0}, "val_batches must be a whole number >= 1, got 0"),
        ({"at_epochs": [1, -1]}, "at_epochs must be a whole number >= 0, got -1"),
        ({"at_epochs": [0.5]}, r"at_epochs must be a whole number >= 0, got 0\.5"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LRFinder(**arguments)


@pytest.mark.parametrize("attribute", ["rate", "optim.lr"])
def test_an_attribute_that_is_not_there(tmp_path: Path, attribute: str) -> None:
    with pytest.raises(ValueError, match=f"attribute='{attribute}': there is no such number in Net"):
        search(tmp_path, Net(), attribute=attribute)
