"""A ready-made view of MLflow's chart page: rate, losses, gap and results, kept as a tag of the experiment.

MLflow keeps the views its users save as experiment tags. The format is not documented, so all of this is best effort:
an MLflow that does not know the tag opens its own default view, and no run ever fails over it.
"""

import base64
import json
import logging
import time
import uuid
import zlib
from typing import Any
from urllib.parse import quote

from lr_lightning.tracking.keys import JOB_TAG
from lr_lightning.tracking.store import Store

log = logging.getLogger(__name__)

VIEW_ID = "lr-lightning"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_ID}"
REPORT_NAME = "comparison report"
"""Name of every comparison's own run."""
TRAININGS = f"tags.{JOB_TAG} = 'train'"
"""Leaves out searches for a rate, comparisons, and the tables of studies and searches."""
ALL_RUNS = f"attributes.run_name != '{REPORT_NAME}'"
"""For runs of other programs, which lack the tag: MLflow cannot search for a value or none."""
_MOST_CHARACTERS = 20_000  # of a tag's value, in MLflow
_RUNS = 100

_COLUMNS = (
    *("tags.`schedule`", "params.`optimizer.lr`", "tags.`seed`", "tags.`sweep`", "tags.`verdict`", "tags.`diverged`"),
    *("metrics.`summary/best_val_acc`", "metrics.`summary/test_acc`", "metrics.`summary/gap_loss`"),
    *("metrics.`summary/seconds`", "attributes.`Source`"),
)
_BARS = (
    *("best_val_acc", "last_val_acc", "test_acc", "best_val_loss", "gap_loss", "steps", "seconds"),
    *("steps_to_target", "seconds_to_target"),
)


def view_state(shown: str = TRAININGS) -> dict[str, Any]:
    """What the page shows, in MLflow's terms; the same on every call.

    Args:
        shown: Which runs, in MLflow's search language.
    """
    sections = [
        ("Learning rate", [_line("lr/group0"), _line("lr/group0", log=True), _line("train/loss", against="lr/group0")]),
        (
            "Train, probe and validation loss",
            [_line("train/loss", log=True), _line("val/loss", log=True), _line("probe/loss", log=True)],
        ),
        ("Gap and accuracy", [_line("overfit/gap_loss"), _line("overfit/gap_acc"), _line("val/acc")]),
        ("Results", [_bar(f"summary/{name}") for name in _BARS]),
    ]
    charts, made = [], []
    for name, cards in sections:
        section = _id(name)
        made.append({"uuid": section, "name": name, "display": True, "isReordered": True, "deleted": False})
        charts += [{**card, "uuid": _id(f"{name} {i}"), "metricSectionId": section} for i, card in enumerate(cards)]
    return {
        "selectedColumns": list(_COLUMNS),
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": made,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
        "autoRefreshEnabled": True,
        "viewMaximized": False,
        "runListHidden": False,
        "groupBy": None,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "searchFilter": shown,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"lr_lightning {name}"))


def _line(metric: str, *, log: bool = False, against: str = "") -> dict[str, Any]:
    title = f"{metric} against {against}" if against else f"{metric}, log" if log else metric
    return {
        "type": "LINE",
        "displayName": title,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "runsCountToCompare": _RUNS,
        "deleted": False,
        "isGenerated": False,
        "lineSmoothness": 0,
        "xAxisKey": "metric" if against else "step",
        "selectedXAxisMetricKey": against,
        "xAxisScaleType": "log" if against else "linear",
        "scaleType": "log" if log or against else "linear",
        "useGlobalXaxisKey": not against,
        "useGlobalLineSmoothing": True,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "range": {},
    }


def _bar(metric: str) -> dict[str, Any]:
    return {
        "type": "BAR",
        "displayName": metric,
        "metricKey": metric,
        "runsCountToCompare": _RUNS,
        "deleted": False,
        "isGenerated": False,
    }


def encode_view(now: int, shown: str = TRAININGS) -> str:
    """The value of the tag.

    Args:
        now: Milliseconds since 1970.
        shown: Which runs, in MLflow's search language.
    """
    state = json.dumps(view_state(shown), separators=(",", ":")).encode()
    packed = "deflate;" + base64.b64encode(zlib.compress(state, 9)).decode("ascii")
    return json.dumps({"name": "Learning rates", "createdAt": now, "updatedAt": now, "state": packed})


def keep_view(store: Store, experiment_id: str, shown: str = TRAININGS) -> bool:
    """Write the view into an experiment that lacks it, or has that of another version. Never raises.

    Args:
        store: The store.
        experiment_id: The experiment.
        shown: Which runs, in MLflow's search language.

    Returns:
        Whether the experiment now has it.
    """
    try:
        tags = store.call("get_experiment", experiment_id).tags
        value = encode_view(int(time.time() * 1000), shown)
        if _state_of(tags.get(VIEW_TAG)) == json.loads(value)["state"]:
            return True
        if len(value) > _MOST_CHARACTERS:
            return False
        store.call("set_experiment_tag", experiment_id, VIEW_TAG, value)
    except Exception as error:  # a view is a convenience: whatever happens, the run goes on
        log.debug("the view of experiment %s was not written: %s", experiment_id, error)
        return False
    return True


def runs_shown(store: Store, experiment_id: str) -> str:
    """Which runs the view of an experiment is to show: the trainings; all, where none is known for one.

    Raises:
        TrackingError: The store refuses.
        StoreUnavailable: It does not answer.
    """
    return TRAININGS if store.call("search_runs", [experiment_id], TRAININGS, max_results=1) else ALL_RUNS


def _state_of(value: str | None) -> object:
    try:
        return json.loads(value)["state"] if value else None
    except (ValueError, TypeError, KeyError):
        return None


def chart_page(server: str, experiment_id: str, *, view: bool = True) -> str:
    """Address of an experiment's chart page in model-training mode.

    Args:
        server: Such as ``http://127.0.0.1:5000``.
        experiment_id: The experiment.
        view: Whether it has the ready-made view.
    """
    shown = f"&viewStateShareKey={VIEW_ID}" if view else ""
    return (
        f"{server}/#/experiments/{quote(experiment_id, safe='')}/runs"
        f"?compareRunsMode=CHART{shown}&workflowType=machine_learning"
    )
