"""A run's checkpoints, written so that a kill at any moment leaves a whole one."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from lr_lightning._lightning import CheckpointCallback, is_step_complete
from lr_lightning.app.config import Config
from lr_lightning.app.monitor_checks import FinalValidation, MonitorCheck, validation_follows
from lr_lightning.app.run.output import BEFORE_LAST, LAST
from lr_lightning.errors import ConfigError, RunFailed

_WRITER = ("PytorchStreamWriter", "inline_container")  # torch's own errors, which hide the system's


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write to a temporary name in the same folder, then rename; keep the `last` that is replaced as `before_last`.

    Lightning's own way goes through the system's temporary folder: where that is another file system the last step is a
    copy, and a kill in the middle of it leaves half a checkpoint under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save, and make it durable before it takes the place of the one before."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if target.name == LAST and target.exists():
                _keep(target, target.with_name(BEFORE_LAST))
            temporary.replace(target)
        except (OSError, RuntimeError) as e:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)  # it would take the room that the end of the record needs
            if isinstance(e, RuntimeError) and not any(name in str(e) for name in _WRITER):
                raise
            raise RunFailed(
                f"output_root: {target} cannot be written ({_reason(e, target.parent)}). What is there is whole: make "
                f"room, then go on with resume={target.parent.parent}."
            ) from e


def _keep(path: Path, beside: Path) -> None:
    """Give a file a second name, so that the first one is never without a whole file."""
    spare = beside.with_name(f".{beside.name}.part")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:  # a file system without hard links: for a moment there is the second name alone
        path.replace(beside)
    else:
        spare.replace(beside)


def _reason(error: Exception, folder: Path) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return str(error).splitlines()[0]
    return f"{free / 1e6:.1f} MB are free on its disk"


class ConfigStamp(Callback):
    """Put the config into every checkpoint, so that one is not gone on with under another config.

    Args:
        flat: Dotted keys and plain values.
    """

    KEY = "lr_lightning_config"

    def __init__(self, flat: Mapping[str, Any]) -> None:
        self.flat = dict(flat)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add it."""
        checkpoint[self.KEY] = self.flat


def config_differences(checkpoint: Mapping[str, Any], flat: Mapping[str, Any]) -> list[str]:
    """The keys in which a checkpoint's config differs from a run's, a line each; nothing where it has none.

    Keys that only one of the two has are passed over: versions add some.
    """
    stored = checkpoint.get(ConfigStamp.KEY, {})
    return [
        f"{key}: {stored[key]} in the checkpoint, {value} in the run"
        for key, value in flat.items()
        if key in stored and stored[key] != value
    ]


class RunCheckpoint(CheckpointCallback):
    """Lightning's, for an output folder that may have been moved or copied since the checkpoint was made."""

    @cached_property
    def state_key(self) -> str:
        """As Lightning makes it, once: it asks for it at every hook of every step."""
        return super().state_key

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the paths in the state as paths in the folder as it is called now."""
        before, now = str(state_dict.get("dirpath")), str(self.dirpath)
        super().load_state_dict(_renamed(state_dict, before, now) if before != now else state_dict)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save only where a step is complete and no validation follows, after which `last` is saved anyway.

        After a resume Lightning does not know that it has saved this step, and saves it again in the middle of the next
        one's accumulation, whose gradients are in no checkpoint.
        """
        if self.every_n_train_steps < 1:
            return
        if is_step_complete(trainer) and not validation_follows(trainer):
            super().on_train_batch_end(trainer, *args)

    def should_skip(self, trainer: Trainer) -> bool:
        """Pass over a validation that has not measured what is monitored.

        Lightning compares with the value of an earlier one, which saves nothing; but a run that was resumed in between
        knows no earlier one, and would end here. That it is ever measured is seen to by ``MonitorCheck``.
        """
        unmeasured = self.monitor is not None and self.monitor not in trainer.callback_metrics
        return unmeasured or super().should_skip(trainer)


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
        reason = (str(e).splitlines() or ["it is empty"])[0]
        raise ConfigError(f"{key}: {path} cannot be read ({reason}). Give another checkpoint.") from e
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
