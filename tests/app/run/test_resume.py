"""Which run is resumed from which checkpoint, what may change about it, and what its stored config may name."""

import csv
import math
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch.nn.functional import cross_entropy

from lr_lightning.app.composition import validate
from lr_lightning.app.config import Config
from lr_lightning.app.run.checkpoints import (
    BEFORE_LAST,
    LAST,
    AtomicCheckpointIO,
    load_weights,
    new_output_dir,
    read_checkpoint,
    write_config,
)
from lr_lightning.app.run.resume import (
    ALLOWED_TARGETS,
    ResumedRun,
    check_length,
    choose_checkpoint,
    identity,
    set_damaged_aside,
    stored_config,
)
from lr_lightning.app.run.train import RunOutcome, build_data_and_module, train
from lr_lightning.errors import ConfigError
from lr_lightning.tracking.keys import flatten
from lr_lightning.training.datamodule import ImageDataModule
from tests.app.conftest import checkpoint_of, short_run

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


def test_a_key_that_was_renamed_is_read_under_its_old_name(composed: Compose, stored: Callable[..., Path]) -> None:
    folder = stored("seed=3", change=lambda config: config.update(study=config.pop("lr_effects")))
    assert _resume(composed, folder)[0].seed == 3


def test_length_devices_and_tracking_may_change(composed: Compose, stored: Callable[..., Path]) -> None:
    folder = stored("trainer.max_epochs=4")
    config, previous = _resume(composed, folder, "trainer.max_epochs=9", "trainer=cpu", "tracking=csv")
    assert (config.trainer.max_epochs, config.trainer.accelerator, config.tracking.name) == (9, "cpu", "csv")
    assert previous.changed == {"trainer.max_epochs": 9, "trainer.accelerator": "cpu", "trainer.devices": 1}


def test_a_device_group_does_not_bring_its_own_length(composed: Compose, stored: Callable[..., Path]) -> None:
    config, _ = _resume(composed, stored("trainer.max_epochs=4"), "trainer=cpu")
    assert config.trainer.max_epochs == 4


def test_the_threads_are_kept_unless_there_are_fewer_cores(
    composed: Compose, stored: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lr_lightning.app.run.resume.usable_cores", lambda: 4)
    config, previous = _resume(composed, stored("trainer.threads=3"))
    assert (config.trainer.threads, previous.changed) == (3, {})
    config, previous = _resume(composed, stored("trainer.threads=3"), "trainer.threads=8")
    assert (config.trainer.threads, previous.changed) == (8, {"trainer.threads": 8})
    config, previous = _resume(composed, stored("trainer.threads=16"))
    assert (config.trainer.threads, previous.changed) == ("auto", {"trainer.threads": "auto"})


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


def flat(config: Config) -> dict[str, Any]:
    return flatten(asdict(config))


@pytest.fixture
def stopped(tmp_path: Path, composed: Compose) -> tuple[ResumedRun, Any, Callable[[int], dict[str, Any]]]:
    """A stopped run, its config, and what its checkpoints hold."""
    config = validate(composed("optimizer.lr=0.2"))
    (tmp_path / "checkpoints").mkdir()
    stamp = identity(flat(config))
    return ResumedRun(tmp_path, tmp_path / "checkpoints" / LAST, {}), config, lambda step: checkpoint_of(step, **stamp)


class NoData(ImageDataModule):
    def __init__(self) -> None:
        super().__init__(lambda: None)  # type: ignore[arg-type, return-value]


def test_a_truncated_checkpoint_gives_way_to_the_one_before_and_that_is_said(
    stopped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    previous, config, content = stopped
    io = AtomicCheckpointIO()
    io.save_checkpoint(content(10), previous.checkpoint)
    io.save_checkpoint(content(20), previous.checkpoint)
    assert choose_checkpoint(previous, flat(config), NoData()).checkpoint.name == LAST
    previous.checkpoint.write_bytes(previous.checkpoint.read_bytes()[:3000])
    found = choose_checkpoint(previous, flat(config), NoData())
    assert found.checkpoint.name == BEFORE_LAST
    said = capsys.readouterr().err
    assert "last.ckpt cannot be read" in said
    assert "using the one before" in said
    assert "of step 10" in said
    set_damaged_aside(found)
    assert not previous.checkpoint.exists()  # so the next save keeps the whole one
    assert choose_checkpoint(previous, flat(config), NoData()).checkpoint.name == BEFORE_LAST  # another rank, later
    found.checkpoint.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"resume: .*before_last.ckpt cannot be read"):
        choose_checkpoint(previous, flat(config), NoData())


def test_a_checkpoint_of_another_config_is_refused_with_the_difference(stopped: Any) -> None:
    previous, config, content = stopped
    AtomicCheckpointIO().save_checkpoint(content(10), previous.checkpoint)
    other = replace(config, seed=7, optimizer=replace(config.optimizer, lr=0.3))
    with pytest.raises(ConfigError) as caught:
        choose_checkpoint(previous, flat(other), NoData())
    assert "of a run with another config" in str(caught.value)
    assert "seed: 0 in the checkpoint, 7 in the run" in str(caught.value)
    assert "optimizer.lr: 0.2 in the checkpoint, 0.3 in the run" in str(caught.value)
    longer = replace(config, trainer=replace(config.trainer, max_epochs=99, devices=2))  # what a resume may change
    assert choose_checkpoint(previous, flat(longer), NoData()).checkpoint == previous.checkpoint


def test_a_checkpoint_that_would_run_code_is_refused(stopped: Any, tmp_path: Path) -> None:
    previous, config, content = stopped
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (ran,))

    torch.save({**content(10), "callbacks": Payload()}, previous.checkpoint)
    with pytest.raises(ConfigError, match="holds more than weights and plain values"):
        choose_checkpoint(previous, flat(config), NoData())
    assert not ran.exists()


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that has made 3 epochs of 3 steps."""
    overrides = ["trainer.max_epochs=3", "trainer.max_steps=100", "schedule.warmup=0", "test=false"]
    overrides += ["data.train_size=96", "data.batch_size=32", "trainer.deterministic=false"]
    return short_run(tmp_path_factory.mktemp("outputs"), *overrides)


@pytest.fixture
def finished(run_once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(run_once, tmp_path / "outputs" / run_once.name)


def resume(composed: Compose, folder: Path, *overrides: str) -> RunOutcome:
    task = [f"resume={folder}", *overrides]
    return train(*stored_config(composed(*task), task))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("trainer.max_epochs=2", "trainer.max_epochs=4"),
        ("trainer.max_epochs=1", "trainer.max_epochs=4"),
        ("trainer.max_steps=8", "trainer.max_steps=10"),
    ],
)
def test_a_run_cannot_be_made_shorter_than_it_is(composed: Compose, finished: Path, override: str, remedy: str) -> None:
    before = contents(finished)
    key, value = override.split("=")
    with pytest.raises(ConfigError, match=f"^{key}: {value}, but the run has made 9 steps, to epoch 3. Give {remedy} "):
        resume(composed, finished, override)
    assert contents(finished) == before


@pytest.mark.parametrize(("optimizers", "refused"), [(1, True), (2, False)])
def test_several_optimizers_may_have_gone_beyond_the_limit_in_the_last_batch(
    configured: Callable[..., Config], optimizers: int, refused: bool
) -> None:
    checkpoint = {
        "loops": {"fit_loop": {"epoch_loop.batch_progress": {"current": {"completed": 0}}}},
        "epoch": 1,
        "global_step": 10,
        "optimizer_states": [{}] * optimizers,
    }
    config = configured("trainer.max_steps=9")
    with pytest.raises(ConfigError, match=r"max_steps: 9, .* made 10 steps") if refused else nullcontext():
        check_length(checkpoint, flatten(asdict(config)))


def test_a_run_at_its_end_says_that_nothing_was_left_to_do(
    composed: Compose, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "nothing was left to do: the run had made all its 9 steps. To train longer, resume it with "
    assert resume(composed, finished).summary["steps"] == 9
    assert f"{line}trainer.max_epochs=6\n" in capsys.readouterr().out
    resume(composed, finished, "trainer.max_steps=9")
    assert f"{line}trainer.max_steps=18\n" in capsys.readouterr().out
    assert resume(composed, finished, "trainer.max_epochs=4", "trainer.max_steps=-1").summary["steps"] == 12
    assert "nothing was left" not in capsys.readouterr().out


def test_a_schedule_that_ends_later_says_how_far_the_lr_jumps_and_what_to_do_instead(
    composed: Compose, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume(composed, finished, "trainer.max_epochs=6")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "jumps" in line)
    last, following = 0.1 * (1 + math.cos(math.pi * 8 / 9)) / 2, 0.1 * (1 + math.cos(math.pi * 9 / 18)) / 2
    assert line.startswith(f"the learning rate jumps from {last:.2g} to {following:.2g}, since cosine now ends later. ")
    assert line.endswith(f"fork={finished}@last schedule=linear optimizer.lr=0.01 trainer.max_epochs=6")
    resume(composed, finished, "trainer.max_epochs=7")  # from the end of 6
    assert "jumps" in capsys.readouterr().out
    assert resume(composed, finished).summary["steps"] == 21
    assert "jumps" not in capsys.readouterr().out


MIXED = (
    "data.trivial_augment=true",
    "data.mixup=0.2",
    "data.cutmix=1",
    "data.random_erasing=0.5",
    "data.flip=true",
    "callbacks.ema=0.9",
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of 24 steps with mixed images and averaged weights, and one stopped in its second epoch."""
    words = ("data.train_size=192", "data.batch_size=16", "schedule=constant", "module.label_smoothing=0.1", *MIXED)
    words = (*words, "module.class_weights=balanced", "callbacks.cooldown_preview=true")
    outputs = tmp_path_factory.mktemp("outputs")
    folders = [short_run(outputs, *words, f"trainer.max_steps={steps}") for steps in (24, 17)]
    return folders[0], folders[1]


def test_a_resume_mixes_erases_and_averages_as_if_it_had_not_been_stopped(
    mixed: tuple[Path, Path], composed: Compose
) -> None:
    resume(composed, mixed[1], "trainer.max_steps=24")
    one, other = (read_checkpoint(folder / "checkpoints" / "last.ckpt", "resume") for folder in mixed)
    assert one["global_step"] == other["global_step"] == 24
    for weights in ("state_dict", "current_model_state"):
        assert one[weights].keys() == other[weights].keys()
        assert all(torch.equal(one[weights][name], other[weights][name]) for name in one[weights])
    name = next(name for name in one["state_dict"] if name.endswith("weight"))
    assert not torch.equal(one["state_dict"][name], one["current_model_state"][name])


def test_validation_probe_and_test_are_plain_cross_entropies_of_the_average(
    mixed: tuple[Path, Path], configured: Callable[..., Config]
) -> None:
    """Mixed labels, class weights and label smoothing belong to the training loss alone."""
    config = configured("data.train_size=192", "data.batch_size=16", "model.kwargs.width=4", "trainer=cpu")
    data, module = build_data_and_module(config)
    with (mixed[0] / "metrics.csv").open() as file:
        logged = {row["key"]: float(row["value"]) for row in csv.DictReader(file)}  # the last ones
    for checkpoint, names in (("last", ("val", "probe")), ("best", ("test",))):
        stored = read_checkpoint(mixed[0] / "checkpoints" / f"{checkpoint}.ckpt", "ckpt")
        load_weights(module, stored, checkpoint)
        for name in names:
            batches = [data.on_after_batch_transfer(batch, 0) for batch in getattr(data, f"{name}_dataloader")()]
            with torch.no_grad():
                losses = [cross_entropy(module.eval()(x), y, reduction="none") for x, y in batches]
            assert logged[f"{name}/loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)
    assert logged["train/loss_epoch"] > logged["probe/loss"]  # of mixed images
    assert "val/loss_if_cooled" in logged
