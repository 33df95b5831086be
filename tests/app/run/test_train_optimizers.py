"""Runs with optimizers from other packages: they learn, log the learning rate they use, and resume exactly."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from lr_lightning.app import build
from lr_lightning.app.composition import validate
from lr_lightning.app.run.checkpoints import load_weights, read_checkpoint
from lr_lightning.app.run.resume import stored_config
from lr_lightning.app.run.train import RunOutcome, train
from tests.leftovers import checkpoint, plain, untimed, values

Compose = Callable[..., DictConfig]

PACKAGES = {
    "schedule_free_sgd": "schedulefree",
    "schedule_free_adamw": "schedulefree",
    "prodigy": "prodigyopt",
    "dadapt_adam": "dadaptation",
}

SMALL = [
    "model.kwargs.width=8",
    "model.kwargs.dropout=0.1",
    "data.flip=true",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.progress=none",
]

OWN = ["schedule_free_sgd", "schedule_free_adamw", "prodigy", "dadapt_adam"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")

STOP = """
from lightning.pytorch import Callback

class Stopped(Exception):
    pass

class Stop(Callback):
    active = True
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.active and trainer.current_epoch == 1 and batch_idx == 15:
            raise Stopped
"""

COMPARE = """
import os, signal, sys
import torch
from lightning.pytorch import Callback

class Compare(Callback):
    # The weights and statistics that the ranks validate with.
    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking:
            return
        mine = torch.cat([t.double().flatten() for t in module.net.state_dict().values()])
        every = [torch.empty_like(mine) for _ in range(2)]
        torch.distributed.all_gather(every, mine)
        if trainer.is_global_zero and torch.equal(*every):
            print("ranks agree", file=sys.stderr)

class Stop(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 7 and "STOP" in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def needs(optimizer: str) -> None:
    if optimizer in PACKAGES:
        package = PACKAGES[optimizer]
        pytest.importorskip(package, reason=f"needs `pip install {package}`")


def run(composed: Compose, folder: Path, *overrides: str) -> RunOutcome:
    return train(validate(composed(f"output_root={folder}", "tracking=csv", *SMALL, *overrides)))


@pytest.mark.parametrize("optimizer", OWN)
def test_learns(composed: Compose, tmp_path: Path, optimizer: str) -> None:
    needs(optimizer)
    result = run(composed, tmp_path, f"optimizer={optimizer}", "schedule=warmup_constant", "trainer.max_epochs=6")
    assert result.summary["last_val_acc"] > 0.7  # 0.1 by chance
    assert result.summary["test_acc"] > 0.65


@pytest.mark.parametrize("optimizer", OWN)
@pytest.mark.parametrize("every", ["null", "4"], ids=["at an epoch's end", "in mid-epoch"])
def test_a_resumed_run_is_the_uninterrupted_one(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, every: str
) -> None:
    needs(optimizer)
    common = [
        f"optimizer={optimizer}",
        "schedule=cosine",
        "trainer.max_epochs=3",
        "trainer.accumulate_grad_batches=2",
        f"callbacks.checkpoint.every_n_steps={every}",
    ]
    whole = run(composed, tmp_path / "whole", *common).output_dir
    (tmp_path / "stop_it.py").write_text(STOP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stop_it", raising=False)
    import stop_it  # type: ignore[import-not-found]

    with pytest.raises(stop_it.Stopped):
        run(composed, tmp_path / "parts", *common, "+callbacks.extra.stop._target_=stop_it.Stop")
    (parts,) = (tmp_path / "parts").iterdir()
    saved = checkpoint(parts)["global_step"]
    assert saved == (10 if every == "null" else 16)  # 20 batches an epoch, accumulated by two
    stop_it.Stop.active = False
    config, previous = stored_config(composed(f"resume={parts}", "trust=[stop_it.Stop]", "tracking=csv"), [])
    train(config, previous)
    assert whole is not None
    for name in ("last", "best"):
        ours, theirs = checkpoint(parts, name), checkpoint(whole, name)
        assert plain(ours["state_dict"]) == plain(theirs["state_dict"])
        assert plain(ours["optimizer_states"]) == plain(theirs["optimizer_states"])
    assert untimed(parts) == untimed(whole)


@pytest.mark.parametrize("optimizer", ["schedule_free_sgd", "schedule_free_adamw"])
def test_a_checkpoint_by_itself_gives_what_was_validated(composed: Compose, tmp_path: Path, optimizer: str) -> None:
    needs(optimizer)
    common = [f"optimizer={optimizer}", "schedule=warmup_constant", "trainer.max_epochs=3", "test=false"]
    result = run(composed, tmp_path, *common)
    assert result.output_dir is not None
    config = validate(composed(*SMALL, *common))
    data = build.build_data(config)
    data.prepare()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    for name in ("last", "best"):
        module = build.build_module(config.module, config.optimizer, build.build_net(config.model, data), data)
        load_weights(module, read_checkpoint(result.output_dir / "checkpoints" / f"{name}.ckpt", "ckpt"), "ckpt")
        (found,) = Trainer(accelerator="cpu", **quiet).validate(module, data, verbose=False)
        assert found["val/acc"] == pytest.approx(result.summary[f"{name}_val_acc"])
        if name == "last":
            assert found["val/loss"] == pytest.approx(result.summary["last_val_loss"], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["prodigy", "dadapt_adam"])
def test_the_lr_that_is_logged_is_the_estimate_times_the_schedules(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    needs(optimizer)
    import dadaptation
    import prodigyopt

    kind = prodigyopt.Prodigy if optimizer == "prodigy" else dadaptation.DAdaptAdam
    step, used = kind.step, []

    def noted(self: Any, closure: Any = None) -> Any:
        group = self.param_groups[0]
        used.append(group["d"] * group["lr"])  # what the package's own step calls dlr
        return step(self, closure)

    monkeypatch.setattr(kind, "step", noted)
    result = run(composed, tmp_path, f"optimizer={optimizer}", "schedule=cosine", "trainer.max_epochs=2", "test=false")
    assert result.output_dir is not None
    assert len(used) == 40
    assert values(result.output_dir)["lr/group0"] == used
    assert max(used) > 100 * used[0] > 0


def test_schedule_free_warm_up_is_in_the_lr_that_is_logged(composed: Compose, tmp_path: Path) -> None:
    needs("schedule_free_sgd")
    own = ["optimizer=schedule_free_sgd", "optimizer.warmup_steps=8", "schedule=constant", "trainer.max_epochs=1"]
    result = run(composed, tmp_path, *own, "test=false")
    assert result.output_dir is not None
    assert values(result.output_dir)["lr/group0"] == [min(1.0, (step + 1) / 8) for step in range(20)]


@pytest.mark.slow
def test_two_processes_average_alike_and_resume_after_sigterm(tmp_path: Path, train_command: Any) -> None:
    needs("schedule_free_sgd")
    common = ["optimizer=schedule_free_sgd", "schedule=warmup_constant", "trainer.max_epochs=2", "tracking=csv"]
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", *SMALL[:3], "trainer.progress=none"]
    (tmp_path / "compare.py").write_text(COMPARE)
    extra = "+callbacks.extra.compare._target_=compare.Compare"
    done = train_command(*common, *ddp, extra, "callbacks.checkpoint.every_n_steps=7", timeout=600)
    assert done.stderr.count("ranks agree") == 2
    one_process = [*common, *SMALL, "+callbacks.extra.stop._target_=compare.Stop"]
    stopped = train_command(*one_process, check=False, STOP="yes", timeout=600)
    assert stopped.returncode == 143, stopped.stderr
    folders = sorted((tmp_path / "outputs").iterdir(), key=lambda path: path.stat().st_mtime)
    train_command(f"resume={folders[-1]}", "trust=[compare.Stop]", "tracking=csv", timeout=600)
    train_command(*one_process, timeout=600)
    whole = max((tmp_path / "outputs").iterdir(), key=lambda path: path.stat().st_mtime)
    assert whole != folders[-1]
    assert plain(checkpoint(folders[-1])["state_dict"]) == plain(checkpoint(whole)["state_dict"])
    assert untimed(folders[-1]) == untimed(whole)
