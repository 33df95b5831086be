"""Going on with a run that has come to its end: what is refused, before anything of it is touched."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import DictConfig

from lr_lightning.app.config import Config, flatten
from lr_lightning.app.run.resume import _check_length, stored_config
from lr_lightning.app.run.train import RunOutcome, train
from lr_lightning.errors import ConfigError
from tests.app.conftest import short_run

Compose = Callable[..., DictConfig]


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
        _check_length(checkpoint, flatten(asdict(config)))


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
