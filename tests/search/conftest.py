"""Searches in a store of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lr_lightning.app.composition import prepare
from lr_lightning.app.run import train as train_module
from lr_lightning.search import cli
from lr_lightning.search.settings import Search, read_search
from lr_lightning.search.task import Task
from tests.search.stand_ins import InstantWorker, InstantWorkers, Run, Trainings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Overrides that keep a search's files below `tmp_path`."""
    return [f"tracking.root={tmp_path}/mlruns", f"output_root={tmp_path}/outputs"]


@pytest.fixture
def searched(places: list[str]) -> Callable[..., Search]:
    """A search from its command line."""
    prepare(ROOT)
    return lambda *words: read_search(ROOT, [*places, *words])


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """No trial trains; the configs that would have been trained with."""
    found = Trainings()
    monkeypatch.setattr(train_module, "train", found)
    monkeypatch.setattr("lr_lightning.search.smoke_test.smoke_test", lambda *_: None)
    return found


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Workers whose runs have ended at once; the tasks they were given."""
    monkeypatch.setattr("lr_lightning.search.engine.Workers", InstantWorkers)
    InstantWorker.tasks.clear()
    return InstantWorker.tasks


@pytest.fixture
def run(places: list[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`scripts/search.py` in this process."""

    def search(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts" / "search.py"), *places, "workers=0", *words])
        return cli.main(ROOT)

    return search


SearchCommand = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def search_command(tmp_path: Path, places: list[str]) -> Iterator[SearchCommand]:
    """Start `scripts/search.py` in a process of its own, which is gone when the test is."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "search.py"), *places, *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
