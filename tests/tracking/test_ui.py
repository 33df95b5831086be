"""The ready-made view of MLflow's chart page."""

import base64
import json
import re
import zlib
from pathlib import Path

from lr_lightning.tracking import RunLogger, Store
from lr_lightning.tracking.keys import LOG_LR
from lr_lightning.tracking.query import read_runs
from lr_lightning.tracking.ui import (
    DRAWN_RUNS,
    REPORT_NAME,
    chart_link,
    chart_page,
    encode_view,
    keep_view,
    run_page,
    view_state,
)

from .conftest import FakeClient

VIEW_TAG = "mlflow.sharedViewState.lr-lightning"


def test_the_view_is_in_mlflows_form() -> None:
    value = encode_view(1234)
    envelope = json.loads(value)
    assert len(value) < 20_000
    assert (envelope["createdAt"], type(envelope["name"])) == (1234, str)
    assert "without failed and diverged runs" in envelope["name"]
    packed = envelope["state"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert state == view_state()
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections


def test_every_chart_has_its_own_title_and_none_shows_a_loss_over_a_schedule() -> None:
    charts = view_state()["compareRunCharts"]
    titles = [chart["metricKey"] for chart in charts]  # MLflow shows it above a chart, and no other title
    assert len(set(titles)) == len(titles)
    shown = {(c["metricKey"], c.get("scaleType"), c.get("selectedXAxisMetricKey")) for c in charts}
    assert ("lr/group0", "log", "") in shown
    assert ("summary/best_val_acc", "linear", LOG_LR) in shown  # a point a run
    assert {"val/loss", "probe/loss", "overfit/gap_loss", "summary/test_acc"} <= {key for key, _, _ in shown}
    assert not any(against for key, _, against in shown if not key.startswith("summary/"))
    assert {"tags.`model`", "tags.`data`", "tags.`verdict`"} <= set(view_state()["selectedColumns"])


def test_it_is_written_once_and_after_a_change(store: Store) -> None:
    experiment = store.experiment_id("x")
    assert keep_view(store, experiment)
    first = store.call("get_experiment", experiment).tags[VIEW_TAG]
    assert keep_view(store, experiment)
    assert store.call("get_experiment", experiment).tags[VIEW_TAG] == first
    store.call("set_experiment_tag", experiment, VIEW_TAG, "not json")
    assert keep_view(store, experiment)
    assert json.loads(store.call("get_experiment", experiment).tags[VIEW_TAG])["state"] == json.loads(first)["state"]


def drawn(store: Store, experiment: str, link: str) -> list[str]:
    """The names of the runs that the page at a link shows, as MLflow reads its view."""
    (view,) = re.findall(r"viewStateShareKey=([\w-]+)", link)
    value = store.call("get_experiment", experiment).tags[f"mlflow.sharedViewState.{view}"]
    state = json.loads(zlib.decompress(base64.b64decode(json.loads(value)["state"].removeprefix("deflate;"))))
    return [run.name for run in read_runs(store, [experiment], state["searchFilter"])]


def add_run(store: Store, folder: Path, name: str, status: str = "FINISHED", **tags: str) -> None:
    logger = RunLogger(folder / name, store, experiment="x", run_name=name, tags=tags)
    logger.start()
    logger.end(status)


def test_it_shows_training_runs_or_all_runs_if_none_is_marked_as_one(store: Store, tmp_path: Path) -> None:
    experiment = store.experiment_id("x")
    store.call("create_run", experiment, run_name="foreign")
    store.call("create_run", experiment, run_name="find_lr", tags={"job": "find_lr"})
    store.call("create_run", experiment, run_name=REPORT_NAME, tags={"job": "compare"})
    assert drawn(store, experiment, chart_link(store, "", experiment)) == ["foreign", "find_lr"]
    add_run(store, tmp_path, "by the plugin")
    assert drawn(store, experiment, chart_link(store, "", experiment)) == ["by the plugin"]
    assert view_state()["searchFilter"] == DRAWN_RUNS


def test_a_run_that_diverged_or_failed_is_not_drawn(store: Store, tmp_path: Path) -> None:
    experiment = store.experiment_id("x")
    add_run(store, tmp_path, "good")
    add_run(store, tmp_path, "diverged", "FAILED")
    store.call("create_run", experiment, run_name="running", tags={"job": "train"})
    assert drawn(store, experiment, chart_link(store, "", experiment)) == ["good", "running"]


def test_a_sweep_has_its_own_page_and_the_newest_thirty_are_kept(store: Store, tmp_path: Path) -> None:
    experiment = store.experiment_id("x")
    for sweep in ("a", "b"):
        add_run(store, tmp_path, f"of {sweep}", sweep=sweep)
    links = {sweep: chart_link(store, "", experiment, f"tags.sweep = '{sweep}'") for sweep in ("a", "b")}
    assert {sweep: drawn(store, experiment, link) for sweep, link in links.items()} == {"a": ["of a"], "b": ["of b"]}
    for old in range(40):
        value = json.dumps({"createdAt": old, "state": "x"})
        store.call("set_experiment_tag", experiment, f"mlflow.sharedViewState.lr-lightning-{old}", value)
    store.call("set_experiment_tag", experiment, "mlflow.sharedViewState.somebody", "theirs")
    assert keep_view(store, experiment, "tags.sweep = 'c'", "lr-lightning-c")
    kept = {key.rpartition(".")[2] for key in store.call("get_experiment", experiment).tags if "View" in key}
    newest = {f"lr-lightning-{old}" for old in range(12, 40)}
    assert kept == {*newest, "lr-lightning-c", "somebody"} | {re.findall(r"Key=([\w-]+)", x)[0] for x in links.values()}


def test_a_store_that_is_down_or_knows_no_tags_changes_nothing(fake_store: Store, client: FakeClient) -> None:
    assert not keep_view(fake_store, "7")
    client.down = True
    assert not keep_view(fake_store, "7")


def test_the_link_leads_to_charts_in_model_training_mode() -> None:
    link = chart_page("http://127.0.0.1:5000", "3")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/3/runs?compareRunsMode=CHART")
    assert "viewStateShareKey=lr-lightning" in link
    assert "workflowType=machine_learning" in link
    assert "viewStateShareKey" not in chart_page("http://h", "3", "")
    artifact = run_page("http://h", "3", "abc", "report.html")
    assert artifact == "http://h/#/experiments/3/runs/abc/artifacts/report.html?workflowType=machine_learning"
