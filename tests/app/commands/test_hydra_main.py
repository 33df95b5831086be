"""The end of a multirun: what is compared with what, and that nothing of it can fail the runs."""

import math
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hydra._internal.core_plugins import basic_launcher
from hydra._internal.hydra import Hydra
from hydra.types import RunMode

from lr_lightning._plotting import styles
from lr_lightning.app.commands import compare as app_compare
from lr_lightning.app.commands import hydra_main as cli
from lr_lightning.app.commands.hydra_main import Multirun
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import BAD_INPUT, FAILED
from lr_lightning.app.run import train as train_module
from lr_lightning.app.run.record import RunOutcome
from lr_lightning.app.run.signals import Interrupted
from lr_lightning.errors import ConfigError, Diverged
from tests.app.conftest import ROOT

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
    ("words", "text", "once"),
    [
        (["schedule=cosine", "output_root=/hydra", "-m"], "monitor: {mode: max}", True),
        (["--multirun"], "", True),
        (["-cn", "other"], "", False),
        (["+hydra.mode=MULTIRUN"], "", False),
        ([], None, True),  # the app's own
        (["hydra.mode=MULTIRUN"], "", False),
        (["hydra/launcher=joblib"], "", False),
        (["--config-name=other"], "", False),
        ([], "# @package _global_\nhydra:\n  mode: MULTIRUN\n", False),
        ([], "hydra: {searchpath: [file:///elsewhere]}", False),
    ],
)
def test_hydra_composes_twice_only_where_its_mode_may_be_set(
    tmp_path: Path, words: list[str], text: str | None, once: bool
) -> None:
    ask, folder = Hydra.get_mode, tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text(text or "")
    (folder / ".#own.yaml").symlink_to("gone")  # as editors leave them
    with cli._composing_once(ROOT if text is None else tmp_path, words):
        assert (Hydra.get_mode is not ask) is once
    assert Hydra.get_mode is ask


def test_what_hydra_asks_for_its_mode_has_no_other_effect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    composed: list[object] = []
    compose = Hydra.compose_config
    monkeypatch.setattr(Hydra, "compose_config", lambda *a, **k: composed.append(k["run_mode"]) or compose(*a, **k))
    monkeypatch.setattr(sys, "argv", ["train.py", "data.batch_size=0", f"output_root={tmp_path}"])
    assert cli.main(ROOT) == BAD_INPUT
    assert composed == [RunMode.RUN]
    assert "data.batch_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("jobs", "by"),
    [
        (["seed=0", "seed=1"], ["schedule"]),
        (["fork=a@25%,schedule=cooldown", "fork='a@step=5',schedule=cooldown"], ["fork.point"]),
        (["fork=a@25%,schedule=cooldown", "fork=b@25%,schedule=cooldown"], ["fork"]),
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


def looks(configured: Configured, monkeypatch: pytest.MonkeyPatch, words: list[str], own: list[str]) -> tuple[Any, Any]:
    """Name and colour of a run of the multirun that `words` start."""
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *words])
    config = configured(*own)
    Multirun().add(config, own, "s1", 1)
    return config.tracking.run_name, config.tracking.tags.get("mlflow.runColor")


def test_runs_of_a_sweep_are_named_and_coloured_by_what_varies(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["schedule=cosine", "optimizer.lr=0.001,0.01,0.1,1.0", "seed=range(2)"]
    names = [f"lr={lr}" for lr in ("0.001", "0.01", "0.1", "1")]
    for lr, group in zip(("0.001", "0.01", "0.1", "1.0"), names, strict=True):
        own = ["schedule=cosine", f"optimizer.lr={lr}", "seed=1"]
        assert looks(configured, monkeypatch, words, own) == (f"{group} s1", styles(names)[group].colour)
    words = ["schedule=cosine,wsd", "optimizer.lr=0.03,0.1"]
    name, colour = looks(configured, monkeypatch, words, ["schedule=wsd", "optimizer.lr=0.03"])
    assert name == "wsd lr=0.03"
    groups = [f"{schedule}, lr={lr}" for schedule in ("cosine", "wsd") for lr in (0.03, 0.1)]
    assert colour == styles(groups)["wsd, lr=0.03"].colour
    words = ["fork=outputs/a@25%,outputs/a@50%", "schedule=cooldown"]
    name, colour = looks(configured, monkeypatch, words, ["fork=outputs/a@50%", "schedule=cooldown"])
    assert (name, colour) == ("fork@50%", styles(["fork@25%", "fork@50%"])["fork@50%"].colour)
    # A sweep of seeds alone is named as its runs would be by themselves, and a user's own name stays.
    assert looks(configured, monkeypatch, ["seed=0,1"], ["seed=1"]) == (None, None)
    own = ["schedule=wsd", "tracking.run_name=mine"]
    assert looks(configured, monkeypatch, ["schedule=cosine,wsd", own[1]], own)[0] == "mine"
    assert looks(configured, monkeypatch, ["--config-name", "config", "seed=0,1"], ["seed=1"]) == (None, None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["schedule=cosine,wsd", "seed=0,1,2"],
            'for which 6 seeds are needed. With 3 seeds the report can say "better in',
        ),
        (["schedule=cosine,wsd", "seed=range(6)"], "6 seeds are needed. A clear difference can be proven."),
        (["schedule=cosine,wsd"], "With 1 seed nothing can be told. For a proof: seed=0,1,2,3,4,5"),
        (
            ["schedule=a,b", "optimizer.lr=1,2"],
            "4 settings, 1 seed each: 6 pairs to compare, for which 8 seeds are needed.",
        ),
        (["schedule=a,b", "optimizer.lr=1,2"], "(compare.py --against ONE, chosen beforehand, needs 7)"),
    ],
)
def test_a_multirun_says_beforehand_how_many_seeds_it_takes(words: list[str], said: str) -> None:
    assert said in cli.seeds_note(["-m", *words])


def test_a_multirun_of_one_setting_says_nothing_of_seeds() -> None:
    assert cli.seeds_note(["-m", "seed=0,1"]) == ""


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
    monkeypatch.setattr(sys, "argv", ["hydra_main.py", "-m", "seed=0,1,2", f"output_root={tmp_path}"])
    assert cli.main(root) == BAD_INPUT
    assert capsys.readouterr().err == "error: tracking: it asks for a user and a password (3 runs)\n"
    assert not asked.calls


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher as joblib's is: each job gets copies of everything and its result comes back as a copy."""
    run_job = basic_launcher.run_job

    def copied(thing: Any) -> Any:
        return cloudpickle.loads(cloudpickle.dumps(thing))

    def run_elsewhere(*, task_function: Any, **rest: Any) -> Any:
        jobs = copied(task_function)
        jobs.__self__._pid = 0
        return copied(run_job(task_function=jobs, **rest))

    monkeypatch.setattr(basic_launcher, "run_job", run_elsewhere)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_errors_status_output_and_comparison_are_the_same_from_every_launcher(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    asked: Asked,
    where: str,
) -> None:
    if where == "elsewhere":
        request.getfixturevalue(where)

    def train(config: Config, *_: Any, **__: Any) -> RunOutcome:
        if config.seed == 2:
            raise Diverged("train/loss", math.nan, 7, 0.1)
        return RunOutcome({"best_val_acc": 0.5})

    monkeypatch.setattr(train_module, "train", train)
    monkeypatch.setattr(cli, "_identity_of_stdout", lambda: (1, 1))
    monkeypatch.chdir(tmp_path)
    words = ["-m", "seed=0,1,2", "optimizer.lr=0.1,-1", f"output_root={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["hydra_main.py", *words])
    assert cli.main(Path(__file__).resolve().parents[3]) == FAILED
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("run ")]
    assert lines == [  # the others could not start
        "run 1 of 6: seed=0, optimizer.lr=0.1: best val/acc 50.00%",
        "run 3 of 6: seed=1, optimizer.lr=0.1: best val/acc 50.00%",
        "run 5 of 6: seed=2, optimizer.lr=0.1: train/loss became nan at step 7, where the learning rate was 0.1",
    ]
    assert "error: train/loss became nan at step 7, where the learning rate was 0.1." in said.err
    assert "error: optimizer.lr: must be a finite number above 0" in said.err
    assert "(3 runs)" in said.err
    (call,) = asked.calls
    assert call["by_varied"] == ["schedule"]
    assert "\nsweep " in said.out


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (None, 1)])
def test_a_job_that_is_stopped_or_lost_elsewhere_ends_the_command_with_its_status(
    monkeypatch: pytest.MonkeyPatch, elsewhere: None, tmp_path: Path, signum: int | None, status: int
) -> None:
    class Lost(RuntimeError):
        __module__ = "joblib.externals.loky"

    def train(*_: Any, **__: Any) -> None:
        raise Lost("killed") if signum is None else Interrupted(signum)

    monkeypatch.setattr(train_module, "train", train)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hydra_main.py", "-m", "seed=0", f"output_root={tmp_path}"])
    assert cli.main(Path(__file__).resolve().parents[3]) == status


def test_what_a_launcher_writes_to_its_own_log_is_shown_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], elsewhere: None, tmp_path: Path
) -> None:
    monkeypatch.setattr(train_module, "train", lambda *_, **__: print("a table") or RunOutcome())
    places = iter([(1, 1), (2, 2)])
    monkeypatch.setattr(cli, "_identity_of_stdout", lambda: next(places))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hydra_main.py", "-m", "seed=0", f"output_root={tmp_path}"])
    assert cli.main(Path(__file__).resolve().parents[3]) == 0
    assert capsys.readouterr().out == 2 * "run 1 of 1: a table\n\n"  # in the log, and here


@pytest.mark.slow
def test_jobs_of_joblib_end_as_those_of_hydras_own_launcher(train_command: Any) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["hydra/launcher=joblib", "optimizer.lr=0.1,-1", "tracking=none", "trainer=cpu", "trainer.max_steps=2"]
    done = train_command(*words, "data.train_size=96", "test=false", "model.kwargs.width=4", "-m", check=False)
    assert done.returncode == BAD_INPUT
    assert done.stderr.count("error: optimizer.lr: must be a finite number above 0") == 1
    assert "Traceback" not in done.stderr
    assert "run 1 of 2: optimizer.lr=0.1: best val/acc " in done.stdout
