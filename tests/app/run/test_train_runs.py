"""Whole runs in processes of their own: what a run leaves behind, and that resuming is as if it had never stopped."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests import forked
from tests.forked import Forked
from tests.leftovers import checkpoint, plain, query, weights
from tests.test_commands import in_bash

ROOT = Path(__file__).resolve().parents[3]
Command = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.slow

# Dropout draws from the global generator and flips from the data's: both must go on where they were.
SMALL = [
    "model.kwargs.width=8",
    "model.kwargs.dropout=0.2",
    "data.flip=true",
    "data.crop_padding=1",
    "trainer.max_epochs=3",
    "trainer.accumulate_grad_batches=3",
]


COSTS = {
    f"summary/{name}"
    for name in (
        "seconds",
        "train_seconds",
        "search_seconds",
        "device_seconds",
        "examples_per_second",
        "peak_memory_mb",
        *(f"step_ms_p{p}" for p in (50, 95, 99)),
    )
}
"""What differs between two runs that are otherwise equal."""


def folder_of(tmp_path: Path) -> Path:
    """The newest output folder."""
    return max((tmp_path / "outputs").glob("*-s*-*"), key=lambda path: path.stat().st_mtime)


def rows(tmp_path: Path, run_id: str = "%") -> list[tuple[str, int, float]]:
    """(key, step, value) of every metric row of a run in the store, or of all, but for times and costs."""
    found = query(tmp_path, "SELECT key, step, value FROM metrics WHERE run_uuid LIKE ?", run_id)
    return sorted(row for row in found if not row[0].startswith("cost/") and row[0] not in COSTS)


def runs(tmp_path: Path) -> dict[str, str]:
    return dict(query(tmp_path, "SELECT run_uuid, status FROM runs"))


def tags(tmp_path: Path, run_id: str) -> dict[str, str]:
    return dict(query(tmp_path, "SELECT key, value FROM tags WHERE run_uuid = ?", run_id))


def params(tmp_path: Path, run_id: str) -> dict[str, str]:
    return dict(query(tmp_path, "SELECT key, value FROM params WHERE run_uuid = ?", run_id))


def start(tmp_path: Path, *overrides: str) -> Forked:
    places = [f"output_root={tmp_path}/outputs", f"tracking.root={tmp_path}/mlruns"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return Forked(ROOT / "scripts" / "train.py", *places, *overrides, cwd=tmp_path, env=environment)


def wait_for(path: Callable[[], bool], process: Forked, seconds: float = 120) -> None:
    """Poll for something a run does; a run that ends before that fails the test with its output."""
    until = time.monotonic() + seconds
    while not path():
        assert process.poll() is None, "".join(process.communicate())
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def prepared_store(tmp_path: Path, empty_store: Path, request: pytest.FixtureRequest) -> None:
    """Every test starts with a copy of it, but for those about the first start itself."""
    if request.node.get_closest_marker("first_start") is None:
        (tmp_path / "mlruns").mkdir()
        shutil.copy(empty_store, tmp_path / "mlruns")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, and the first in its store."""
    tmp_path = tmp_path_factory.mktemp("uninterrupted")
    process = start(tmp_path, *SMALL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return tmp_path


def assert_same_run(tmp_path: Path, reference: Path) -> None:
    """Weights, optimizer state and every metric row are equal, bit for bit, each row there once."""
    ours, theirs = folder_of(tmp_path), folder_of(reference)
    for name in ("last", "best"):
        mine, other = weights(ours, name), weights(theirs, name)
        assert mine.keys() == other.keys()
        for key in mine:
            assert torch.equal(mine[key], other[key]), f"{name}: {key}"
    assert plain(checkpoint(ours)["optimizer_states"]) == plain(checkpoint(theirs)["optimizer_states"])
    assert rows(tmp_path) == rows(reference)


def test_a_run_leaves_its_record(uninterrupted: Path) -> None:
    ((run_id, status),) = runs(uninterrupted).items()
    assert status == "FINISHED"
    found = rows(uninterrupted, run_id)
    folder = folder_of(uninterrupted)
    steps = checkpoint(folder)["global_step"]
    assert steps == 21  # 20 batches an epoch, accumulated by three: seven updates
    for key in ("train/loss", "lr/group0"):
        assert [step for name, step, _ in found if name == key] == list(range(steps)), key
    for key in (
        "val/loss",
        "val/acc",
        "probe/loss",
        "probe/acc",
        "overfit/gap_loss",
        "overfit/gap_acc",
        "train/loss_epoch",
    ):
        assert [step for name, step, _ in found if name == key] == [6, 13, 20], key
    for key in ("best_val_acc", "last_val_acc", "best_val_loss", "test_acc", "probe_loss", "gap_loss", "steps"):
        assert len([row for row in found if row[0] == f"summary/{key}"]) == 1, key
    assert len([row for row in found if row[0] == "test/acc"]) == 1
    known = tags(uninterrupted, run_id)
    expected = {"schedule": "cosine", "optimizer": "sgd", "model": "small_cnn", "data": "digits", "seed": "0"}
    assert expected.items() <= known.items()
    assert known["output_dir"] == str(folder)
    assert Path(known["checkpoint.best"]).is_file()
    assert yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["lr"] == 0.1
    assert sorted(path.name for path in uninterrupted.iterdir()) == ["mlruns", "outputs"]  # nothing beside them


def test_the_learning_rates_used_are_the_schedules_own(uninterrupted: Path) -> None:
    from lr_lightning.schedules import Cosine, Warmup

    factors = Warmup("5%", then=Cosine()).factors(21)
    logged = [value for key, _, value in rows(uninterrupted) if key == "lr/group0"]
    assert logged == [0.1 * factor for factor in factors]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    uninterrupted: Path, tmp_path: Path, train_command: Command
) -> None:
    train_command(*SMALL, from_scratch=True)  # so a forked run is that of the real command, bit for bit
    assert_same_run(tmp_path, uninterrupted)
    train_command(*SMALL, "seed=1", "tracking=none")
    mine, other = weights(folder_of(tmp_path)), weights(folder_of(uninterrupted))
    assert any(not torch.equal(mine[key], other[key]) for key in mine)


def test_the_probe_does_not_disturb_the_run(uninterrupted: Path, tmp_path: Path, train_command: Command) -> None:
    train_command(*SMALL, "callbacks.overfitting=null", "tracking=none")
    mine, other = weights(folder_of(tmp_path)), weights(folder_of(uninterrupted))
    assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_a_run_stopped_by_sigterm_goes_on_as_if_it_had_not(
    uninterrupted: Path, tmp_path: Path, train_command: Command
) -> None:
    (tmp_path / "slow_down.py").write_text(
        "import os, signal\nfrom lightning.pytorch import Callback\n"
        "class Slow(Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, batch_idx):\n"
        "        if trainer.current_epoch == 1 and batch_idx == 7 and 'STOP' not in os.environ:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    stopped = train_command(*SMALL, "+callbacks.extra.slow._target_=slow_down.Slow", check=False, from_scratch=True)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stdout + stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert list(runs(tmp_path).values()) == ["KILLED"]
    folder = folder_of(tmp_path)
    resumed = train_command(f"resume={folder}", "trust=[slow_down.Slow]", STOP="no")
    assert "resuming from" in resumed.stdout
    assert list(runs(tmp_path).values()) == ["FINISHED"]
    assert_same_run(tmp_path, uninterrupted)


DIE = """
import os, random, signal, threading, time
from lightning.pytorch import Callback

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Die(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 15 and "STOP" not in os.environ:
            die()

class DieAnyMoment(Callback):
    timer = None
    def on_train_batch_start(self, trainer, *_):
        if "KILL" not in os.environ:
            return
        time.sleep(0.02)
        if os.environ["KILL"] != "0" and self.timer is None and trainer.global_step >= 2:  # there is a checkpoint
            self.timer = threading.Timer(random.Random(int(os.environ["KILL"])).uniform(0, 0.5), die)
            self.timer.start()
    def on_validation_start(self, trainer, *_):
        if os.environ.get("KILL") == "0" and not trainer.sanity_checking:
            die()  # the step before has a checkpoint of its own, the validation has none yet
    def on_train_end(self, *_):
        if "KILL" in os.environ:
            die()
"""


def test_a_run_killed_outright_goes_on_as_if_it_had_not(
    uninterrupted: Path, tmp_path: Path, train_command: Command
) -> None:
    (tmp_path / "die.py").write_text(DIE)
    process = start(tmp_path, *SMALL, "+callbacks.extra.die._target_=die.Die")
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    ((run_id, status),) = runs(tmp_path).items()
    assert status == "RUNNING"
    train_command(f"resume={run_id}", "trust=[die.Die]", STOP="no")  # by the run's id
    assert runs(tmp_path) == {run_id: "FINISHED"}
    assert_same_run(tmp_path, uninterrupted)


def test_a_run_killed_in_a_validation_and_at_random_moments_goes_on_as_if_it_had_not(
    uninterrupted: Path, tmp_path: Path, train_command: Command
) -> None:
    (tmp_path / "die.py").write_text(DIE)
    how = [*SMALL, "callbacks.checkpoint.every_n_steps=1", "+callbacks.extra.die._target_=die.DieAnyMoment"]
    for kill in range(3):
        killed = train_command(*how, check=False, KILL=str(kill))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        how = [f"resume={folder_of(tmp_path)}", "trust=[die.DieAnyMoment]"]
    train_command(*how)
    assert len(runs(tmp_path)) == 1
    assert_same_run(tmp_path, uninterrupted)


def test_a_finished_run_can_be_made_longer(tmp_path: Path, train_command: Command) -> None:
    common = [*SMALL, "schedule=constant"]
    train_command(*common, "trainer.max_epochs=2")
    train_command(f"resume={folder_of(tmp_path)}", "trainer.max_epochs=3")
    ((run_id, status),) = runs(tmp_path).items()
    assert status == "FINISHED"
    assert tags(tmp_path, run_id)["resumed.trainer.max_epochs"] == "3"
    longer = weights(folder_of(tmp_path))
    train_command(*common, "tracking=none")
    at_once = weights(folder_of(tmp_path))
    assert all(torch.equal(longer[key], at_once[key]) for key in at_once)


def test_the_next_start_marks_a_dead_run_killed_and_leaves_a_live_one_alone(
    tmp_path: Path, train_command: Command
) -> None:
    (tmp_path / "idle.py").write_text(
        "import time\nfrom lightning.pytorch import Callback\n"
        "class Idle(Callback):\n"
        "    def on_train_epoch_start(self, trainer, module):\n"
        "        while trainer.current_epoch == 1:\n"
        "            time.sleep(0.1)\n"
    )
    process = start(tmp_path, *SMALL, "+callbacks.extra.idle._target_=idle.Idle")
    wait_for(lambda: any((tmp_path / "outputs").glob("*/checkpoints/last.ckpt")), process)
    (run_id,) = runs(tmp_path)
    train_command(*SMALL, "trainer.max_epochs=1")
    assert runs(tmp_path)[run_id] == "RUNNING"
    refused = train_command(f"resume={run_id}", "trust=[idle.Idle]", check=False)
    assert refused.returncode == 2
    assert "still running" in refused.stderr
    process.kill()
    process.communicate()
    train_command(*SMALL, "trainer.max_epochs=1")
    assert runs(tmp_path)[run_id] == "KILLED"


def test_a_diverging_run_fails_with_step_and_rate_and_loses_nothing(tmp_path: Path, train_command: Command) -> None:
    done = train_command(*SMALL, "schedule=constant", "optimizer.lr=1e6", "schedule.warmup=3", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "train/loss became" in done.stderr
    assert "optimizer.lr" in done.stderr
    ((run_id, status),) = runs(tmp_path).items()
    assert status == "FAILED"
    known = tags(tmp_path, run_id)
    assert known["diverged"] == "true"
    step = int(known["diverged_step"])
    assert float(known["diverged_lr"]) == pytest.approx(1e6 * min(1, (step + 1) / 3))
    found = rows(tmp_path, run_id)
    assert [s for key, s, _ in found if key == "train/loss"] == list(range(step))
    assert all(abs(value) < 1e300 for _, _, value in found)
    checkpoints = list((tmp_path / "outputs").glob("*/checkpoints/*.ckpt"))
    for path in checkpoints:
        assert all(torch.isfinite(t).all() for t in torch.load(path, weights_only=True)["state_dict"].values())


@pytest.mark.first_start
def test_eight_first_runs_at_once_all_survive(tmp_path: Path) -> None:
    small = ["model.kwargs.width=4", "trainer.max_epochs=1", "trainer.limit_train_batches=3", "test=false"]
    processes = [start(tmp_path, *small, f"seed={seed}") for seed in range(8)]
    for process in processes:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, out + err
    assert list(runs(tmp_path).values()) == ["FINISHED"] * 8
    assert len(list((tmp_path / "outputs").iterdir())) == 8


def test_weights_of_another_run_are_where_training_starts(tmp_path: Path, train_command: Command) -> None:
    train_command(*SMALL, "trainer.max_epochs=1", "tracking=none")
    first = folder_of(tmp_path)
    start_from = f"ckpt={first}/checkpoints/last.ckpt"
    train_command(*SMALL, start_from, "optimizer.lr=1e-30", "optimizer.weight_decay=0", "tracking=csv")
    second = folder_of(tmp_path)
    mine, other = weights(second), weights(first)
    assert all(torch.equal(mine[key], other[key]) for key in mine if "weight" in key)
    assert (second / "metrics.csv").read_text().startswith("key,value,step,time_ms\n")


def test_two_processes_make_one_run(tmp_path: Path, train_command: Command) -> None:
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    train_command(*SMALL, *ddp, 'callbacks.cost.target="val/loss<9"', timeout=600)
    ((run_id, status),) = runs(tmp_path).items()
    assert status == "FINISHED"
    assert len(list((tmp_path / "outputs").iterdir())) == 1
    found = rows(tmp_path, run_id)
    # 1,294 images in batches of 2 × 64: ten batches an epoch and rank, accumulated by three
    assert [step for key, step, _ in found if key == "train/loss"] == list(range(12))
    assert [step for key, step, _ in found if key == "val/acc"] == [3, 7, 11]
    values = {key: [value for name, _, value in found if name == key] for key, _, _ in found}
    # each rank has half of the validation set and of the probe; the gap is that of the whole
    for val, probe, gap in zip(values["val/loss"], values["probe/loss"], values["overfit/gap_loss"], strict=True):
        assert gap == pytest.approx(val - probe, abs=1e-5)
    for val, probe, gap in zip(values["val/acc"], values["probe/acc"], values["overfit/gap_acc"], strict=True):
        assert gap == pytest.approx(probe - val, abs=1e-5)
    assert values["summary/target_reached"] == [1.0]
    assert tags(tmp_path, run_id)["verdict"] == "inconclusive"  # three validations are too few


def test_a_dead_server_neither_stops_nor_stalls_a_run_and_replay_sends_it_later(
    tmp_path: Path, train_command: Command
) -> None:
    (tmp_path / "hurry.py").write_text(
        "from lightning.pytorch import Callback\nfrom lr_lightning.tracking import uploader\n"
        "class Hurry(Callback):\n"
        "    def on_fit_start(self, trainer, module):\n"
        "        uploader._SERVER_DRAIN_SECONDS = 1.0\n"  # at the end it gives the server so long to come back
    )
    done = train_command(*SMALL, "tracking.uri=http://127.0.0.1:9", "+callbacks.extra.hurry._target_=hurry.Hurry")
    assert done.stderr.count("127.0.0.1:9") <= 2  # one warning at the start, one word at the end
    assert "replay.py" in done.stderr
    folder = folder_of(tmp_path)
    assert '"train/loss"' in (folder / "metrics.jsonl").read_text()
    failed = forked.run(ROOT / "scripts" / "replay.py", str(folder), cwd=tmp_path, env=dict(os.environ))
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr


def test_the_users_own_module_with_its_own_loss_and_metrics(tmp_path: Path, train_command: Command) -> None:
    (tmp_path / "mine.py").write_text(
        "import lightning as L, torch\n"
        "class Mine(L.LightningModule):\n"
        "    def __init__(self, net, optimizer, scale):\n"
        "        super().__init__()\n"
        "        self.net, self.make, self.scale = net, optimizer, scale\n"
        "    def forward(self, x):\n"
        "        return self.net(x)\n"
        "    def training_step(self, batch, i):\n"
        "        return self.scale * torch.nn.functional.multi_margin_loss(self(batch[0]), batch[1])\n"
        "    def validation_step(self, batch, i):\n"
        "        self.log('val/right', (self(batch[0]).argmax(1) == batch[1]).float().mean())\n"
        "    def test_step(self, batch, i):\n"
        "        self.log('test/right', (self(batch[0]).argmax(1) == batch[1]).float().mean())\n"
        "    def configure_optimizers(self):\n"
        "        return self.make(self.net)\n"
    )
    own = ["module=own", "module._target_=mine.Mine", "+module.kwargs.scale=2.0"]
    wrong = train_command(*SMALL, *own, check=False)
    assert wrong.returncode == 2
    assert "callbacks.checkpoint.monitor: 'val/acc' is not logged" in wrong.stderr
    train_command(*SMALL, *own, "callbacks.checkpoint.monitor=val/right")
    found = rows(tmp_path)
    assert {"val/right", "test/right", "train/loss", "lr/group0", "probe/loss"} <= {key for key, _, _ in found}


def test_a_module_with_its_own_scheduler_is_told_which_of_the_two_to_remove(
    tmp_path: Path, train_command: Command
) -> None:
    (tmp_path / "scheduled.py").write_text(
        "import torch\nfrom lr_lightning.training.classifier import LitClassifier\n"
        "class Scheduled(LitClassifier):\n"
        "    def configure_optimizers(self):\n"
        "        o = super().configure_optimizers()\n"
        "        return {'optimizer': o, 'lr_scheduler': torch.optim.lr_scheduler.StepLR(o, 1)}\n"
    )
    own = ["module=own", "module._target_=scheduled.Scheduled"]
    # its __init__ is inherited, so it names net, optimizer and num_classes
    done = train_command(*SMALL, *own, "tracking=none", check=False)
    assert done.returncode == 2
    assert "Remove it there" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_run_ends_at_max_steps_with_a_validation_and_a_test(tmp_path: Path, train_command: Command) -> None:
    train_command(*SMALL, "trainer.max_steps=9")
    found = rows(tmp_path)
    assert [step for key, step, _ in found if key == "val/acc"] == [6, 8]
    assert [key for key, _, _ in found].count("test/acc") == 1


def test_sigterm_stops_both_processes_at_the_same_step(tmp_path: Path, train_command: Command) -> None:
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    process = start(tmp_path, *SMALL, *ddp, "trainer.max_epochs=1000")
    wait_for(lambda: any((tmp_path / "outputs").glob("*/checkpoints/last.ckpt")), process, seconds=200)
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, out + err
    (status,) = runs(tmp_path).values()
    assert status == "KILLED"
    folder = folder_of(tmp_path)
    steps = checkpoint(folder)["global_step"]
    assert [step for key, step, _ in rows(tmp_path) if key == "train/loss"] == list(range(steps))


def test_a_run_ends_with_a_validation_where_they_are_rarer_than_epochs(tmp_path: Path, train_command: Command) -> None:
    train_command(*SMALL, "trainer.check_val_every_n_epoch=2")
    assert [step for key, step, _ in rows(tmp_path) if key == "val/acc"] == [13, 20]
    assert checkpoint(folder_of(tmp_path))["global_step"] == 21


def test_what_a_run_prints_can_be_pasted_whatever_its_path(tmp_path: Path, train_command: Command) -> None:
    output = f"output_root={tmp_path}/my [runs], a=b é's"
    said = train_command(*SMALL, output, "trainer.max_epochs=4", "optimizer.lr=1e-6").stdout
    line, _ = [line.partition(":  ")[2] for line in said.splitlines() if line.startswith("try:")]  # 10 and 100 times
    python, script, *words = in_bash(line)
    assert (python, Path(script).name, words[-1]) == ("python", "train.py", "optimizer.lr=1e-05")
    train_command(*words)
    (root,) = tmp_path.glob("my *")
    assert len(list(root.iterdir())) == 2  # the runs' folders


def test_a_moved_output_folder_keeps_its_best_checkpoint(tmp_path: Path, train_command: Command) -> None:
    train_command(*SMALL, "tracking=none", "schedule=constant")
    moved = folder_of(tmp_path).rename(tmp_path / "moved")
    best = (moved / "checkpoints" / "best.ckpt").read_bytes()
    done = train_command(f"resume={moved}", "trainer.max_epochs=4", "tracking=none")
    assert "dirpath has changed" not in done.stderr
    state = checkpoint(moved)["callbacks"]
    (monitor,) = (value for key, value in state.items() if "'monitor': 'val/acc'" in key)
    assert monitor["best_model_path"] == str(moved / "checkpoints" / "best.ckpt")
    improved = (moved / "checkpoints" / "best.ckpt").read_bytes() != best
    again = checkpoint(moved, "best")
    assert improved == (again["epoch"] == 3)


def test_a_damaged_checkpoint_is_told_before_the_run_is_touched(tmp_path: Path, train_command: Command) -> None:
    train_command(*SMALL, "trainer.max_epochs=1")
    folder = folder_of(tmp_path)
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    config = (folder / "config.yaml").read_text()
    done = train_command(f"resume={folder}", "trainer.max_epochs=2", check=False)
    assert done.returncode == 2
    assert "resume:" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(runs(tmp_path).values()) == ["FINISHED"]
    assert (folder / "config.yaml").read_text() == config


FOUND = [*SMALL, "finder=range_test", "schedule=triangular", "schedule.up=4"]


def test_a_found_rate_survives_a_kill_and_no_record_has_another(tmp_path: Path, train_command: Command) -> None:
    (whole := tmp_path / "whole").mkdir()
    (whole / "mlruns").mkdir()
    shutil.copy(tmp_path / "mlruns" / "mlflow.db", whole / "mlruns")
    process = start(whole, *FOUND)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    (tmp_path / "die.py").write_text(DIE)
    process = start(tmp_path, *FOUND, "callbacks.checkpoint.every_n_steps=2", "+callbacks.extra.die._target_=die.Die")
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    (run_id,) = runs(tmp_path)
    train_command(f"resume={run_id}", "trust=[die.Die]", STOP="no")
    assert_same_run(tmp_path, whole)
    rates = [value for key, _, value in rows(tmp_path, run_id) if key == "lr/group0"]
    recorded, known = params(tmp_path, run_id), tags(tmp_path, run_id)
    assert float(recorded["optimizer.lr"]) == max(rates)
    assert float(recorded["lr_finder.base_lr"]) == pytest.approx(min(rates), rel=1e-12)
    assert recorded["schedule.base_lr"] == recorded["lr_finder.base_lr"]
    assert known["mlflow.runName"] == f"triangular lr={max(rates):.4g} seed=0"
    assert not [tag for tag in known if tag.startswith("resumed.optimizer")]


def test_find_lr_only_searches(tmp_path: Path) -> None:
    places = [f"output_root={tmp_path}/outputs", f"tracking.root={tmp_path}/mlruns"]
    command = [str(ROOT / "scripts" / "find_lr.py"), *places, "model.kwargs.width=8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "for comparison: valley" in done.stdout
    assert "train with it:" in done.stdout
    ((run_id, status),) = runs(tmp_path).items()
    assert status == "FINISHED"
    assert {"job": "find_lr", "finder": "range_test"}.items() <= tags(tmp_path, run_id).items()
    assert {key for key, _, _ in rows(tmp_path, run_id)} == {
        "summary/suggested_lr",
        "summary/base_lr",
        "summary/max_lr",
    }
    stored = {path.name for path in (tmp_path / "mlruns").rglob("curve.*")}
    assert stored == {"curve.csv", "curve.png"}
    refused = forked.run(*command, "finder=none", cwd=tmp_path, env=environment)
    assert refused.returncode == 2
    assert "finder: 'none' finds nothing" in refused.stderr
    assert len(runs(tmp_path)) == 1


def test_a_run_that_stops_early_has_its_verdict_and_cost_in_its_record(tmp_path: Path, train_command: Command) -> None:
    early = ["callbacks=early_stopping", "callbacks.early_stopping.criterion=gl", "schedule=constant"]
    early += ["callbacks.early_stopping.threshold=1e-9", "trainer.max_epochs=200", "model.kwargs.width=8"]
    done = train_command(*early, "callbacks.cost.price_per_gpu_hour=2")
    ((run_id, status),) = runs(tmp_path).items()
    assert status == "FINISHED"
    found = rows(tmp_path)
    assert 1 < len([step for key, step, _ in found if key == "val/loss"]) < 200
    kept = tags(tmp_path, run_id)
    assert kept["mlflow.note.content"].startswith(f"verdict: {kept['verdict']}")
    assert kept["verdict"] in done.stdout
    assert {"verdict.png", "verdict.txt"} <= {path.name for path in (folder_of(tmp_path) / "artifacts").iterdir()}
    logged = {"overfit/gl", "overfit/ece", "overfit/temperature", "summary/price", "summary/spikes"}
    assert logged <= {key for key, _, _ in found}


def test_lr_effects_makes_one_table_of_many_runs(tmp_path: Path, train_command: Command) -> None:
    grid = ["lr_effects.lrs=[0.003,0.1,1e30]", "lr_effects.seeds=[0]", "trainer.max_epochs=4", "model.kwargs.width=8"]
    done = train_command("experiment=lr_effects", *grid, "data.flip_labels=0.1")
    assert "the others against 0.1," in done.stdout.splitlines()[0]
    assert "[3/3] lr 1e+30 seed 0" in done.stdout
    assert "a high learning rate converges faster" in done.stdout
    (folder,) = (tmp_path / "outputs").glob("*-lr_effects-*")
    assert {"trials.csv", "table.csv", "table.txt", "lr_effects.png"} <= {path.name for path in folder.iterdir()}
    text = (folder / "table.txt").read_text()
    assert text in done.stdout
    assert "above and below 0.1 against it (the middle of the grid: fixed before any of these runs" in text
    assert "Holm's correction over all 9 claims" in text
    lines = (folder / "table.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["lr", "0.003", "0.1", "1e+30"]
    assert "diverged: 1" in lines[3]
    every = [(tags(tmp_path, run_id), status) for run_id, status in runs(tmp_path).items()]
    assert len({kept["sweep"] for kept, _ in every}) == 1
    (table,) = (kept for kept, _ in every if kept["job"] == "lr_effects")
    assert {kept["study"] for kept, _ in every} == {"lr_effects"}  # comparisons leave all of them out
    assert "a low learning rate underfits" in table["mlflow.note.content"]
    (diverged,) = (kept for kept, status in every if status == "FAILED")
    assert (diverged["trial"], diverged["verdict"]) == ("2", "diverged")  # from 0, as in a multirun
    assert "Lower the learning rate" in diverged["mlflow.note.content"]
