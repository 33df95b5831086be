"""CooldownPreview in a real Trainer: what it logs, and that the run does not change."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from lr_lightning.callbacks import batch_norm
from lr_lightning.callbacks.cooldown_preview import CooldownPreview, RunningAverage
from lr_lightning.callbacks.early_stopping import ScheduleAwareStopping
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.random_state import RandomState
from lr_lightning.errors import ArgumentError
from tests.callbacks.tiny import QUIET, Memory, Tiny, X, Y

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(does not have many workers|The number of training batches).*"),
]


class Weights(Callback):
    """Notes the weights after each update."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.seen.append({name: value.detach().clone() for name, value in pl_module.named_parameters()})


def tiny() -> Tiny:
    seed_everything(3, verbose=False)
    return Tiny()


def loaders() -> list[DataLoader[Any]]:
    data = TensorDataset(X, Y)
    return [DataLoader(data, batch_size=20, shuffle=True), DataLoader(data, batch_size=30)]


def fit(*callbacks: Callback, module: LightningModule | None = None, epochs: int = 4, **options: Any) -> Trainer:
    seed_everything(3, verbose=False)
    module = module or tiny()
    checkpoint = options.pop("ckpt_path", None)
    trainer = Trainer(**{**QUIET, "max_epochs": epochs, "callbacks": list(callbacks), **options})
    trainer.fit(module, *loaders(), ckpt_path=checkpoint)
    return trainer


def equal(a: LightningModule, b: LightningModule) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


class TestRunningAverage:
    def test_it_equals_the_weighted_sum_of_its_definition(self) -> None:
        values = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        average = RunningAverage([("w", values[0])], share=0.1)
        expected = values[0]
        for t, value in enumerate(values, 1):
            average.update([("w", value)])
            keep = 2 ** (-1 / (0.1 * t))
            expected = keep * expected + (1 - keep) * value
        assert torch.allclose(average.values["w"], expected, rtol=1e-12)

    def test_the_last_share_of_the_run_weighs_about_as_much_as_all_before_it(self) -> None:
        for length in (200, 2000):
            average = RunningAverage([("w", torch.zeros(1, dtype=torch.float64))], share=0.06)
            for step in range(length):
                average.update([("w", torch.full((1,), float(step >= length * (1 - 0.06)), dtype=torch.float64))])
            assert average.values["w"].item() == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize("share", [0, -1, float("nan")])
    def test_a_share_must_be_positive(self, share: float) -> None:
        with pytest.raises(ArgumentError, match="share must be > 0"):
            CooldownPreview(share=share)


class Recorder(Callback):
    """Notes the previews."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seen.append({k: float(v) for k, v in trainer.callback_metrics.items() if "cooled" in k})


@pytest.mark.parametrize("others", [[], [OverfittingMonitor]], ids=["alone", "beside OverfittingMonitor"])
def test_the_run_is_bit_equal_with_and_without_it(others: list[type[Callback]]) -> None:
    plain, watched = tiny(), tiny()
    fit(*(other() for other in others), module=plain)
    fit(CooldownPreview(), *(other() for other in others), module=watched)
    assert equal(plain, watched)
    assert plain.losses == watched.losses


def test_it_logs_the_loss_of_the_averaged_weights_with_fresh_batch_norm_statistics() -> None:
    weights, preview, seen = Weights(), CooldownPreview(num_batches=3), Recorder()
    module = tiny()
    trainer = fit(weights, preview, seen, module=module, epochs=3)
    average = RunningAverage(weights.seen[0].items(), 0.06)
    average.values = {name: value.clone() for name, value in tiny().named_parameters()}  # replaced at the first update
    for values in weights.seen:
        average.update(values.items())
    for name, value in preview.averaged.items():
        assert torch.allclose(value, average.values[name], atol=1e-6), name
    # by hand: the average in a net in eval mode, statistics as plain means over all training examples' batches
    other = Tiny()
    other.load_state_dict(average.values, strict=False)
    norm = other.net[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.reset_running_stats()
    norm.momentum = None
    other.eval()
    norm.train()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for part in order.split(20):
            other(X[part])
        norm.eval()
        logits = other(X)
    assert seen.seen[-1]["val/loss_if_cooled"] == pytest.approx(float(cross_entropy(logits, Y)), rel=1e-5)
    assert seen.seen[-1]["val/acc_if_cooled"] == pytest.approx(float((logits.argmax(1) == Y).float().mean()))
    assert len(seen.seen) == 3
    assert trainer.callback_metrics["val/loss_if_cooled"] != trainer.callback_metrics["val/loss"]


@pytest.mark.parametrize("order", [0, 1])
def test_early_stopping_and_checkpoints_may_monitor_it_in_any_order(order: int, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="val/loss_if_cooled", filename="best")
    callbacks = [CooldownPreview(), EarlyStopping("val/loss_if_cooled", patience=1, min_delta=9.0), best]
    trainer = fit(*callbacks[:: 1 if order else -1], epochs=6, enable_checkpointing=True)
    assert trainer.current_epoch == 2  # no preview is better by 9
    assert (tmp_path / "best.ckpt").exists()


def test_a_resumed_run_shows_the_same_previews(tmp_path: Path) -> None:
    def parts() -> list[Callback]:
        return [CooldownPreview(), RandomState(), Recorder()]

    whole, first, second = parts(), parts(), parts()
    fit(*whole, epochs=5)
    fit(*first, ModelCheckpoint(tmp_path, filename="half", save_last=False), epochs=2, enable_checkpointing=True)
    path = tmp_path / "half.ckpt"
    torch.load(path, weights_only=True)  # plain values and tensors only
    fit(*second, epochs=5, ckpt_path=str(path))
    assert [*first[2].seen, *second[2].seen] == whole[2].seen  # type: ignore[attr-defined]


def test_accumulation_counts_updates() -> None:
    preview = CooldownPreview()
    fit(preview, epochs=4, accumulate_grad_batches=3)
    assert preview._average is not None
    assert preview._average.updates == 4


def test_frozen_layers_and_host_memory() -> None:
    module = tiny()
    module.net[0].requires_grad_(False)
    module.net[1].eval()
    preview = CooldownPreview(device="cpu")
    fit(preview, module=module)
    assert torch.equal(preview.averaged["net.0.weight"], module.net[0].weight)
    assert preview.averaged["net.3.weight"].device.type == "cpu"


def test_a_loss_that_cannot_be_computed_is_one_warning_and_the_run_goes_on() -> None:
    def broken(module: LightningModule, batch: Any) -> Tensor:
        raise KeyError("labels")

    module, seen = tiny(), Recorder()
    with pytest.warns(UserWarning, match=r"CooldownPreview evaluates nothing.*labels.*loss=lambda module") as warned:
        trainer = fit(CooldownPreview(loss=broken), seen, module=module)
    assert sum("CooldownPreview" in str(w.message) for w in warned) == 1
    assert trainer.current_epoch == 4
    assert seen.seen[-1] == {}


def test_every_second_validation() -> None:
    memory = Memory()
    fit(CooldownPreview(every_n_validations=2), epochs=5, logger=memory)
    assert len([row for row in memory.rows if row[0] == "val/loss_if_cooled"]) == 3


@pytest.mark.parametrize("order", [0, 1])
def test_a_verdict_knows_the_preview_of_its_validation(order: int) -> None:
    monitor, memory = OverfittingMonitor(), Memory()
    callbacks = [CooldownPreview(every_n_validations=2), monitor]
    fit(*callbacks[:: 1 if order else -1], epochs=4, logger=memory)
    first, third = (value for name, _, value in memory.rows if name == "val/loss_if_cooled")
    known = [point.cooled_loss for point in monitor.history.points]
    assert known == [pytest.approx(first), None, pytest.approx(third), None]
    other = OverfittingMonitor()
    other.load_state_dict(monitor.state_dict())
    assert [point.cooled_loss for point in other.history.points] == known


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (
            [1.0, 0.5, 0.8, 0.9],
            "val/loss_if_cooled was 0.5 at step 6 and is 0.9 now. A cooldown from here would end at 0.9 or",
        ),
        ([1.0, 0.5, 0.4, 0.405], ""),
        ([float("nan"), 0.5, 0.4, float("nan")], ""),
    ],
)
def test_it_says_where_the_preview_was_lowest_if_it_has_risen(
    losses: list[float], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    def scripted(module: LightningModule, batch: Any) -> Tensor:
        return torch.full((len(batch[1]),), losses[module.current_epoch])

    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fit(CooldownPreview(loss=scripted))
    lines = [record.message for record in caplog.records if record.message.startswith("CooldownPreview:")]
    assert [said in line for line in lines] == [True] * bool(said)


class Regression(Tiny):
    """Fits numbers, from batches that are dicts, and logs in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        self.log("size", x.abs().mean())
        return super().forward(x)

    def step(self, batch: Any) -> Tensor:
        return mse_loss(self(batch["x"]), batch["y"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.step(batch))


@pytest.mark.parametrize("sanity", [0, 2])
def test_the_loss_is_learned_from_the_first_step_where_the_default_does_not_suit(
    sanity: int, recwarn: pytest.WarningsRecorder
) -> None:
    def run(*callbacks: Callback) -> tuple[Regression, Trainer]:
        seed_everything(3, verbose=False)
        module, data = Regression(dropout=0.0), [{"x": x, "y": x[:2] + y} for x, y in zip(X, Y, strict=True)]
        trainer = Trainer(**QUIET, max_epochs=2, num_sanity_val_steps=sanity, callbacks=list(callbacks))
        trainer.fit(module, DataLoader(data, 20), DataLoader(data, 60))  # type: ignore[arg-type]
        return module, trainer

    preview = CooldownPreview()
    (module, trainer), (plain, alone) = run(preview), run()
    assert equal(module, plain)
    assert [str(w.message) for w in recwarn if "CooldownPreview" in str(w.message)] == []
    assert trainer.callback_metrics["size"] == alone.callback_metrics["size"]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(preview.averaged[name])
        batch_norm.set_statistics(batch_norm.tracking_norms(module), preview._statistics)
        expected = mse_loss(module.eval().net(X), X[:, :2] + Y[:, None]).item()
    assert trainer.callback_metrics["val/loss_if_cooled"].item() == pytest.approx(expected, rel=1e-5)


def test_another_loss_than_the_one_that_the_module_validates_with_is_told() -> None:
    class Contrastive(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", (self(batch[0]) - self(-batch[0])).square().mean())

    with pytest.warns(UserWarning, match=r"CooldownPreview measures cross_entropy, .* but the module logs val/loss"):
        fit(CooldownPreview(), module=Contrastive(), epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="CooldownPreview")
        fit(CooldownPreview(), module=tiny(), epochs=1)


@pytest.mark.parametrize("first", [True, False])
def test_early_stopping_and_checkpoints_follow_the_preview_in_any_order(first: bool, tmp_path: Path) -> None:
    memory = Memory()
    preview = CooldownPreview()
    stopping = ScheduleAwareStopping("val/loss_if_cooled", patience=1, min_delta=10.0)  # nothing improves that much
    saving = ModelCheckpoint(tmp_path, "best", monitor="val/loss_if_cooled", save_weights_only=True)
    others: list[Callback] = [stopping, EarlyStopping("val/loss_if_cooled", patience=9), saving]
    ordered = [preview, *others] if first else [*others, preview]
    trainer = fit(*ordered, epochs=9, logger=memory, enable_checkpointing=True)
    values = [value for name, _, value in memory.rows if name == "val/loss_if_cooled"]
    assert len(values) == trainer.current_epoch == 2
    assert stopping.best_score == pytest.approx(values[0])
    assert saving.best_model_score == pytest.approx(min(values))
