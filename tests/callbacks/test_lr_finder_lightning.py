"""Lightning's own tests of its finder (lightning 2.6, tests_pytorch/tuner/test_lr_finder.py), asked of this one."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lr_lightning import LRFinder
from tests.callbacks.finding import let_say
from tests.callbacks.tiny import QUIET

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def trainer(tmp_path: Path, *callbacks: Any, **options: Any) -> Trainer:
    settings = {**QUIET, "enable_checkpointing": True, "max_epochs": 1, **options}
    return Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **settings)


class Rated(BoringModel):
    def __init__(self, lr: float = 0.1, optimizer: str = "SGD", name: str = "lr") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.made, self.name_of_lr = optimizer, name
        setattr(self, name, lr)

    def configure_optimizers(self) -> Any:
        made = getattr(torch.optim, self.made)(self.parameters(), lr=getattr(self, self.name_of_lr))
        return [made], [torch.optim.lr_scheduler.StepLR(made, step_size=1)]


@pytest.fixture
def suggests(monkeypatch: pytest.MonkeyPatch) -> float:
    let_say(monkeypatch, 0.0123)
    return 0.0123


def test_model_reset_correctly(tmp_path: Path) -> None:
    module = Rated()
    before = deepcopy(module.state_dict())
    trainer(tmp_path, LRFinder(num_steps=10), max_epochs=0).fit(module)
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_trainer_reset_correctly(tmp_path: Path) -> None:
    finder = LRFinder(num_steps=10)
    run = trainer(tmp_path, finder, EarlyStopping("x", strict=False), enable_checkpointing=True, max_epochs=0)
    names = [
        "accumulate_grad_batches", "callbacks", "checkpoint_callback", "current_epoch", "early_stopping_callback",
        "global_step", "log_every_n_steps", "loggers", "max_epochs", "max_steps", "num_val_batches",
        "should_stop", "limit_train_batches", "limit_val_batches", "profiler", "training",
    ]  # fmt: skip
    before = {name: getattr(run, name) for name in names if name not in ("num_val_batches", "training")}
    before["callbacks"] = list(run.callbacks)
    run.fit(Rated())
    assert finder.result
    assert {name: getattr(run, name) for name in before} == before
    assert run.fit_loop.epoch_loop.max_steps == -1


@pytest.mark.parametrize("name", ["lr", "learning_rate", "my_fancy_lr"])
def test_the_attribute_is_updated(tmp_path: Path, suggests: float, name: str) -> None:
    module = Rated(name=name)
    trainer(tmp_path, LRFinder(num_steps=10, attribute=name if "fancy" in name else None)).fit(module)
    assert getattr(module, name) == suggests
    if name == "lr":
        assert (module.hparams.lr, module.hparams_initial.lr) == (suggests, suggests)


@pytest.mark.parametrize("optimizer", ["Adam", "Adagrad"])
@pytest.mark.parametrize("mode", ["linear", "exponential"])
def test_modes_and_optimizers(tmp_path: Path, optimizer: str, mode: Any) -> None:
    seed_everything(1)
    module, finder = Rated(optimizer=optimizer), LRFinder(num_steps=20, min_lr=1e-5, max_lr=0.1, mode=mode)
    trainer(tmp_path, finder, max_epochs=2).fit(module)
    assert finder.result.lrs[0] == 1e-5
    assert all(a < b for a, b in zip(finder.result.lrs, finder.result.lrs[1:], strict=False))
    assert finder.applied_lr is None or finder.applied_lr == module.lr


def test_datamodule(tmp_path: Path, suggests: float) -> None:
    module, finder = Rated(), LRFinder(num_steps=10)
    trainer(tmp_path, finder).fit(module, datamodule=BoringDataModule())
    assert module.lr == suggests


def test_accumulation(tmp_path: Path) -> None:
    one, two = LRFinder(num_steps=20, early_stop=False), LRFinder(num_steps=20, early_stop=False)
    seed_everything(1)
    trainer(tmp_path, one, accumulate_grad_batches=1).fit(Rated())
    seed_everything(1)
    trainer(tmp_path, two, accumulate_grad_batches=2).fit(Rated())
    assert len(one.result.values) == len(two.result.values) == 20
    assert one.result.values != two.result.values


def test_multiple_calls_give_the_same_result(tmp_path: Path) -> None:
    module, results = Rated(), []
    for _ in range(3):
        torch.manual_seed(0)
        finder = LRFinder(num_steps=15, apply=False)
        trainer(tmp_path, finder, max_epochs=0).fit(module)
        results.append(finder.result)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("options", [{"max_steps": 1}, {"limit_train_batches": 1}, {"max_epochs": 0}], ids=str)
def test_ends_after_num_steps_under_every_option_of_the_run(tmp_path: Path, options: dict[str, Any]) -> None:
    finder = LRFinder(num_steps=50, early_stop=False, max_lr=0.1, apply=False)
    run = trainer(tmp_path, finder, **options)
    run.fit(Rated())
    assert len(finder.result.values) == 50
    assert run.global_step == (0 if "max_epochs" in options else 1)


def test_lr_candidates_lie_between_min_and_max(tmp_path: Path) -> None:
    finder = LRFinder(num_steps=100, min_lr=1e-8, max_lr=1.0, retry=False)
    trainer(tmp_path, finder).fit(Rated())
    assert all(1e-8 <= lr <= 1.0 for lr in finder.result.lrs)
    assert len(finder.result.lrs) == len(finder.result.values) <= 100


def test_early_stopping_and_checkpoints_beside_it(tmp_path: Path) -> None:
    class Logs(Rated):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            output = super().validation_step(batch, batch_idx)
            self.log("val_loss", output["x"])
            return output

    finder, save = LRFinder(num_steps=10), ModelCheckpoint(tmp_path / "c", monitor="val_loss", save_top_k=-1)
    stop = EarlyStopping("val_loss", patience=5)
    run = trainer(tmp_path, finder, stop, save, enable_checkpointing=True, max_epochs=2)
    run.fit(Logs())
    assert finder.result
    assert run.callbacks[:2] == [finder, stop]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["epoch=0-step=64.ckpt", "epoch=1-step=128.ckpt"]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_second_fit_is_not_searched_before(tmp_path: Path, suggests: float) -> None:
    module, finder = Rated(), LRFinder(num_steps=10)
    run = trainer(tmp_path, finder)
    run.fit(module)
    weights, lr = deepcopy(module.state_dict()), module.lr
    run.fit_loop.max_epochs = 2
    with pytest.warns(UserWarning, match="this Trainer continues an earlier fit"):
        run.fit(module)
    assert (run.global_step, module.lr) == (128, lr)
    assert not torch.equal(weights["layer.weight"], module.state_dict()["layer.weight"])


def test_other_trainers_share_a_finder(tmp_path: Path, suggests: float) -> None:
    finder, results = LRFinder(num_steps=10), []
    for _ in range(2):
        seed_everything(3)
        module: LightningModule = Rated()
        trainer(tmp_path, finder).fit(module)
        results.append(finder.result)
        assert module.lr == suggests
    assert results[0] == results[1]


def test_validation_and_testing_are_not_searched(tmp_path: Path) -> None:
    finder = LRFinder(num_steps=10)
    run = trainer(tmp_path, finder)
    for stage in (run.validate, run.test, run.predict):
        stage(Rated())
    assert finder.result is None
