"""A found lr is used as if the run had been configured with it, in every place where a run keeps its lr."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn

from lr_lightning import LRFinder, LRSchedule
from lr_lightning.lr_finder.results import RangeTest
from lr_lightning.schedules import Constant, Cosine, Join, Schedule, Triangular, Warmup
from tests.callbacks.finding import UsedLRs, let_say
from tests.callbacks.tiny import Memory, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

CONFIGURED, FOUND, BASE, MAX = 0.05, 0.3, 0.07, 0.4
Make = Callable[[torch.optim.Optimizer, float, float], Any]
lr_scheduler = torch.optim.lr_scheduler


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every curve says the same."""
    let_say(monkeypatch, FOUND, cycle_base_lr=BASE, cycle_max_lr=MAX)


class Net(LightningModule):
    """The module can keep its lr in different places."""

    def __init__(
        self, lr: float = CONFIGURED, base: float = 0.01, groups: bool = False, make: Make | None = None
    ) -> None:
        super().__init__()
        self.save_hyperparameters("lr")
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)
        self.lr, self.base, self.groups, self.make = lr, base, groups, make

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.two(self.one(batch[0])), batch[1])
        self.log("loss", loss, on_epoch=True)
        return loss

    def configured_lr(self) -> float:
        return self.lr

    def configure_optimizers(self) -> Any:
        lr = self.configured_lr()
        parts: Any = [{"params": self.one.parameters(), "lr": lr / 10}, {"params": self.two.parameters()}]
        optimizer = torch.optim.SGD(parts if self.groups else self.parameters(), lr=lr, momentum=0.9)
        if self.make is None:
            return optimizer
        scheduler = self.make(optimizer, lr, self.base)
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        config = {"scheduler": scheduler, "interval": "epoch" if plateau else "step", "monitor": "loss"}
        return {"optimizer": optimizer, "lr_scheduler": config}


def train(
    tmp_path: Path, module: Any, *callbacks: Any, finder: bool = True, first: bool = False, **options: Any
) -> UsedLRs:
    lrs = UsedLRs()
    found = [LRFinder(num_steps=10, attribute=options.pop("attribute", None))] if finder else []
    every = [*found, *callbacks] if first else [*callbacks, *found]
    settings = {"max_epochs": 3, **options}
    ckpt = settings.pop("ckpt_path", None)
    trainer(tmp_path, [*every, lrs], settings.pop("logger", False), **settings).fit(module, loader(), ckpt_path=ckpt)
    return lrs


def close(one: UsedLRs, other: UsedLRs) -> None:
    assert len(one.used) == len(other.used) > 0
    flat = [lr for groups in other.used for lr in groups]
    assert [lr for groups in one.used for lr in groups] == pytest.approx(flat, rel=1e-12, abs=0)
    assert len(one.used[0]) == len(other.used[0])


# -- schedulers of configure_optimizers --------------------------------------------------------------------------------


def each(optimizer: torch.optim.Optimizer, lr: float) -> list[float]:
    """The lr of every group, in ratio."""
    return [group["lr"] * (lr / optimizer.defaults["lr"]) for group in optimizer.param_groups]


SCHEDULERS: dict[str, Make] = {
    "none": None,  # type: ignore[dict-item]
    "lambda": lambda o, lr, base: lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 5)),
    "multiplicative": lambda o, lr, base: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "linear": lambda o, lr, base: lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    "constant": lambda o, lr, base: lr_scheduler.ConstantLR(o, 0.1, total_iters=5),
    "polynomial": lambda o, lr, base: lr_scheduler.PolynomialLR(o, 18, power=2),
    "exponential": lambda o, lr, base: lr_scheduler.ExponentialLR(o, 0.9),
    "step": lambda o, lr, base: lr_scheduler.StepLR(o, 4, 0.5),
    "cosine": lambda o, lr, base: lr_scheduler.CosineAnnealingLR(o, 18),
    "cosine with a floor": lambda o, lr, base: lr_scheduler.CosineAnnealingLR(o, 18, eta_min=1e-3),
    "restarts": lambda o, lr, base: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "warmup and cosine": lambda o, lr, base: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.01, total_iters=5), lr_scheduler.CosineAnnealingLR(o, 13)], [5]
    ),
    "chained": lambda o, lr, base: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "onecycle": lambda o, lr, base: lr_scheduler.OneCycleLR(o, each(o, lr), total_steps=18),
    "onecycle, linear": lambda o, lr, base: lr_scheduler.OneCycleLR(
        o, each(o, lr), total_steps=19, anneal_strategy="linear", three_phase=True
    ),
    "plateau": lambda o, lr, base: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=10.0),
}


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_follows_the_found_lr(tmp_path: Path, name: str, groups: bool) -> None:
    searched = train(tmp_path, Net(groups=groups, make=SCHEDULERS[name]))
    base = FOUND / 0.9**4 if name == "chained" else FOUND  # it reaches that share of its base at most
    close(searched, train(tmp_path, Net(base, groups=groups, make=SCHEDULERS[name]), finder=False))


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_cyclic_gets_both_bounds(tmp_path: Path, mode: str, groups: bool) -> None:
    def make(optimizer: torch.optim.Optimizer, lr: float, base: float) -> Any:
        top = each(optimizer, lr)
        bottom = [base * (high / lr) for high in top]
        return lr_scheduler.CyclicLR(optimizer, bottom, top, step_size_up=4, mode=mode, gamma=0.9)  # type: ignore[arg-type]

    searched = train(tmp_path, Net(groups=groups, make=make))
    close(searched, train(tmp_path, Net(MAX, BASE, groups, make), finder=False))


def test_a_scheduler_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    class Own:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

        def step(self) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None: ...

    class Steps(Net):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            scheduler.step()

    with pytest.warns(UserWarning, match=r"It is not known where Own keeps its learning rates.*0\.05.*0\.3"):
        train(tmp_path, Steps(make=lambda o, lr, base: Own(o)))


# -- LRSchedule --------------------------------------------------------------------------------------------------------


SCHEDULES: dict[str, tuple[Schedule, float, float | None]] = {
    "cosine": (Warmup(3, Cosine()), FOUND, None),
    "constant": (Constant(), FOUND, None),
    "triangular": (Triangular(0.2, 6), MAX, BASE / MAX),
    "triangular, nested": (Join((Triangular(0.2, 6), 12), (Cosine(), None)), MAX, BASE / MAX),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_our_schedule_follows_the_found_lr(tmp_path: Path, name: str, groups: bool, first: bool) -> None:
    schedule, lr, base = SCHEDULES[name]
    searched = train(tmp_path, Net(groups=groups), LRSchedule(schedule), first=first)
    configured = schedule if base is None else schedule.with_base(base)
    close(searched, train(tmp_path, Net(lr, groups=groups), LRSchedule(configured), finder=False))


def test_a_triangle_begins_and_ends_at_the_bounds(tmp_path: Path) -> None:
    used = [lr for (lr,) in train(tmp_path, Net(), LRSchedule(Triangular(0.2, 9))).used]
    assert used[0] == pytest.approx(BASE)
    assert max(used) == pytest.approx(MAX)


def test_bounds_are_forgotten_in_another_fit(tmp_path: Path) -> None:
    callback = LRSchedule(Triangular(0.2, 6), groups={0: Triangular(0.5, 6)})
    given = (callback.schedule, dict(callback.groups))
    train(tmp_path, Net(), callback)
    assert callback.state_dict()["base"] == BASE / MAX
    assert callback.groups[0].with_base(0.1) == given[1][0].with_base(0.1)
    assert callback.groups[0] != given[1][0]
    train(tmp_path, Net(), callback, finder=False)
    assert (callback.schedule, callback.groups, callback.state_dict()["base"]) == (*given, None)


# -- the optimizer, the module, the hyperparameters --------------------------------------------------------------------


class Looks(Callback):
    """What the run was given, when training starts."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        self.groups = [dict(group, params=None) for group in optimizer.param_groups]
        self.default = optimizer.defaults["lr"]


@pytest.mark.parametrize("groups", [False, True])
def test_groups_and_defaults(tmp_path: Path, groups: bool) -> None:
    looks = Looks()
    train(tmp_path, Net(groups=groups), looks)
    expected = [FOUND / 10, FOUND] if groups else [FOUND]
    assert [group["lr"] for group in looks.groups] == pytest.approx(expected, rel=1e-12)
    assert [group["initial_lr"] for group in looks.groups] == pytest.approx(expected, rel=1e-12)
    assert looks.groups[-1]["lr"] == FOUND
    assert looks.default == FOUND


class Named(Net):
    """Its lr has another name."""

    def __init__(self, place: str, lr: float = CONFIGURED) -> None:
        LightningModule.__init__(self)
        self.one, self.two, self.groups, self.make = nn.Linear(4, 4), nn.Linear(4, 2), False, None
        self.place, self.base = place, 0.0
        if place in ("hparams.lr", "hparams.learning_rate"):
            self.hparams[place.split(".")[1]] = lr
            self._set_hparams(dict(self.hparams))
            self._hparams_initial = type(self.hparams)(**self.hparams)
        elif place == "hparams.optim.rate":
            self._set_hparams({"optim": {"rate": lr}})
            self._hparams_initial = type(self.hparams)(optim={"rate": lr})
        elif place == "config.rate":
            self.config = nn.Module()
            self.config.rate = lr
        else:
            setattr(self, place, lr)

    def configured_lr(self) -> float:
        value: Any = self
        for part in self.place.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        return value


@pytest.mark.parametrize(
    ("place", "attribute"),
    [
        ("lr", None),
        ("learning_rate", None),
        ("my_lr", "my_lr"),
        ("config.rate", "config.rate"),
        ("hparams.lr", None),
        ("hparams.learning_rate", None),
        ("hparams.optim.rate", "optim.rate"),
    ],
)
def test_the_modules_own_lr(tmp_path: Path, place: str, attribute: str | None) -> None:
    module = Named(place)
    train(tmp_path, module, attribute=attribute)
    assert module.configured_lr() == FOUND
    if place.startswith("hparams"):
        initial = module.hparams_initial
        assert (initial["optim"]["rate"] if "optim" in initial else initial[place.split(".")[1]]) == FOUND


def test_another_number_of_the_module_is_left_alone(tmp_path: Path) -> None:
    module = Net()
    module.my_lr, module.max_lr = CONFIGURED, CONFIGURED
    train(tmp_path, module)
    assert (module.my_lr, module.max_lr, module.lr) == (CONFIGURED, CONFIGURED, FOUND)


class Hyperparameters(Memory):
    def __init__(self) -> None:
        super().__init__()
        self.given: list[dict[str, Any]] = []

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.given.append(dict(params))


def test_the_logged_hyperparameters_are_the_found_ones(tmp_path: Path) -> None:
    logger, module = Hyperparameters(), Net()
    train(tmp_path, module, logger=logger)
    logged = {key: value for given in logger.given for key, value in given.items()}
    assert logged["lr"] == FOUND
    assert logged["lr_finder.lr"] == FOUND
    assert not [given for given in logger.given if given.get("lr") == CONFIGURED]
    assert (module.hparams["lr"], module.hparams_initial["lr"]) == (FOUND, FOUND)


def test_a_tensor_lr_is_filled(tmp_path: Path) -> None:
    class Tensors(Net):
        def configure_optimizers(self) -> Any:
            self.shared = torch.tensor(self.lr, dtype=torch.float64)
            parts = [{"params": self.one.parameters()}, {"params": self.two.parameters()}]
            return torch.optim.AdamW(parts, lr=self.shared, foreach=False)

    module, looks = Tensors(), Looks()
    lrs = train(tmp_path, module, looks)
    assert looks.groups[0]["lr"] is module.shared
    assert lrs.used == [[FOUND, FOUND]] * 18


@pytest.mark.parametrize("where", [{"apply": False}, {"at_epochs": [0, 1]}], ids=str)
def test_nothing_is_applied_unasked(tmp_path: Path, where: dict[str, Any]) -> None:
    module, logger, lrs = Net(make=SCHEDULERS["cosine"]), Hyperparameters(), UsedLRs()
    finder = LRFinder(num_steps=10, **where)
    trainer(tmp_path, [finder, lrs], logger, max_epochs=3).fit(module, loader())
    close(lrs, train(tmp_path, Net(make=SCHEDULERS["cosine"]), finder=False))
    assert (module.lr, module.hparams["lr"], finder.applied_lr) == (CONFIGURED, CONFIGURED, None)
    assert not [given for given in logger.given if "lr_finder.lr" in given]
    expected = [("lr_finder/lr", step, FOUND) for step in (0, 6)] if where != {"apply": False} else []
    assert [row for row in logger.rows if row[0] == "lr_finder/lr"] == expected


def test_without_a_suggestion_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"suggestion": None, "cycle_base_lr": None, "cycle_max_lr": None}.items():
        monkeypatch.setattr(RangeTest, name, property(lambda self, value=value: value))
    monkeypatch.setattr(RangeTest, "describe", lambda self: "no suggestion: Wait.")
    module, logger = Net(make=SCHEDULERS["onecycle"]), Hyperparameters()
    with pytest.warns(UserWarning, match=r"LRFinder: no suggestion: Wait\. The configured lr is kept\."):
        lrs = train(tmp_path, module, logger=logger)
    assert lrs.used == train(tmp_path, Net(make=SCHEDULERS["onecycle"]), finder=False).used
    assert (module.lr, module.hparams["lr"]) == (CONFIGURED, CONFIGURED)
    assert not [given for given in logger.given if "lr_finder.lr" in given]


# -- kill and resume ---------------------------------------------------------------------------------------------------


class Dies(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


class Late(Callback):
    """Add a group without its own lr in the last epoch: it gets the optimizer's default."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            trainer.optimizers[0].add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


RESUMED: dict[str, tuple[Make | None, Callable[[], list[Any]]]] = {
    "plain": (None, list),
    "late group": (None, lambda: [Late()]),
    "warmup and cosine": (SCHEDULERS["warmup and cosine"], list),
    "lambda": (SCHEDULERS["lambda"], list),
    "onecycle": (SCHEDULERS["onecycle"], list),
    "cyclic": (lambda o, lr, base: lr_scheduler.CyclicLR(o, base, lr, step_size_up=4), list),
    "our schedule": (None, lambda: [LRSchedule(Warmup(3, Cosine()))]),
    "triangular": (None, lambda: [LRSchedule(Triangular(0.2, 8))]),
}


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_resumes_with_the_found_lr(tmp_path: Path, name: str, again: bool) -> None:
    make, callbacks = RESUMED[name]
    whole = train(tmp_path / "whole", Net(make=make), *callbacks())
    save = ModelCheckpoint(tmp_path, every_n_train_steps=6, save_top_k=-1)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, Net(make=make), *callbacks(), save, Dies(8), enable_checkpointing=True)
    (path,) = tmp_path.glob("*.ckpt")
    module = Net(make=make)
    resumed = train(tmp_path, module, *callbacks(), finder=again, ckpt_path=path)
    if name == "late group" and not again:
        assert [used[0] for used in resumed.used] == [used[0] for used in whole.used[6:]]
    else:
        assert resumed.used == whole.used[6:]
    top = MAX if name in ("cyclic", "triangular") else FOUND
    assert module.lr == (top if again else CONFIGURED)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["lr"] == top
    assert Net.load_from_checkpoint(path).lr == top


def test_a_resumed_finder_has_its_results(tmp_path: Path) -> None:
    first, second = LRFinder(num_steps=10), LRFinder(num_steps=10)
    run = trainer(tmp_path, [first], max_epochs=1)
    run.fit(Net(), loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    trainer(tmp_path, [second], max_epochs=2).fit(Net(), loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert second.result == first.result
    assert second.applied_lr == FOUND
    third = LRFinder(num_steps=10)
    trainer(tmp_path, [third], max_epochs=1).fit(Net(), loader())
    third.setup(run, Net(), "fit")
    assert (third.result, third.applied_lr) == (None, None)


def test_a_finder_for_the_start_and_one_for_later(tmp_path: Path) -> None:
    start, middle = LRFinder(num_steps=10), LRFinder(num_steps=10, at_epochs=[1])
    save = ModelCheckpoint(tmp_path, save_last=True)
    module = Net()
    run = trainer(tmp_path, [start, middle, save], max_epochs=2, enable_checkpointing=True)
    run.fit(module, loader())
    assert (list(start.results), list(middle.results), module.lr) == ([0], [1], FOUND)


# -- other people's modules --------------------------------------------------------------------------------------------


class Property(BoringModel):
    """Its lr is a property that cannot be set."""

    @property
    def lr(self) -> float:
        return float(self.optimizers().param_groups[0]["lr"])


def test_an_lr_that_is_a_property(tmp_path: Path) -> None:
    module, looks = Property(), Looks()
    trainer(tmp_path, [LRFinder(num_steps=10), looks], max_epochs=1, limit_train_batches=4).fit(module)
    assert looks.groups[0]["initial_lr"] == FOUND


def test_no_warning_of_a_scheduler_that_steps_first(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        train(tmp_path, Net(make=SCHEDULERS["cosine"]))
    assert not [w for w in noted if "optimizer.step()" in str(w.message)]


MULTIPLIED: dict[str, tuple[Make, float]] = {
    "Noam, from 1": (
        lambda o, lr, base: lr_scheduler.LambdaLR(o, lambda n: 0.1 * min((n + 1) / 4, 2 / (n + 1) ** 0.5)),
        1,
    ),
    "LambdaLR, up to 10": (lambda o, lr, base: lr_scheduler.LambdaLR(o, lambda n: 10.0 * (1 - n / 20)), 1),
    "MultiplicativeLR": (lambda o, lr, base: lr_scheduler.MultiplicativeLR(o, lambda n: 2.0 if n < 5 else 0.5), 1),
    "SequentialLR": (
        lambda o, lr, base: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 4), lr_scheduler.LambdaLR(o, lambda n: 3.0)], [4]
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", MULTIPLIED)
@pytest.mark.parametrize("groups", [False, True])
def test_the_peak_that_a_scheduler_makes_is_the_one_that_was_found(tmp_path: Path, name: str, groups: bool) -> None:
    module = Net(groups=groups, make=MULTIPLIED[name][0])
    lrs = train(tmp_path, module, max_epochs=2)
    assert max(group[-1] for group in lrs.used) == pytest.approx(FOUND)
    first = tiny_resume(tmp_path, module, name, groups)
    torch.testing.assert_close(torch.tensor(first), torch.tensor(lrs.used[-6:]))


def tiny_resume(tmp_path: Path, module: Net, name: str, groups: bool) -> list[list[float]]:
    """Train the same in two halves; return the learning rates of the second one."""
    options = {"max_epochs": 1}
    finder, path = LRFinder(num_steps=10), tmp_path / "half.ckpt"
    start = trainer(tmp_path, [finder], **options)
    start.fit(Net(groups=groups, make=MULTIPLIED[name][0]), loader())
    start.save_checkpoint(path)
    again, lrs = Net(groups=groups, make=MULTIPLIED[name][0]), UsedLRs()
    trainer(tmp_path, [LRFinder(num_steps=10), lrs], max_epochs=2).fit(again, loader(), ckpt_path=path)
    assert again.lr == pytest.approx(module.lr)
    return lrs.used


@pytest.mark.parametrize("kind", ["outside", "warmup"])
def test_a_scheduler_whose_peak_is_not_known_is_named(tmp_path: Path, kind: str) -> None:
    class Reads(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
            scale = (lambda n: (self.global_step + 1) / 12) if kind == "outside" else (lambda n: (n + 1) / 1000)
            return [optimizer], [{"scheduler": lr_scheduler.LambdaLR(optimizer, scale), "interval": "step"}]

    with pytest.warns(UserWarning, match="LambdaLR may change this lr, and the finder cannot tell by what factor"):
        train(tmp_path, Reads(), max_epochs=2)


class Frozen:
    """Settings that cannot be written, and raise a KeyError for what they do not have."""

    def __init__(self, **values: Any) -> None:
        self.__dict__["values"] = values

    def __getattr__(self, key: str) -> Any:
        return self.__dict__["values"][key]

    def __setattr__(self, key: str, value: Any) -> None:
        raise TypeError("read-only")


def test_settings_that_are_read_only_keep_their_lr_and_are_named(tmp_path: Path) -> None:
    class Configured(Net):
        def __init__(self) -> None:
            super().__init__()
            self.cfg = Frozen(lr=CONFIGURED)
            del self.lr

        def configured_lr(self) -> float:
            lr: float = self.cfg.lr
            return lr

    module = Configured()
    with pytest.warns(UserWarning, match=r"Frozen.lr cannot be changed from 0.05 to the found lr"):
        lrs = train(tmp_path, module, attribute="cfg.lr")
    assert lrs.used[0] == [FOUND]
    assert module.cfg.lr == CONFIGURED


class Prodigy(torch.optim.SGD):
    """Has an estimate of the step size, as Prodigy and D-Adaptation."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=1.0)
        self.param_groups[0]["d"] = 1e-6


def _none(parameters: Any) -> torch.optim.Optimizer:
    made = torch.optim.SGD(parameters, lr=0.1)
    made.param_groups[0]["lr"] = None
    return made


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Prodigy, "cannot test the lr of Prodigy, which multiplies it by its own estimate of the right step size."),
        (_none, "works with an optimizer that has an lr, but SGD has lr=None and chooses its own learning rate."),
        (lambda parameters: None, "there is no optimizer"),
    ],
)
def test_an_optimizer_whose_lr_cannot_be_tested_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    module = Net()
    module.configure_optimizers = lambda: make(module.parameters())  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=message):
        train(tmp_path, module)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda: LRSchedule(Cosine()), "would both set the lr"),
        (lambda: LRSchedule(Warmup(1000, Cosine()), replace=True), "Warmup: 1000"),
        (lambda: LRSchedule(Cosine(), momentum=Constant(), replace=True), "momentum"),
    ],
)
def test_refusals_come_before_the_measurement(tmp_path: Path, first: bool, schedule: Any, message: str) -> None:
    steps: list[int] = []

    class Counts(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            steps.append(batch_idx)
            return super().training_step(batch, batch_idx)

    module = Counts(make=lambda o, lr, base: lr_scheduler.StepLR(o, 1))
    with pytest.raises(ValueError, match=message):
        train(tmp_path, module, schedule(), first=first)
    assert len(steps) == 0 or message == "momentum"
