"""Long benchmarks continue where they stopped."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks import pieces, trainings
from benchmarks.pieces import Piece, finish, stored
from lr_lightning.schedules import Cosine

WORK = f"{__name__}:work"
LIST = [Piece("a", {"n": 1}), Piece("b", {"n": 2}, cost=3), Piece("c", {"n": 3})]
calls: list[int] = []


def work(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    calls.append(settings["n"])
    if settings["n"] == 2 and len(calls) == 2:
        raise KeyboardInterrupt
    return {"square": settings["n"] ** 2}


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(pieces, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(pieces, "_function", lambda name: work)
    calls.clear()


def test_a_benchmark_that_was_stopped_repeats_nothing_that_is_finished() -> None:
    with pytest.raises(KeyboardInterrupt):
        finish("squares", LIST, WORK)
    assert set(stored("squares")) == {"a"}
    records = finish("squares", LIST, WORK)
    assert calls == [1, 2, 2, 3]
    assert {key: record["result"]["square"] for key, record in records.items()} == {"a": 1, "b": 4, "c": 9}
    assert all(record["machine"]["cores"] >= 1 for record in records.values())


def test_half_a_line_of_a_kill_is_cut_and_its_piece_worked_on_again() -> None:
    finish("squares", LIST[:1], WORK)
    path = pieces.RESULTS / "squares.jsonl"
    path.write_text(path.read_text() + '{"key": "c", "res')
    assert set(finish("squares", [LIST[0], LIST[2]], WORK)) == {"a", "c"}
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_a_piece_that_another_process_works_on_is_left_to_it() -> None:
    finish("squares", LIST[:1], WORK)
    (lock,) = (pieces.SCRATCH / "squares").glob("*[0-9a-f].lock")
    (pieces.RESULTS / "squares.jsonl").unlink()
    with FileLock(lock):
        assert set(finish("squares", [LIST[0], LIST[2]], WORK)) == {"c"}


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


class Weights(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last = [parameter.detach().clone() for parameter in pl_module.parameters()]


def test_a_training_that_was_stopped_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    straight, resumed = Weights(), Weights()
    words = ["data=digits", "optimizer.lr=0.1", "data.crop_padding=1"]
    whole = trainings.train(words, Cosine(), steps=60, callbacks=[straight])
    with pytest.raises(RuntimeError, match="stopped"):
        trainings.train(words, Cosine(), steps=60, callbacks=[StopAt(35)], checkpoints=tmp_path, checkpoint_every=20)
    made = trainings.train(words, Cosine(), steps=60, callbacks=[resumed], checkpoints=tmp_path, checkpoint_every=20)
    assert (made.steps, made.accuracy, made.seconds) == (whole.steps, whole.accuracy, None)
    assert all(torch.equal(a, b) for a, b in zip(straight.last, resumed.last, strict=True))


@pytest.mark.slow
def test_several_processes_share_the_pieces(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from benchmarks import pieces;"
        f"pieces.RESULTS = pieces.SCRATCH = Path({str(tmp_path)!r});"
        "found = pieces.finish('s', [pieces.Piece(str(n)) for n in range(6)], 'tests.test_pieces:name_of', jobs=1);"
        "print(sorted(found))"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    lines = (tmp_path / "s.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["key"] for line in lines) == [str(n) for n in range(6)]


def name_of(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    return {}
