"""The progress display: a bar with the whole run's remaining time, or one line per epoch without a terminal."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lr_lightning._lightning import callbacks_of
from lr_lightning._param_groups import first_group_lr
from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.callbacks.step_recorder import StepRecorder
from lr_lightning.callbacks.trainer_clock import trainer_clock

_SHOWN = {"val/loss": "val", "val/acc": "acc", "probe/loss": "probe", "overfit/gap_loss": "gap"}


class RunProgress(ProgressBar):
    """One bar for the whole run, with epoch, losses, learning rate and remaining time; or one line per epoch.

    It never fetches a value from the device: it shows the training loss of the last flush of :class:`StepRecorder`.
    ``style`` is ``"auto"`` (a bar on a terminal, else lines), ``"bar"``, ``"lines"`` or ``"none"``.
    """

    REFRESH = 0.1  # seconds between two drawings

    def __init__(self, style: str = "auto", console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console()
        self.style = ("bar" if self.console.is_terminal else "lines") if style == "auto" else style
        self._bar: Progress | None = None
        self._drawn = self._started = 0.0
        self._first_step = self._total = 0
        self._validated: dict[str, float] = {}

    @property
    def idle_hooks(self) -> tuple[str, ...]:
        """The hooks of a step that do nothing."""
        return () if self.style == "bar" else ("on_train_batch_end",)

    def disable(self) -> None:
        """Draw nothing; Lightning calls this on all ranks but the first."""
        self.style = "none"

    def enable(self) -> None:
        """Keep the style chosen at construction; Lightning calls this as the counterpart to :meth:`disable`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar at step 0, or where a resumed run continues."""
        self._started, self._first_step = time.monotonic(), trainer.global_step
        self._total = trainer_clock(trainer).total or 0
        for growing in callbacks_of(trainer, BatchSizeSchedule) if self.style != "none" else ():
            self.console.print(growing.describe(trainer), highlight=False, soft_wrap=True, markup=False)
        if self.style != "bar":
            return
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._bar.add_task("", total=self._total or None, completed=trainer.global_step, epoch="", metrics="")
        self._bar.start()
        self._draw(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Move the bar, at most ten times a second."""
        if self._bar is not None and time.monotonic() - self._drawn >= self.REFRESH:
            self._draw(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fetch the metrics of the validation, once."""
        if not trainer.sanity_checking and self.style != "none":
            self._validated = {k: float(v) for k, v in trainer.callback_metrics.items() if k in _SHOWN}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the metrics of the epoch."""
        if self._bar is not None:
            self._draw(trainer)
        elif self.style == "lines":
            now = time.monotonic() - self._started
            done = trainer.global_step - self._first_step
            left = f", {now / done * (self._total - trainer.global_step):.0f} s left" if done and self._total else ""
            line = f"epoch {_epoch(trainer)}  step {trainer.global_step}  {self._metrics(trainer)}  {now:.0f} s{left}"
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)
            self._validated = {}  # the next epoch may have no validation

    def _draw(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._drawn = time.monotonic()
            epoch, metrics = _epoch(trainer), self._metrics(trainer)
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, epoch=epoch, metrics=metrics)

    def _metrics(self, trainer: Trainer) -> str:
        parts = []
        recorder = next(iter(callbacks_of(trainer, StepRecorder)), None)
        if recorder is not None and recorder.last_loss is not None:
            parts.append(f"train {recorder.last_loss:.4f}")
        parts += [f"{name} {self._validated[key]:.4f}" for key, name in _SHOWN.items() if key in self._validated]
        if (lr := first_group_lr(trainer)) is not None:
            parts.append(f"lr {lr:.3g}")
        return "  ".join(parts)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the bar, so that the error has the terminal."""
        self.on_train_end(trainer, pl_module)


def _epoch(trainer: Trainer) -> str:
    last = trainer.max_epochs
    return f"{trainer.current_epoch + 1}" + (f"/{last}" if last not in (None, -1) else "")
