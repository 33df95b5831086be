"""Schemas of many runs in place of one: a search over config keys, and a study of the learning rate."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from lr_lightning.app.schemas.problems import SEED, Problem, Rule, Schema, must


@dataclass
class SearchConfig:
    """What `scripts/search.py` searches, by which method, and for how long."""

    name: str = MISSING
    sampler: str = "tpe"  # grid | random | qmc | tpe | gp
    space: dict[str, Any] = field(default_factory=dict)  # a config key: [a, b] | {log|linear|int|log_int: [low, high]}
    objective: str = "summary/best_val_acc"  # a summary, or a metric such as val/loss, which counts by its best value
    direction: str | None = None  # maximize | minimize; null: as the objective's name says
    seeds: list[int] = field(default_factory=list)  # train each trial with all of these, the mean counts; []: seed
    start: list[Any] = field(default_factory=list)  # trials to start from: {optimizer.lr: 0.1}; or the value "finder"
    pruners: list[str] = field(default_factory=list)  # median | hyperband | verdict; any of them can stop a trial
    patience: float = 0.25  # share of a run before which no trial is pruned, unless its loss is not finite
    sweep: str | None = None  # name of the search; the same name resumes it
    n_trials: int | None = 20  # trials of all workers together; null: every point of the grid
    hours: float | None = None  # start no trial when this process has run for this long
    epochs: float | None = None  # start no trial when all trials together have trained for this long
    workers: int = 1  # trials at a time, each in its own process; 0: one after another in this process
    storage: str | None = None  # postgresql://user@host/database, shared by several machines; null: a file in mlruns/
    retries: int = 3  # how often a trial is restarted whose process or machine died
    failures: int = 5  # end the search when this many trials in a row have failed
    seed: int = 0  # of the sampler


@dataclass
class StudyConfig(Schema):
    """A log grid of learning rates, each with several seeds, and one table of what the learning rate did."""

    low: float = 1e-4  # lowest learning rate
    high: float = 10.0  # highest learning rate
    points: int = 11  # number of learning rates in the log grid
    lrs: list[float] | None = None  # the learning rates themselves, in place of the grid
    reference: float | None = None  # the learning rate that the others are compared with; null: the middle one
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    level: float = 0.95  # of the confidence intervals

    def all_lrs(self) -> list[float]:
        """Return the learning rates of the study, the lowest first; those of a grid are rounded to three digits."""
        if self.lrs is not None:
            return sorted(set(self.lrs))
        ratio = self.high / self.low
        return sorted({float(f"{self.low * ratio ** (i / (self.points - 1)):.3g}") for i in range(self.points)})

    def reference_lr(self) -> float:
        """Return the learning rate that the others are compared with: by default the (upper) middle one."""
        lrs = self.all_lrs()
        return lrs[len(lrs) // 2] if self.reference is None else self.reference

    def rules(self) -> Mapping[str, Rule]:
        """Return the rule of each key that has one."""
        return {
            "seeds": must(
                "be one or more different numbers in 0..4294967295",
                lambda v: v and len(set(v)) == len(v) and not any(map(SEED, v)),
            ),
            "level": must("lie between 0 and 1, for instance 0.95", lambda v: 0 < v < 1),
        }

    def conflicts(self) -> Iterator[Problem]:
        """Find learning rates that make no study."""
        listed = self.lrs is not None
        given = [self.low, self.high] if self.lrs is None else self.lrs
        if not all(math.isfinite(lr) and lr > 0 for lr in given) or len(set(given)) < 2:
            key = "lrs" if listed else "low and study.high"
            yield Problem(key, f"must be two or more different finite numbers above 0, got {given}.")
        elif not listed and self.low >= self.high:
            yield Problem("low", f"must be below study.high, {self.high:g}, got {self.low:g}.")
        elif self.points < 2:
            yield Problem("points", f"must be 2 or more, got {self.points}.")
        elif self.reference is not None and self.reference not in self.all_lrs():
            choices = ", ".join(f"{lr:g}" for lr in self.all_lrs())
            yield Problem(
                "reference",
                f"must be one of the learning rates, {choices}, or null for the middle one, got {self.reference}.",
            )
