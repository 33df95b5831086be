"""A database that is created once and copied, and a fake store that can be down or reject a row."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lr_lightning.tracking import Store, open_store
from lr_lightning.tracking import logger as logger_module
from lr_lightning.tracking import store as store_module
from lr_lightning.tracking import uploader as uploader_module
from lr_lightning.tracking.uploader import UploadThread


class Refused(Exception):
    def __init__(self, text: str, code: str = "INVALID_PARAMETER_VALUE") -> None:
        super().__init__(text)
        self.error_code = code


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise ConnectionError("connection refused")


class FakeClient:
    """What the package uses of MlflowClient, in memory, with MLflow's rules for rows and params."""

    def __init__(self) -> None:
        self.down = False
        self.bad: set[str] = set()
        self.fail_after_storing = 0
        self.deleted = False
        self.artifact_uri = "mlflow-artifacts:/7"
        self.artifact_error: Exception | None = None
        self.runs: dict[str, SimpleNamespace] = {}
        self.batches: list[int] = []
        self.artifacts: list[tuple[str, str | None]] = []
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if callable(value):
            self.calls.append(name)
            if self.down:
                return _refuse
        return value

    def get_experiment_by_name(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id="7", lifecycle_stage="deleted" if self.deleted else "active")

    def create_run(self, experiment_id: str, start_time: int, tags: dict[str, str], run_name: str | None) -> Any:
        run_id = f"run{len(self.runs)}"
        info = SimpleNamespace(
            run_id=run_id,
            experiment_id=experiment_id,
            status="RUNNING",
            lifecycle_stage="active",
            start_time=start_time,
            artifact_uri=self.artifact_uri,
        )
        self.runs[run_id] = SimpleNamespace(
            info=info, rows=[], statuses=[], data=SimpleNamespace(params={}, tags=dict(tags), _metric_objs=[])
        )
        if self.fail_after_storing:
            self.fail_after_storing -= 1
            raise ConnectionError("answer lost")
        return self.runs[run_id]

    def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[Any]:
        key = filter_string.split("'")[1]
        return [run for run in self.runs.values() if key in run.data.tags.values()][:max_results]

    def get_run(self, run_id: str) -> Any:
        if run_id not in self.runs:
            raise Refused(f"no run {run_id}", "RESOURCE_DOES_NOT_EXIST")
        return self.runs[run_id]

    def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any, synchronous: bool) -> None:
        run = self.runs[run_id]
        if run.info.lifecycle_stage == "deleted":
            raise Refused("the run must be active")
        assert len(metrics) <= 1000
        assert len(params) <= 100
        assert len(tags) <= 100
        self.batches.append(len(metrics))
        for item in [*metrics, *params, *tags]:
            if item.key in self.bad:
                raise Refused(f"bad name {item.key}")
        for param in params:
            if run.data.params.setdefault(param.key, param.value) != param.value:
                raise Refused("changing param values is not allowed")
        run.data.tags.update({tag.key: tag.value for tag in tags})
        for metric in metrics:
            row = (metric.key, metric.value, metric.step, metric.timestamp)
            if row not in run.rows:
                run.rows.append(row)
        if self.fail_after_storing:
            self.fail_after_storing -= 1
            raise ConnectionError("answer lost")

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self.runs[run_id].info.status = status
        self.runs[run_id].info.end_time = end_time
        self.runs[run_id].statuses.append(status)

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].info.status = status
        self.runs[run_id].statuses.append(status)

    def log_artifact(self, run_id: str, path: str, to: str | None) -> None:
        if self.artifact_error is not None:
            raise self.artifact_error
        self.artifacts.append((Path(path).name, to))

    log_artifacts = log_artifact


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """The client behind ``fake_store``; retries come at once."""
    fake = FakeClient()
    monkeypatch.setitem(store_module._clients, "http://fake.test", fake)
    monkeypatch.setattr(logger_module, "UploadThread", partial(UploadThread, first_wait=0.001, longest_wait=0.002))
    monkeypatch.setattr(uploader_module, "_SERVER_DRAIN_SECONDS", 0.5)
    return fake


@pytest.fixture
def fake_store(client: FakeClient, tmp_path: Path) -> Store:
    return open_store(tmp_path / "mlruns", "http://fake.test")
