"""Reading runs back from a store: what they are, and every row of the metrics that are asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr_lightning.tracking.errors import Rejected, TrackingError
from lr_lightning.tracking.store import Store

_PAGE = 1000
_HUGE = 1.7e308  # MLflow stores infinity as the largest double

JOB_TAG = "job"
"""Tag that says what a run was: ``train``, ``find_lr``, ``compare``; a run without it trained."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Every finite row of one metric of a run, one for each step, by rising step.

    Attributes:
        step: Shape [n].
        value: Shape [n].
        time: Milliseconds since 1970, shape [n].
        nonfinite: Rows that were left out since their value is nan or infinite.
    """

    step: NDArray[np.int64]
    value: NDArray[np.float64]
    time: NDArray[np.int64]
    nonfinite: int = 0


@dataclass(eq=False)
class Run:
    """One run of a store, from whatever program it came.

    Attributes:
        id: MLflow's run id.
        name: Any text at all.
        experiment_id: Of the experiment it is in.
        status: RUNNING, FINISHED, FAILED, KILLED or SCHEDULED.
        start: Milliseconds since 1970.
        end: The same, or None.
        params: By name.
        tags: By name.
        last: The newest value of each metric.
        curves: The metrics that were read in full.
    """

    id: str
    name: str
    experiment_id: str
    status: str
    start: int
    end: int | None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def job(self) -> str:
        """What kind of run it is."""
        return self.tags.get(JOB_TAG, "train")


def experiments(store: Store) -> dict[str, str]:
    """Name to id of every experiment that is not deleted."""
    found: dict[str, str] = {}
    token = None
    while True:
        page = store.call("search_experiments", max_results=_PAGE, page_token=token)
        found |= {experiment.name: str(experiment.experiment_id) for experiment in page}
        token = page.token
        if not token:
            return found


def read_runs(store: Store, experiment_ids: Sequence[str], filter_string: str = "") -> list[Run]:
    """Read runs without their curves, oldest first.

    Args:
        store: The store.
        experiment_ids: Where to look.
        filter_string: In MLflow's search language, such as ``tags.schedule = 'cosine'``.

    Raises:
        TrackingError: The filter is not understood.
        StoreUnavailable: The store does not answer.
    """
    found: list[Run] = []
    token = None
    while True:
        try:
            page = store.call(
                "search_runs",
                list(experiment_ids),
                filter_string=filter_string,
                max_results=_PAGE,
                page_token=token,
                order_by=["attributes.start_time ASC"],
            )
        except Rejected as error:
            raise TrackingError(
                f"{filter_string!r} is not understood: {error} Write it in MLflow's search language, such as "
                "\"tags.schedule = 'cosine' and params.`optimizer.lr` = '0.1'\"."
            ) from None
        found += [_run(item) for item in page]
        token = page.token
        if not token:
            return found


def _run(item: Any) -> Run:
    info, data = item.info, item.data
    return Run(
        id=info.run_id,
        name=info.run_name or data.tags.get("mlflow.runName") or info.run_id,
        experiment_id=str(info.experiment_id),
        status=str(info.status),
        start=int(info.start_time or 0),
        end=int(info.end_time) if info.end_time else None,
        params=dict(data.params),
        tags=dict(data.tags),
        last=dict(data.metrics),
    )


def read_curves(store: Store, runs: Sequence[Run], keys: Iterable[str]) -> None:
    """Read every row of some metrics of some runs into ``run.curves``.

    From a database by SQL, which is many times faster than asking MLflow; from a server in requests for many runs at
    once; where neither is possible, through MLflow's client, metric by metric.

    Args:
        store: The store.
        runs: Those that get the curves.
        keys: Names of metrics; a run that lacks one goes without.

    Raises:
        StoreUnavailable: The store does not answer.
    """
    wanted = sorted(set(keys))
    if not runs or not wanted:
        return
    if store.artifact_root is not None:
        from lr_lightning.tracking.table_rows import TablesDiffer, read_rows

        try:
            for run, key, rows in read_rows(store, runs, wanted):
                run.curves[key] = _curve(*rows)
            return
        except TablesDiffer:
            pass
    from lr_lightning.tracking.client_rows import ask_rows

    for run, key, rows in ask_rows(store, runs, wanted):
        run.curves[key] = _curve(*rows)


def _curve(step: NDArray[np.int64], value: NDArray[np.float64], time: NDArray[np.int64]) -> Curve:
    """Sort; leave out what is not finite; of rows of one step keep the newest (a resumed run may repeat steps)."""
    finite = np.isfinite(value) & (np.abs(value) < _HUGE)
    nonfinite = int(value.size - finite.sum())
    step, value, time = step[finite], value[finite], time[finite]
    order = np.lexsort((time, step))
    step, value, time = step[order], value[order], time[order]
    newest = np.append(step[1:] != step[:-1], True) if step.size else np.zeros(0, bool)
    return Curve(step[newest], value[newest], time[newest], nonfinite)
