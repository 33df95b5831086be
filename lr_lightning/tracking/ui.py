"""The MLflow UI: ready-made views of an experiment's charts, and a server for this machine only.

A view shows learning rate, losses, gap and results of some runs. MLflow keeps the views that its users save as tags
of the experiment. Their format is not documented, so all of this is best effort: an MLflow that does not know the tag
opens its own default view, and no run ever fails because of it.
"""

import base64
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import webbrowser
import zlib
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lr_lightning.errors import TrackingError
from lr_lightning.tracking.keys import JOB_TAG, LOG_LR
from lr_lightning.tracking.query import experiments
from lr_lightning.tracking.store import Store, open_store, prepare_mlflow

log = logging.getLogger(__name__)

VIEW_ID = "lr-lightning"
REPORT_NAME = "comparison report"
"""Name of the run that holds a comparison."""
TRAINING_RUNS = f"tags.{JOB_TAG} = 'train'"
"""Filter that leaves out learning rate searches, comparisons, and the tables of lr_effects and of searches."""
ALL_RUNS = f"attributes.run_name != '{REPORT_NAME}'"
"""Filter where other programs have runs: these have no job tag, and MLflow cannot filter for a missing tag."""
NOT_FAILED = "attributes.status != 'FAILED'"
"""Filter that leaves out the runs that diverged, whose losses would flatten the axes of all others, or that failed."""
DRAWN_RUNS = f"{TRAINING_RUNS} and {NOT_FAILED}"
"""Filter of the view of an experiment."""

HOST = "127.0.0.1"
_TAGS = "mlflow.sharedViewState."
_MAX_LINKS = 5
_MAX_VIEWS = 30  # of an experiment, beside that of all its runs: each page of MLflow's loads them all
_MAX_CHARACTERS = 20_000  # of a tag's value, in MLflow
_MAX_RUNS = 100
_VIEW_NAME = "Learning rates, without failed and diverged runs"
_TRAINING_MODE = "workflowType=machine_learning"  # without it, MLflow opens its pages for language models

_COLUMNS = (
    *("tags.`model`", "tags.`data`", "tags.`schedule`", "params.`optimizer.lr`", "tags.`seed`", "tags.`verdict`"),
    *("metrics.`summary/best_val_acc`", "metrics.`summary/best_val_loss`", "metrics.`summary/test_acc`"),
    *("metrics.`summary/gap_loss`", "metrics.`summary/seconds`", "tags.`sweep`", "attributes.`Source`"),
)
_BY_LR = ("best_val_acc", "best_val_loss")
_BARS = ("last_val_acc", "test_acc", "gap_loss", "steps", "seconds", "steps_to_target", "seconds_to_target")


# ---- the view


def view_state(run_filter: str = DRAWN_RUNS) -> dict[str, Any]:
    """Return the view of the runs that match ``run_filter``, in MLflow's terms; the same on every call."""
    losses, gaps = ("val/loss", "train/loss", "probe/loss"), ("val/acc", "overfit/gap_loss", "overfit/gap_acc")
    by_lr = [_line(f"summary/{name}", against=LOG_LR, log=name.endswith("loss")) for name in _BY_LR]
    sections = {
        "Learning rate and loss": [_line(key, log=True) for key in ("lr/group0", *losses)],
        "By peak learning rate": by_lr,
        "Accuracy and gap": [_line(key) for key in gaps],
        "Results": [_card("BAR", f"summary/{name}") for name in _BARS],
    }
    charts, section_states = [], []
    for name, cards in sections.items():
        section = _uuid(name)
        shown = {"display": True, "isReordered": True, "deleted": False, "columns": 2}
        section_states.append({"uuid": section, "name": name, **shown})
        charts += [{**card, "uuid": _uuid(f"{name} {i}"), "metricSectionId": section} for i, card in enumerate(cards)]
    return {
        "selectedColumns": list(_COLUMNS),
        "columnOrder": list(_COLUMNS),
        "columnWidths": {column: 165 if "summary/" in column else 100 for column in _COLUMNS},
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": section_states,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
        "autoRefreshEnabled": True,
        "viewMaximized": False,
        "runListHidden": False,
        "groupBy": None,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "searchFilter": run_filter,
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
    }


def _uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"lr_lightning {name}"))


def _card(kind: str, metric: str) -> dict[str, Any]:
    return {
        "type": kind,
        "displayName": metric,  # MLflow shows the metric's own name above a line chart, whatever this is
        "metricKey": metric,
        "runsCountToCompare": _MAX_RUNS,
        "deleted": False,
        "isGenerated": False,
    }


def _line(metric: str, *, log: bool = False, against: str = "") -> dict[str, Any]:
    return {
        **_card("LINE", metric),
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "xAxisKey": "metric" if against else "step",
        "selectedXAxisMetricKey": against,
        "xAxisScaleType": "linear",  # a metric has no logarithmic axis
        "scaleType": "log" if log else "linear",
        "useGlobalXaxisKey": not against,
        "useGlobalLineSmoothing": True,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "range": {},
    }


def encode_view(now: int, run_filter: str = DRAWN_RUNS) -> str:
    """Return the value of the view's tag; ``now`` is in milliseconds since 1970."""
    state = json.dumps(view_state(run_filter), separators=(",", ":")).encode()
    packed = "deflate;" + base64.b64encode(zlib.compress(state, 9)).decode("ascii")
    return json.dumps({"name": _VIEW_NAME, "createdAt": now, "updatedAt": now, "state": packed})


def keep_view(store: Store, experiment_id: str, run_filter: str = DRAWN_RUNS, view: str = VIEW_ID) -> bool:
    """Write a view to an experiment that has none or another version; return whether it has it. Never raises."""
    try:
        tags = store.call("get_experiment", experiment_id).tags
        value = encode_view(int(time.time() * 1000), run_filter)
        if _envelope(tags.get(_TAGS + view)).get("state") == _envelope(value)["state"]:
            return True
        if len(value) > _MAX_CHARACTERS:
            return False
        store.call("set_experiment_tag", experiment_id, _TAGS + view, value)
        others = [key for key in tags if key.startswith(f"{_TAGS}{VIEW_ID}-") and key != _TAGS + view]
        for old in sorted(others, key=lambda key: _envelope(tags[key]).get("createdAt", 0))[:-_MAX_VIEWS]:
            store.call("delete_experiment_tag", experiment_id, old)
    except Exception as error:  # the view is a convenience: no error of it may stop a run
        log.debug("the view of experiment %s was not written: %s", experiment_id, error)
        return False
    return True


def _envelope(value: str | None) -> dict[str, Any]:
    try:
        found = json.loads(value or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def chart_link(store: Store, server: str, experiment_id: str, run_filter: str = "") -> str:
    """Return the address of the charts of the runs that match a filter, whose view is kept; "" are all trainings."""
    try:
        base = TRAINING_RUNS if store.call("search_runs", [experiment_id], TRAINING_RUNS, max_results=1) else ALL_RUNS
    except Exception as error:
        log.debug("the runs of experiment %s were not found: %s", experiment_id, error)
        base = TRAINING_RUNS
    wanted = " and ".join(filter(None, (base, run_filter, NOT_FAILED)))
    view = f"{VIEW_ID}-{hashlib.sha256(run_filter.encode()).hexdigest()[:12]}" if run_filter else VIEW_ID
    return chart_page(server, experiment_id, view if keep_view(store, experiment_id, wanted, view) else "")


def chart_page(server: str, experiment_id: str, view: str = VIEW_ID) -> str:
    """Return the address of an experiment's chart page in MLflow's model training mode, with a ready-made view."""
    shown = f"&viewStateShareKey={view}" if view else ""
    return f"{server}/#/experiments/{quote(experiment_id, safe='')}/runs?compareRunsMode=CHART{shown}&{_TRAINING_MODE}"


def run_page(server: str, experiment_id: str, run_id: str, artifact: str = "") -> str:
    """Return the address of a run's page, or of one of its artifacts, in MLflow's model training mode."""
    page = f"{server}/#/experiments/{quote(experiment_id, safe='')}/runs/{quote(run_id, safe='')}"
    return f"{page}{f'/artifacts/{artifact}' if artifact else ''}?{_TRAINING_MODE}"


# ---- the server


def serve(store_root: Path, uri: str | None, port: int, experiment: str | None = None, *, show: bool = False) -> int:
    """Run MLflow's server on a store until it is stopped.

    It listens on the loopback interface only, starts no job workers and sends no telemetry.

    Args:
        store_root: Folder of the default store.
        uri: Another store, or None.
        port: The port to try first.
        experiment: The experiment whose charts are linked; None for the five with the newest runs.
        show: Whether to open the first link in a browser.

    Returns:
        The server's exit status; 0 if it was stopped by Ctrl-C.
    """
    prepare_mlflow()
    store = open_store(store_root, uri)
    store = store if store.is_lost else store.for_reading()
    if store.artifact_root is None:
        raise TrackingError(f"--uri: {store.public_uri} is a server already; open it in a browser.")
    shown = _experiments_by_newest_run(store)
    if experiment is not None:
        if experiment not in shown:
            known = ", ".join(sorted(shown)) or "none"
            raise TrackingError(f"--experiment: {store.public_uri} has no experiment {experiment!r}. It has: {known}.")
        shown = {experiment: shown[experiment]}
    free = free_port(port)
    server = f"http://{HOST}:{free}"
    if free != port:
        print(f"port {port} is in use, so this is port {free}")
    links = {name: chart_link(store, server, key) for name, key in list(shown.items())[:_MAX_LINKS]}
    print(f"MLflow UI on {server}/#/experiments?{_TRAINING_MODE} (Ctrl-C stops it)")
    for name, link in links.items():
        print(f"charts of {name!r}: {link}")
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(free), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]
    command += ["--backend-store-uri", store.uri, "--allowed-hosts", f"{HOST}:{free},localhost:{free}"]
    command += ["--default-artifact-root", store.artifact_root.as_uri()]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, env=environment)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    if show:
        address = next(iter(links.values()), server)
        threading.Thread(target=_open_when_up, args=(address, free, process), daemon=True).start()
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        return 0


def _experiments_by_newest_run(store: Store) -> dict[str, str]:
    """Return name and id of the experiments that have runs, the one with the newest run first."""
    found: list[tuple[int, str, str]] = []
    for name, key in experiments(store).items():
        for newest in store.call("search_runs", [key], max_results=1, order_by=["attributes.start_time DESC"]):
            found.append((int(newest.info.start_time or 0), name, key))
    return {name: key for _, name, key in sorted(found, key=itemgetter(0), reverse=True)}


def _open_when_up(address: str, port: int, process: "subprocess.Popen[bytes]", patience: float = 120.0) -> None:
    """Open a browser once the server listens."""
    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            webbrowser.open(address)
            return


def free_port(first: int) -> int:
    """Return the first free port from ``first`` on; any free port after a hundred tries."""
    for port in [*range(first, min(first + 100, 65536)), 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no free port on {HOST}")
