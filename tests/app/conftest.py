"""Composing configs as the command line does, without starting a process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from lr_lightning.app.config import Config, register
from lr_lightning.app.validate import validated

ROOT = Path(__file__).resolve().parent.parent.parent

Compose = Callable[..., DictConfig]


@pytest.fixture(scope="session")
def schemas() -> None:
    register()


@pytest.fixture
def composed(tmp_path: Path, schemas: None) -> Iterator[Compose]:
    """Compose the app's config with overrides; stores and outputs lie below `tmp_path`."""
    OmegaConf.register_new_resolver("checkout", lambda: str(tmp_path), replace=True)
    OmegaConf.register_new_resolver("choices", lambda: "", replace=True)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        yield lambda *overrides: compose("config", overrides=list(overrides))


@pytest.fixture
def configured(composed: Compose) -> Callable[..., Config]:
    """The same, checked."""
    return lambda *overrides: validated(composed(*overrides))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without a run: making one takes MLflow seconds, so it is made once and copied."""
    from lr_lightning.tracking import open_store

    root = tmp_path_factory.mktemp("store")
    open_store(root).call("search_experiments")  # an experiment would remember this very folder
    return root / "mlflow.db"
