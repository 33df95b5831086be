"""Every step's learning rate and loss, once, and a diverged run stopped before its checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy

from lr_lightning.callbacks.step_recorder import StepRecorder
from lr_lightning.errors import Diverged
from tests.callbacks.tiny import Memory, Tiny, loader, trainer


class Explodes(Tiny):
    """The loss is not finite from one batch on."""

    def __init__(self, at: int, value: float = float("nan")) -> None:
        super().__init__()
        self.at, self.value = at, value

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if self.trainer.global_step >= self.at else loss


def test_every_step_is_logged_once_with_the_rate_it_used(tmp_path: Path) -> None:
    module, memory = Tiny(), Memory()

    class Halve(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            trainer.optimizers[0].param_groups[0]["lr"] = 0.5**trainer.global_step

    trainer(tmp_path, [Halve(), StepRecorder(flush_steps=5)], memory).fit(module, loader(), loader())
    assert memory.of("train/loss") == [(i, pytest.approx(loss, abs=0)) for i, loss in enumerate(module.losses)]
    assert memory.of("lr/group0") == [(i, 0.5**i) for i in range(12)]
    means = [sum(module.losses[:6]) / 6, sum(module.losses[6:]) / 6]
    assert memory.of("train/loss_epoch") == [(5, pytest.approx(means[0])), (11, pytest.approx(means[1]))]


class Groups(Tiny):
    """Three param groups, the last two with the same learning rate as the first until it changes in step 3."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        weights = [*self.net.parameters()]
        groups: list[dict[str, Any]] = [{"params": weights[:2]}, {"params": weights[2:4]}, {"params": weights[4:]}]
        return torch.optim.SGD(groups, lr=0.1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 3:
            self.trainer.optimizers[0].param_groups[2]["lr"] = 0.2
        if self.trainer.global_step == 5:
            self.trainer.optimizers[0].param_groups[2]["lr"] = 0.1


def test_groups_of_one_learning_rate_are_logged_once_until_they_differ(tmp_path: Path) -> None:
    memory, first = Memory(), StepRecorder(flush_steps=2)
    trainer(tmp_path, [first], memory, max_epochs=1).fit(Groups(), loader())
    assert memory.of("lr/group0") == [(i, 0.1) for i in range(6)]
    assert memory.of("lr/group1") == []
    assert memory.of("lr/group2") == [(3, 0.2), (4, 0.2), (5, 0.1)]
    assert first.state_dict()["apart"] == ["lr/group0", "lr/group2"]  # a resumed run goes on with the same curves


def test_a_group_with_a_name_is_always_logged(tmp_path: Path) -> None:
    class Named(Groups):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = super().configure_optimizers()
            optimizer.param_groups[1]["name"] = "head"
            return optimizer

    memory = Memory()
    trainer(tmp_path, [StepRecorder()], memory, max_epochs=1).fit(Named(), loader())
    assert memory.of("lr/head") == [(i, 0.1) for i in range(6)]


@pytest.mark.parametrize("accumulate", [4, 6])
def test_an_accumulated_step_has_the_mean_loss_of_its_batches(tmp_path: Path, accumulate: int) -> None:
    module, memory = Tiny(), Memory()
    trainer(tmp_path, [StepRecorder()], memory, accumulate_grad_batches=accumulate, max_epochs=1).fit(module, loader())
    chunks = [module.losses[i : i + accumulate] for i in range(0, 6, accumulate)]
    assert memory.of("train/loss") == [(i, pytest.approx(sum(c) / len(c))) for i, c in enumerate(chunks)]


def test_rates_of_two_optimizers_under_manual_optimization(tmp_path: Path) -> None:
    class Two(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.last = torch.zeros(())

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = cross_entropy(self(batch[0]), batch[1])
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
            return self.last.copy_(loss.detach())

        def configure_optimizers(self) -> Any:
            layers = self.net[0], self.net[3]
            return [torch.optim.SGD(layer.parameters(), lr=lr) for layer, lr in zip(layers, (0.1, 0.2), strict=True)]

    memory = Memory()
    trainer(tmp_path, [StepRecorder()], memory, max_epochs=1).fit(Two(), loader())
    assert len({loss for _, loss in memory.of("train/loss")}) == 6  # though the module has one tensor for all
    assert memory.of("lr/group0") == [(i, 0.1) for i in range(6)]
    assert memory.of("lr/opt1_group0") == [(i, 0.2) for i in range(6)]
    assert [step for step, _ in memory.of("train/loss")] == list(range(6))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_run_stops_before_its_checkpoint_and_keeps_the_steps_before(tmp_path: Path, value: float) -> None:
    memory = Memory()
    checkpoint = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    fit = trainer(tmp_path, [StepRecorder(), checkpoint], memory, enable_checkpointing=True)
    with pytest.raises(Diverged) as caught:
        fit.fit(Explodes(at=3, value=value), loader())
    assert (caught.value.metric, caught.value.step, caught.value.lr) == ("train/loss", 3, 0.1)
    assert str(caught.value) == (
        f"train/loss became {value} at step 3, where the learning rate was 0.1. Try a tenth of the learning "
        "rate, a warmup, or gradient clipping with Trainer(gradient_clip_val=1)."
    )
    assert [step for step, _ in memory.of("train/loss")] == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    class Bad(Tiny):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", torch.tensor(float("inf")))

    with pytest.raises(Diverged, match="val/loss became inf at step 5"):
        trainer(tmp_path, [StepRecorder()]).fit(Bad(), loader(), loader())


def test_divergence_can_be_recorded_without_stopping(tmp_path: Path) -> None:
    memory = Memory()
    trainer(tmp_path, [StepRecorder(stop_on_divergence=False)], memory, max_epochs=1).fit(Explodes(at=3), loader())
    assert [step for step, _ in memory.of("train/loss")] == [0, 1, 2]
    assert [step for step, _ in memory.of("lr/group0")] == list(range(6))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_lost_on_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    class Fails(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if self.trainer.global_step == 4:
                raise error("stop")
            return super().training_step(batch, batch_idx)

    memory = Memory()
    with pytest.raises((error, SystemExit)):
        trainer(tmp_path, [StepRecorder()], memory).fit(Fails(), loader())
    assert [step for step, _ in memory.of("train/loss")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"on_step": True}, "train/loss_epoch"),
        ({"on_epoch": True, "on_step": False}, "train/loss_epoch"),
        ({"on_epoch": True, "on_step": True}, "train/loss"),
        ({"on_step": True, "logger": False}, None),
    ],
)
def test_it_steps_aside_where_the_module_logs_the_loss_itself(
    tmp_path: Path, options: Any, kept: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    class Logs(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.log("train/loss", torch.tensor(9.0), **options)
            return super().training_step(batch, batch_idx)

    memory = Memory()
    trainer(tmp_path, [StepRecorder(flush_steps=1)], memory, log_every_n_steps=1).fit(Logs(), loader())
    for name in ("train/loss", "train/loss_epoch"):
        values = {value for _, value in memory.of(name)}
        assert len(values) > 1 if kept in (name, None) else values == {9.0}
    warned = [str(w.message) for w in recwarn if "StepRecorder does not log them" in str(w.message)]
    assert len(warned) == (kept is not None)


def test_it_does_not_disturb_the_run(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [StepRecorder(flush_steps=1)]):
        seed_everything(3, verbose=False)
        module = Tiny()
        trainer(tmp_path, list(callbacks), Memory()).fit(module, loader(), loader())
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(("name", "value"), [("flush_seconds", 0.0), ("flush_steps", 0)])
def test_bad_arguments(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        StepRecorder(**{name: value})


class Masked(Tiny):
    """As attention with a causal mask."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.mask = torch.nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=trained)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.0 * self.mask[0]


@pytest.mark.parametrize("trained", [False, True])
def test_a_mask_that_is_infinite_by_design_is_no_divergence(tmp_path: Path, trained: bool) -> None:
    save = ModelCheckpoint(tmp_path, save_last=True)
    module = Masked(trained)
    trainer(tmp_path, [StepRecorder(), save], enable_checkpointing=True).fit(module, loader())
    assert (tmp_path / "last.ckpt").exists()
    with pytest.raises(Diverged, match="a weight became nan"):
        trainer(tmp_path, [StepRecorder(), Spoils(), save], enable_checkpointing=True).fit(module, loader())


class Spoils(Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            pl_module.net[0].weight.fill_(torch.nan)


def test_an_optimizer_without_lr_has_no_lr_to_log(tmp_path: Path) -> None:
    class NoLR(Tiny):
        def configure_optimizers(self) -> Any:
            made = torch.optim.SGD(self.parameters(), lr=0.1)
            made.param_groups[0]["lr"] = None
            made.step = lambda closure: closure()  # type: ignore[method-assign, assignment]
            return made

    memory = Memory()
    trainer(tmp_path, [StepRecorder()], memory).fit(NoLR(), loader())
    assert len(memory.of("train/loss")) == 12
    assert memory.of("lr/group0") == []
