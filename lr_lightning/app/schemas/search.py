"""A search over config keys: many runs in place of one."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class SearchConfig:
    """What `scripts/search.py` searches, by which method, and for how long."""

    name: str = MISSING
    sampler: str = "tpe"  # grid | random | qmc | tpe | gp
    space: dict[str, Any] = field(default_factory=dict)  # a config key: [a, b] | {log|linear|int|log_int: [low, high]}
    objective: str = "summary/best_val_acc"  # a summary, or a metric (val/loss), whose best validation then counts
    direction: str | None = None  # maximize | minimize; null: what the objective's name says
    seeds: list[int] = field(default_factory=list)  # several runs a trial, whose mean counts; none: one, with the seed
    start: list[Any] = field(default_factory=list)  # trials to start from: {optimizer.lr: 0.1}; or the value "finder"
    pruners: list[str] = field(default_factory=list)  # median | hyperband | verdict; one that says stop is enough
    patience: float = 0.25  # share of a run before which no trial is pruned, but for a loss that is not finite
    sweep: str | None = None  # name of the search: the same again goes on with it
    n_trials: int | None = 20  # of all workers together; null: every point of the grid
    hours: float | None = None  # no trial starts after so many hours of this process
    epochs: float | None = None  # no trial starts after so many epochs of all trials
    workers: int = 1  # trials at a time, each a process of its own; 0: one after another in this process
    storage: str | None = None  # postgresql://user@host/database, to share it among machines; null: a file in mlruns/
    retries: int = 3  # times a trial is taken up again whose process or machine has gone
    failures: int = 5  # the search ends if so many trials fail in a row
    seed: int = 0  # of the sampler
