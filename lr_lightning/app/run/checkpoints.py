"""A run's output folder, which holds all that a resume needs: its config, and checkpoints that survive a kill.

Callbacks make sure that the last checkpoint has a validation, and that every monitored metric is logged.
"""

import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any, cast

import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lr_lightning._commands import resume_argument
from lr_lightning._lightning import (
    LATE_PREFIXES,
    CheckpointCallback,
    callbacks_of,
    is_resuming,
    is_step_complete,
    is_validation_due,
    validate_also,
)
from lr_lightning.app.error_messages import did_you_mean
from lr_lightning.app.schemas.trainer import CheckpointConfig
from lr_lightning.callbacks.cooldown_preview import CooldownPreview
from lr_lightning.callbacks.overfitting import OverfittingMonitor
from lr_lightning.callbacks.per_example import ACCURACY_METRICS, LOGIT_METRICS
from lr_lightning.callbacks.trainer_clock import trainer_clock, updates_made
from lr_lightning.errors import ConfigError, RunFailed
from lr_lightning.schedules import Clock, Duration, DurationLike, parse_duration
from lr_lightning.tracking.files import write_atomically

LAST, BEFORE_LAST = "last.ckpt", "before_last.ckpt"
"""Names of the checkpoint that a run is resumed from, and of the one before it, in case `last` is damaged."""


def new_output_dir(root: str, *parts: str) -> Path:
    """Make a run's folder, named after the time and ``parts``; no other run has it, even on a shared file system."""
    stem = "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *(re.sub(r"[^\w.]+", "_", part) for part in parts)])
    parent = make_output_root(root)
    while True:
        folder = parent / f"{stem}-{secrets.token_hex(2)}"
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def make_output_root(path: str) -> Path:
    """Make the folder that holds all runs' folders, if it does not exist, and return it."""
    root = Path(path).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"output_root: cannot make the folder '{root}' ({e.strerror}). Give another one.") from e
    if not os.access(root, os.W_OK):
        raise ConfigError(f"output_root: '{root}' cannot be written to. Give another one.")
    return root


def folder_gone(folder: Path) -> RunFailed:
    """Return the error of a run whose folder is not there any more."""
    return RunFailed(
        f"output_root: {folder} was moved or removed while the run was writing to it. If it was moved, resume it where "
        "it is now, resume=FOLDER; else start the run anew."
    )


def write_config(folder: Path, container: dict[str, Any]) -> Path:
    """Store the resolved config, which a resume reads back."""
    path = folder / "config.yaml"
    write_atomically(path, yaml.safe_dump(container, sort_keys=False, allow_unicode=True))
    return path


# -- checkpoints, written so that a kill at any moment leaves an undamaged one -----------------------------------------

_WRITER = (
    "PytorchStreamWriter",
    "inline_container",
)  # in torch's errors of a failed write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write to a temporary name in the same folder, then rename; keep the replaced `last` as `before_last`.

    Lightning writes through the system's temporary folder. On another file system its last step is a copy, and a kill
    during the copy leaves half a checkpoint under the final name.

    Args:
        folder: The run's folder. If it is gone, nothing is made in its place.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write the checkpoint to disk, and only then replace the previous one."""
        target = Path(path)
        if self.folder is not None and not self.folder.is_dir():
            raise folder_gone(self.folder)
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
                temporary.unlink(missing_ok=True)  # the end of the record needs the space
            if isinstance(e, RuntimeError) and not any(name in str(e) for name in _WRITER):
                raise
            raise RunFailed(
                f"output_root: {target} cannot be written ({_reason(e, target.parent)}). The checkpoints in its folder "
                f"are undamaged: make room, then resume with {resume_argument(target.parent.parent)}."
            ) from e


def _keep(path: Path, copy: Path) -> None:
    """Give a file a second name; its first name stays, so that a kill leaves a file of that name."""
    spare = copy.with_name(f".{copy.name}.part")
    spare.unlink(missing_ok=True)
    with suppress(OSError):  # without hard links the file is renamed: for a moment the first name is missing
        os.link(path, spare)
    (spare if spare.exists() else path).replace(copy)


def _reason(error: Exception, folder: Path) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    with suppress(OSError):
        return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free on its disk"
    return str(error).splitlines()[0]


class ConfigInCheckpoint(Callback):
    """Store the dotted config in every checkpoint, so that no run resumes from a checkpoint of another config."""

    KEY = "lr_lightning_config"

    def __init__(self, flat: Mapping[str, Any]) -> None:
        self.flat = dict(flat)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config to the checkpoint."""
        checkpoint[self.KEY] = self.flat


class RunCheckpoint(CheckpointCallback):
    """Lightning's ModelCheckpoint for an output folder that may have been moved or copied since it was written."""

    @cached_property
    def state_key(self) -> str:
        """The key of Lightning, computed once: Lightning asks for it at every hook of every step."""
        return super().state_key

    @property
    def idle_hooks(self) -> tuple[str, ...]:
        """The hooks of a step that do nothing."""
        return () if self.every_n_train_steps > 0 else ("on_train_batch_end",)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state with its paths changed to the folder's current path."""
        before, now = str(state_dict.get("dirpath")), str(self.dirpath)
        super().load_state_dict(_moved(state_dict, before, now) if before != now else state_dict)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save only when a step is complete and no validation follows, since `last` is saved after a validation.

        After a resume Lightning does not know that this step is saved already, and would save again in the middle of
        the next step. A checkpoint does not hold the gradients that are accumulated by then.
        """
        if self.every_n_train_steps > 0 and is_step_complete(trainer) and not validation_follows(trainer):
            super().on_train_batch_end(trainer, *args)

    def should_skip(self, trainer: Trainer) -> bool:
        """Skip a validation that has not measured the monitored metric; ``MonitorCheck`` ensures that some do.

        Lightning would use the value of an earlier validation. A resumed run has no such value, and would fail here.
        """
        unmeasured = self.monitor is not None and self.monitor not in trainer.callback_metrics
        return unmeasured or super().should_skip(trainer)


def _moved(node: Any, before: str, now: str) -> Any:
    if isinstance(node, dict):
        return {_moved(key, before, now): _moved(value, before, now) for key, value in node.items()}
    return now + node.removeprefix(before) if isinstance(node, str) and node.startswith(before) else node


class TrunkCheckpoints(Callback):
    """Keep a checkpoint at every multiple of a duration, so that the run can be the trunk of forks.

    A trunk is a run that other runs, its forks, continue from such a checkpoint. The checkpoint after N updates is
    ``step-N.ckpt``. The end of the run needs none, because `last` holds it.
    """

    NAME = re.compile(r"step-(\d+)\.ckpt")

    def __init__(self, every: DurationLike, folder: Path | None) -> None:
        self.every, self.folder = parse_duration(every), folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the other ranks the folder."""
        self.folder = trainer.strategy.broadcast(self.folder)
        self._clock = trainer_clock(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save if the step is complete and no validation follows."""
        if is_step_complete(trainer) and not validation_follows(trainer):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation, which is then part of the checkpoint."""
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING and is_step_complete(trainer):
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: Trainer) -> None:
        step, clock = updates_made(trainer), self._clock
        if step < (clock.total or math.inf) and step in _multiples(self.every, clock, step, step):
            path = Path(cast(Path, self.folder)) / "checkpoints" / f"step-{step}.ckpt"
            trainer.save_checkpoint(path)


def _multiples(every: Duration, clock: Clock, first: int, last: int) -> list[int]:
    """Return the steps from ``first`` to ``last``, both included, that are a multiple of a duration, except step 0."""
    counts = range(max(1, clock.count(every, first - 1) + 1), clock.count(every, last) + 1)
    return sorted({clock.steps(every, times=k) for k in counts})


def trunk_space(every: DurationLike, clock: Clock, module: LightningModule, copies: float, folder: Path) -> str:
    """Say how many checkpoints a run will keep, and the space that they take below ``folder``.

    A checkpoint holds the weights. For each trained parameter it holds ``copies`` further numbers, such as averages.

    Raises:
        ConfigError: The disk has less space than that.
    """
    count = len(_multiples(parse_duration(every), clock, 1, (clock.total or 1) - 1))
    trained = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    each = sum(t.nbytes for t in module.state_dict().values()) + copies * trained
    free = shutil.disk_usage(folder).free
    text = f"{count} of about {_megabytes(each)}, {_megabytes(count * each)} in all"
    if count * each > free:
        raise ConfigError(
            f"callbacks.checkpoint.every: '{every}' keeps checkpoints: {text}, and {_megabytes(free)} are free at "
            f"{folder}. Keep fewer, or give another output_root."
        )
    return f"checkpoints to fork from, every {parse_duration(every)}: {text}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def checkpoint_callbacks(node: CheckpointConfig | None, folder: Path | None) -> list[Callback]:
    """Build the callbacks that save ``best`` and ``last``, and those that ensure a validation before they save.

    ``folder`` is None on ranks other than the first, which get it from Lightning's broadcast.
    """
    if node is None:
        return [FinalValidation()]
    saved = partial(
        RunCheckpoint,
        dirpath=str(folder / "checkpoints") if folder else None,
        enable_version_counter=False,
        auto_insert_metric_name=False,
    )
    last = partial(saved, filename=Path(LAST).stem)
    kept = [
        saved(filename="best", monitor=node.monitor, mode=node.mode),
        last(every_n_epochs=1, save_on_train_epoch_end=False),
        *([last(every_n_train_steps=node.every_n_steps)] if node.every_n_steps else []),
    ]
    trunk = [] if node.every is None else [TrunkCheckpoints(node.every, folder)]
    return [FinalValidation(), MonitorCheck(node.monitor), *kept, *trunk]


def read_checkpoint(path: Path, key: str) -> dict[str, Any]:
    """Read a checkpoint as weights and plain values; none of its code runs. ``key`` names it in error messages."""
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


def with_averaged_weights(checkpoint: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    """Return the checkpoint with CooldownPreview's running average as its weights; ``key`` is named in errors."""
    kept = checkpoint.get("callbacks", {}).get(CooldownPreview.__name__, {})
    if not kept.get("average"):
        raise ConfigError(f"{key}: {name} has no averaged weights. Train with callbacks.cooldown_preview=true.")
    names = ("running_mean", "running_var", "num_batches_tracked")
    statistics = {
        f"{layer}.{buffer}": value
        for layer, values in kept.get("statistics", {}).items()
        for buffer, value in zip(names, values, strict=True)
    }
    return {**checkpoint, "state_dict": {**checkpoint["state_dict"], **kept["average"], **statistics}}


def load_weights(module: LightningModule, checkpoint: Mapping[str, Any], name: str) -> None:
    """Load a checkpoint's weights, and nothing else of it, into a module."""
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as e:
        raise ConfigError(f"{name} does not fit this model: {shorten(str(e), 300, placeholder='...')}") from e


# -- the last checkpoint has a validation, and every metric that chooses one is logged -------------------------------


class FinalValidation(Callback):
    """Validate after the last batch of every fit, so that a checkpoint is saved there.

    Lightning does so only if `check_val_every_n_epoch` divides the epochs and `val_check_interval` the batches of an
    epoch, and not if `max_steps` is reached in the middle of an epoch. The last batch before `max_time` is not known.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell Lightning which batch is the last, before it looks for the place to resume at."""
        if stage == TrainerFn.FITTING:
            validate_also(trainer, lambda: _is_last_batch_of_fit(trainer))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the Trainer."""
        validate_also(trainer, None)


def _is_last_batch_of_fit(trainer: Trainer) -> bool:
    if 0 < trainer.max_steps <= trainer.global_step:
        return True
    # A run resumed at its end, for more epochs, begins at what was the last batch then.
    last_epoch = trainer.current_epoch + 1 == trainer.max_epochs or trainer.fit_loop.epoch_loop.restarting
    return last_epoch and trainer.is_last_batch


def validation_follows(trainer: Trainer) -> bool:
    """Tell whether a validation follows the batch that has just ended.

    A checkpoint saved at this moment would lose the validation: Lightning skips it on resume.
    """
    return trainer.enable_validation and is_validation_due(trainer)


class MonitorCheck(Callback):
    """Refuse a monitored metric that is not logged, as early as this can be known.

    The sanity check shows whether the validation logs the metric and whether OverfittingMonitor can measure it, the
    first optimizer step shows it for ``train/*``, and the first validation for all others. List this callback before
    those that monitor the metric.
    """

    reads_weights_at_steps = False

    def __init__(self, monitor: str, key: str = "callbacks.checkpoint.monitor") -> None:
        self.monitor, self.key = monitor, key
        self._first_step = 0  # global_step at the start of the fit
        self._resumed = False
        self._validated: bool | None = None  # None: not known, as after a checkpoint of an older version

    @property
    def state_key(self) -> str:
        """A key for each check, since a run has several."""
        return f"MonitorCheck({self.key})"

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with the metrics that the sanity check logged; some metrics come only in real validations."""
        if self.monitor in trainer.callback_metrics:
            return
        if any(self.monitor in monitor.unmeasured for monitor in callbacks_of(trainer, OverfittingMonitor)):
            raise ConfigError(f"{self.key}: '{self.monitor}' {_requirement(self.monitor)}")
        if not self.monitor.startswith(LATE_PREFIXES):
            raise ConfigError(self._message("is not logged by the validation. It logs", trainer))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether the run is resumed: it passed this check before."""
        self._resumed = is_resuming(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the first update, unless the run is resumed."""
        self._first_step = trainer.global_step
        vars(self).pop("on_train_batch_start", None)
        if self._resumed or not trainer.enable_validation:
            self.on_train_batch_start = None  # type: ignore[assignment,method-assign]  # not called again
        self._validated = self._resumed and self._validated is not False

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """After the first update, compare with the metrics that its steps logged."""
        if trainer.global_step == self._first_step:
            return
        self.on_train_batch_start = None  # type: ignore[assignment,method-assign]  # not called again
        if self.monitor.startswith("train/") and self.monitor not in trainer.callback_metrics:
            what = (
                "is not logged by the training steps with on_step=True. The recorded train/loss goes to the record "
                "alone, and an epoch's mean is not there yet when a validation asks. There are"
            )
            raise ConfigError(self._message(what, trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Require the metric in the first real validation."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or self._validated:
            return
        self._validated = True
        if self.monitor not in trainer.callback_metrics:
            why = f" It {_requirement(self.monitor)}" if self.monitor in LOGIT_METRICS | ACCURACY_METRICS else ""
            raise ConfigError(self._message(f"was not logged by the first validation.{why} It logged", trainer))

    def state_dict(self) -> dict[str, Any]:
        """Store whether there was a validation."""
        return {"validated": bool(self._validated)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` stored."""
        self._validated = state_dict.get("validated", state_dict.get("seen"))  # its name in older versions

    def _message(self, what: str, trainer: Trainer) -> str:
        known = sorted(map(str, trainer.callback_metrics))
        close = did_you_mean(self.monitor, known)
        return f"{self.key}: '{self.monitor}' {what}: {', '.join(known) or 'nothing'}.{close}"


def _requirement(metric: str) -> str:
    """Tell what OverfittingMonitor needs from a module to measure one of its metrics."""
    if metric in LOGIT_METRICS:
        return (
            "is measured only if the logits of the validation are known: validation_step calls the module as the loss "
            "does, or the module's per_example_loss returns (losses, right, logits, labels). Use overfit/gap_loss."
        )
    return (
        "is measured only if it is known which predictions are right: the module's per_example_loss returns (losses, "
        "right). Use overfit/gap_loss or probe/loss."
    )
