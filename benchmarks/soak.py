"""Kill one run with SIGKILL at random moments, go on with it each time, and compare it with one that was never stopped.

    python -m benchmarks.soak [--kills 100] [--seed 0] [--keep FOLDER] [--quick]

A kill comes at a moment drawn evenly from half the time that a start takes to some seconds of training, five at the
most and so few that all kills fit into the run: in imports, in the opening of the store, in steps, validations and the
writing of checkpoints. At the end the weights, the optimizer's state and every metric row, the rates among them, must
equal those of the uninterrupted run bit for bit, each step once.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import store

ROOT = Path(__file__).resolve().parent.parent

RUN = [
    "model.kwargs.width=8",
    "model.kwargs.dropout=0.2",
    "data.flip=true",
    "data.crop_padding=1",
    "trainer.accumulate_grad_batches=3",
    "trainer.progress=none",
    "callbacks.checkpoint.every_n_steps=2",
]
TIMES = ("cost/", "summary/seconds", "summary/train_seconds", "summary/search_seconds", "summary/device_seconds")
TIMES += ("summary/examples_per_second", "summary/peak_memory_mb", "summary/step_ms")


def start(root: Path, *overrides: str) -> subprocess.Popen[bytes]:
    places = [f"output_root={root}/outputs", f"tracking.root={root}/mlruns"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *places, *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def seconds_to_first_checkpoint(root: Path, process: subprocess.Popen[bytes]) -> float:
    began = time.monotonic()
    while folder_of(root) is None and process.poll() is None:
        time.sleep(0.05)
    return time.monotonic() - began


def finish(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the run failed with {process.returncode}:\n{err.decode()}")


def folder_of(root: Path) -> Path | None:
    """The output folder with the furthest checkpoint: a run killed before its first one starts anew."""
    return next((path.parent.parent for path in (root / "outputs").glob("*/checkpoints/last.ckpt")), None)


def final(root: Path, folder: Path) -> tuple[Any, list[tuple[str, int, float]]]:
    """Weights and optimizer state as plain values, and the metric rows of the run in that folder."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    run_id = json.loads((folder / "metrics.sent").read_text())["run_id"]
    database = sqlite3.connect(f"file:{root}/mlruns/mlflow.db?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?", (run_id,)).fetchall()
        known = database.execute("SELECT status FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
    finally:
        database.close()
    if known is None:
        raise SystemExit(f"the run of {folder} never came to the store in {root}/mlruns")
    if known[0] != "FINISHED":
        raise SystemExit(f"the run is {known[0]}")
    return (
        plain([checkpoint["state_dict"], checkpoint["optimizer_states"]]),
        sorted(row for row in rows if not row[0].startswith(TIMES)),
    )


def plain(node: Any) -> Any:
    if isinstance(node, torch.Tensor):
        return node.tolist()
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, list | tuple) else node


def soak(root: Path, kills: int, epochs: int, rng: random.Random, ready: float, longest: float) -> tuple[int, int]:
    """Start, kill and go on until it was killed so often, or has finished; gives the kills and the goes.

    Args:
        root: Where it runs.
        kills: How often at the most.
        epochs: Of the run.
        rng: Of the moments.
        ready: Seconds until a start has come to its first checkpoint.
        longest: Seconds after that, at which a kill may come at the latest.
    """
    done = goes = 0
    while True:
        folder = folder_of(root)
        how = [f"resume={folder}"] if folder else [*RUN, f"trainer.max_epochs={epochs}"]
        process, goes = start(root, *how), goes + 1
        if done == kills:
            finish(process)
            return done, goes
        try:
            process.wait(rng.uniform(ready / 2, ready + longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            done += 1
            continue
        finish(process)
        return done, goes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=None, help="default: so many that the kills fit in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    parser.add_argument("--quick", action="store_true", help="one kill of a short run, nothing stored")
    args = parser.parse_args()
    if args.quick:
        args.kills, args.epochs = 1, 4
    root = args.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    epochs = args.epochs or max(10, 12 * args.kills)
    began = time.monotonic()
    process = start(root / "whole", *RUN, f"trainer.max_epochs={epochs}")
    ready = seconds_to_first_checkpoint(root / "whole", process)
    finish(process)
    whole = time.monotonic() - began
    longest = min(5.0, max(0.5, 0.7 * (whole - ready) / max(1, args.kills)))  # a resume is ready earlier than a start
    done, goes = soak(root / "killed", args.kills, epochs, random.Random(args.seed), ready, longest)
    expected_folder, folder = folder_of(root / "whole"), folder_of(root / "killed")
    if expected_folder is None or folder is None:
        raise SystemExit("no checkpoint was left")
    expected, found = final(root / "whole", expected_folder), final(root / "killed", folder)
    missing = sorted(set(expected[1]) - set(found[1]))
    added = sorted(set(found[1]) - set(expected[1]))
    twice = len(found[1]) - len({row[:2] for row in found[1]})
    equal = expected[0] == found[0] and expected[1] == found[1]
    result = {
        "kills": done,
        "goes": goes,
        "epochs": epochs,
        "metric_rows": len(expected[1]),
        "rows_missing_or_changed": len(missing),
        "rows_added_or_changed": len(added),
        "rows_stored_twice": twice,
        "weights_and_optimizer_equal": expected[0] == found[0],
        "seconds_uninterrupted": round(whole, 1),
        "seconds_with_kills": round(time.monotonic() - began - whole, 1),
        "seed": args.seed,
    }
    print(json.dumps(result, indent=1))
    if args.keep is None:
        shutil.rmtree(root)
    if not equal:
        raise SystemExit(f"NOT EQUAL: missing {missing[:5]}, added {added[:5]}")
    if done < args.kills and not args.quick:
        raise SystemExit(f"it was over after {done} kills; give --epochs={2 * epochs} for {args.kills}")
    store("soak", result, quick=args.kills < 100)


if __name__ == "__main__":
    main()
