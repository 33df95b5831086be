"""A rate that is found before training: said on the terminal, and recorded in place of the configured one."""

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from lr_lightning.app.config import Config
from lr_lightning.callbacks.base_finder import BaseLRFinder
from lr_lightning.lr_finder.results import GridTest, RangeTest
from lr_lightning.tracking import MLflowLogger, RunLogger

__all__ = ["FoundRate", "default_run_name", "print_found"]


def default_run_name(config: Config, lr: float | None) -> str:
    """A run's name where none was given.

    Args:
        config: Its config.
        lr: The peak rate; None where it is yet to be found.
    """
    rate = config.finder.name if lr is None else f"{lr:g}"
    return f"{config.schedule.name} lr={rate} seed={config.seed}"


class FoundRate(Callback):
    """Record and say what rate a run trains with, once the search before it is over. List it after the search.

    Args:
        config: The run's config.
        finder: The search.
        folder: The run's output folder; None on ranks other than the first.
    """

    def __init__(self, config: Config, finder: BaseLRFinder[Any], folder: Path | None) -> None:
        self.config, self.finder, self.folder = config, finder, folder

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The rate is known now; a resumed run has had it all along."""
        if self.folder is None:
            return
        lr = self.config.optimizer.lr if self.finder.applied is None else self.finder.applied
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.log_hyperparams(self._rates(lr))
                if trainer.ckpt_path is None:
                    logger.log_summary({"search_seconds": self.finder.seconds})  # in no other number of the run
                if isinstance(logger, MLflowLogger) and self.config.tracking.run_name is None:
                    logger.set_tags({"mlflow.runName": default_run_name(self.config, lr)})
        found = next(reversed(self.finder.results.values()), None)
        if found is None or trainer.ckpt_path is not None:
            return
        console = Console(soft_wrap=True, highlight=False, markup=False)
        console.print(f"{self.config.finder.name}: {found.describe().removesuffix('.')}")
        if self.finder.apply:
            how = "found" if self.finder.applied is not None else "as configured"
            console.print(f"training with a peak lr of {lr:.4g} ({how})")

    def _rates(self, lr: float) -> dict[str, float]:
        """The rates that the run trains with, under the keys of the config; no base_lr where none was found."""
        rates = dict.fromkeys(self.config.keys_set_by_finder() - {"schedule.base_lr"}, lr)
        base_lr = self.finder.applied_base
        return rates if base_lr is None else rates | {"schedule.base_lr": base_lr}


def print_found(found: RangeTest | GridTest, title: str) -> None:
    """The table of a search: what it suggests, and what other rules would, or the score of each rate.

    Args:
        found: The result.
        title: Above the table.
    """
    console = Console(highlight=False, markup=False)
    table = Table(title=title, title_justify="left")
    if isinstance(found, RangeTest):
        _fill_with_rules(table, found)
    else:
        _fill_with_scores(table, found)
    console.print(table)
    console.print(found.describe().removesuffix(".") + ".", soft_wrap=True)


def _fill_with_rules(table: Table, found: RangeTest) -> None:
    def rate(value: float | None) -> str:
        return "none" if value is None else f"{value:.3g}"

    table.add_column("rule")
    table.add_column("lr", justify="right")
    table.add_column("plausible", justify="right")
    interval = "" if found.interval is None else f"{found.interval[0]:.2g} to {found.interval[1]:.2g}"
    table.add_row("suggestion", rate(found.suggestion), interval)
    table.add_row("base_lr, for a cyclical schedule", rate(found.base_lr))
    table.add_row("max_lr, for a cyclical schedule", rate(found.max_lr))
    for name, value in found.rules.items():
        table.add_row(f"for comparison: {name}", rate(value))


def _fill_with_scores(table: Table, found: GridTest) -> None:
    for name in ("lr", f"{found.metric} after {found.num_steps} steps", "± s.e."):
        table.add_column(name, justify="right")
    for lr, mean, error in zip(found.lrs, found.losses, found.errors, strict=True):
        best = "  ← best" if lr == found.suggestion else ""
        score = "diverged" if math.isnan(mean) else f"{mean:.4g}{best}"
        table.add_row(f"{lr:.3g}", score, f"{error:.2g}" if error else "")
