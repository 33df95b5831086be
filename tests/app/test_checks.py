"""Every file of conf/ composes and fits its schema; every bad input has one message with key, value and remedy."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lr_lightning.app.checks import validate
from lr_lightning.app.commands.train import _usage
from lr_lightning.app.composition import choices_help
from lr_lightning.app.config import GROUP_BASES, SCHEMAS, Config, flatten
from lr_lightning.app.error_messages import explain
from lr_lightning.errors import ConfigError

Compose = Callable[..., DictConfig]
CONF = Path(__file__).resolve().parent.parent.parent / "conf"
NEEDS = {"parquet": "data.train={file}", "image_folder": "data.root={folder}", "own": "module._target_=some.Module"}
UNLISTED = {"name", "_target_", "kwargs", "apply"}  # of a search that trains nothing
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


def test_every_group_has_choices_and_every_schema_a_group() -> None:
    groups = {group for group, _ in CHOICES}
    assert groups == {*SCHEMAS, "experiment"}
    assert set(SCHEMAS) == {*GROUP_BASES, "search"}


def test_the_help_has_a_line_for_every_choice() -> None:
    lines = choices_help(CONF.parent).splitlines()
    said = {line.split()[0]: line.split(maxsplit=1)[1:] for line in lines if line.startswith("  ")}
    assert {choice for _, choice in CHOICES} <= set(said)
    assert [choice for choice, text in said.items() if not text] == []
    assert max(map(len, lines)) <= 160
    assert "  cosine               Half a cosine to zero after a warm-up" in lines  # the first sentence, no source


def test_the_help_of_find_lr_is_its_own(composed: Compose) -> None:
    command = [sys.executable, str(CONF.parent / "scripts" / "find_lr.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert text.startswith("Search for a learning rate, without training;")
    assert "It trains nothing" in text
    assert "train.py schedule" not in text
    for choice in ("range_test", "lr_grid"):
        keys = set(flatten(OmegaConf.to_container(composed(f"finder={choice}").finder)))
        listed = text.partition(f"Keys of finder={choice}")[2].partition("\n\n")[0]
        assert set(re.findall(r"^  finder\.(\w+)  +\S", listed, flags=re.MULTILINE)) == keys - UNLISTED, choice
    examples = re.findall(r"^  python scripts/find_lr\.py (\S+=\S+(?: \S+=\S+)*)", text, flags=re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        words = example.split()
        finder = [] if any(word.startswith("finder=") for word in words) else ["finder=range_test"]  # its default
        validate(composed(*words, *finder))


def test_the_help_of_train_has_no_keys_of_a_search() -> None:
    assert _usage("train").splitlines()[1].startswith("  python scripts/train.py schedule=")
    assert "finder." not in _usage("train")


def test_sgd_takes_the_models_rate_and_a_given_one_wins(composed: Compose) -> None:
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
        (["+sede=3"], ["sede:", "no such key", "Did you mean 'seed'?"]),
        (["+optimizer.lrr=3"], ["optimizer.lrr:", "no such key", "Did you mean 'lr'?"]),
        (["++trainer.max_epoch=3"], ["trainer.max_epoch:", "Did you mean 'max_epochs'?"]),
        (["~seed"], ["seed:", "deleted"]),
        (["seed=abc"], ["seed:", "'abc'", "not an integer"]),
        (["seed=1.5"], ["seed:", "'1.5'", "not an integer"]),
        (["optimizer.lr=fast"], ["optimizer.lr:", "'fast'", "not a number"]),
        (["trainer.channels_last=perhaps"], ["trainer.channels_last:", "'perhaps'", "not true or false"]),
        (
            ["schedule=cosin"],
            ["schedule:", "'cosin'", "Choices: batch_growth, constant, cosine", "Did you mean 'cosine'?"],
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
        (["callbacks=none", "callbacks.cost.target=a"], ["is off (null)", "callbacks.cost.target"]),
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
        (["schedule=plateau", "schedule.monitor=overfit/x"], ["schedule.monitor: 'overfit/x' is not logged"]),
        (["callbacks.cost.target=val/acc"], ["callbacks.cost.target: must be a metric", "val/acc>=0.97", "'val/acc'"]),
        (["callbacks.cost.price_per_gpu_hour=-2"], ["callbacks.cost.price_per_gpu_hour:", "got -2.0"]),
        (["experiment=lr_effects", "study.low=10"], ["study.low", "study.high"]),
        (["experiment=lr_effects", "study.points=1"], ["study.points:", "got 1"]),
        (["experiment=lr_effects", "study.seeds=[]"], ["study.seeds:", "got []"]),
        (["experiment=lr_effects", "study.seeds=[1,1]"], ["study.seeds:", "different"]),
        (["experiment=lr_effects", "study.lrs=[0.1]"], ["study.lrs:", "got [0.1]"]),
        (
            ["experiment=lr_effects", "study.points=3", "study.reference=0.1"],
            ["study.reference: must be one of the learning rates, 0.0001, 0.0316, 10, or null", "got 0.1"],
        ),
        (["experiment=lr_effects", "study.level=95"], ["study.level:", "got 95.0"]),
        (["experiment=lr_effects", "callbacks.overfitting=null"], ["study: needs callbacks.overfitting"]),
        (["experiment=lr_effects", "callbacks.cost.target=null"], ["study: needs a target"]),
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


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, 2]}) == {"a.b": 1, "a.c": {}, "d": [1, 2]}
