import csv
import json
from pathlib import Path

import pytest
import yaml

from lr_lightning.errors import TrackingError
from lr_lightning.tracking import RunLogger, Store


def test_csv_files_hold_everything(tmp_path: Path) -> None:
    out = tmp_path / "out"
    logger = RunLogger(out, run_name="r", tags={"seed": 0}, csv=True, end_on_finalize=False)
    logger.log_hyperparams({"optimizer": {"lr": 0.1}})
    logger.log_rows([("a,b", 0.1 + 0.2, 1, 1700000000000)])
    logger.log_summary({"best": 0.5})
    logger.end("FINISHED")
    assert (out / "metrics.csv").read_text().splitlines()[:2] == [
        "key,value,step,time_ms",
        "a_b,0.30000000000000004,1,1700000000000",
    ]
    assert yaml.safe_load((out / "params.yaml").read_text()) == {"optimizer.lr": "0.1"}
    assert json.loads((out / "summary.json").read_text()) == {"summary/best": 0.5}
    run = json.loads((out / "run.json").read_text())
    assert (run["run_name"], run["status"], run["tags"]["seed"]) == ("r", "FINISHED", "0")


@pytest.mark.parametrize("lost", ["metrics.csv", "metrics.jsonl"])
def test_a_resumed_run_restores_the_file_that_was_lost(tmp_path: Path, lost: str) -> None:
    def run(steps: range, **options: bool) -> None:
        logger = RunLogger(tmp_path, tags={"seed": 0}, csv=True, end_on_finalize=False, **options)
        logger.log_hyperparams({"a": 1})
        for step in steps:
            logger.log_rows([("loss", 1 / (step + 1), step, 1000 + step)])
        logger.log_summary({"steps": len(steps)})
        logger.end("KILLED")

    run(range(5))
    (tmp_path / lost).unlink()
    if lost == "metrics.jsonl":
        with pytest.raises(TrackingError, match="already holds the log of a run"):
            run(range(5))
    run(range(3, 8), resume=True)
    with (tmp_path / "metrics.csv").open() as file:
        rows = [(row["key"], row["step"], row["value"]) for row in csv.DictReader(file)]
    assert rows == [("loss", str(step), repr(1 / (step + 1))) for step in range(5)] + [
        ("summary/steps", "0", "5.0"),
        *(("loss", str(step), repr(1 / (step + 1))) for step in range(5, 8)),
    ]
    assert json.loads((tmp_path / "run.json").read_text())["tags"] == {
        "output_dir": str(tmp_path),
        "job": "train",
        "seed": "0",
    }
    assert yaml.safe_load((tmp_path / "params.yaml").read_text()) == {"a": "1"}


def test_a_run_keeps_the_lr_of_every_step_as_a_table(store: Store, tmp_path: Path) -> None:
    logger = RunLogger(tmp_path / "run", store, experiment="x")
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
def test_a_run_without_lr_keeps_no_table(store: Store, tmp_path: Path, rows: list[tuple[str, float, int, int]]) -> None:
    logger = RunLogger(tmp_path / "run", store, experiment="x")
    logger.log_rows(rows)
    logger.end("FINISHED")
    assert not (tmp_path / "run" / "lr.csv").exists()
