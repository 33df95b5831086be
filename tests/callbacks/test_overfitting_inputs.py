"""The monitor beside any loader, batch and module: the right figures, or one warning and the run as it would be."""

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, seed_everything
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.nn import functional
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from lr_lightning.callbacks.overfitting import OverfittingMonitor
from tests.callbacks.tiny import Memory, Tiny, X, Y, trainer

VAL = slice(0, 20)


class Plain(Tiny):
    """A module whose two steps compute the same loss; without dropout and BatchNorm, so that it is known exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def loss(self, batch: Any) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val/loss", self.loss(batch), batch_size=20)


def fit(
    tmp_path: Path, make: Callable[[], Any], train: Any, val: Any, monitor: Any = None, **options: Any
) -> tuple[Any, Any, Memory]:
    seed_everything(5, verbose=False)
    module, memory, monitor = make(), Memory(), monitor or OverfittingMonitor()
    used = trainer(tmp_path, [monitor] if monitor != "none" else [], memory, **{"max_epochs": 4, **options})
    used.fit(module, train, val)
    return module, monitor, memory


def rows(collate: Any = None, size: int = 10, x: Tensor = X, y: Tensor = Y, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), size, collate_fn=collate, **options)


def packed(make: Callable[[Tensor, Tensor], Any]) -> Callable[[Any], Any]:
    return lambda pairs: make(torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs]))


def by_key(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return {"x": x, "y": y}


# -- which batches and modules -------------------------------------------------------------------------------------


class Named(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Record:
    x: Tensor
    y: Tensor


class Graphs:
    """A batch of a library's own class."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.num_graphs = x, y, len(x)

    def to(self, *_: Any, **__: Any) -> "Graphs":
        return self


class ByKey(Plain):
    def loss(self, batch: Any) -> Tensor:
        return cross_entropy(self(batch["x"]), batch["y"])


class ByKeyword(Plain):
    def forward(self, x: Any = None, y: Any = None) -> Any:
        logits = self.net(x)
        return {"loss": cross_entropy(logits, y), "logits": logits}  # as the models of transformers

    def loss(self, batch: Any) -> Tensor:
        return self(**batch)["loss"]


class ByAttribute(Plain):
    def loss(self, batch: Any) -> Tensor:
        return cross_entropy(self(batch.x), batch.y)


class Whole(Plain):
    def forward(self, batch: Any) -> Any:
        return self.net(batch.x)

    def loss(self, batch: Any) -> Tensor:
        return cross_entropy(self(batch), batch.y)


class Nested(Plain):
    def loss(self, batch: Any) -> Tensor:
        return cross_entropy(self(batch["in"][0]), batch["out"][0])


class Bare(Plain):
    forward = LightningModule.forward  # type: ignore[assignment]  # it has none of its own

    def loss(self, batch: Any) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])


class Manual(ByKey):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class Predicts(Plain):
    """Its forward gives probabilities; its steps use the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)

    def loss(self, batch: Any) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])


CLASSIFIERS: list[tuple[Any, Any]] = [
    (ByKey, packed(by_key)),
    (ByKey, packed(lambda x, y: UserDict(x=x, y=y, text=["a"] * len(x)))),
    (ByKeyword, packed(lambda x, y: UserDict(x=x, y=y))),
    (ByAttribute, packed(Named)),
    (ByAttribute, packed(Record)),
    (ByAttribute, packed(Graphs)),
    (Whole, packed(Graphs)),
    (Nested, packed(lambda x, y: {"in": (x, [None]), "out": [y]})),
    (Plain, packed(lambda x, y: (x, y, torch.arange(len(x)) + 100))),
    (Bare, None),
    (Manual, packed(by_key)),
    (Predicts, None),
]


@pytest.mark.parametrize(("make", "collate"), CLASSIFIERS)
def test_a_classifier_is_measured_whatever_its_batches(
    tmp_path: Path, make: Any, collate: Any, recwarn: pytest.WarningsRecorder
) -> None:
    loaders = rows(collate), rows(collate, 20, X[VAL], Y[VAL])
    plain, _, _ = fit(tmp_path, make, *loaders, "none")
    module, monitor, memory = fit(tmp_path, make, *loaders)
    assert all(torch.equal(plain.state_dict()[key], module.state_dict()[key]) for key in plain.state_dict())
    assert [str(w.message) for w in recwarn if "OverfittingMonitor" in str(w.message)] == []
    chosen = monitor._drawn.dataset.indices
    with torch.no_grad():
        losses = cross_entropy(module.net(X), Y, reduction="none")
    assert len(chosen) == 20
    assert memory.of("probe/loss")[-1][1] == pytest.approx(losses[chosen].mean().item(), rel=1e-5)
    assert monitor.history.points[-1].val_losses == pytest.approx(losses[VAL].numpy(), abs=1e-6)
    gap = losses[VAL].mean() - losses[chosen].mean()
    assert memory.of("overfit/gap_loss")[-1][1] == pytest.approx(gap.item(), abs=1e-6)
    assert monitor.history.chance == pytest.approx(0.69, abs=0.02)
    assert monitor.history.start == pytest.approx(module.losses[0], rel=0.2)
    assert len(memory.of("overfit/ece")) == 4


class MultiLabel(Plain):
    def loss(self, batch: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self(batch["x"]), batch["y"])


class Regression(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 1))

    def loss(self, batch: Any) -> Tensor:
        return functional.l1_loss(self(batch["x"]).squeeze(1), batch["y"])


class Autoencoder(Plain):
    forward = LightningModule.forward  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)

    def loss(self, batch: Any) -> Tensor:
        x = batch["x"].view(len(batch["x"]), -1)
        return functional.mse_loss(self.decoder(self.encoder(x)), x)


@pytest.mark.parametrize(
    ("make", "x", "y", "of_constant", "named"),
    [
        (MultiLabel, X, torch.stack([Y, 1 - Y], 1).float(), lambda x, y: Bernoulli(y.mean(0)).entropy(), "chance, the"),
        (Regression, X, X.sum(1), lambda x, y: (y - y.mean()).abs(), "loss of a constant guess, the mean of"),
        (
            Autoencoder,
            X.view(60, 2, 2),
            Y,
            lambda x, y: x.var(0, correction=0),
            "loss of a constant guess, the mean of",
        ),
    ],
)
@pytest.mark.parametrize("sanity", [0, 2])
def test_other_losses_are_learned_from_the_first_step(
    tmp_path: Path, make: Any, x: Tensor, y: Tensor, of_constant: Any, named: str, sanity: int,
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    collate = packed(by_key)
    loaders = rows(collate, x=x, y=y), rows(collate, 20, x[VAL], y[VAL])
    module, monitor, memory = fit(tmp_path, make, *loaders, num_sanity_val_steps=sanity, accumulate_grad_batches=2)
    assert [str(w.message) for w in recwarn if "OverfittingMonitor" in str(w.message)] == []
    chosen = monitor._drawn.dataset.indices
    with torch.no_grad():
        expected = module.loss({"x": x[chosen], "y": y[chosen]}).item()
    assert memory.of("probe/loss")[-1][1] == pytest.approx(expected, rel=1e-5)
    gap = memory.of("val/loss")[-1][1] - expected
    assert memory.of("overfit/gap_loss")[-1][1] == pytest.approx(gap, abs=1e-5)
    assert monitor.history.start == pytest.approx(module.losses[0], rel=1e-6)
    assert monitor.history.chance == pytest.approx(of_constant(x[chosen], y[chosen]).mean().item(), rel=1e-5)
    text = monitor.verdict.text()
    assert named in text
    assert ("chance" in text) is (make is MultiLabel)
    assert "accura" not in text


class Forecast(Plain):
    """Takes batches like those of pytorch-forecasting, and predicts the mean of its targets."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(4))

    def forward(self, x: Any) -> Any:
        return {"prediction": self.mean.expand_as(x["encoder_cont"])[..., None]}

    def loss(self, batch: Any) -> Tensor:
        x, (y, _) = batch
        return functional.mse_loss(self(x)["prediction"], y[..., None])


def test_a_regression_that_gives_the_mean_of_its_targets_has_learned_nothing(tmp_path: Path) -> None:
    """Its loss falls to a hundredth of that at the start, and is still that of a constant guess."""
    collate = packed(lambda x, y: ({"encoder_cont": x}, (20 + x, None)))
    _, monitor, _ = fit(tmp_path, Forecast, rows(collate), rows(collate, 20), max_epochs=10)
    assert monitor.history.start > 100 * monitor.history.chance > 0
    assert monitor.verdict.label == "collapsed"
    assert "chance" not in monitor.verdict.text()


class Scaled(Plain):
    """Trains with another loss than it is measured by."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return 50 * super().training_step(batch, batch_idx) + 3


def test_the_loss_at_the_start_is_in_the_units_of_the_loss_that_is_measured(tmp_path: Path) -> None:
    def loss(module: Any, batch: Any) -> Tensor:
        return cross_entropy(module(batch[0]), batch[1], reduction="none")

    for monitor in (OverfittingMonitor(loss=loss), OverfittingMonitor()):
        fit(tmp_path, Scaled, rows(), rows(), monitor)
        assert monitor.history.start == pytest.approx(0.7, abs=0.3)


class Contrastive(Plain):
    def loss(self, batch: Any) -> Tensor:
        return (self(batch[0]) - self(-batch[0])).square().mean()


def test_another_loss_than_the_one_measured_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"measures cross_entropy, .* but the module logs val/loss .*\(loss=lambda"):
        fit(tmp_path, Contrastive, rows(), rows(size=20))


class Talks(Plain):
    """Logs in its forward, which the monitor calls as well."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x)
        self.log("size", logits.abs().mean())
        return logits


def test_what_a_module_logs_in_its_forward_is_of_its_own_steps(tmp_path: Path) -> None:
    logged = [fit(tmp_path, Talks, rows(), rows(size=20), monitor)[2].of("size") for monitor in ("none", None)]
    assert logged[0] == logged[1] != []


class Unlike(ByKey):
    """Changes its inputs in its steps, and has a loss that no function of torch gives."""

    def loss(self, batch: Any) -> Tensor:
        return (self(batch["x"] / 2)[:, 0] - batch["y"]).abs().pow(1.5).mean()


class Gan(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.maker, self.judge = nn.Linear(2, 4), nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        for index, optimizer in enumerate(self.optimizers()):
            made = self.maker(torch.randn(len(batch[0]), 2))
            optimizer.zero_grad()
            self.manual_backward(self.judge(made).mean() * (1 - 2 * index) + index * self.judge(batch[0]).mean())
            optimizer.step()
        self.losses.append(0.0)

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...  # type: ignore[override]

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), 0.1) for net in (self.maker, self.judge)]


def test_where_no_probe_can_be_measured_the_verdict_comes_from_the_logged_losses(tmp_path: Path) -> None:
    collate = packed(by_key)
    with pytest.warns(
        UserWarning, match=r"has no probe.*logs with the mean training loss.*loss=lambda module, batch: "
    ):
        module, monitor, memory = fit(tmp_path, Unlike, rows(collate), rows(collate, 20))
    points = monitor.history.points
    assert [p.val_loss for p in points] == pytest.approx([value for _, value in memory.of("val/loss")])
    means = torch.tensor(module.losses).view(4, 6).mean(1).tolist()
    assert [p.probe_loss for p in points] == pytest.approx(means)
    assert (monitor.history.start, monitor.history.chance) == (pytest.approx(module.losses[0]), None)
    assert memory.of("probe/loss") == memory.of("overfit/gap_loss") == []
    assert len(memory.of("overfit/gl")) == 4


def test_a_module_without_any_loss_is_left_alone(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    module, monitor, _ = fit(tmp_path, Gan, rows(), rows())
    assert len(module.losses) == 24
    assert monitor.history.points == ()
    assert any("measures nothing: training_step returns no loss" in str(w.message) for w in recwarn)


# -- which examples ----------------------------------------------------------------------------------------------------


class Odd(Dataset[Any]):
    """Labels of any kind beside the examples."""

    def __init__(self, labels: Any) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


class Order:
    """A sampler of the user's own."""

    def __iter__(self) -> Any:
        return iter(range(30, 60))

    def __len__(self) -> int:
        return 30


def seen_by(monitor: OverfittingMonitor) -> set[int]:
    """Return the places in X of the examples of the probe."""
    xs = torch.cat([batch[0][0] if isinstance(batch[0], list) else batch[0] for batch in monitor._drawn or ()])
    return {int((x == X).all(1).nonzero()[0]) for x in xs}


class Notes(Plain):
    """Notes the places in X of the examples that train it."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[int] = set()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pair = batch[0] if isinstance(batch[0], list) else batch
        self.used.update(int((row == X).all(1).nonzero()[0]) for row in pair[0])
        return super().training_step(pair, batch_idx)


ODD: tuple[Any, ...] = ([[0, 1], [1], [0, 0, 1]] * 20, [{"boxes": [[0]]}] * 60, [None, 1, 0] * 20)


@pytest.mark.parametrize(
    ("train", "options", "size"),
    [
        (lambda: rows(sampler=SubsetRandomSampler(range(30, 60))), {}, 20),
        (lambda: rows(sampler=Order()), {}, 20),
        (lambda: DataLoader(TensorDataset(X, Y), batch_sampler=[[50, 51], [52, 53]]), {}, 4),
        (rows, {"overfit_batches": 1, "val": rows}, 10),
        (rows, {"limit_train_batches": 2}, 20),
        (lambda: rows(shuffle=True), {"limit_train_batches": 1, "max_epochs": 1}, 10),
        (rows, {"max_steps": 3, "val_check_interval": 3}, 20),
        (rows, {"limit_val_batches": 1, "val": rows}, 10),
        (rows, {"fast_dev_run": True, "val": rows}, 10),
        (rows, {"val_check_interval": 1}, 20),
        (rows, {"val": lambda: {"a": rows(size=5, x=X[:5], y=Y[:5]), "b": rows()}}, 5),
        (rows, {"val": lambda: [rows(size=5, x=X[:5], y=Y[:5]), rows()]}, 5),
        (rows, {"val": lambda: DataLoader(Stream(), 10), "limit_val_batches": 3}, 30),
        (rows, {"val": lambda: DataLoader(Stream(), 10)}, 60),
        (lambda: DataLoader(TensorDataset(X.view(6, 10, 4), Y.view(6, 10)), None), {}, 20),
        (lambda: DataLoader(Stream(), 10), {}, 20),
        (lambda: CombinedLoader([rows()], "min_size"), {}, 20),
        *((lambda odd=odd: DataLoader(Odd(odd), 10), {}, 20) for odd in ODD),
    ],
)
def test_the_probe_has_examples_that_training_uses_and_no_more_than_the_validation(
    tmp_path: Path, train: Any, options: Any, size: int
) -> None:
    options = {"max_epochs": 2, **options}
    val = options.pop("val", lambda: rows(None, 20, X[VAL], Y[VAL]))()
    module, monitor, _ = fit(tmp_path, Notes, train(), val, OverfittingMonitor(keep=25), **options)
    probe = seen_by(monitor)
    assert probe <= module.used
    assert len(probe) == monitor.history.points[-1].probe_size == size


def test_the_data_modules_probe_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    class Data(LightningDataModule):
        def __init__(self, probe: Any) -> None:
            super().__init__()
            self.probe_dataloader = lambda: probe

        def train_dataloader(self) -> Any:
            return rows()

        def val_dataloader(self) -> Any:
            return rows(size=20)

    _, monitor, _ = fit(tmp_path, Plain, Data(rows(x=X[:7], y=Y[:7])), None)
    assert seen_by(monitor) == set(range(7))

    class Broken(list[Any]):
        def __iter__(self) -> Any:
            raise OSError("no such file")

    for probe in (Broken(), DataLoader(Subset(TensorDataset(X, Y), []))):
        with pytest.warns(UserWarning, match="OverfittingMonitor has no probe: "):
            module, _, memory = fit(tmp_path, Plain, Data(probe), None)
        assert (len(module.losses), memory.of("probe/loss")) == (24, [])
