"""A fork starts from a state of another run: equal to it if nothing changes, and else with the changes asked for."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule

from lr_lightning.app.composition import compose_config, readable
from lr_lightning.app.config import Config
from lr_lightning.app.run.checkpoints import trunk_space
from lr_lightning.app.run.fork import ForkedRun, forked_config
from lr_lightning.app.run.resume import stored_config
from lr_lightning.app.run.train import train
from lr_lightning.errors import ConfigError
from lr_lightning.schedules import Clock
from tests.app.conftest import ROOT, short_run
from tests.conftest import Command
from tests.leftovers import checkpoint, metrics, plain, untimed

TRUNK = [
    *("test=false", "data.train_size=320", "data.batch_size=32", "trainer.max_epochs=4", "optimizer.lr=0.1"),
    *("model.kwargs.dropout=0.2", "data.flip=true", "trainer.deterministic=false", 'callbacks.checkpoint.every="15%"'),
]
"""40 steps, 10 an epoch; checkpoints after 6, 12, ... 36."""


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_run(tmp_path_factory.mktemp("outputs"), *TRUNK)


MONITOR = ["callbacks.checkpoint.monitor=overfit/gap_loss", "callbacks.checkpoint.mode=min"]


def configure(run: Path, point: str, *words: str) -> tuple[Config, ForkedRun]:
    given = readable([f"fork={run}@{point}", f"output_root={run.parent}", "tracking=csv", *words])
    return forked_config(compose_config(ROOT, given)[0], given)


def fork(run: Path, point: str, *words: str) -> Path:
    folder = train(*configure(run, point, *words), report=False).output_dir
    assert folder is not None
    assert folder != run
    return folder


def refusal(run: Path, point: str, *words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        fork(run, point, *words)
    return str(caught.value)


def equal(one: Path, other: Path) -> bool:
    states = [checkpoint(folder) for folder in (one, other)]
    return all(
        plain(states[0][key]) == plain(states[1][key]) for key in ("state_dict", "optimizer_states", "global_step")
    )


def rows(folder: Path) -> dict[str, list[tuple[int, float]]]:
    return {key: found for key, found in untimed(folder).items() if not key.startswith("summary/")}


def lrs(folder: Path) -> dict[int, float]:
    return dict(metrics(folder)["lr/group0"])


@pytest.mark.parametrize("point", ["45%", "step=30", "epoch=1.2"])
def test_a_fork_that_changes_nothing_is_the_run_itself(trunk: Path, point: str) -> None:
    assert sorted(path.name for path in (trunk / "checkpoints").glob("step-*")) == [
        *(f"step-{step}.ckpt" for step in (12, 18, 24, 30, 36, 6)),
    ]
    forked = fork(trunk, point)
    assert equal(forked, trunk)
    assert rows(forked) == rows(trunk)
    assert not [*(forked / "checkpoints").glob("step-*")]  # it keeps none unless it is asked to


def test_a_fork_that_was_stopped_resumes_as_if_it_had_not(trunk: Path) -> None:
    words = ["schedule=linear", "optimizer.lr=0.05", "callbacks.checkpoint.every=5"]
    whole = fork(trunk, "step=18", *words)
    stopped = shutil.copytree(whole, whole.with_name("stopped"))
    shutil.move(stopped / "checkpoints" / "step-25.ckpt", stopped / "checkpoints" / "last.ckpt")
    given = [f"resume={stopped}"]
    train(*stored_config(compose_config(ROOT, given)[0], given), report=False)
    assert equal(stopped, whole)
    assert lrs(stopped) == lrs(whole)


DIE = """
import os, signal
from lightning.pytorch import Callback

class Die(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 28 and "STOP" not in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_fork_that_was_killed_outright_resumes_to_the_end_of_the_straight_run(
    trunk: Path, tmp_path: Path, train_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "die.py").write_text(DIE)
    words = ["tracking=csv", "callbacks.checkpoint.every_n_steps=5", "+callbacks.extra.die._target_=die.Die"]
    killed = train_command(f"fork={trunk}@step=18", *words, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder,) = (path.parent for path in (tmp_path / "outputs").glob("*/config.yaml"))
    assert checkpoint(folder)["global_step"] == 25
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("STOP", "no")
    given = [f"resume={folder}", "trust=[die.Die]"]
    train(*stored_config(compose_config(ROOT, given)[0], given), report=False)
    assert equal(folder, trunk)
    assert rows(folder) == rows(trunk)


def test_runs_with_accumulated_batches_and_best_checkpoints_fork_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["trainer.accumulate_grad_batches=3", "schedule=plateau", "callbacks.checkpoint.every=3", "seed=3"]
    run = short_run(tmp_path, *TRUNK, *more, "+trainer.kwargs.val_check_interval=6", *MONITOR)
    assert equal(fork(run, "step=9"), run)
    best = checkpoint(run, "best")["global_step"]
    assert best < checkpoint(run)["global_step"]
    forked = fork(run, "best")  # of a validation within an epoch
    assert equal(forked, run)
    assert rows(forked) == rows(run)
    assert "between two updates" not in capsys.readouterr().err


def test_a_run_that_ended_within_an_epoch_is_forked_without_a_gap_in_its_rows(tmp_path: Path) -> None:
    run = short_run(tmp_path, *TRUNK, "trainer.max_steps=15", "schedule=constant", "callbacks.checkpoint.every=null")
    forked = lrs(fork(run, "last", "schedule=linear", "trainer.max_steps=20"))
    assert [*forked] == [*range(20)]
    assert [*forked.values()] == pytest.approx([0.1] * 15 + [0.1 * (1 - t / 5) for t in range(5)])


def test_a_run_that_averages_its_weights_forks_exactly(tmp_path: Path) -> None:
    run = short_run(tmp_path, *TRUNK, "callbacks.ema=0.9", "trainer.max_epochs=2")
    assert equal(fork(run, "step=12"), run)
    assert refusal(run, "step=12", "callbacks=none").startswith("callbacks.ema: a fork keeps the run's value, 0.9, not")


def test_another_schedule_starts_at_the_fork(trunk: Path) -> None:
    forked = fork(trunk, "step=24", "schedule=linear", "trainer.max_epochs=5", "schedule.end=0.2")
    used = lrs(forked)
    assert {step: used[step] for step in range(24)} == {step: lrs(trunk)[step] for step in range(24)}
    assert [used[step] for step in range(24, 50)] == pytest.approx([0.1 * (1 - 0.8 * t / 26) for t in range(26)])
    assert checkpoint(forked)["global_step"] == 50
    # a key alone changes the schedule as it would have been from the start
    assert [*lrs(fork(trunk, "step=24", "schedule.end=0.5")).values()][24:] == pytest.approx(
        [0.1 * factor for factor in _cosine(40, end=0.5)[24:]]
    )


def _cosine(total: int, end: float) -> list[float]:
    from lr_lightning.schedules import Cosine, Warmup

    return Warmup("5%", then=Cosine(end=end)).factors(total)


def test_another_peak_and_weight_decay_hold_from_the_fork_on(trunk: Path) -> None:
    forked = fork(trunk, "step=24", "optimizer.lr=0.02", "optimizer.weight_decay=0.003")
    groups = [checkpoint(folder)["optimizer_states"][0]["param_groups"] for folder in (trunk, forked)]
    assert [group["initial_lr"] for group in groups[1]] == [0.02, 0.02]
    assert [[group["weight_decay"] for group in each] for each in groups] == [[5e-4, 0.0], [0.003, 0.0]]
    assert lrs(forked)[24] == pytest.approx(lrs(trunk)[24] / 5)
    # the other name of the peak
    assert configure(trunk, "step=24", "schedule=triangular", "schedule.max_lr=0.3")[0].optimizer.lr == 0.3


def test_a_cooldown_goes_from_where_the_run_is_to_zero(trunk: Path) -> None:
    forked = fork(trunk, "step=30", "schedule=cooldown")
    before = lrs(trunk)[29]
    assert [lrs(forked)[step] for step in range(30, 36)] == pytest.approx([before * (1 - t / 6) for t in range(6)])
    assert checkpoint(forked)["global_step"] == 36  # a fifth of the steps so far
    by_length = configure(trunk, "step=30", "schedule=cooldown", "schedule.length=1 epoch")[0]
    assert (by_length.trainer.max_epochs, by_length.trainer.max_steps) == (-1, 40)
    assert configure(trunk, "step=30", "schedule=cooldown", "trainer.max_steps=33")[0].trainer.max_steps == 33
    own_peak = configure(trunk, "step=30", "schedule=cooldown", "optimizer.lr=0.5")[0]
    assert (own_peak.optimizer.lr, own_peak.schedule.start) == (0.5, 1.0)  # type: ignore[attr-defined]
    text = refusal(trunk, "step=30", "schedule=cooldown", "schedule.length=5", "trainer.max_epochs=9")
    assert text == "schedule.length: 5, and trainer.max_epochs is another length. Give one of them."


def test_what_a_fork_reached_is_its_own(trunk: Path) -> None:
    forked = fork(trunk, "step=36", "schedule=cooldown", "optimizer.lr=0.0001")
    own = [value for step, value in metrics(forked)["val/loss"] if step >= 36]
    assert metrics(forked)["summary/best_val_loss"] == [(0, pytest.approx(min(own), rel=1e-3))]
    assert (forked / "checkpoints" / "best.ckpt").is_file()
    assert torch.load(forked / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] > 36


def test_the_record_names_the_run_and_the_first_of_the_line(trunk: Path) -> None:
    child = fork(trunk, "step=12", "callbacks.checkpoint.every=6")
    config, forked = configure(child, "step=24")
    assert config.fork == f"{child.name}@step=24"
    assert forked.tags == {
        "fork.run": child.name,
        "fork.trunk": trunk.name,
        "fork.point": "step=24",
        "fork.step": "24",
    }


@pytest.mark.parametrize(
    ("point", "words", "message"),
    [
        ("half", [], "fork: 'half' is no point of a run. Give RUN@60%, RUN@step=500, RUN@epoch=5, RUN@best or RUN@"),
        ("200%", [], "fork: 200%: must be at most '100%', got '200%'."),
        ("last", [], "trainer.max_epochs: 4, but the run has made 4 up to last, so nothing is left to train."),
        ("50%", [], "has no checkpoint of 50%, which is step 20. It has: step=6 (15%); step=12 (30%);"),
        ("step=24", ["data.batch_size=16", "seed=1"], "data.batch_size: the run has 32, not 16.\nseed: the run has 0"),
        ("step=24", ["model=resnet9"], "model.name: the run has small_cnn, not resnet9."),
        ("step=24", ["optimizer=adam"], "optimizer.name: the run has sgd, not adam."),
        ("step=24", ["finder=range_test"], "finder.name: the run has none, not range_test."),
        ("step=24", ["trainer.max_steps=20"], "trainer.max_steps: 20, but the run has made 24 steps"),
        ("step=24", ["schedule.cooldown=3"], "schedule.cooldown: "),
        (
            "step=24",
            ["callbacks.checkpoint.every=lots"],
            "callbacks.checkpoint.every: must be a duration, got 'lots'. Write a whole number of steps (500 or "
            "'500 steps'), '5 epochs', or '10%'.",
        ),
        ("step=24", ["callbacks.ema=0.9"], "callbacks.ema: a fork keeps the run's value, None, not 0.9."),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(trunk: Path, point: str, words: list[str], message: str) -> None:
    before = {*trunk.parent.iterdir()}
    assert message in refusal(trunk, point, *words)
    assert {*trunk.parent.iterdir()} == before


def test_a_cooldown_without_a_fork_and_a_fork_without_a_run_are_refused(
    configured: Callable[..., Config], tmp_path: Path
) -> None:
    for words, message in (
        (["schedule=cooldown"], "schedule: a cooldown starts from a trained run"),
        (["fork=x@last"], "fork: belongs to scripts/train.py"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(configured(*words, f"output_root={tmp_path}"))
    for words, message in (
        (["fork=nowhere@last"], "fork: no run 'nowhere'"),
        (["fork=last"], "fork: 'last' names no state of a run. Give RUN@60%"),
    ):
        with pytest.raises(ConfigError, match=message):
            forked_config(compose_config(ROOT, [*words, f"output_root={tmp_path}"])[0], words)


def test_the_space_of_the_checkpoints_along_a_run_is_known_before(tmp_path: Path) -> None:
    module = LightningModule()
    module.layer = torch.nn.Linear(1000, 500, bias=False)
    text = trunk_space("10%", Clock(1000), module, 2.0, tmp_path)
    assert text == "checkpoints to fork from, every 10%: 9 of about 6.0 MB, 54.0 MB in all"
    module.layer.weight = torch.nn.Parameter(torch.empty(2**40, device="meta"))  # 4 TB
    with pytest.raises(
        ConfigError, match=r"callbacks.checkpoint.every: '100' keeps checkpoints: 9 of about 13,194\.1 GB"
    ):
        trunk_space(100, Clock(1000), module, 2.0, tmp_path)


def test_several_points_can_be_given_at_once() -> None:
    words = readable(["-m", "fork=a@25%,a@step=50", "schedule.end=0.1"])
    assert words == ["-m", "fork=a@25%,'a@step=50'", "++schedule.end=0.1"]
