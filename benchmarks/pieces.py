"""Long benchmarks in pieces: each finished piece is stored at once, so that a benchmark continues where it stopped.

A piece is one training (or another measurement of minutes) with a text that names it, such as ``"fixed, seed 3"``. Its
result is one JSON line in ``benchmarks/results/<name>.jsonl``, with the machine and the time it took. A second call of
the same benchmark, on this machine or on another one that has the file, skips every piece that is in it. Several
processes may work on the same file: a piece that one of them has begun is locked for the others.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmarks.report import RESULTS, at_least_one, machine
from lr_lightning.tracking.files import append_bytes, cut_torn_line

SCRATCH = Path(__file__).resolve().parents[1] / "outputs" / "benchmarks"
"""Locks, and the checkpoints of pieces that were stopped in the middle."""

Work = Callable[[Mapping[str, Any], Path | None], dict[str, Any]]
"""From a piece's settings, and a folder for checkpoints or None, to its result: plain JSON values."""


@dataclass(frozen=True)
class Piece:
    """One part of a benchmark.

    Attributes:
        key: Its name, unique in the benchmark.
        settings: What the work needs to know, as plain JSON values.
        cost: How long it takes, in any unit that all pieces share; for the time left.
    """

    key: str
    settings: dict[str, Any] = field(default_factory=dict)
    cost: float = 1.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--jobs`` and ``--report`` to a benchmark's options."""
    parser.add_argument("--jobs", type=at_least_one, default=1, help="processes that work at the same time")
    parser.add_argument("--report", action="store_true", help="train nothing; print and store what is finished")


def stored(name: str) -> dict[str, dict[str, Any]]:
    """Return the finished pieces of a benchmark: key to ``{"key", "result", "seconds", "machine"}``.

    Args:
        name: The benchmark.
    """
    path = RESULTS / f"{name}.jsonl"
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return {record["key"]: record for record in records}


def finish(name: str, pieces: Sequence[Piece], work: str, *, jobs: int = 1) -> dict[str, dict[str, Any]]:
    """Work on every piece that is not stored yet, and return what is stored then.

    Args:
        name: The benchmark.
        pieces: All pieces, in the order in which they are wanted.
        work: ``"module:function"`` of type ``Work``.
        jobs: Processes. Each uses one thread.
    """
    (SCRATCH / name).mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    cut_torn_line(RESULTS / f"{name}.jsonl")
    if jobs == 1:
        _work_off(name, pieces, work, jobs)
    else:
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_work_off, args=(name, pieces, work, jobs)) for _ in range(jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            sys.exit(f"{name}: a process has failed; what is finished is stored. Run the same command to continue.")
    return stored(name)


def finish_or_read(
    name: str, pieces: Sequence[Piece], work: str, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Do what a benchmark's options ask for: the small form without storing, what is stored, or all that is missing.

    Args:
        name: The benchmark.
        pieces: All pieces.
        work: ``"module:function"`` of type ``Work``.
        options: With ``quick``, ``report`` and ``jobs``.
    """
    if options.quick:
        return {piece.key: {"result": _function(work)(piece.settings, None)} for piece in pieces}
    return stored(name) if options.report else finish(name, pieces, work, jobs=options.jobs)


def _work_off(name: str, pieces: Sequence[Piece], work: str, jobs: int) -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    run = _function(work)
    begun, done = time.perf_counter(), 0.0
    for piece in pieces:
        folder = SCRATCH / name / hashlib.sha256(piece.key.encode()).hexdigest()[:16]
        try:
            with FileLock(f"{folder}.lock", timeout=0):
                if piece.key in stored(name):
                    continue
                start = time.perf_counter()
                result = run(piece.settings, folder)
                seconds = time.perf_counter() - start
                _append(name, {"key": piece.key, "result": result, "seconds": round(seconds, 2), "machine": machine()})
                shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            continue  # another process works on it
        done += piece.cost
        finished = stored(name)
        left = sum(other.cost for other in pieces if other.key not in finished)
        hours = left * (time.perf_counter() - begun) / done / jobs / 3600
        count = sum(other.key in finished for other in pieces)
        print(f"[{count} of {len(pieces)}] {piece.key}: {seconds:.0f} s; about {hours:.1f} h left", flush=True)


def _function(work: str) -> Work:
    module, function = work.split(":")
    found: Work = getattr(importlib.import_module(module), function)
    return found


def _append(name: str, record: dict[str, Any]) -> None:
    with FileLock(SCRATCH / name / "results.lock"):
        append_bytes(RESULTS / f"{name}.jsonl", (json.dumps(record) + "\n").encode())
