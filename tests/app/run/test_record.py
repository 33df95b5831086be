"""A run's record: its status and its error when a disk, memory or another process fails."""

import errno
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from lr_lightning.app.composition import validate
from lr_lightning.app.config import Config
from lr_lightning.app.run import record
from lr_lightning.app.run.graceful_stop import GracefulStop
from lr_lightning.app.run.record import sweep_record
from lr_lightning.errors import ConfigError, RunFailed
from lr_lightning.tracking import RunLogger
from tests.app.conftest import short_run

Configured = Callable[..., Config]

Compose = Callable[..., DictConfig]


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
    ["tracking.locks.write_atomically", "tracking.local_log.append_bytes", "app.run.checkpoints.write_atomically"],
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
    assert "was moved or removed while the run was writing to it" in str(record._disk_error(missing, logger))
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


@pytest.mark.parametrize("status", ["FINISHED", "FAILED"])
def test_the_record_of_a_sweep_has_its_groups_and_its_true_status(
    configured: Callable[..., Config], tmp_path: Path, status: str
) -> None:
    folder = tmp_path / "record"
    shared = configured("tracking=csv", "tracking.uri=postgresql://me:secret@host/db")
    with suppress(RuntimeError), sweep_record(shared, folder, "s1", "search") as logger:
        logger.log_summary({"runs": 3.0})
        if status == "FAILED":
            raise RuntimeError
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == status
    assert {"sweep": "s1", "schedule": "cosine", "job": "search"}.items() <= run["tags"].items()
    assert "secret" not in (folder / "params.yaml").read_text()
