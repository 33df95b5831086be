"""The groups and their schemas: every file of conf/ fits; bad input has one message with key, value and remedy."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lr_lightning.app import build
from lr_lightning.app import config as app_config
from lr_lightning.app.composition import validate
from lr_lightning.app.config import GROUP_BASES, SCHEMAS, Config
from lr_lightning.app.error_messages import explain
from lr_lightning.errors import ConfigError

Compose = Callable[..., DictConfig]

CONF = Path(__file__).resolve().parent.parent.parent / "conf"

NEEDS = {
    "hub": "data.path=a/b",
    "parquet": "data.train={file}",
    "image_folder": "data.root={folder}",
    "own": "module._target_=some.Module",
}

CHOICES = sorted((f.parent.name, f.stem) for f in CONF.glob("*/*.yaml"))


def _message(composed: Compose, *overrides: str) -> str:
    """What the command line prints for these overrides."""
    try:
        validate(composed(*overrides))
    except ConfigError as e:
        return str(e)
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as e:
        return explain(e)
    pytest.fail(f"{overrides} was taken")


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_fits_its_schema(composed: Compose, tmp_path: Path, group: str, choice: str) -> None:
    (tmp_path / "a.parquet").touch()
    overrides = [f"{'+' if group == 'experiment' else ''}{group}={choice}".lstrip("+")]
    if choice in NEEDS:
        overrides.append(NEEDS[choice].format(file=tmp_path / "a.parquet", folder=tmp_path))
    config = validate(composed(*overrides))
    assert isinstance(config, Config)
    if group in GROUP_BASES:
        assert isinstance(getattr(config, group), GROUP_BASES[group])
        assert getattr(config, group).name == choice


def test_sgd_takes_the_models_lr_and_a_given_one_wins(composed: Compose) -> None:
    assert validate(composed()).optimizer.lr == 0.1
    assert validate(composed("model=smith_cnn")).optimizer.lr == 0.001
    assert validate(composed("model=smith_cnn", "optimizer.lr=0.5")).optimizer.lr == 0.5
    assert validate(composed("model=smith_cnn", "optimizer=adam")).optimizer.lr == 0.001


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["optimizer.lrr=3"], ["optimizer.lrr:", "no such key", "Did you mean 'lr'?"]),
        (["sede=3"], ["sede:", "no such key", "Did you mean 'seed'?"]),
        (["schdule=cosine"], ["schdule:", "no such key", "Did you mean 'schedule'?"]),
        (["+sede=3"], ["sede:", "no such key", "Type seed=3"]),
        (["+optimizer.lrr=3"], ["optimizer.lrr:", "no such key", "Type optimizer.lr=3"]),
        (["++trainer.max_epoch=3"], ["trainer.max_epoch:", "Type trainer.max_epochs=3"]),
        (["~seed"], ["seed:", "deleted"]),
        (["seed=abc"], ["seed:", "'abc'", "not an integer"]),
        (["seed=1.5"], ["seed:", "'1.5'", "not an integer"]),
        (["optimizer.lr=fast"], ["optimizer.lr:", "'fast'", "not a number"]),
        (["trainer.channels_last=perhaps"], ["trainer.channels_last:", "'perhaps'", "not true or false"]),
        (
            ["schedule=cosin"],
            ["schedule:", "'cosin'", "Choices: batch_growth, constant, cooldown, cosine", "Did you mean 'cosine'?"],
        ),
        (["tracking.name=wandb"], ["tracking.name:", "'wandb'", "mlflow, csv, none"]),
        (["data=parquet"], ["data.train:", "needs a value", "data.train=..."]),
        (["data=image_folder"], ["data.root:", "needs a value"]),
        (["module=own"], ["module._target_:", "needs a value"]),
        (["optimizer.lr=0"], ["optimizer.lr:", "above 0", "got 0.0"]),
        (["optimizer.lr=-1"], ["optimizer.lr:", "got -1.0"]),
        (["optimizer.lr=nan"], ["optimizer.lr:", "got nan"]),
        (["optimizer.lr=inf"], ["optimizer.lr:", "got inf"]),
        (["optimizer.momentum=1"], ["optimizer.momentum:", "[0, 1)", "got 1.0"]),
        (["optimizer.momentum=-0.1"], ["optimizer.momentum:", "got -0.1"]),
        (["optimizer.weight_decay=-1"], ["optimizer.weight_decay:", "got -1.0"]),
        (["optimizer=adam", "optimizer.betas=[0.9]"], ["optimizer.betas:", "[0.9]"]),
        (["optimizer.momentum=0"], ["optimizer.nesterov:", "momentum above 0"]),
        (["data.batch_size=0"], ["data.batch_size:", "1 or more", "got 0"]),
        (["data.val_fraction=1.0"], ["data.val_fraction:", "got 1.0"]),
        (["trainer.max_epochs=0"], ["trainer.max_epochs:", "got 0"]),
        (["trainer.max_epochs=-1"], ["trainer.max_epochs:", "never end"]),
        (["trainer.limit_train_batches=1.5"], ["trainer.limit_train_batches:", "got 1.5"]),
        (["callbacks.checkpoint.mode=best"], ["callbacks.checkpoint.mode:", "'best'", "min, max"]),
        (["schedule.warmup_shape=slow"], ["schedule.warmup_shape:", "'slow'"]),
        (["seed=${nothing}"], ["seed:", "nothing"]),
        (["data=parquet", "data.train=no.parquet"], ["data.train:", "no such file: 'no.parquet'", "Give the path"]),
        (["data=image_folder", "data.root=nowhere"], ["data.root:", "no such folder: 'nowhere'"]),
        (["ckpt=no.ckpt"], ["ckpt:", "no such file: 'no.ckpt'"]),
        (["ckpt=a.ckpt", "resume=b"], ["ckpt:", "resume"]),
        (["+optimizer.multipliers.fc={rate: 2}"], ["optimizer.multipliers.fc:", "'rate'", "lr, weight_decay"]),
        (["+optimizer.multipliers={fc: {rate: 2}}"], ["optimizer.multipliers.fc:", "type hint 'float'"]),
        (["optimizer=5"], ["not a choice", "group=choice"]),
        (["trainer="], ["trainer:", "Choices: auto, cpu, ddp, gpu"]),
        (["seed=1,2"], ["seed=1,2", "-m"]),
        (["a b"], ["'a b'", "key=value"]),
        (["optimizer.multipliers.fc={lr: 2}"], ["optimizer.multipliers.fc:", "+optimizer.multipliers.fc="]),
        (["trainer.max_epochs="], ["trainer.max_epochs:", "''", "not an integer"]),
        (["data.flip_labels=2"], ["data.flip_labels:", "[0, 1]", "got 2.0"]),
        (["data.train_size=0"], ["data.train_size:", "1 or more", "got 0"]),
        (["callbacks.checkpoint.monitor=overfit/gapp_loss"], ["is not logged", "Did you mean 'overfit/gap_loss'?"]),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.criterion=best"],
            ["callbacks.early_stopping.criterion:", "'best'", "patience, gl, pq, up"],
        ),
        (["callbacks=early_stopping", "callbacks.early_stopping.patience=0"], ["patience: must be 1 or more, got 0"]),
        (["callbacks=early_stopping", "callbacks.early_stopping.threshold=-1"], ["threshold:", "above 0", "got -1.0"]),
        (["callbacks.early_stopping.strip=0"], ["strip: must be 1 or more, got 0"]),  # also where nothing stops early
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.criterion=gl", "callbacks.early_stopping.mode=max"],
            ["callbacks.early_stopping.criterion:", "'gl' takes a loss"],
        ),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.criterion=pq", "callbacks.overfitting=null"],
            ["callbacks.early_stopping.criterion:", "'pq' needs the probe's loss"],
        ),
        (
            ["callbacks=early_stopping", "schedule=plateau", "schedule.patience=5"],
            ["callbacks.early_stopping.patience: 5 ", "schedule.patience, 5,", "patience=6 or more"],
        ),
        (["callbacks=none", "callbacks.cost.target=a"], ["is switched off (null)", "callbacks.cost.target"]),
        (
            ["callbacks.checkpoint.monitor=cost/second"],
            ["callbacks.checkpoint.monitor:", "Did you mean 'cost/seconds'?"],
        ),
        (
            ["callbacks.checkpoint.monitor=cost/seconds", "callbacks.cost=null"],
            ["callbacks.checkpoint.monitor: 'cost/seconds' needs callbacks.cost, which is off"],
        ),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=probe/loss", "callbacks.overfitting=null"],
            ["callbacks.early_stopping.monitor: 'probe/loss' needs callbacks.overfitting, which is off"],
        ),
        (
            ["callbacks.checkpoint.monitor=val/loss_if_cooled", "callbacks.cooldown_preview=false"],
            ["callbacks.checkpoint.monitor: 'val/loss_if_cooled' needs callbacks.cooldown_preview, which is off"],
        ),
        (["schedule=plateau", "schedule.monitor=overfit/x"], ["schedule.monitor: 'overfit/x' is not logged"]),
        (["callbacks.cost.target=val/acc"], ["callbacks.cost.target: must be a metric", "val/acc>=0.97", "'val/acc'"]),
        (["callbacks.cost.price_per_gpu_hour=-2"], ["callbacks.cost.price_per_gpu_hour:", "got -2.0"]),
        (["experiment=lr_effects", "lr_effects.low=10"], ["lr_effects.low", "lr_effects.high"]),
        (["experiment=lr_effects", "lr_effects.points=1"], ["lr_effects.points:", "got 1"]),
        (["experiment=lr_effects", "lr_effects.seeds=[]"], ["lr_effects.seeds:", "got []"]),
        (["experiment=lr_effects", "lr_effects.seeds=[1,1]"], ["lr_effects.seeds:", "different"]),
        (["experiment=lr_effects", "lr_effects.lrs=[0.1]"], ["lr_effects.lrs:", "got [0.1]"]),
        (
            ["experiment=lr_effects", "lr_effects.points=3", "lr_effects.reference=0.1"],
            ["lr_effects.reference: must be one of the learning rates, 0.0001, 0.0316, 10, or null", "got 0.1"],
        ),
        (["experiment=lr_effects", "lr_effects.level=95"], ["lr_effects.level:", "got 95.0"]),
        (["experiment=lr_effects", "callbacks.overfitting=null"], ["lr_effects: needs callbacks.overfitting"]),
        (["experiment=lr_effects", "callbacks.cost.target=null"], ["lr_effects: needs a target"]),
    ],
)
def test_bad_input_names_key_value_and_remedy(composed: Compose, overrides: list[str], parts: list[str]) -> None:
    message = _message(composed, *overrides)
    for part in parts:
        assert part in message
    assert "Traceback" not in message
    assert "To append to your config" not in message


def test_several_problems_are_shown_together(composed: Compose) -> None:
    message = _message(composed, "optimizer.lr=0", "data.batch_size=0")
    assert [line.split(":")[0] for line in message.splitlines()] == ["data.batch_size", "optimizer.lr"]


def test_max_lr_is_another_name_of_the_peak(composed: Compose) -> None:
    assert validate(composed("schedule=triangular", "schedule.max_lr=0.3")).optimizer.lr == 0.3
    assert validate(composed("schedule=triangular", "optimizer.lr=0.3")).optimizer.lr == 0.3
    both = composed("schedule=triangular", "schedule.max_lr=0.3", "optimizer.lr=0.3")
    assert validate(both).optimizer.lr == 0.3
    config = validate(composed("schedule=triangular", "optimizer=adam", "schedule.max_lr=0.006"))
    factory = build.build_optimizer(config.optimizer)
    assert factory(torch.nn.Linear(2, 2)).param_groups[0]["lr"] == 0.006
    # an experiment that sets the model's own default does not stand in the way
    smith = composed("experiment=smith", "schedule=triangular2", "schedule.max_lr=0.006")
    assert validate(smith).optimizer.lr == 0.006


def test_two_different_peaks_are_an_error(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    text = _message(composed, "schedule=triangular", "optimizer.lr=0.2", "schedule.max_lr=0.3")
    assert "schedule.max_lr: 0.3, but optimizer.lr: 0.2" in text
    # 0.1 is the default: only the command line tells that it was asked for
    said = ["optimizer.lr=0.1", "schedule.max_lr=0.3"]
    current = SimpleNamespace(overrides=SimpleNamespace(task=said))
    monkeypatch.setattr(app_config, "HydraConfig", SimpleNamespace(initialized=lambda: True, get=lambda: current))
    text = _message(composed, "schedule=triangular", *said)
    assert "schedule.max_lr: 0.3, but optimizer.lr: 0.1" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule_free_sgd", "optimizer.momentum=0"], "optimizer.momentum: must be above 0 with schedule_free_sgd"),
        (["schedule_free_adamw", "optimizer.betas=[0,0.9]"], "optimizer.betas: the first must be above 0"),
        (["schedule_free_adamw", "optimizer.warmup_steps=-1"], "optimizer.warmup_steps: must be 0"),
        (["schedule_free_sgd", "optimizer.r=-1"], "optimizer.r: must be a finite number, 0 or more, got -1.0."),
        (
            ["schedule_free_sgd", "schedule=one_cycle", "schedule.base_momentum=0.8", "schedule.max_momentum=0.9"],
            "schedule.max_momentum: schedule_free_sgd averages the weights with its momentum",
        ),
        (["prodigy", "optimizer.d0=0"], "optimizer.d0: must be a finite number above 0"),
        (["prodigy", "optimizer.d_coef=-1"], "optimizer.d_coef: must be a finite number above 0"),
        (["prodigy", "optimizer.beta3=1"], "optimizer.beta3: must lie in [0, 1)"),
        (["prodigy", "optimizer.eps=0"], "optimizer.eps: must be above 0 with prodigy"),
        (["dadapt_adam", "optimizer.growth_rate=1"], "optimizer.growth_rate: must be above 1"),
        (
            ["dadapt_adam", "+optimizer.multipliers={bias:{lr:2.0}}"],
            "optimizer.multipliers.bias.lr: dadapt_adam estimates one learning rate for all parameters",
        ),
        (
            ["prodigy", "+optimizer.multipliers={bias:{lr:0.5}}"],
            "prodigy estimates one learning rate for all",
        ),
    ],
)
def test_bad_values_of_an_optimizer_are_named(composed: Compose, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(composed(f"optimizer={overrides[0]}", *overrides[1:]))
    assert message in str(error.value)


def test_the_lr_of_some_may_still_be_zero_and_decay_may_differ(composed: Compose) -> None:
    frozen = validate(composed("optimizer=prodigy", "+optimizer.multipliers={bias:{lr:0.0,weight_decay:2.0}}"))
    assert frozen.optimizer.multipliers == {"bias": {"lr": 0.0, "weight_decay": 2.0}}
    doubled = validate(composed("optimizer=schedule_free_sgd", "+optimizer.multipliers={bias:{lr:2.0}}"))
    assert doubled.optimizer.multipliers == {"bias": {"lr": 2.0}}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr_rule=linear"], "optimizer.lr_reference_batch: needs a value with optimizer.lr_rule=linear"),
        (["optimizer.lr_rule=cubic"], "optimizer.lr_rule: unknown choice 'cubic'"),
        (["data.batch_size_is=all"], "data.batch_size_is: unknown choice 'all'"),
        (
            ["optimizer.lr_rule=sqrt", "optimizer.lr_reference_batch=64", "finder=range_test"],
            "optimizer.lr_rule: the finder's learning rate is for this batch",
        ),
    ],
)
def test_a_rule_that_cannot_be_applied_is_refused(
    configured: Callable[..., Config], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(*overrides)


def test_every_group_has_choices_and_every_schema_a_group() -> None:
    groups = {group for group, _ in CHOICES}
    assert groups == {*SCHEMAS, "experiment"}
    assert set(SCHEMAS) == {*GROUP_BASES, "search"}
