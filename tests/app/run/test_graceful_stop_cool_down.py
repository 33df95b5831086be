"""A running training that is told to cool down: by a file or by SIGUSR1, once, and as if it had never been stopped."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging

from lr_lightning.app.commands import cooldown
from lr_lightning.app.composition import compose_config, load_config, prepare
from lr_lightning.app.run import graceful_stop
from lr_lightning.app.run.graceful_stop import REQUEST, CooldownRequest
from lr_lightning.app.run.resume import stored_config
from lr_lightning.app.run.train import RunOutcome, train
from lr_lightning.tracking.locks import Holder, RunLock
from tests.app.conftest import ROOT
from tests.leftovers import checkpoint, metrics, plain

RUN = [
    *("tracking=csv", "trainer=cpu", "trainer.progress=none", "trainer.deterministic=false", "model.kwargs.width=4"),
    *("schedule=constant", "optimizer.lr=0.1", "trainer.max_epochs=9", "data.train_size=320", "data.batch_size=32"),
    *("callbacks.checkpoint.every_n_steps=3", "callbacks.checkpoint.every=1"),
]
"""90 steps, 10 an epoch."""


class After(Callback):
    """Do something after a step, given the run's folder."""

    def __init__(self, step: int, act: Callable[[Path], Any]) -> None:
        self.step, self.act = step, act

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.act(Path(trainer.default_root_dir))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graceful_stop, "_SECONDS", 0.0)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def outcome_of(tmp_path: Path, *watching: Callback) -> RunOutcome:
    prepare(ROOT)
    return train(load_config(ROOT, [*RUN, f"output_root={tmp_path}"]), report=False, watching=watching)


def run(tmp_path: Path, *watching: Callback) -> Path:
    folder = outcome_of(tmp_path, *watching).output_dir
    assert folder is not None
    return folder


def request(over: str) -> Callable[[Path], None]:
    return CooldownRequest(over).write


def lrs(folder: Path) -> list[float]:
    return [value for _, value in metrics(folder)["lr/group0"]]


def test_a_run_that_finds_the_request_cools_down_tests_and_ends(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, After(20, request("25%")))
    assert outcome.verdict is not None
    assert outcome.verdict.evidence["planned"] == 1.0  # so it is not told to train to its end
    folder = outcome.output_dir
    assert folder is not None
    assert lrs(folder) == pytest.approx([0.1] * 20 + [0.1 * (1 - t / 5) for t in range(5)])
    assert CooldownRequest.read(folder) == CooldownRequest("25%", 20, 5)
    rows = metrics(folder)
    assert rows["val/loss"][-1][0] == 24
    assert "test/acc" in rows
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["status"] == "FINISHED"
    assert {"tag": "cooldown.step", "value": "20"} in records


def test_a_run_stopped_before_or_in_its_cooldown_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = run(tmp_path, After(20, request("50%")))
    assert len(lrs(whole)) == 30
    for kept in (18, 25):
        stopped = shutil.copytree(whole, whole.with_name(f"stopped-{kept}"))
        shutil.copy(stopped / "checkpoints" / f"step-{kept}.ckpt", stopped / "checkpoints" / "last.ckpt")
        words = [f"resume={stopped}"]
        train(*stored_config(compose_config(ROOT, words)[0], words), report=False)
        for key in ("state_dict", "optimizer_states", "global_step"):
            assert plain(checkpoint(stopped)[key]) == plain(checkpoint(whole)[key])
        assert lrs(stopped) == lrs(whole)


def test_sigusr1_asks_for_a_cooldown_and_in_a_batch_job_it_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = After(10, lambda _: os.kill(os.getpid(), signal.SIGUSR1))
    assert lrs(run(tmp_path, told)) == pytest.approx([0.1] * 10 + [0.1, 0.05])  # a fifth of the steps so far
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, told)
    assert caught.value.code == 128 + signal.SIGUSR1


def test_a_run_whose_lr_another_callback_sets_says_so_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, StochasticWeightAveraging(0.02, swa_epoch_start=8), After(20, request("2")))
    assert lrs(folder)[:70] == [0.1] * 70
    assert len(lrs(folder)) >= 90  # for BatchNorm, that callback adds an epoch that trains nothing
    assert not (folder / REQUEST).exists()
    assert "not cooling down as told: LRSchedule cannot cool down, since Stoch" in capsys.readouterr().out


@pytest.mark.parametrize(("content", "found"), [("", None), ('{"over": "a lot"}', None), ('{"over": "7"}', "7")])
def test_a_request_that_cannot_be_read_is_none(tmp_path: Path, content: str, found: str | None) -> None:
    (tmp_path / REQUEST).write_text(content)
    read = CooldownRequest.read(tmp_path)
    assert (read and read.over) == found


def test_the_command_asks_a_live_run_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")

    def ask(over: str = "10%") -> tuple[int, str]:
        status = cooldown.run(ROOT, str(folder), over, output_root=tmp_path, store_root=tmp_path, uri=None)
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    status, text = ask()
    assert (status, "RUN: run is not running. Cool its last state down in a new run: " in text) == (2, True)
    assert "schedule=cooldown" in text
    lock = RunLock(folder / "metrics.lock", "the run")
    lock.acquire(Holder.here("", str(folder)))
    try:
        assert ask("soon") == (
            2,
            "error: --over must be a duration, got 'soon'. "
            "Write a whole number of steps (500 or '500 steps'), '5 epochs', or '10%'.\n",
        )
        assert ask() == (0, "run will cool down over 10% of its steps so far, validate, test, and end.\n")
        assert CooldownRequest.read(folder) == CooldownRequest("10%")
        CooldownRequest("10%", 50, 5).write(folder)
        assert ask() == (2, "error: RUN: run is cooling down already, from step 50 to 55.\n")
    finally:
        lock.release()
