"""DryRun: training steps of a Trainer that are undone, driven by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lr_lightning.lr_finder.dry_run import Batches, DryRun, training_loaders
from tests.callbacks.finding import Nasty, frozen, random_states, seed
from tests.callbacks.tiny import Memory, X, Y, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

Body = Callable[[Trainer, LightningModule], None]


class At(Callback):
    """Runs something in ``on_fit_start``."""

    def __init__(self, body: Body) -> None:
        self.body, self.done = body, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.body(trainer, pl_module)
        self.done = True


def within(tmp_path: Path, body: Body, data: Any = None, module: Any = None, **options: Any) -> Trainer:
    seed()
    at = At(body)
    run = trainer(tmp_path, [at], **{"max_epochs": 0, "logger": [Memory(), Memory()], **options})
    run.fit(Nasty() if module is None else module, data or loader())
    assert at.done
    return run


def steps(dry_run: DryRun, number: int = 0, count: int = 8) -> list[float]:
    with dry_run.run(number):
        return [dry_run.step(0.1 * (1 + k)) for k in range(count)]


def test_each_run_starts_from_the_same_state(tmp_path: Path) -> None:
    def body(run: Trainer, module: LightningModule) -> None:
        before = frozen(module), frozen(run.optimizers[0].state_dict()), random_states()
        with DryRun(run, module, [1.0]) as dry_run:
            first, other, again, other_again = steps(dry_run), steps(dry_run, 1), steps(dry_run), steps(dry_run, 1)
            # between runs all is as it was, random numbers too
            assert (frozen(module), frozen(run.optimizers[0].state_dict()), random_states()) == before
        assert first == again
        assert other == other_again
        assert first != other
        assert (frozen(module), frozen(run.optimizers[0].state_dict()), random_states()) == before

    within(tmp_path, body, DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True))


def test_runs_draw_other_numbers_from_a_persons_own_generators(tmp_path: Path) -> None:
    def body(run: Trainer, module: LightningModule) -> None:
        with DryRun(run, module, [1.0]) as dry_run:
            seen = []
            for number in (0, 1, 2, 1):
                with dry_run.run(number):
                    dry_run.step(0.1)
                    seen.append(module.order[-1])  # type: ignore[union-attr, operator, index]
        assert len(set(seen)) == 3
        assert seen[1] == seen[3]

    generator = torch.Generator().manual_seed(1)
    within(tmp_path, body, DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True, generator=generator))


def test_what_a_module_sees_of_the_trainer(tmp_path: Path) -> None:
    class Looks(Nasty):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert [type(each) for each in self.trainer.callbacks] == [At]  # type: ignore[attr-defined]
            assert [isinstance(each, Memory) for each in self.trainer.loggers] == [True, True]
            assert self.logger is self.trainer.loggers[0]
            self.logger.experiment.add_scalar("a", 1)  # type: ignore[union-attr]
            assert self.trainer.num_training_batches == 6
            assert self.trainer.estimated_stepping_batches == 0  # max_steps; it builds no loader anew
            assert self.trainer.training
            assert torch.is_grad_enabled()
            assert (self.global_step, batch_idx) == (self.calls, self.calls % 6)
            self.trainer.should_stop = True
            return super().training_step(batch, batch_idx)

    def body(run: Trainer, module: LightningModule) -> None:
        with torch.no_grad(), DryRun(run, module, [1.0]) as dry_run:
            steps(dry_run)
            assert not torch.is_grad_enabled()
        assert not run.should_stop
        assert [type(each) for each in run.loggers] == [Memory, Memory]

    within(tmp_path, body, module=Looks(), max_epochs=10, max_steps=0, reload_dataloaders_every_n_epochs=1)


def test_a_module_that_asks_for_the_length_does_not_reload(tmp_path: Path) -> None:
    asked: list[int] = []

    class Asks(Nasty):
        def train_dataloader(self) -> Any:
            asked.append(1)
            return loader()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert self.trainer.estimated_stepping_batches == 30
            return super().training_step(batch, batch_idx)

    def body(run: Trainer, module: LightningModule) -> None:
        with DryRun(run, module, [1.0]) as dry_run:
            steps(dry_run)
        assert asked == [1]

    seed()
    at = At(body)
    trainer(tmp_path, [at], max_epochs=5, reload_dataloaders_every_n_epochs=1).fit(Asks())
    assert at.done


def test_an_lr_that_diverges_is_no_anomaly(tmp_path: Path) -> None:
    def body(run: Trainer, module: LightningModule) -> None:
        with torch.autograd.set_detect_anomaly(True), DryRun(run, module, [1.0]) as dry_run:
            with dry_run.run():
                losses = [dry_run.step(1e30) for _ in range(5)]
            assert torch.is_anomaly_enabled()
        assert not all(map(torch.isfinite, map(torch.tensor, losses)))

    within(tmp_path, body)


def test_a_step_outside_of_a_run(tmp_path: Path) -> None:
    def body(run: Trainer, module: LightningModule) -> None:
        with (
            DryRun(run, module, [1.0]) as dry_run,
            pytest.raises(RuntimeError, match="must be called inside of"),
        ):
            dry_run.step(0.1)

    within(tmp_path, body)


def test_an_error_while_it_looks_around_leaves_nothing(tmp_path: Path) -> None:
    class Fails(Nasty):
        def train_dataloader(self) -> Any:
            torch.rand(1)
            self.numbers.append(1.0)
            return iter([1])  # not by raising in here: Lightning would leave its patches on DataLoader

    def body(run: Trainer, module: LightningModule) -> None:
        before = frozen(module), random_states()
        with pytest.raises(ValueError, match="is an iterator"), DryRun(run, module, [1.0]):
            pytest.fail("not reached")
        assert (frozen(module), random_states()) == before

    seed()
    at = At(body)
    trainer(tmp_path, [at], max_epochs=0, limit_train_batches=0).fit(Fails())
    assert at.done


def test_nothing_is_kept_after_it(tmp_path: Path) -> None:
    def body(run: Trainer, module: LightningModule) -> None:
        with DryRun(run, module, [1.0]) as dry_run:
            steps(dry_run)
        assert dry_run._snapshots == []
        assert run.fit_loop._combined_loader is None
        assert "log" not in vars(module)
        assert not {"_should_accumulate"} & set(vars(run.fit_loop.epoch_loop))
        assert "output_result_cls" not in vars(run.fit_loop.epoch_loop.automatic_optimization)

    within(tmp_path, body)


def test_batches_begin_anew_at_their_end_and_tell_samplers_the_epoch(tmp_path: Path) -> None:
    told = []

    class Sampler(torch.utils.data.SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            told.append(epoch)

    data = TensorDataset(X, Y)

    def body(run: Trainer, module: LightningModule) -> None:
        batches = Batches(training_loaders(run), first_epoch=3)
        taken = [next(batches) for _ in range(7)]
        batches.close()
        assert [index for _, index in taken] == [0, 1, 2, 0, 1, 2, 0]
        assert torch.equal(taken[0][0][0], taken[3][0][0])
        assert told == [3, 4, 5]

    within(tmp_path, body, DataLoader(data, batch_size=20, sampler=Sampler(data)))


def test_an_epoch_ends_at_limit_train_batches(tmp_path: Path) -> None:
    def body(run: Trainer, module: LightningModule) -> None:
        batches = Batches(training_loaders(run))
        taken = [next(batches) for _ in range(5)]
        batches.close()
        assert [index for _, index in taken] == [0, 1, 0, 1, 0]
        assert torch.equal(taken[0][0][0], taken[2][0][0])

    within(tmp_path, body, DataLoader(TensorDataset(X, Y), batch_size=20), limit_train_batches=2)


@pytest.mark.parametrize("empty", [[], DataLoader(TensorDataset(X[:5]), batch_size=10, drop_last=True)])
def test_a_loader_without_batches(tmp_path: Path, empty: Any) -> None:
    def body(run: Trainer, module: LightningModule) -> None:
        with (
            DryRun(run, module, [1.0]) as dry_run,
            pytest.raises(ValueError, match="got no batch from the training loader"),
        ):
            steps(dry_run)

    class Empty:
        def __iter__(self) -> Any:
            return iter(empty)

    within(tmp_path, body, Empty())


def test_callbacks_and_loggers_can_be_asked_and_get_nothing(tmp_path: Path) -> None:
    class Asks(Nasty):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            (stopping,) = self.trainer.early_stopping_callbacks
            asked.append((stopping.wait_count, type(self.trainer.callbacks[0]), self.trainer.log_dir))  # type: ignore[attr-defined]
            assert isinstance(self.logger, CSVLogger)
            self.logger.log_metrics({"a": 1.0}, 0)
            return super().training_step(batch, batch_idx)

    class Hears(EarlyStopping):
        def on_before_optimizer_step(self, *_: Any) -> None:
            raise RuntimeError("called")

        def on_after_backward(self, *_: Any) -> None:
            raise RuntimeError("called")

    def body(run: Trainer, module: LightningModule) -> None:
        run.callbacks.append(Hears("x"))  # type: ignore[attr-defined]
        with DryRun(run, module, [1.0]) as dry_run:
            steps(dry_run, count=2)
        run.callbacks.pop()  # type: ignore[attr-defined]

    asked: list[Any] = []
    logger = CSVLogger(tmp_path / "csv")
    within(tmp_path, body, module=Asks(), logger=logger)
    assert asked == [(0, At, logger.log_dir)] * 2
    assert not list((tmp_path / "csv").rglob("metrics.csv"))
