"""The probe measures as the validation does, the verdict follows, and the run is left as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch import callbacks as lightnings
from lightning.pytorch.callbacks import Callback, EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error

from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.schedule_free import ScheduleFreeMode
from lr_lightning.callbacks.step_recorder import StepRecorder
from lr_lightning.errors import Diverged
from tests.callbacks.tiny import Memory, Tiny, X, Y, loader, trainer


class Counting(Tiny):
    """Counts the examples that go through the network in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.evaluated = 0

    def forward(self, x: Tensor) -> Tensor:
        self.evaluated += 0 if self.training else len(x)
        return super().forward(x)


def _fit(tmp_path: Path, *callbacks: Any, make: Any = Tiny, **options: Any) -> tuple[Any, Memory]:
    seed_everything(5, verbose=False)
    module, memory = make(), Memory()
    trainer(tmp_path, list(callbacks), memory, **options).fit(module, loader(), loader(20))
    return module, memory


def _equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(one.state_dict()[key], other.state_dict()[key]) for key in one.state_dict())


@pytest.mark.parametrize(
    ("options", "others"),
    [
        ({}, ()),
        ({"accumulate_grad_batches": 4}, ()),
        ({"max_epochs": 4}, (lambda: BatchSizeSchedule(("50%",), 2),)),
        ({"max_epochs": 3}, (lambda: GradientAccumulationScheduler({1: 2}),)),
    ],
    ids=["plain", "accumulation", "batch growth", "changing accumulation"],
)
def test_the_run_is_the_same_with_and_without(tmp_path: Path, options: Any, others: Any) -> None:
    class Draws(OverfittingMonitor):
        """A loss that draws random numbers, as a module with sampling would."""

        def __init__(self) -> None:
            super().__init__(
                loss=lambda module, batch: cross_entropy(module(batch[0]), batch[1], reduction="none") + torch.rand(1)
            )

    plain, _ = _fit(tmp_path, *(make() for make in others), **options)
    for monitor in (OverfittingMonitor(), Draws()):
        watched, memory = _fit(tmp_path, monitor, *(make() for make in others), **options)
        assert _equal(plain, watched)
        assert plain.losses == watched.losses
        assert len(memory.of("overfit/gap_loss")) == options.get("max_epochs", 2)


def test_the_run_is_the_same_with_a_schedule_free_optimizer(tmp_path: Path) -> None:
    schedulefree = pytest.importorskip("schedulefree")

    class Free(Tiny):
        def configure_optimizers(self) -> Any:
            return schedulefree.SGDScheduleFree(self.parameters(), lr=0.1)

    plain, _ = _fit(tmp_path, ScheduleFreeMode(), make=Free)
    for order in (1, -1):
        callbacks = [ScheduleFreeMode(), OverfittingMonitor(probe=[(X, Y)])]
        watched, memory = _fit(tmp_path, *callbacks[::order], make=Free)
        assert _equal(plain, watched)
        watched.eval()
        with torch.no_grad():
            loss = cross_entropy(watched(X), Y).item()
        assert memory.of("probe/loss")[-1][1] == pytest.approx(loss, rel=1e-5)  # that of the averaged weights


def test_values_are_those_of_the_probe_in_eval_mode_with_the_same_weights(tmp_path: Path) -> None:
    probe = [(X[:7], Y[:7]), (X[7:10], Y[7:10])]
    monitor = OverfittingMonitor(probe=probe)
    module, memory = _fit(tmp_path, monitor)
    module.eval()
    with torch.no_grad():
        logits, val = module(X[:10]), module(X)
    (step, loss), (_, acc) = memory.of("probe/loss")[-1], memory.of("probe/acc")[-1]
    assert step == 11
    assert loss == pytest.approx(cross_entropy(logits, Y[:10]).item(), rel=1e-6)
    assert acc == pytest.approx((logits.argmax(1) == Y[:10]).float().mean().item())
    assert memory.of("overfit/gap_loss")[-1][1] == pytest.approx(memory.of("val/loss")[-1][1] - loss, abs=1e-6)
    assert memory.of("overfit/gap_acc")[-1][1] == pytest.approx(acc - memory.of("val/acc")[-1][1], abs=1e-6)
    ece = multiclass_calibration_error(val, Y, num_classes=2, n_bins=15).item()
    assert memory.of("overfit/ece")[-1][1] == pytest.approx(ece, abs=1e-6)
    assert {"overfit/gl", "overfit/temperature", "overfit/gap_loss_scaled", "overfit/overconfident"} <= {
        key for key, _, _ in memory.rows
    }
    point = monitor.history.points[-1]
    assert point.val_losses == pytest.approx(cross_entropy(val, Y, reduction="none").numpy(), abs=1e-6)
    assert (point.epoch, point.step, point.lr, point.val_size) == (2.0, 12, 0.1, 60)
    assert monitor.history.chance == pytest.approx(0.69, abs=0.01)


def test_it_costs_its_probe_pass_and_no_more(tmp_path: Path) -> None:
    plain, _ = _fit(tmp_path, make=Counting, num_sanity_val_steps=0)
    watched, _ = _fit(tmp_path, OverfittingMonitor(probe=[(X[:7], Y[:7])]), make=Counting, num_sanity_val_steps=0)
    assert plain.evaluated == 2 * 60
    assert watched.evaluated == 2 * 60 + 2 * 7 + 7  # and a batch before the first update


@pytest.mark.parametrize("step", ["forward", "child", "flattened"])
def test_the_validation_losses_come_from_the_validation_step(tmp_path: Path, step: str) -> None:
    class Body(nn.Linear):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 0 if self.training else 1
            return super().forward(x)

    class Own(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = Body(4, 8), nn.Linear(8, 2)  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.net(x.flatten(1)))
            return logits

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if step == "forward":
                self.forward(batch[0])  # past the module's __call__, and so past its hooks
            elif step == "child":
                self.head(self.net(batch[0].flatten(1)))
            else:
                self(batch[0].view(-1, 4))

    monitor = OverfittingMonitor(probe=[(X[:5], Y[:5])])
    module, _ = _fit(tmp_path, monitor, make=Own, max_epochs=1, num_sanity_val_steps=0)
    assert module.net.passes == 3 + 1 + 1
    module.eval()
    with torch.no_grad():
        expected = cross_entropy(module(X), Y, reduction="none").numpy()
    assert monitor.history.points[-1].val_losses == pytest.approx(expected, abs=1e-6)


def test_a_validation_step_that_computes_otherwise_is_told_and_its_val_loss_taken(tmp_path: Path) -> None:
    class Otherwise(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", cross_entropy(self.net[3](self.net[2](self.net[1](self.net[0](batch[0])))), batch[1]))

    with pytest.warns(UserWarning, match=r"does not call the module as loss= does. It takes val/loss"):
        _, memory = _fit(tmp_path, OverfittingMonitor(), make=Otherwise)
    gap = memory.of("val/loss")[-1][1] - memory.of("probe/loss")[-1][1]
    assert memory.of("overfit/gap_loss")[-1][1] == pytest.approx(gap, abs=1e-6)


def test_it_works_where_the_validation_step_returns_and_logs_nothing(tmp_path: Path) -> None:
    class Silent(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    class Empty(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    _, memory = _fit(tmp_path, OverfittingMonitor(), make=Silent)
    assert len(memory.of("overfit/gap_loss")) == 2
    with pytest.warns(UserWarning, match="a second time"):
        _, other = _fit(tmp_path, OverfittingMonitor(), make=Empty)
    assert other.of("overfit/gap_loss") == memory.of("overfit/gap_loss")


def test_the_modules_own_loss_of_each_example(tmp_path: Path) -> None:
    class Regression(Tiny):
        def per_example_loss(self, batch: Any) -> Tensor:
            return mse_loss(self(batch[0])[:, 0], batch[1].float(), reduction="none")

    _, memory = _fit(tmp_path, OverfittingMonitor(), make=Regression)
    assert len(memory.of("overfit/gap_loss")) == 2
    assert memory.of("probe/acc") == memory.of("overfit/ece") == []


def test_the_default_probe_is_stratified_and_as_large_as_the_validation_set(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def loss(module: Any, batch: Any) -> Tensor:
        seen.append(batch[1])
        return cross_entropy(module(batch[0]), batch[1], reduction="none")

    seed_everything(5, verbose=False)
    fit = trainer(tmp_path, [OverfittingMonitor(loss=loss)], max_epochs=1, num_sanity_val_steps=0)
    fit.fit(Tiny(), loader(), DataLoader(TensorDataset(X[:20], Y[:20]), batch_size=20))
    assert torch.equal(seen[1], Y[:20])  # the first is a batch before the first update
    labels = torch.cat(seen[2:])
    assert len(labels) == 20
    assert labels.sum().item() == pytest.approx(20 * Y.float().mean().item(), abs=1)


@pytest.mark.parametrize("name", ["gl", "pq", "up", "ece", "temperature", "gap_acc", "gap_loss_scaled"])
def test_everything_can_be_monitored_from_the_first_validation_on(tmp_path: Path, name: str) -> None:
    _, memory = _fit(tmp_path, OverfittingMonitor(), EarlyStopping(f"overfit/{name}", patience=9), max_epochs=7)
    assert len(memory.of(f"overfit/{name}")) == 7


@pytest.mark.parametrize("order", [1, -1])
def test_early_stopping_and_checkpoints_may_monitor_it_in_any_order(tmp_path: Path, order: int) -> None:
    stop = EarlyStopping("overfit/gap_loss", mode="min", patience=1, min_delta=1e9)
    best = ModelCheckpoint(tmp_path, monitor="overfit/gl", save_top_k=1)
    callbacks: list[Callback] = [OverfittingMonitor(), stop, best]
    _, memory = _fit(tmp_path, *callbacks[::order], max_epochs=10, enable_checkpointing=True)
    assert len(memory.of("overfit/gap_loss")) == 2  # the first is the best, the second is one too many
    assert best.best_model_score is not None


def test_every_second_validation(tmp_path: Path) -> None:
    _, memory = _fit(tmp_path, OverfittingMonitor(every_n_validations=2), max_epochs=5)
    assert [step for step, _ in memory.of("probe/loss")] == [5, 17, 29]


def test_a_resumed_run_has_the_history_of_one_that_never_stopped(tmp_path: Path) -> None:
    def history(*runs: int) -> tuple[Any, ...]:
        monitor = OverfittingMonitor()
        for epochs in runs:
            monitor = OverfittingMonitor()
            seed_everything(5, verbose=False)
            fit = trainer(tmp_path, [monitor], max_epochs=epochs)
            first = epochs == runs[0]
            fit.fit(Tiny(dropout=0.0), loader(), loader(20), ckpt_path=None if first else tmp_path / "a.ckpt")
            fit.save_checkpoint(tmp_path / "a.ckpt")
        assert torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
        return (
            tuple((p.step, p.val_loss, p.probe_loss, p.val_losses.tolist()) for p in monitor.history.points),  # type: ignore[union-attr]
            monitor.history.start,
            monitor.verdict,
        )

    assert history(2, 5) == history(5)


def test_the_verdict_at_the_end_goes_to_the_loggers(tmp_path: Path) -> None:
    class Tags(Memory):
        def __init__(self) -> None:
            super().__init__()
            self.kept: dict[str, Any] = {}

        def set_tags(self, tags: Any) -> None:
            self.kept |= tags

        def log_note(self, text: str) -> None:
            self.kept["note"] = text

        def log_text(self, text: str, artifact_file: str) -> None:
            self.kept[artifact_file] = text

        def log_figure(self, figure: Any, artifact_file: str) -> None:
            self.kept[artifact_file] = figure

    monitor, logger = OverfittingMonitor(), Tags()
    seed_everything(5, verbose=False)
    trainer(tmp_path, [monitor], logger, max_epochs=30).fit(Tiny(dropout=0.0), loader(), loader(20))
    assert monitor.verdict.label == "healthy"
    assert logger.kept["verdict"] == "healthy"
    assert logger.kept["note"].startswith("verdict: healthy")
    assert not any(name.startswith("mlflow.") for name in logger.kept)
    assert {"verdict.png", "verdict.txt"} <= logger.kept.keys()


def test_a_run_that_ends_in_a_divergence_has_that_verdict(tmp_path: Path) -> None:
    monitor = OverfittingMonitor()
    with pytest.raises(Diverged):
        _fit(tmp_path, monitor, StepRecorder(), make=lambda: Tiny(lr=1e38))
    assert monitor.verdict.label == "diverged"
    assert monitor.verdict.advice


def test_a_loss_that_does_not_fit_is_told_before_the_first_step(tmp_path: Path) -> None:
    module = Tiny()
    monitor = OverfittingMonitor(loss=lambda m, b: cross_entropy(m(b[0]), b[1]))
    for options in ({}, {"num_sanity_val_steps": 0}):
        with pytest.raises(ValueError, match=r"one loss for each example, shape \[batch\], got \(\)"):
            _fit(tmp_path, monitor, make=lambda: module, **options)
    assert module.losses == []


class Ema(Callback):
    """Validates with other weights, as Lightning's EMAWeightAveraging does, from one epoch hook to the other."""

    def on_validation_epoch_start(self, trainer: Any, pl_module: LightningModule) -> None:
        with torch.no_grad():
            pl_module.net[3].weight.mul_(0.5)  # type: ignore[operator, index]

    def on_validation_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
        with torch.no_grad():
            pl_module.net[3].weight.mul_(2.0)  # type: ignore[operator, index]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("other", [Ema, lambda: lightnings.EMAWeightAveraging(decay=0.9)])
def test_probe_and_validation_have_the_same_weights_whatever_swaps_them(tmp_path: Path, other: Any, order: int) -> None:
    if other is not Ema and not hasattr(lightnings, "EMAWeightAveraging"):
        pytest.skip("Lightning has it since 2.6")
    _, memory = _fit(tmp_path, *[OverfittingMonitor(probe=loader(20)), other()][::order], max_epochs=3)
    assert memory.of("overfit/gap_loss") == [(step, pytest.approx(0, abs=1e-6)) for step in (5, 11, 17)]


def test_without_a_validation_nothing_is_done(tmp_path: Path) -> None:
    module, memory = _fit(tmp_path, OverfittingMonitor(), make=Counting, limit_val_batches=0)
    assert (module.evaluated, memory.of("probe/loss")) == (0, [])


def test_the_verdict_is_printed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("lr_lightning.callbacks.overfitting.rank_zero_info", lines.append)
    _fit(tmp_path, OverfittingMonitor(), max_epochs=2)
    assert lines == ["OverfittingMonitor: verdict: inconclusive (2 validations are too few, 4 are needed)"]


def test_a_failure_in_mid_run_ends_the_measurements_and_not_the_run(tmp_path: Path) -> None:
    class Later(Tiny):
        def per_example_loss(self, batch: Any) -> Tensor:
            if self.trainer.current_epoch == 2:
                raise RuntimeError("no more")
            return cross_entropy(self(batch[0]), batch[1], reduction="none")

    with pytest.warns(
        UserWarning, match=r"OverfittingMonitor measures no longer: its loss fails \(RuntimeError: no more"
    ):
        module, memory = _fit(tmp_path, OverfittingMonitor(), make=Later, max_epochs=4)
    assert len(module.losses) == 4 * 6
    assert len(memory.of("probe/loss")) == 2


@pytest.mark.parametrize("argument", ["every_n_validations", "keep"])
def test_bad_argument(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be a whole number >= 1, got 0"):
        OverfittingMonitor(**{argument: 0})


def test_a_probe_that_is_used_up_by_one_pass_is_refused() -> None:
    for used_up in (iter([(X, Y)]), (batch for batch in loader()), 3):
        with pytest.raises(ValueError, match=r"probe must be batches that can be iterated again, .* got a "):
            OverfittingMonitor(probe=used_up)  # type: ignore[arg-type]
