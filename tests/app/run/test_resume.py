"""Which run is gone on with, what may change about it, and what its stored config may name."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from lr_lightning.app.checks import validate
from lr_lightning.app.run.output import LAST, new_output_dir, write_config
from lr_lightning.app.run.resume import ALLOWED_TARGETS, stored_config
from lr_lightning.errors import ConfigError

Compose = Callable[..., DictConfig]


@pytest.fixture
def stored(composed: Compose, tmp_path: Path) -> Callable[..., Path]:
    """An output folder as a run leaves it, with a config that can be tampered with."""

    def make(*overrides: str, change: Callable[[dict[str, Any]], None] = lambda config: None) -> Path:
        config = validate(composed(*overrides, f"output_root={tmp_path}/outputs"))
        folder = new_output_dir(config.output_root)
        container = asdict(config)
        change(container)
        write_config(folder, container)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / LAST).touch()
        return folder

    return make


def _resume(composed: Compose, folder: Path | str, *overrides: str) -> Any:
    task = [f"resume={folder}", *overrides]
    return stored_config(composed(*task), task)


def test_the_stored_config_is_taken_whole(composed: Compose, stored: Callable[..., Path]) -> None:
    folder = stored("optimizer=adam", "optimizer.lr=0.02", "schedule=constant", "model.kwargs.width=8", "seed=3")
    config, previous = _resume(composed, folder)
    assert (config.optimizer.name, config.optimizer.lr, config.seed) == ("adam", 0.02, 3)
    assert config.model.kwargs["width"] == 8
    assert previous.checkpoint == folder / "checkpoints" / LAST
    assert previous.changed == {}
    assert config.resume is None


def test_length_devices_and_tracking_may_change(composed: Compose, stored: Callable[..., Path]) -> None:
    folder = stored("trainer.max_epochs=4")
    config, previous = _resume(composed, folder, "trainer.max_epochs=9", "trainer=cpu", "tracking=csv")
    assert (config.trainer.max_epochs, config.trainer.accelerator, config.tracking.name) == (9, "cpu", "csv")
    assert previous.changed == {"trainer.max_epochs": 9, "trainer.accelerator": "cpu", "trainer.devices": 1}


def test_a_device_group_does_not_bring_its_own_length(composed: Compose, stored: Callable[..., Path]) -> None:
    config, _ = _resume(composed, stored("trainer.max_epochs=4"), "trainer=cpu")
    assert config.trainer.max_epochs == 4


def test_every_other_difference_is_refused_and_shown(composed: Compose, stored: Callable[..., Path]) -> None:
    folder = stored("optimizer.lr=0.1")
    with pytest.raises(ConfigError) as caught:
        _resume(composed, folder, "optimizer.lr=0.2", "schedule=constant", "seed=1")
    message = str(caught.value)
    assert "optimizer.lr: the run has 0.1, not 0.2." in message
    assert "schedule: the run has cosine, not constant." in message
    assert "seed: the run has 0, not 1." in message
    assert "trainer.max_epochs" in message


def test_what_is_repeated_unchanged_is_no_difference(composed: Compose, stored: Callable[..., Path]) -> None:
    folder = stored("optimizer.lr=0.2", "schedule=constant")
    assert _resume(composed, folder, "optimizer.lr=0.2", "schedule=constant")[1].changed == {}


@pytest.mark.parametrize(
    ("where", "target"),
    [
        ("model", "os.system"),
        ("model", "lr_lightning.app.run.train.os.system"),  # the project's own name in front proves nothing
        ("optimizer", "torch.hub.load"),
        ("data", "lr_lightning.training.sources.digits "),
        ("callbacks", "some.Callback"),
        ("nested", "subprocess.run"),
    ],
)
def test_a_stored_config_runs_no_code_of_its_choosing(
    composed: Compose, stored: Callable[..., Path], where: str, target: str
) -> None:
    def tamper(config: dict[str, Any]) -> None:
        if where == "callbacks":
            config["callbacks"]["extra"] = {"mine": {"_target_": target}}
        elif where == "nested":
            config["model"]["kwargs"]["x"] = [{"deep": {"_target_": target}}]
        else:
            config[where]["_target_"] = target

    folder = stored(change=tamper)
    with pytest.raises(ConfigError, match="not this project's own") as caught:
        _resume(composed, folder)
    assert target in str(caught.value)
    assert f"trust=[{target}]" in str(caught.value)


def test_trust_comes_from_the_command_line_alone(composed: Compose, stored: Callable[..., Path]) -> None:
    def tamper(config: dict[str, Any]) -> None:
        config["model"]["_target_"] = "my.Net"
        config["trust"] = ["my.Net"]

    folder = stored(change=tamper)
    with pytest.raises(ConfigError, match=r"my\.Net"):
        _resume(composed, folder)
    assert _resume(composed, folder, "trust=[my.Net]")[0].model._target_ == "my.Net"


def test_a_stored_config_interpolates_nothing(composed: Compose, stored: Callable[..., Path]) -> None:
    folder = stored(change=lambda config: config["tracking"]["tags"].update(leak="${oc.env:HOME}"))
    with pytest.raises(ConfigError, match="interpolation"):
        _resume(composed, folder)


@pytest.mark.parametrize(
    "hidden",
    [
        {"dropout": ["${oc.create:{_target_: torch.load}}"]},
        {"deep": [[{"x": "${oc.env:HOME}"}]]},
        {"${oc.env:HOME}": 1},
    ],
)
def test_interpolations_are_found_in_lists_and_keys(
    composed: Compose, stored: Callable[..., Path], hidden: dict[str, Any]
) -> None:
    folder = stored(change=lambda config: config["model"]["kwargs"].update(hidden))
    with pytest.raises(ConfigError, match="interpolation"):
        _resume(composed, folder)


def test_one_tracking_key_leaves_the_others_as_they_were(composed: Compose, stored: Callable[..., Path]) -> None:
    folder = stored("tracking.experiment=mine", "tracking.root=/somewhere")
    config, _ = _resume(composed, folder, "tracking.run_name=x")
    assert (config.tracking.run_name, config.tracking.experiment) == ("x", "mine")
    assert config.tracking.root == "/somewhere"


def test_yaml_tags_are_not_obeyed(composed: Compose, stored: Callable[..., Path]) -> None:
    folder = stored()
    (folder / "config.yaml").write_text("seed: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        _resume(composed, folder)


def test_no_such_run(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume: no run 'nowhere'"):
        _resume(composed, "nowhere", f"output_root={tmp_path}", "tracking=none")
    with pytest.raises(ConfigError, match="no run's output folder"):
        _resume(composed, tmp_path)


def test_a_run_without_a_checkpoint(composed: Compose, stored: Callable[..., Path]) -> None:
    folder = stored()
    (folder / "checkpoints" / LAST).unlink()
    with pytest.raises(ConfigError, match="has no checkpoint"):
        _resume(composed, folder)


def test_every_choice_of_the_project_is_allowed() -> None:
    from lr_lightning.training import models

    files = (Path(__file__).resolve().parents[3] / "conf").glob("*/*.yaml")
    written = {
        target for file in files for target in re.findall(r"^_target_: (lr_lightning\S+)", file.read_text(), re.M)
    }
    assert written
    assert written <= ALLOWED_TARGETS
    assert {f"lr_lightning.training.models.{name}" for name in models.__all__} <= ALLOWED_TARGETS


def test_output_folders_are_unique(tmp_path: Path) -> None:
    assert len({new_output_dir(str(tmp_path / "outputs"), "digits") for _ in range(50)}) == 50
