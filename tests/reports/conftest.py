"""Stores with runs of every kind, written in milliseconds."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lr_lightning.reports import tables
from lr_lightning.reports.comparison_report import ComparisonReport, ReportRequest, compare
from lr_lightning.tracking import Store

START = 1_700_000_000_000
Compare = Callable[..., ComparisonReport]
Rows = Mapping[str, Sequence[tuple[int, float]]]

SCRIPT, IMAGE = "<script>alert(1)</script>", "<img src=x onerror=alert(1)>"

BREAKOUT = "</script><script>alert(2)</script><!-- \"'`${alert(3)}{{7*7}} &lt;b&gt;"

BEST = {
    "cosine": [0.951, 0.962, 0.943, 0.955, 0.968, 0.957],
    "constant": [0.931, 0.940, 0.945, 0.936, 0.939, 0.951],
    "wsd": [0.95, 0.96, 0.95, 0.94, 0.96, 0.97],
}


class Runs:
    """Writes runs into a store as another program would.

    Args:
        store: The store.
        experiment: Name of the experiment.
    """

    def __init__(self, store: Store, experiment: str = "exp") -> None:
        self.store, self.experiment = store, experiment
        self.id = store.experiment_id(experiment)

    def add(
        self,
        name: str,
        rows: Rows,
        *,
        status: str = "FINISHED",
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> str:
        from mlflow.entities import Metric, Param

        run = self.store.call("create_run", self.id, run_name=name, tags=dict(tags or {}), start_time=START)
        metrics = [
            Metric(key, value, START + 1000 + 20 * step, step) for key, points in rows.items() for step, value in points
        ]
        some = [Param(key, value) for key, value in (params or {}).items()]
        self.store.call("log_batch", run.info.run_id, metrics=metrics, params=some)
        if status != "RUNNING":
            self.store.call("set_terminated", run.info.run_id, status)
        return str(run.info.run_id)

    def train(self, schedule: str, seed: int, best: float, *, steps: int = 40, lr: float = 0.1, **more: Any) -> str:
        """A run of this project's app: 4 epochs, the best accuracy in the last but one."""
        accuracy = [best / 2, best - 0.1, best, best - 0.01]
        ends = [steps * (i + 1) // 4 - 1 for i in range(4)]
        rows: dict[str, list[tuple[int, float]]] = {
            "lr/group0": [(i, lr * (1 - i / steps)) for i in range(steps)],
            "train/loss": [(i, 2.0 / (1 + i) + 0.01 * (i % 3)) for i in range(steps)],
            "train/loss_epoch": [(end, 1.0 - i / 5) for i, end in enumerate(ends)],
            "val/acc": [*zip(ends, accuracy, strict=True)],
            "val/loss": [(end, 1.0 - a) for end, a in zip(ends, accuracy, strict=True)],
            "overfit/gap_loss": [(end, 0.01 * i) for i, end in enumerate(ends)],
            "test/acc": [(steps, best - 0.02)],
            "summary/steps": [(0, float(steps))],
            **more.pop("rows", {}),
        }
        tags = {"schedule": schedule, "seed": str(seed), **more.pop("tags", {})}
        params = {
            "schedule.name": schedule,
            "seed": str(seed),
            "optimizer.lr": str(lr),
            "data.batch_size": "64",
            "trainer.max_epochs": "4",
        }
        name = more.pop("name", f"{schedule} seed={seed}")
        return self.add(name, rows, tags=tags, params=params | more.pop("params", {}), **more)


def table(done: ComparisonReport) -> dict[str, dict[str, str]]:
    found = tables.group_table(done.compared, done.target)
    return {row[0]: dict(zip(found.titles, row, strict=True)) for row in found.rows}


def page(done: ComparisonReport) -> str:
    return done.files[0].read_text(encoding="utf-8")


def csv_rows(done: ComparisonReport) -> list[dict[str, str]]:
    with done.files[1].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def runs(store: Store) -> Runs:
    return Runs(store)


@pytest.fixture
def comparison(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ComparisonReport]:
    """Compares what is in the store; with pictures, which take a second, only where they are asked for."""

    def run(draw: bool = False, **asked: Any) -> ComparisonReport:
        with monkeypatch.context() as patch:
            if not draw:
                patch.setattr("lr_lightning.reports.comparison_report.save_pngs", lambda plots, groups, folder: [])
            return compare(ReportRequest(store, tmp_path / "outputs", **{"experiments": ["exp"], **asked}))

    return run


@pytest.fixture
def sweep(runs: Runs) -> Runs:
    for schedule, values in BEST.items():
        for seed, best in enumerate(values):
            runs.train(schedule, seed, best, tags={"verdict": "good fit" if seed else "overfit"})
    return runs


@pytest.fixture
def hostile(runs: Runs) -> Runs:
    """Runs whose every text is an attack."""
    for seed in range(2):
        runs.train("cosine", seed, 0.9)
        tags = {"verdict": IMAGE, "diverged_step": IMAGE}
        runs.train(SCRIPT, seed, 0.8, name=SCRIPT, tags=tags, params={"note": BREAKOUT, "p/x": IMAGE})
    runs.train(BREAKOUT, 0, 0.7, name=IMAGE, status="FAILED", tags={"diverged": "true", "diverged_step": IMAGE})
    runs.train("=HYPERLINK(1)", 0, 0.7, name="=cmd|' /C calc'!A0")
    runs.train("[red]x[/red]", 0, 0.6, name="\x1b[2J\x1b]0;owned\x07[bold]y")
    runs.add(f"other {SCRIPT}", {"val/acc": [(0, 0.5)]}, tags={"job": IMAGE})
    return runs
