"""The ready-made view, colours, rates as CSV: what runs leave for MLflow's pages."""

import base64
import csv
import json
import zlib
from pathlib import Path

import pytest

from lr_lightning._plotting import style, styles
from lr_lightning.tracking import MLflowLogger, Store
from lr_lightning.tracking.query import read_runs
from lr_lightning.tracking.view import (
    REPORT_NAME,
    TRAININGS,
    VIEW_TAG,
    chart_page,
    encode_view,
    keep_view,
    runs_shown,
    view_state,
)

from .conftest import FakeClient

ROOT = Path(__file__).resolve().parent.parent.parent


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


def test_it_shows_trainings_and_all_runs_where_none_is_known_for_one(store: Store, tmp_path: Path) -> None:
    experiment = store.experiment_id("x")
    store.call("create_run", experiment, run_name="foreign")
    store.call("create_run", experiment, run_name="find_lr", tags={"job": "find_lr"})
    store.call("create_run", experiment, run_name=REPORT_NAME, tags={"job": "compare"})
    assert [run.name for run in read_runs(store, [experiment], runs_shown(store, experiment))] == ["foreign", "find_lr"]
    logger = MLflowLogger(store, "x", output_dir=tmp_path / "run", run_name="by the plugin")
    logger.start()
    logger.end("FINISHED")
    assert [run.name for run in read_runs(store, [experiment], runs_shown(store, experiment))] == ["by the plugin"]
    assert view_state()["searchFilter"] == TRAININGS == runs_shown(store, experiment)


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


def test_every_schedule_of_the_app_has_a_colour_and_line_of_its_own() -> None:
    names = [path.stem for path in (ROOT / "conf" / "schedule").glob("*.yaml")]
    looks = styles(names)
    assert len({look.colour for look in looks.values()}) == len(names)
    assert looks == {name: style(name) for name in names}


def test_other_names_get_what_is_free() -> None:
    names = [f"optimizer {i}" for i in range(21)]
    assert len({look.colour for look in styles(names).values()}) == 21
    assert len(styles([*names, *(f"more {i}" for i in range(300))])) == 321
    assert styles(["cosine", "zzz"])["cosine"] == style("cosine")
    assert styles(["\udcff"])


def test_a_run_keeps_the_rate_of_every_step_as_a_table(store: Store, tmp_path: Path) -> None:
    logger = MLflowLogger(store, "x", output_dir=tmp_path / "run")
    logger.start()
    logger.log_rows([(f"lr/group{g}", 0.1 / (s + 1) / (g + 1), s, 1000 + s) for s in range(500) for g in (0, 1, 10)])
    logger.log_rows([("train/loss", 1.0, s, 1000 + s) for s in range(500)])
    run_id = logger.run_id
    logger.end("FINISHED")
    path = store.root / "artifacts" / str(run_id) / "artifacts" / "lr.csv"
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["step", "lr/group0", "lr/group1", "lr/group10"]
    assert [[int(row[0]), *map(float, row[1:])] for row in rows] == [
        [s, 0.1 / (s + 1), 0.1 / (s + 1) / 2, 0.1 / (s + 1) / 11] for s in range(500)
    ]


@pytest.mark.parametrize("rows", [[], [("train/loss", 1.0, 0, 1000)]])
def test_a_run_without_a_rate_keeps_none(store: Store, tmp_path: Path, rows: list[tuple[str, float, int, int]]) -> None:
    logger = MLflowLogger(store, "x", output_dir=tmp_path / "run")
    logger.log_rows(rows)
    logger.end("FINISHED")
    assert not (tmp_path / "run" / "lr.csv").exists()
