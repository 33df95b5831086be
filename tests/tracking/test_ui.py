"""The ready-made view of MLflow's chart page."""

import base64
import json
import zlib
from pathlib import Path

from lr_lightning.tracking import RunLogger, Store
from lr_lightning.tracking.query import read_runs
from lr_lightning.tracking.ui import (
    REPORT_NAME,
    TRAINING_RUNS,
    VIEW_TAG,
    chart_page,
    encode_view,
    filter_for,
    keep_view,
    view_state,
)

from .conftest import FakeClient


def test_the_view_is_in_mlflows_form() -> None:
    value = encode_view(1234)
    envelope = json.loads(value)
    assert len(value) < 20_000
    assert (envelope["createdAt"], type(envelope["name"])) == (1234, str)
    packed = envelope["state"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert state == view_state()
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    shown = [(c["metricKey"], c.get("scaleType"), c.get("selectedXAxisMetricKey")) for c in state["compareRunCharts"]]
    assert ("lr/group0", "linear", "") in shown
    assert ("lr/group0", "log", "") in shown
    assert ("train/loss", "log", "lr/group0") in shown
    assert {"val/loss", "probe/loss", "overfit/gap_loss", "summary/test_acc"} <= {key for key, _, _ in shown}


def test_it_is_written_once_and_after_a_change(store: Store) -> None:
    experiment = store.experiment_id("x")
    assert keep_view(store, experiment)
    first = store.call("get_experiment", experiment).tags[VIEW_TAG]
    assert keep_view(store, experiment)
    assert store.call("get_experiment", experiment).tags[VIEW_TAG] == first
    store.call("set_experiment_tag", experiment, VIEW_TAG, "not json")
    assert keep_view(store, experiment)
    assert json.loads(store.call("get_experiment", experiment).tags[VIEW_TAG])["state"] == json.loads(first)["state"]


def test_it_shows_training_runs_or_all_runs_if_none_is_marked_as_one(store: Store, tmp_path: Path) -> None:
    experiment = store.experiment_id("x")
    store.call("create_run", experiment, run_name="foreign")
    store.call("create_run", experiment, run_name="find_lr", tags={"job": "find_lr"})
    store.call("create_run", experiment, run_name=REPORT_NAME, tags={"job": "compare"})
    assert [run.name for run in read_runs(store, [experiment], filter_for(store, experiment))] == ["foreign", "find_lr"]
    logger = RunLogger(tmp_path / "run", store, experiment="x", run_name="by the plugin")
    logger.start()
    logger.end("FINISHED")
    assert [run.name for run in read_runs(store, [experiment], filter_for(store, experiment))] == ["by the plugin"]
    assert view_state()["searchFilter"] == TRAINING_RUNS == filter_for(store, experiment)


def test_a_store_that_is_down_or_knows_no_tags_changes_nothing(fake_store: Store, client: FakeClient) -> None:
    assert not keep_view(fake_store, "7")
    client.down = True
    assert not keep_view(fake_store, "7")


def test_the_link_leads_to_charts_in_model_training_mode() -> None:
    link = chart_page("http://127.0.0.1:5000", "3")
    assert link.startswith("http://127.0.0.1:5000/#/experiments/3/runs?compareRunsMode=CHART")
    assert "viewStateShareKey=lr-lightning" in link
    assert "workflowType=machine_learning" in link
    assert "viewStateShareKey" not in chart_page("http://h", "3", view=False)
