"""A search on digits in this process, for benchmarks: what it found, what it spent."""

import contextlib
import io
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState
from rich.console import Console

from lr_lightning.app.composition import prepare
from lr_lightning.search.engine import Engine, Workers
from lr_lightning.search.report import Progress
from lr_lightning.search.settings import read_search
from lr_lightning.search.study import Study

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        best: Its best objective.
        lr: The peak learning rate of that trial.
        trials: Trials that ended.
        pruned: Those that were pruned.
        epochs: Epochs trained.
        seconds: Wall time.
        beyond: Share of it beyond the trials' own time.
    """

    best: float
    lr: float
    trials: int
    pruned: int
    epochs: float
    seconds: float
    beyond: float


def search(*words: str) -> Found:
    """Run a search from its command line; nothing of it stays."""
    prepare(ROOT)
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        where = [f"tracking.root={place}/mlruns", f"output_root={place}/outputs", "tracking=none", "workers=0"]
        found = read_search(ROOT, [*where, *words])
        study = Study(found)
        study.fill()
        with open(os.devnull, "w", encoding="utf-8") as nowhere, Workers(in_process=True) as workers:
            engine = Engine(found, study, workers, Progress(Console(file=nowhere)))
            began = time.monotonic()
            engine.run()
            seconds = time.monotonic() - began
        summary = study.summary()
        best = summary.best
        if best is None or best.value is None:
            raise RuntimeError(f"no trial of {words} is complete")
        ended = summary.ended.values()
        return Found(
            best=best.value,
            lr=float(best.params["optimizer.lr"]),
            trials=len(ended),
            pruned=sum(t.state == TrialState.PRUNED for t in ended),
            epochs=sum(float(t.user_attrs["result"].get("epochs", 0)) for t in ended),
            seconds=seconds,
            beyond=seconds / engine.trial_seconds - 1,
        )
