"""What every search for a rate before training has in common: when it runs, what it sets, and what it leaves."""

import logging
import time
from abc import abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from tqdm.auto import tqdm

from lr_lightning._checks import check_choice, check_count, check_number
from lr_lightning._lightning import is_dev_run
from lr_lightning.callbacks.loggers import give, log_figure, log_text
from lr_lightning.callbacks.set_lr import (
    is_cyclical,
    lr_ratios,
    reference_lr,
    set_default_lr,
    set_module_lr,
    set_peak,
)
from lr_lightning.callbacks.trainer_clock import accumulation
from lr_lightning.lr_finder.dry_run import DryRun, check_optimization
from lr_lightning.lr_finder.validation import Validation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BaseLRFinder", "FinderProgressBar", "FinderResult", "Metric"]

# --- How far a search for a rate has come: a bar on a terminal, and a line now and then where there is none.

_SHARE = 0.1  # of the whole, at least, between two lines
_SECONDS = 30.0  # and as many


class FinderProgressBar:
    """tqdm's bar, or lines in its place.

    Args:
        what: Is being done.
        total: How many units it takes.
        unit: The name of one.
        drawn: Whether to draw the bar, on a terminal.
        say: Gets the lines where no bar is drawn; None for none.
    """

    def __init__(self, what: str, total: int, unit: str, *, drawn: bool, say: Callable[[str], None] | None) -> None:
        self.what, self.total, self.unit, self.say = what, total, unit, say
        self.n = 0
        # None: draw it only where there is a terminal
        self._bar = tqdm(total=total, desc=what, unit=unit, leave=False, disable=None if drawn else True)
        self._began = self._said_at = time.monotonic()
        self._said = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.close()

    def extend(self, count: int) -> None:
        """Take as many units more."""
        self.total += count
        self._bar.total = self.total

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.n += count
        self._bar.update(count)
        if self.say is None or not self._bar.disable or not self._said < self.n < self.total:
            return
        now = time.monotonic()
        if self.n - self._said >= _SHARE * self.total and now - self._said_at >= _SECONDS:
            self._said, self._said_at = self.n, now
            seconds = now - self._began
            left = seconds / self.n * (self.total - self.n)
            self.say(f"{self.what}: {self.n}/{self.total} {self.unit}s  {seconds:.0f} s, {left:.0f} s left")


log = logging.getLogger(__name__)

Metric = Literal["loss", "val_loss", "accuracy"]


class FinderResult(Protocol):
    """What a search found."""

    @property
    def suggestion(self) -> float | None:
        """The peak rate to train with, None where there is no telling."""

    @property
    def base_lr(self) -> float | None:
        """The lower bound of a cyclical schedule."""

    @property
    def max_lr(self) -> float | None:
        """The upper bound of a cyclical schedule."""

    @property
    def epoch(self) -> int:
        """At the start of which it was made."""

    def describe(self) -> str:
        """It in one line."""

    def to_csv(self) -> str:
        """Its points."""

    def plot(self) -> "Figure":
        """Its picture."""

    def state(self) -> dict[str, Any]:
        """Plain values, from which ``from_state`` makes the same."""

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The one that gave this state."""


class BaseLRFinder(Callback):
    """Search for a peak rate before a fit, and train with it.

    Args:
        min_lr: The lowest rate, > 0.
        max_lr: The highest rate, > ``min_lr``.
        metric: What is measured.
        repeats: Measurements with other batches and random numbers, from the same start, >= 1.
        apply: Whether to train with what was found.
        val_batches: How many validation batches, where ``metric`` needs them, >= 1.
        monitor: The name under which the module logs that metric, if it is not a usual one.
        attribute: The name of the module's own rate, if it is not ``lr`` or ``learning_rate``.
        progress: Whether to show a progress bar on a terminal.
    """

    kind: type[Any]
    """The class of the results."""
    artifact: str
    """Name of figure and points among a run's artifacts, without suffix."""

    def __init__(
        self,
        min_lr: float,
        max_lr: float,
        metric: Metric,
        repeats: int,
        apply: bool,
        val_batches: int,
        monitor: str | None,
        attribute: str | None,
        progress: bool,
    ) -> None:
        super().__init__()
        _check_range(min_lr, max_lr)
        check_choice("metric", metric, get_args(Metric))
        check_count("repeats", repeats, 1)
        check_count("val_batches", val_batches, 1)
        if not isinstance(apply, bool):
            raise ValueError(f"apply must be True or False, got {apply!r}")
        self.min_lr, self.max_lr, self.metric, self.repeats = float(min_lr), float(max_lr), metric, repeats
        self.val_batches, self.monitor = val_batches, monitor
        self.apply, self.attribute, self.progress = apply, attribute, progress
        self.say: Callable[[str], None] | None = None
        """Gets a line of progress now and then where no bar is drawn."""
        self._forget()

    def _forget(self) -> None:
        self.results: dict[int, Any] = {}
        self._applied: float | None = None
        self._applied_base: float | None = None
        self.seconds = 0.0
        """Wall time of the searches of this fit."""
        self._configured = 1.0

    @property
    def applied(self) -> float | None:
        """The peak rate that the run trains with, None if it is the configured one."""
        return self._applied

    @property
    def applied_base(self) -> float | None:
        """The lower bound of the run's cyclical schedule, None if it has none or it is the configured one."""
        return self._applied_base

    @abstractmethod
    def _search(self, trainer: Trainer, module: LightningModule, reference: float) -> FinderResult:
        """Measure, and leave no trace of it.

        Args:
            trainer: In a fit.
            module: Its module.
            reference: The configured rate, to which the param groups' ratios are taken.
        """

    # -- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; a checkpoint's state is loaded after this."""
        if stage == "fit":
            self._forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search and apply, before anything has run; nothing in a run that is resumed."""
        name = type(self).__name__
        check_optimization(trainer, pl_module, name)
        self._configured = reference = reference_lr(trainer, pl_module, self.attribute)
        if not self._due(trainer):
            return
        found = self._run(trainer, pl_module, reference)
        if not self.apply or found.suggestion is None:
            return
        lr, base_lr = found.suggestion, None
        if is_cyclical(trainer) and found.base_lr is not None and found.max_lr is not None:
            lr, base_lr = found.max_lr, found.base_lr
        set_peak(trainer, pl_module, lr, base_lr, self.attribute)
        self._applied, self._applied_base = lr, base_lr
        bounds = "" if base_lr is None else f", between {base_lr:.3g} and it"
        rank_zero_info(f"{name}: training with a peak lr of {lr:.3g}{bounds}, in place of {reference:.3g}.")
        values = {"lr_finder.lr": lr} | ({} if base_lr is None else {"lr_finder.base_lr": base_lr})
        give(trainer, "the rate that was found", lambda logger: logger.log_hyperparams(values))

    def _due(self, trainer: Trainer) -> bool:
        """Whether this fit is to be searched before."""
        name = type(self).__name__
        if trainer.ckpt_path is not None or trainer.limit_train_batches == 0:
            return False
        if is_dev_run(trainer):
            rank_zero_warn(f"{name}: no search for a rate in a development run (fast_dev_run).")
            return False
        if trainer.global_step > 0:
            rank_zero_warn(
                f"{name}: this Trainer has trained before and goes on, so no rate is searched for. Test in the middle "
                "of training with LRFinder(at_epochs=[...])."
            )
            return False
        return True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a resumed run's module the rate that was found, and its optimizer for later param groups.

        All else that has it comes from the checkpoint.
        """
        if trainer.ckpt_path is not None and self._applied is not None:
            set_default_lr(trainer.optimizers[0], self._configured, self._applied)
            set_module_lr(pl_module, self._applied, self.attribute)

    def state_dict(self) -> dict[str, Any]:
        """The points of every search as plain values, and the rate that was applied."""
        return {
            "results": [found.state() for found in self.results.values()],
            "applied": self._applied,
            "applied_base": self._applied_base,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        every = [self.kind.from_state(state) for state in state_dict["results"]]
        self.results = {found.epoch: found for found in every}
        self._applied, self._applied_base = state_dict["applied"], state_dict["applied_base"]

    # -- what a search leaves ----------------------------------------------------------------------------------------

    def _run(self, trainer: Trainer, module: LightningModule, reference: float) -> FinderResult:
        """Search; a line in the log, and figure and points in every logger that takes them."""
        began = time.monotonic()
        found = self._search(trainer, module, reference)
        self.seconds += time.monotonic() - began
        self.results[found.epoch] = found
        if found.suggestion is None:
            rank_zero_warn(f"{type(self).__name__}: {found.describe()} The configured lr stays as it is.")
        else:
            rank_zero_info(f"{type(self).__name__}: {found.describe()}.")
        if trainer.loggers and trainer.is_global_zero:
            name = self._artifact(found)
            log_text(trainer, found.to_csv(), f"{name}.csv")
            try:
                figure = found.plot()
            except ImportError as e:
                log.info("no figure: %s", e)
            else:
                log_figure(trainer, figure, f"{name}.png")
        return found

    def _artifact(self, found: FinderResult) -> str:
        return self.artifact

    def _dry_run(self, trainer: Trainer, module: LightningModule, reference: float, started: bool = False) -> DryRun:
        accumulate = accumulation(trainer)[0](trainer.current_epoch)
        return DryRun(trainer, module, lr_ratios(trainer, reference), accumulate, started=started)

    def _validation(self, dry_run: DryRun) -> Validation | None:
        """What measures the metric; None where it is the training loss."""
        if self.metric == "loss":
            return None
        return Validation(dry_run, self.metric, batches=self.val_batches, monitor=self.monitor)

    def _bar(self, trainer: Trainer, what: str, total: int, unit: str) -> FinderProgressBar:
        """What shows how far it has come."""
        drawn = self.progress and trainer.is_global_zero and trainer.progress_bar_callback is not None
        return FinderProgressBar(what, total, unit, drawn=drawn, say=self.say if trainer.is_global_zero else None)


def _check_range(min_lr: float, max_lr: float) -> None:
    """Refuse what is no range of rates.

    Raises:
        ValueError: A rate is not above 0, or the last one is not above the first.
    """
    check_number("min_lr", min_lr, above=True)
    check_number("max_lr", max_lr, above=True)
    if min_lr >= max_lr:
        raise ValueError(f"max_lr must be > min_lr, got min_lr={min_lr!r} and max_lr={max_lr!r}")
