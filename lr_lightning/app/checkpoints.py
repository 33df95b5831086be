"""A run's two checkpoints, written so that a kill at any moment leaves a whole one."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from lr_lightning.app.config import Config
from lr_lightning.app.errors import ConfigError
from lr_lightning.app.guards import FinalValidation, MonitorCheck
from lr_lightning.app.output import LAST


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write to a temporary name in the same folder, then rename.

    Lightning's own way goes through the system's temporary folder: where that is another file system the last step is a
    copy, and a kill in the middle of it leaves half a checkpoint under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save, and make it durable before it takes the place of the one before."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)


class RunCheckpoint(ModelCheckpoint):
    """Lightning's, for an output folder that may have been moved or copied since the checkpoint was made."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the paths in the state as paths in the folder as it is called now."""
        before, now = str(state_dict.get("dirpath")), str(self.dirpath)
        super().load_state_dict(_renamed(state_dict, before, now) if before != now else state_dict)


def _renamed(node: Any, before: str, now: str) -> Any:
    if isinstance(node, dict):
        return {_renamed(key, before, now): _renamed(value, before, now) for key, value in node.items()}
    return now + node.removeprefix(before) if isinstance(node, str) and node.startswith(before) else node


def checkpoint_callbacks(config: Config, folder: Path | None) -> list[Callback]:
    """``best`` and ``last``, and what makes sure that there is something to save.

    Args:
        config: The run's config.
        folder: Its output folder; None on ranks other than the first, which take it from Lightning's broadcast.
    """
    node = config.callbacks.checkpoint
    if node is None:
        return [FinalValidation()]
    common: dict[str, Any] = {
        "dirpath": str(folder / "checkpoints") if folder else None,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    last = Path(LAST).stem
    best = RunCheckpoint(filename="best", monitor=node.monitor, mode=node.mode, **common)
    kept = [best, RunCheckpoint(filename=last, every_n_epochs=1, save_on_train_epoch_end=False, **common)]
    if node.every_n_steps:
        kept.append(RunCheckpoint(filename=last, every_n_train_steps=node.every_n_steps, **common))
    return [FinalValidation(), MonitorCheck(node.monitor), *kept]


def read_checkpoint(path: Path, key: str) -> dict[str, Any]:
    """Read a checkpoint as weights and plain values; no code of it runs.

    Args:
        path: The file.
        key: The config key that named it.

    Raises:
        ConfigError: If it is damaged, no checkpoint, or holds more than that.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as e:
        raise ConfigError(f"{key}: {path} is no checkpoint, or holds more than weights and plain values.") from e
    except (RuntimeError, EOFError, OSError, ValueError) as e:
        raise ConfigError(f"{key}: {path} cannot be read ({str(e).splitlines()[0]}). Give another checkpoint.") from e
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ConfigError(f"{key}: {path} is no checkpoint of Lightning: it has no state_dict.")
    return checkpoint


def load_weights(module: LightningModule, path: Path) -> None:
    """Start from a checkpoint's weights; nothing else of it is used.

    Raises:
        ConfigError: If it cannot be read, or its weights do not fit the module.
    """
    checkpoint = read_checkpoint(path, "ckpt")
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as e:
        reason = " ".join(str(e).split())
        reason = reason if len(reason) <= 300 else reason[:300] + "..."
        raise ConfigError(f"ckpt: {path} does not fit this model: {reason}") from e
