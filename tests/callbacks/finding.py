"""What the tests of LRFinder share: a module that keeps state everywhere, and all that a run leaves, to compare."""

import collections
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lr_lightning import LRFinder
from lr_lightning.lr_finder.results import RangeTest
from tests.callbacks.tiny import Memory, loader
from tests.callbacks.tiny import trainer as tiny_trainer

STEPS = 12


@dataclass
class Notes:
    count: int = 0
    seen: list[float] = field(default_factory=list)


class Slots:
    __slots__ = ("count", "seen")

    def __init__(self) -> None:
        self.count, self.seen = 0, []


class Nasty(LightningModule):
    """Changes in every step what a finder must put back, and lets the loss depend on it."""

    shared: list[float] = []  # noqa: RUF012  # of the class

    def __init__(self, optimizer: str = "sgd", lr: float = 0.05, log: bool = True) -> None:
        super().__init__()
        self.optimizer_name, self.lr, self.logging = optimizer, lr, log
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        self.frozen_part = nn.Linear(2, 2)
        self.unused = nn.Parameter(torch.ones(3))
        self.unused.grad = torch.full((3,), 0.25)
        self.register_buffer("ema", torch.zeros(()))
        self.register_buffer("quiet", torch.zeros(2), persistent=False)
        self.register_buffer("expanded", torch.ones(1, 1).expand(3, 3), persistent=False)
        self.accuracy = MulticlassAccuracy(2)
        self.own_metrics = [MeanMetric()]
        self.numbers, self.table, self.names = [0.0], {"a": [0]}, {"x"}
        self.recent: Any = collections.deque(maxlen=4)
        self.ordered = collections.OrderedDict(a=1, b=2)
        self.grouped: Any = collections.defaultdict(list)
        self.nested = {"deep": [(collections.deque([0.0]), {"array": np.zeros(2)})]}
        self.array, self.plain = np.zeros(3), torch.zeros(3)
        self.notes, self.slots = Notes(), Slots()
        self.numpy_rng, self.python_rng = np.random.default_rng(5), random.Random(5)
        self.torch_rng = torch.Generator().manual_seed(5)
        self.calls = 0
        self.losses: list[float] = []
        self.order: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def on_fit_start(self) -> None:
        self.hooked = [self.net[0].weight.register_hook(lambda grad: grad * 1.25)]
        self.register_buffer("made_late", torch.zeros(1), persistent=False)

    def on_train_start(self) -> None:
        self.started = [*getattr(self, "started", []), self.global_step]

    def on_train_epoch_start(self) -> None:
        self.numbers.append(float(self.current_epoch))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch[0], batch[1]
        self.calls += 1
        self.order.append(hash(tuple(x.flatten().tolist())))
        noise = torch.rand(1, generator=self.torch_rng) + torch.rand(1).item() + np.random.rand() + random.random()
        noise = noise + self.numpy_rng.random() + self.python_rng.random() + len(self.shared) % 3
        logits = self.net(x)
        weights = 1 + 0.01 * noise.item() + 0.01 * self.ema.item() + 0.001 * float(self.array.sum())
        loss = cross_entropy(logits + self.frozen_part(logits), y) * weights
        with torch.no_grad():
            self.ema.mul_(0.9).add_(loss.detach(), alpha=0.1)
            self.quiet += 1
            self.plain += 0.5
        self._move(loss.item(), logits, y)
        if self.logging:
            self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            self.log_dict({"train/acc": self.accuracy, "train/own": loss.detach() * 2})
        return loss

    def _move(self, loss: float, logits: Tensor, y: Tensor) -> None:
        self.accuracy(logits.detach(), y)
        self.own_metrics[0].update(loss)
        self.shared.append(loss)
        self.losses.append(loss)
        self.numbers[0] += loss
        self.table["a"].append(self.calls)
        self.table[f"k{self.calls % 5}"] = [loss]
        self.names.add(str(self.calls % 7))
        self.recent.append(loss)
        self.ordered.move_to_end("a" if self.calls % 2 else "b")
        self.grouped[self.calls % 3].append(loss)
        self.nested["deep"][0][0].append(loss)
        self.nested["deep"][0][1]["array"] += 1
        self.array += 0.1
        self.notes.count += 1
        self.notes.seen.append(loss)
        self.slots.count += 1
        self.slots.seen.append(loss)
        if self.calls == 5:
            self.frozen_part.requires_grad_(False)
            self.frozen_part.eval()
        self.late = self.calls

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("val/loss", cross_entropy(logits, batch[1]) + 0.01 * torch.rand(1).item())
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return make_optimizer(self.optimizer_name, self.parameters(), self.lr)


def make_optimizer(name: str, parameters: Any, lr: float) -> torch.optim.Optimizer:
    if name == "schedulefree":
        import schedulefree

        made: torch.optim.Optimizer = schedulefree.AdamWScheduleFree(parameters, lr=lr, warmup_steps=3)
        return made
    return {
        "sgd": lambda: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
        "adam": lambda: torch.optim.Adam(parameters, lr=lr),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=lr),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, lr=lr),
        "tensor": lambda: torch.optim.AdamW(parameters, lr=torch.tensor(lr), foreach=False),
    }[name]()


def frozen(obj: Any, depth: int = 0) -> Any:
    """Plain values that are equal only if the objects are, bit for bit."""
    if depth > 12:
        return "deep"
    if isinstance(obj, Tensor):
        grad = frozen(obj.grad, depth + 1) if obj.is_leaf else None
        return (str(obj.dtype), tuple(obj.shape), obj.detach().contiguous().numpy().tobytes(), obj.requires_grad, grad)
    if isinstance(obj, np.ndarray):
        return (str(obj.dtype), obj.shape, obj.tobytes())
    if isinstance(obj, torch.Generator):
        return obj.get_state().numpy().tobytes()
    if isinstance(obj, np.random.Generator):
        return repr(obj.bit_generator.state)
    if isinstance(obj, random.Random):
        return obj.getstate()
    if isinstance(obj, dict):
        return (type(obj).__name__, [(repr(k), frozen(v, depth + 1)) for k, v in obj.items()])
    if isinstance(obj, list | tuple | collections.deque):
        return (type(obj).__name__, [frozen(v, depth + 1) for v in obj])
    if isinstance(obj, set | frozenset):
        return (type(obj).__name__, sorted(map(repr, obj)))
    if isinstance(obj, Slots):
        return [obj.count, list(obj.seen)]
    if isinstance(obj, nn.Module | Notes):
        # Lightning's own; the last is by the ids of objects
        hidden = ("_trainer", "_fabric", "_fabric_optimizers", "_current_fx_name", "_metric_attributes")
        own = {key: value for key, value in vars(obj).items() if key not in hidden and not key.endswith("hooks")}
        return (type(obj).__name__, frozen(own, depth + 1))
    if isinstance(obj, int | float | str | bytes | type(None)):
        return (type(obj).__name__, repr(obj))
    return type(obj).__name__


def random_states() -> Any:
    numpy_state = np.random.get_state()
    return frozen([torch.get_rng_state(), repr(numpy_state), repr(random.getstate())])


class UsedLRs(Callback):
    """Note the lr of every group at every update."""

    reads_weights_at_steps = False

    def __init__(self) -> None:
        self.used: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.used.append([float(group["lr"]) for group in optimizer.param_groups])


def let_say(monkeypatch: pytest.MonkeyPatch, suggestion: float | None, **values: Any) -> None:
    """Every curve says the same."""
    silent = {"cycle_base_lr": None, "cycle_max_lr": None, "interval": None, "reason": None, "smoothed": []}
    for name, value in {**silent, "suggestion": suggestion, **values}.items():
        monkeypatch.setattr(RangeTest, name, property(lambda self, value=value: value))


def seed(number: int = 7) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def fit(
    tmp_path: Path,
    finder: LRFinder | None,
    *,
    module: LightningModule | None = None,
    make: Any = Nasty,
    data: Any = None,
    callbacks: Any = (),
    logger: bool = True,
    first: bool = False,
    ckpt_path: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Train, and return everything a run leaves behind, as plain values that can be compared.

    Args:
        tmp_path: A folder of this run's own is made in it.
        finder: The finder, None for a run without it.
        module: A module; else ``make`` gives one.
        make: Makes the module, after seeding.
        data: Makes the arguments of ``Trainer.fit``, and everything else to compare afterwards.
        callbacks: Makes the other callbacks.
        logger: Whether there is one.
        first: Whether the finder comes first among the callbacks.
        ckpt_path: Where to resume.
        options: Of the Trainer.
    """
    seed()
    Nasty.shared.clear()
    root = tmp_path / ("without" if finder is None else "with")
    root.mkdir(exist_ok=True)
    module = make() if module is None else module
    arguments, watched = data() if data is not None else ({"train_dataloaders": loader()}, [])
    others = list(callbacks()) if callable(callbacks) else []
    lrs, memory = UsedLRs(), Memory()
    found = [] if finder is None else [finder]
    every = [*found, *others, lrs] if first else [*others, *found, lrs]
    run = tiny_trainer(root, every, memory if logger else False, **{"log_every_n_steps": 1, **options})
    run.fit(module, ckpt_path=ckpt_path, **arguments)
    optimizers = [optimizer.state_dict() for optimizer in run.optimizers]
    left = {
        "state_dict": module.state_dict(),
        "module": module,
        "optimizers": optimizers,
        "schedulers": [config.scheduler.state_dict() for config in run.lr_scheduler_configs],
        "steps": [run.global_step, run.current_epoch, run.should_stop, run.max_steps, run.accumulate_grad_batches],
        "batches": [run.num_training_batches, run.fit_loop.epoch_loop._batches_that_stepped],
        "fit_loop": run.fit_loop.state_dict(),
        "lrs": lrs.used,
        "rows": memory.rows,
        "callback_metrics": dict(run.callback_metrics),
        "logged_metrics": dict(run.logged_metrics),
        "others": [callback.state_dict() for callback in others],
        "others'": [type(callback).__name__ for callback in run.callbacks if callback is not finder],
        "watched": watched,
        "shared": list(Nasty.shared),
        "files": sorted(str(path.relative_to(root)) for path in root.rglob("*")),
    }
    kept = {key: frozen(value) for key, value in left.items()}
    kept["files"] = left["files"]
    kept["random"] = random_states()
    return kept


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in one if one[key] != other[key]]
