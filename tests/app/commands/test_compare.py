"""The command that compares runs."""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from lr_lightning.app.commands import compare as app_compare
from lr_lightning.app.commands.hydra_main import seeds_note
from lr_lightning.app.config import Config
from lr_lightning.errors import TrackingError
from lr_lightning.tracking import RunLogger, Store, open_store
from lr_lightning.tracking.query import experiment_of_environment

Configured = Callable[..., Config]


def test_the_experiments_folder_needs_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app_compare.run(tmp_path / "mlruns", "nonsense", tmp_path / "out", by=["schedule"]) == 2
    assert "is no address of a store" in capsys.readouterr().err


def test_a_store_that_may_only_be_read_is_compared_and_that_is_said(
    foreign: Callable[..., AbstractContextManager[Path]],
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for seed in (0, 1):
        logger = RunLogger(tmp_path / f"run{seed}", store, run_name=f"s{seed}", tags={"schedule": "wsd", "seed": seed})
        logger.log_metrics({"val/acc": 0.5 + seed / 4}, 1)
        logger.end("FINISHED")
    out = tmp_path / "out"
    assert app_compare.run(store.root, None, out, log_run=False) == 0  # so that what it imports is imported
    with foreign(store.root) as root, tempfile.TemporaryDirectory() as out:
        assert app_compare.run(root, None, Path(out)) == 0
        assert app_compare.run(root, None, root / "out") == 2
    said = capsys.readouterr()
    assert said.out.count("wsd has the best mean val/acc, 0.62") == 2
    assert f"error: --out: {root}/out: Permission denied. Give another path" in said.err
    *_, warning = (record.getMessage() for record in caplog.records)
    assert warning == f"the comparison is not logged to MLflow: this user may only read sqlite:///{root}/mlflow.db"


def test_the_experiment_of_mlflows_variables_is_compared(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = store.experiment_id("theirs")
    for name, value in (("MLFLOW_EXPERIMENT_NAME", "theirs"), ("MLFLOW_EXPERIMENT_ID", number)):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert app_compare.run(store.root, None, tmp_path / "out") == 2
            said = capsys.readouterr().err
            assert said.startswith("the experiment is theirs, from MLflow's variables\nerror: ")
            assert "experiment theirs of sqlite" in said
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    with pytest.raises(
        TrackingError, match=f"{number} is the experiment 'theirs', but MLFLOW_EXPERIMENT_NAME is 'anot"
    ):
        experiment_of_environment(store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    with pytest.raises(TrackingError, match=r"^MLFLOW_EXPERIMENT_ID: 77: .*Name an experiment, or unset it"):
        experiment_of_environment(store)


def test_the_spread_of_seeds_is_that_of_earlier_runs_of_the_same_data_and_model(
    configured: Configured, tmp_path: Path
) -> None:
    config = configured(f"tracking.root={tmp_path / 'mlruns'}")
    of_config = config.tracking, config.data.name, config.model.name
    assert app_compare.seed_spread(*of_config) is None  # an empty store
    store = open_store(tmp_path / "mlruns")

    def add(lr: float, seed: int, acc: float, data: str = "digits", status: str = "FINISHED") -> None:
        name = f"{data} {lr} {seed}"
        tags = {"data": data, "model": config.model.name}
        logger = RunLogger(tmp_path / name, store, experiment="lr_lightning", run_name=name, tags=tags)
        logger.log_hyperparams({"optimizer": {"lr": lr}, "seed": seed, "output_root": name})
        logger.log_summary({"best_val_acc": acc})
        logger.end(status)

    for seed, (low, high) in enumerate([(0.90, 0.95), (0.92, 0.97), (0.94, 0.96)]):
        add(0.1, seed, low)
        add(0.2, seed, high)
    add(0.1, 7, 0.1, status="FAILED")
    add(0.1, 8, 0.1, data="mnist")
    add(0.3, 9, 0.5)  # alone with its setting
    sd, runs = app_compare.seed_spread(*of_config) or (0, 0)
    pooled = (np.var([0.90, 0.92, 0.94], ddof=1) + np.var([0.95, 0.97, 0.96], ddof=1)) / 2
    assert (sd, runs) == (pytest.approx(np.sqrt(pooled)), 6)
    note = seeds_note(["schedule=cosine,wsd", "seed=0,1,2"], config)
    assert "Seeds of 6 earlier runs of small_cnn on digits differ by 0.016 (standard deviation): 6 seeds show" in note
