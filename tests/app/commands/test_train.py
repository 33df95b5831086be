"""The end of a multirun: what is compared with what, and that nothing of it can fail the runs."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lr_lightning.app.commands import compare as app_compare
from lr_lightning.app.commands import train as cli
from lr_lightning.app.commands.train import Multirun
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import BAD_INPUT
from lr_lightning.app.run import train as train_module
from lr_lightning.errors import ConfigError

Configured = Callable[..., Config]


@dataclass
class Asked:
    calls: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What would have been compared."""
    found = Asked()
    monkeypatch.setattr(app_compare, "run", lambda *places, **rest: found.calls.append({"places": places, **rest}))
    return found


@pytest.mark.parametrize(
    ("jobs", "by"),
    [
        (["seed=0", "seed=1"], ["schedule"]),
        (["schedule=cosine,seed=0", "schedule=wsd,seed=1"], ["schedule"]),
        (["schedule=cosine,optimizer.lr=0.1", "schedule=cosine,optimizer.lr=0.2"], ["optimizer.lr"]),
        (["schedule=cosine,optimizer.lr=0.1", "schedule=wsd,optimizer.lr=0.2"], ["schedule", "optimizer.lr"]),
        (["data.batch_size=32", "data.batch_size=64"], ["data.batch_size"]),
    ],
)
def test_runs_are_grouped_by_what_was_varied(
    configured: Configured, asked: Asked, jobs: list[str], by: list[str]
) -> None:
    multirun = Multirun()
    for number, job in enumerate(jobs):
        overrides = job.split(",")
        multirun.add(configured(*overrides), overrides, "s1", number)
    multirun.compare()
    (call,) = asked.calls
    assert (call["by_varied"], call["filter_string"]) == (by, "tags.sweep = 's1'")
    assert call["experiments"] == ["lr_lightning"]


def test_every_run_gets_the_sweeps_tags_but_the_users_own_stay(configured: Configured) -> None:
    multirun = Multirun()
    configs = [configured("+tracking.tags.sweep=mine"), configured("seed=1")]
    for number, made in enumerate(configs):
        multirun.add(made, [f"seed={number}"], "s1", number)
    assert [c.tracking.tags for c in configs] == [{"sweep": "mine", "trial": "0"}, {"sweep": "s1", "trial": "1"}]


@pytest.mark.parametrize("overrides", [["tracking=none"], ["tracking=csv"]])
def test_what_is_not_in_mlflow_is_not_compared(configured: Configured, asked: Asked, overrides: list[str]) -> None:
    multirun = Multirun()
    for seed in range(2):
        multirun.add(configured(*overrides), [f"seed={seed}"], "s1", seed)
    multirun.compare()
    assert not asked.calls


def test_a_failure_of_the_comparison_is_said_and_no_more(
    configured: Configured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("whatever")

    monkeypatch.setattr(app_compare, "run", fail)
    multirun = Multirun()
    for seed in range(2):
        multirun.add(configured(), [f"seed={seed}"], "s1", seed)
    multirun.compare()
    assert "the runs are not compared: RuntimeError: whatever" in capsys.readouterr().err


def test_runs_that_could_not_be_started_are_one_error_and_are_not_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, asked: Asked
) -> None:
    """Of a server that refuses, each run's error was printed, and one more of the comparison."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigError("tracking: it asks for a user and a password")

    root = Path(__file__).resolve().parents[3]
    monkeypatch.setattr(train_module, "train", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1,2", f"output_root={tmp_path}"])
    assert cli.main(root) == BAD_INPUT
    assert capsys.readouterr().err == "error: tracking: it asks for a user and a password (3 runs)\n"
    assert not asked.calls
