import logging
from pathlib import Path
from typing import Any

import pytest

from lr_lightning.errors import StoreUnavailable, TrackingError
from lr_lightning.tracking import Store
from lr_lightning.tracking.local_log import (
    RUN_KEY_TAG,
    Artifact,
    LocalLog,
    LogEntry,
    Metric,
    Param,
    Status,
    Tag,
    UploadState,
)
from lr_lightning.tracking.locks import Holder
from lr_lightning.tracking.uploader import Uploader, UploadThread


def make_uploader(store: Store, output_dir: Path, records: list[LogEntry]) -> Uploader:
    output_dir.mkdir(exist_ok=True)
    LocalLog(output_dir / "metrics.jsonl").append(records)
    return Uploader(output_dir, store, UploadState(store.uri, str(store.root), None, "exp"))


def make_thread(store: Store, output_dir: Path, records: list[LogEntry]) -> UploadThread:
    state = make_uploader(store, output_dir, records).state
    return UploadThread(output_dir, store, state, Holder.here("", ""), first_wait=0.001, longest_wait=0.002)


def rows(n: int, key: str = "a") -> list[Metric]:
    return [Metric(key, i / 7, i, 1000 + i) for i in range(n)]


def send_all(uploader: Uploader) -> int:
    total = 0
    while count := uploader.upload_next() or uploader.upload_artifact():
        total += count
    return total


def test_everything_arrives_in_batches_that_mlflow_takes(fake_store: Store, client: Any, tmp_path: Path) -> None:
    params = [Param(f"p{i}", str(i)) for i in range(250)]
    tags = [Tag(f"t{i}", str(i)) for i in range(150)]
    uploader = make_uploader(fake_store, tmp_path / "out", [*rows(2500), *params, *tags])
    assert send_all(uploader) == 2900
    run = client.runs["run0"]
    assert run.rows == [tuple(r) for r in rows(2500)]
    assert len(run.data.params) == 250
    assert {f"t{i}" for i in range(150)} <= set(run.data.tags)
    assert max(client.batches) == 1000
    assert uploader.pending() == 0


def test_order_is_kept_around_a_status(fake_store: Store, client: Any, tmp_path: Path) -> None:
    records = [Tag("t", "old"), Status("FAILED", 5), Status("RUNNING", 6), Tag("t", "new"), Status("FINISHED", 7)]
    send_all(make_uploader(fake_store, tmp_path / "out", records))
    run = client.runs["run0"]
    assert run.statuses == ["FAILED", "RUNNING", "FINISHED"]
    assert run.info.end_time == 7
    assert run.data.tags["t"] == "new"


def test_one_bad_name_costs_only_its_own_row(
    fake_store: Store, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client.bad = {"bad"}
    batch = [*rows(400), Metric("bad", 1.0, 1, 1), Metric("bad", 1.0, 2, 1), *rows(400, "b")]
    with caplog.at_level(logging.WARNING):
        assert send_all(make_uploader(fake_store, tmp_path / "out", batch)) == 802
    assert len(client.runs["run0"].rows) == 800
    assert len(caplog.records) == 1
    assert "metric 'bad'" in caplog.text
    assert len(client.batches) < 60


def test_a_param_is_never_changed(fake_store: Store, client: Any, tmp_path: Path) -> None:
    send_all(make_uploader(fake_store, tmp_path / "out", [Param("p", "1"), Param("p", "2"), *rows(3)]))
    assert client.runs["run0"].data.params == {"p": "1"}
    assert len(client.runs["run0"].rows) == 3


def test_a_lost_answer_doubles_neither_run_nor_rows(fake_store: Store, client: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    uploader = make_uploader(fake_store, out, [*rows(10)])
    client.fail_after_storing = 1
    with pytest.raises(StoreUnavailable):
        uploader.ensure_run()
    state = UploadState.load(out)
    assert state is not None
    uploader = Uploader(out, fake_store, state)  # as after a crash
    client.fail_after_storing = 1
    with pytest.raises(StoreUnavailable):
        uploader.upload_next()
    state = UploadState.load(out)
    assert state is not None
    assert state.offset == 0
    assert send_all(Uploader(out, fake_store, state)) == 10
    assert list(client.runs) == ["run0"]
    assert client.runs["run0"].data.tags[RUN_KEY_TAG] == state.key
    assert len(client.runs["run0"].rows) == 10


def test_a_run_deleted_in_the_store_is_an_error_and_no_row_is_blamed(
    fake_store: Store, client: Any, tmp_path: Path
) -> None:
    uploader = make_uploader(fake_store, tmp_path / "out", [*rows(10)])
    uploader.ensure_run()
    client.runs["run0"].info.lifecycle_stage = "deleted"
    with pytest.raises(TrackingError, match=r"run 'run0' .* was deleted\. Restore it"):
        uploader.upload_next()
    assert uploader.pending() == 10


def test_files_are_copied_and_a_missing_one_is_named(
    fake_store: Store, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "f.txt").write_text("x")
    records = [Artifact(str(tmp_path / "f.txt"), "plots"), Artifact(str(tmp_path / "gone"), None), *rows(2)]
    send_all(make_uploader(fake_store, tmp_path / "out", records))
    assert client.artifacts == [("f.txt", "plots")]
    assert "gone" in caplog.text
    assert len(client.runs["run0"].rows) == 2


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ({"artifact_error": PermissionError(13, "Permission denied", "/a")}, "/a: Permission denied"),
        ({"artifact_error": ConnectionError("too many 503 error responses")}, "too many 503"),
        ({"artifact_uri": "/not/here/of/mlruns/7/run0/artifacts"}, "a folder of the server's machine"),
        ({"artifact_uri": "file:///proc/version/7/run0/artifacts"}, "/proc/version: cannot be written to by this user"),
    ],
)
def test_a_refused_artifact_holds_nothing_back_and_is_uploaded_once_it_is_taken(
    fake_store: Store, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, refusal: Any, reason: str
) -> None:
    vars(client).update(refusal)
    (tmp_path / "f.txt").write_text("x")
    records = [Artifact(str(tmp_path / "f.txt"), None), *rows(3), Artifact(str(tmp_path / "f.txt"), "again")]
    thread = make_thread(fake_store, tmp_path / "out", [*records, Status("FINISHED", 7)])
    thread.connect()
    assert not thread.close(0.05)
    run = client.runs["run0"]
    assert (len(run.rows), run.statuses, client.artifacts) == (3, ["FINISHED"], [])
    said = [record.message for record in caplog.records]
    assert [reason in text for text in said if text.startswith("no file can be stored")] == [True]
    assert "2 records were not uploaded" in said[-1]
    client.artifact_error, run.info.artifact_uri = None, "mlflow-artifacts:/7"
    state = UploadState.load(tmp_path / "out")
    assert state is not None
    assert send_all(Uploader(tmp_path / "out", fake_store, state)) == 2
    assert client.artifacts == [("f.txt", None), ("f.txt", "again")]
    assert len(run.rows) == 3


def test_a_state_of_before_has_uploaded_its_artifacts_too(tmp_path: Path) -> None:
    state_of_before = '{"uri": "u", "root": "r", "artifact_root": null, "experiment": "e", "offset": 9}'
    (tmp_path / "metrics.sent").write_text(state_of_before)
    state = UploadState.load(tmp_path)
    assert state is not None
    assert (state.offset, state.artifacts) == (9, 9)


def test_the_run_starts_in_the_store_when_it_started_here(fake_store: Store, client: Any, tmp_path: Path) -> None:
    uploader = make_uploader(fake_store, tmp_path / "out", [])
    uploader.ensure_run()
    assert client.runs["run0"].info.start_time == uploader.state.started


def test_a_server_that_comes_back_gets_everything_with_one_warning(
    fake_store: Store, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client.down = True
    thread = make_thread(fake_store, tmp_path / "out", [*rows(30)])
    with caplog.at_level(logging.WARNING):
        thread.connect()
        assert isinstance(thread.error, StoreUnavailable)
        client.down = False
        assert thread.close(30)
    assert thread.error is None
    assert len(client.runs["run0"].rows) == 30
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_closing_on_a_dead_server_gives_up_and_loses_nothing(fake_store: Store, client: Any, tmp_path: Path) -> None:
    client.down = True
    thread = make_thread(fake_store, tmp_path / "out", [*rows(30)])
    thread.start()
    assert not thread.close(0.02)
    assert thread.uploader.pending() == 30


def test_real_mlflow_stores_rows_once_though_they_are_sent_twice(store: Store, tmp_path: Path) -> None:
    records = [*rows(1200), Param("p", "1"), Status("FINISHED", 5)]
    uploader = make_uploader(store, tmp_path / "out", records)
    assert send_all(uploader) == 1202
    again = Uploader(tmp_path / "out", store, UploadState(**{**vars(uploader.state), "offset": 0}))
    assert send_all(again) == 1202
    stored = store.client().get_metric_history(uploader.state.run_id, "a")
    assert [(m.key, m.value, m.step, m.timestamp) for m in stored] == [tuple(r) for r in rows(1200)]
    assert store.run(uploader.ensure_run()).info.status == "FINISHED"
