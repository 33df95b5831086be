"""Checkpoints that survive a kill or a full disk."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from lr_lightning.app.run.checkpoints import BEFORE_LAST, LAST, AtomicCheckpointIO, new_output_dir
from lr_lightning.errors import RunFailed
from tests.app.conftest import checkpoint_of

Compose = Callable[..., DictConfig]


def test_the_checkpoint_before_the_last_is_kept(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    for step in (1, 2, 3):
        io.save_checkpoint(checkpoint_of(step), tmp_path / LAST)
        io.save_checkpoint(checkpoint_of(step), tmp_path / "best.ckpt")
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
    io.save_checkpoint(checkpoint_of(1), tmp_path / LAST)

    def fails(obj: Any, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(RunFailed, match=r"output_root: .*last.ckpt cannot be written .* make room"):
        io.save_checkpoint(checkpoint_of(2), tmp_path / LAST)
    assert [path.name for path in tmp_path.iterdir()] == [LAST]  # no half one that takes the room the record needs
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 1


def test_output_folders_are_unique(tmp_path: Path) -> None:
    assert len({new_output_dir(str(tmp_path / "outputs"), "digits") for _ in range(50)}) == 50
