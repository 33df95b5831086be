"""Several processes, by torchrun and by Lightning's launcher: one run, the right numbers, and no rank left behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.leftovers import query

ROOT = Path(__file__).resolve().parents[3]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=static"]
DDP = ["trainer=ddp", "trainer.accelerator=cpu"]
PLAIN = ["model._target_=helpers.mlp", "model.name=mlp", "callbacks.overfitting=null"]
pytestmark = pytest.mark.slow

# A network without batch norm, whose gradient is the mean over the examples however they are shared; the weights after
# every update; and a rank that ends in a given way.
HELPERS = """
import os, signal, time
import torch
from lightning.pytorch import Callback

def mlp(in_channels, num_classes, image_size, **others):
    inputs = in_channels * image_size[0] * image_size[1]
    nn = torch.nn
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, num_classes))

class Weights(Callback):
    def __init__(self, path):
        self.path, self.steps = path, []
    def on_train_batch_end(self, trainer, module, *_):
        self.steps.append(torch.cat([p.detach().flatten().clone() for p in module.parameters()]))
    def on_train_end(self, trainer, module):
        if trainer.is_global_zero:
            torch.save(torch.stack(self.steps), self.path)

class Fault(Callback):
    def __init__(self, how):
        self.how = how
    def on_train_batch_start(self, trainer, module, batch, i):
        time.sleep(0.05)
        if trainer.global_step < 5:
            return
        if self.how == "rank" and trainer.global_rank == 1:
            os._exit(3)
        if self.how == "launcher" and trainer.global_rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def start(tmp_path: Path, *arguments: str, launcher: list[str] | None = None) -> "subprocess.Popen[str]":
    places = [f"output_root={tmp_path}/outputs", f"tracking.root={tmp_path}/mlruns", "test=false"]
    return subprocess.Popen(
        [*(launcher or [sys.executable]), str(ROOT / "scripts" / "train.py"), *places, *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes(tmp_path: Path) -> list[int]:
    """Every process that has the folder on its command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(tmp_path).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture
def place(tmp_path: Path, empty_store: Path) -> Iterator[Path]:
    """A folder with a store that has no run yet; no process of the test outlives it."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / "mlruns")
    (tmp_path / "helpers.py").write_text(HELPERS)
    yield tmp_path
    for pid in processes(tmp_path):
        os.kill(pid, signal.SIGKILL)


def test_two_nodes_at_half_the_batch_follow_one_process_step_by_step(place: Path) -> None:
    own = [*PLAIN, "trainer.max_epochs=2", "data.batch_size=64", "data.batch_size_is=global", "data.crop_padding=1"]
    own += ["optimizer.lr=0.2", "optimizer.lr_rule=linear", "optimizer.lr_reference_batch=128"]
    weights = "+callbacks.extra.w._target_=helpers.Weights"
    launcher = [*TORCHRUN, "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    node = [*own, *DDP, weights, "+callbacks.extra.w.path=two.pt"]
    first = start(place, *node, launcher=[*launcher, "--node-rank=0"])
    time.sleep(2)  # nodes never start together
    second = start(place, *node, launcher=[*launcher, "--node-rank=1"])
    one = start(place, *own, "trainer=cpu", weights, "+callbacks.extra.w.path=one.pt", "tracking=none")
    for process in (first, second, one):
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    together, alone = torch.load(place / "two.pt"), torch.load(place / "one.pt")
    assert together.shape == alone.shape
    assert len(alone) == 40  # 1,294 images in batches of 64, twice
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-6)

    ((run_id, status, folder),) = query(
        place,
        "SELECT run_uuid, status, value FROM runs JOIN tags USING (run_uuid) WHERE key = 'output_dir'",
    )
    assert status == "FINISHED"
    assert (Path(str(folder)) / "checkpoints" / "last.ckpt").is_file()
    assert len(list((place / "outputs").iterdir())) == 2  # one for the two processes, one for the one
    params = dict(query(place, f"SELECT key, value FROM params WHERE run_uuid = '{run_id}'"))  # type: ignore[arg-type]
    expected = {"processes": "2", "update_batch_size": "64", "optimizer.lr": "0.1", "lr_rule.given_lr": "0.2"}
    assert expected.items() <= params.items()
    losses = query(place, "SELECT step FROM metrics WHERE key = 'train/loss' ORDER BY step")
    assert losses == [(step,) for step in range(40)]


@pytest.mark.parametrize("how", ["rank", "launcher"])
def test_whoever_dies_the_others_end_and_the_record_is_closed(place: Path, how: str) -> None:
    many = [*DDP, *PLAIN, "trainer.devices=2", "trainer.max_epochs=1000", "+callbacks.extra.f._target_=helpers.Fault"]
    process = start(place, *many, f"+callbacks.extra.f.how={how}")
    try:
        out, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        pytest.fail("the run goes on")
    assert process.returncode != 0, out
    until = time.monotonic() + 60
    while processes(place) and time.monotonic() < until:
        time.sleep(0.2)
    assert processes(place) == [], "an orphan"
    assert query(place, "SELECT status FROM runs") == [("FAILED",)], out
