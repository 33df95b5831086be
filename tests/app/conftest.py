"""Composing configs as the command line does, without starting a process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lr_lightning.app.composition import load_config, prepare, validate
from lr_lightning.app.config import Config, register
from lr_lightning.app.run.checkpoints import ConfigInCheckpoint
from lr_lightning.app.run.train import train

ROOT = Path(__file__).resolve().parent.parent.parent

Compose = Callable[..., DictConfig]


@pytest.fixture(scope="session")
def schemas() -> None:
    register()


@pytest.fixture
def composed(tmp_path: Path, schemas: None) -> Iterator[Compose]:
    """Compose the app's config with overrides; stores and outputs lie below `tmp_path`."""
    OmegaConf.register_new_resolver("checkout", lambda: str(tmp_path), replace=True)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        yield lambda *overrides: compose("config", overrides=list(overrides))


@pytest.fixture
def configured(composed: Compose) -> Callable[..., Config]:
    """The same, checked."""
    return lambda *overrides: validate(composed(*overrides))


def short_run(outputs: Path, *overrides: str) -> Path:
    """The output folder of a run of a few steps, in this process: of the narrowest net, recorded in files."""
    prepare(ROOT)
    words = [f"output_root={outputs}", "tracking=csv", "trainer=cpu", "trainer.progress=none", "model.kwargs.width=4"]
    folder = train(load_config(ROOT, [*words, *overrides]), report=False).output_dir
    assert folder is not None
    return folder


def checkpoint_of(step: int, **config: Any) -> dict[str, Any]:
    """A checkpoint of some size, with the stamp of a config."""
    return {"state_dict": {"w": torch.full((1000,), float(step))}, "global_step": step, ConfigInCheckpoint.KEY: config}
