"""What is left, and what is said, when a disk is full, a checkpoint damaged or of another run, or a process gone."""

import errno
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from lr_lightning.app.checks import validate
from lr_lightning.app.config import Config, flatten
from lr_lightning.app.run import record
from lr_lightning.app.run.checkpoints import AtomicCheckpointIO, ConfigStamp
from lr_lightning.app.run.graceful_stop import GracefulStop
from lr_lightning.app.run.output import BEFORE_LAST, LAST
from lr_lightning.app.run.resume import ResumedRun, choose_checkpoint, identity, set_damaged_aside
from lr_lightning.app.run.signals import Interrupted, Signals
from lr_lightning.errors import ConfigError, RunFailed
from lr_lightning.tracking import RunLogger
from lr_lightning.training.datamodule import ImageDataModule
from tests.app.conftest import short_run

Compose = Callable[..., DictConfig]


def checkpoint(step: int, **config: Any) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((1000,), float(step))}, "global_step": step, ConfigStamp.KEY: config}


def test_the_checkpoint_before_the_last_is_kept(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    for step in (1, 2, 3):
        io.save_checkpoint(checkpoint(step), tmp_path / LAST)
        io.save_checkpoint(checkpoint(step), tmp_path / "best.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEFORE_LAST, "best.ckpt", LAST]
    assert torch.load(tmp_path / BEFORE_LAST, weights_only=True)["global_step"] == 2
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 3


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
)
def test_a_full_disk_leaves_the_checkpoint_before_and_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint(checkpoint(1), tmp_path / LAST)

    def fails(obj: Any, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(RunFailed, match=r"output_root: .*last.ckpt cannot be written .* make room"):
        io.save_checkpoint(checkpoint(2), tmp_path / LAST)
    assert [path.name for path in tmp_path.iterdir()] == [LAST]  # no half one that takes the room the record needs
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 1


def flat(config: Config) -> dict[str, Any]:
    return flatten(asdict(config))


@pytest.fixture
def stopped(tmp_path: Path, composed: Compose) -> tuple[ResumedRun, Any, Callable[[int], dict[str, Any]]]:
    """A stopped run, its config, and what its checkpoints hold."""
    config = validate(composed("optimizer.lr=0.2"))
    (tmp_path / "checkpoints").mkdir()
    stamp = identity(flat(config))
    return ResumedRun(tmp_path, tmp_path / "checkpoints" / LAST, {}), config, lambda step: checkpoint(step, **stamp)


class NoData(ImageDataModule):
    def __init__(self) -> None:
        super().__init__(lambda: None)  # type: ignore[arg-type, return-value]


def test_a_truncated_checkpoint_gives_way_to_the_one_before_and_that_is_said(
    stopped: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    previous, config, content = stopped
    io = AtomicCheckpointIO()
    io.save_checkpoint(content(10), previous.checkpoint)
    io.save_checkpoint(content(20), previous.checkpoint)
    assert choose_checkpoint(previous, flat(config), NoData()).checkpoint.name == LAST
    previous.checkpoint.write_bytes(previous.checkpoint.read_bytes()[:3000])
    found = choose_checkpoint(previous, flat(config), NoData())
    assert found.checkpoint.name == BEFORE_LAST
    said = capsys.readouterr().err
    assert "last.ckpt cannot be read" in said
    assert "resuming from the one before" in said
    assert "of step 10" in said
    set_damaged_aside(found)
    assert not previous.checkpoint.exists()  # so the next save keeps the whole one
    assert choose_checkpoint(previous, flat(config), NoData()).checkpoint.name == BEFORE_LAST  # another rank, later
    found.checkpoint.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"resume: .*before_last.ckpt cannot be read"):
        choose_checkpoint(previous, flat(config), NoData())


def test_a_checkpoint_of_another_config_is_refused_with_the_difference(stopped: Any) -> None:
    previous, config, content = stopped
    AtomicCheckpointIO().save_checkpoint(content(10), previous.checkpoint)
    other = replace(config, seed=7, optimizer=replace(config.optimizer, lr=0.3))
    with pytest.raises(ConfigError) as caught:
        choose_checkpoint(previous, flat(other), NoData())
    assert "of a run with another config" in str(caught.value)
    assert "seed: 0 in the checkpoint, 7 in the run" in str(caught.value)
    assert "optimizer.lr: 0.2 in the checkpoint, 0.3 in the run" in str(caught.value)
    longer = replace(config, trainer=replace(config.trainer, max_epochs=99, devices=2))  # what a resume may change
    assert choose_checkpoint(previous, flat(longer), NoData()).checkpoint == previous.checkpoint


def test_a_checkpoint_that_would_run_code_is_refused(stopped: Any, tmp_path: Path) -> None:
    previous, config, content = stopped
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (ran,))

    torch.save({**content(10), "callbacks": Payload()}, previous.checkpoint)
    with pytest.raises(ConfigError, match="holds more than weights and plain values"):
        choose_checkpoint(previous, flat(config), NoData())
    assert not ran.exists()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/x/third_party/gloo/gloo/transport/tcp/pair.cc:538] Read error: Connection reset"), True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_an_error_of_a_collective_is_another_process_that_is_gone(error: RuntimeError, lost: bool) -> None:
    assert record._lost_process(error) == lost


@pytest.mark.parametrize(
    "written",
    ["tracking.locks.write_atomically", "tracking.local_log.append_bytes", "app.run.output.write_atomically"],
)
def test_a_disk_that_is_full_before_the_first_step_is_one_error_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"lr_lightning.{written}", full)
    with pytest.raises(ConfigError, match=r"output_root: .* cannot be written to \(No space left on device\)"):
        short_run(tmp_path, "trainer.max_steps=2")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_removed_or_closed_in_the_middle_is_one_error(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    logger = RunLogger(folder)
    missing = FileNotFoundError(errno.ENOENT, "No such file", str(folder / "metrics.jsonl"))
    assert "was removed while the run was writing to it" in str(record._disk_error(missing, logger))
    folder.mkdir()
    assert record._disk_error(missing, logger) is None  # something in it is missing: a fault of ours
    closed = PermissionError(errno.EACCES, "Permission denied", str(folder / "metrics.jsonl"))
    assert "cannot be written to (Permission denied)" in str(record._disk_error(closed, logger))
    assert record._disk_error(PermissionError(errno.EACCES, "Permission denied", "/data/1.png"), logger) is None


@pytest.mark.parametrize("said", ["(pid 7) is killed by signal: Killed. ", "(pid(s) 7) exited unexpectedly"])
def test_a_worker_that_is_killed_is_one_error(said: str, composed: Compose) -> None:
    def work() -> Any:
        raise RuntimeError(f"DataLoader worker {said}")

    trainer: Any = SimpleNamespace(world_size=1, global_step=7)
    with pytest.raises(RunFailed, match=r"a worker that decodes images was killed at step 7, .*memory"):
        record.record_run(validate(composed()), trainer, None, GracefulStop(), work)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nmore of it"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize(
    ("evaluating", "remedy"), [(False, r"data\.batch_size \(64\) .*accumulate"), (True, r"data\.eval_batch_size")]
)
def test_a_lack_of_memory_is_one_error_that_says_what_to_lower(
    error: Exception, evaluating: bool, remedy: str, composed: Compose
) -> None:
    def work() -> Any:
        raise error

    trainer: Any = SimpleNamespace(world_size=1, global_step=7, evaluating=evaluating, sanity_checking=False)
    with pytest.raises(RunFailed, match=rf"^out of memory at step 7 \(.*\)\. Lower {remedy}"):
        record.record_run(validate(composed()), trainer, None, GracefulStop(), work)


def test_only_an_error_of_the_disk_is_one_of_the_disk() -> None:
    assert "make room" in str(record._disk_error(OSError(errno.ENOSPC, "No space left"), None))
    assert record._disk_error(FileNotFoundError(errno.ENOENT, "No such file"), None) is None


def test_a_closed_terminal_is_one_stop_and_nohup_none() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)  # the system and the shell each send one
            assert signals.signum == signal.SIGHUP
            with pytest.raises(Interrupted) as caught:
                signal.raise_signal(signal.SIGTERM)
            assert caught.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.signum is None
    finally:
        signal.signal(signal.SIGHUP, before)
