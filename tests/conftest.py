"""What every test shares: the checkout, and the app's commands run as a user runs them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(autouse=True)
def no_seed_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning keeps the seed in the environment and acts on it: it would change the loaders of every later test."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def train_command(tmp_path: Path) -> Command:
    """`scripts/train.py` in a process of its own, from a foreign folder, its store and outputs below `tmp_path`."""

    def run(
        *overrides: str, check: bool = True, timeout: float = 300, **env: str
    ) -> "subprocess.CompletedProcess[str]":
        places = [f"output_root={tmp_path}/outputs", f"tracking.root={tmp_path}/mlruns"]
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "train.py"), *places, *overrides],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check:
            assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
