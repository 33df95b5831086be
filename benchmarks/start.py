"""How long does a command take to start, beside the import of Lightning alone?

Run: ``python -m benchmarks.start [--quick]`` (about four minutes). The commands take turns, each in a process of its
own, after one round that is not counted, so that files are in the system's cache and the store is one that has worked:

* ``import``: ``python -c "import lightning.pytorch"``;
* ``first step``: ``python scripts/train.py``, until the first batch of the digits begins to train;
* ``--help`` and ``--cfg job`` of ``scripts/train.py``, until they end.

Seconds of wall time, medians with the smallest and largest, and the ratio of the first step to the import of the same
round.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

_MARK = "LR_LIGHTNING_START_MARK"  # environment variable: the file into which the first step's time is written
ROOT = Path(__file__).parent.parent
TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py")]


class FirstStep(Callback):
    """Writes the time at which the first batch begins."""

    def on_train_batch_start(self, *args: Any) -> None:
        """Write it, once."""
        path = Path(os.environ[_MARK])
        if not path.exists():
            path.write_text(repr(time.time()), encoding="utf-8")


def seconds(command: list[str], folder: Path, *, to_mark: bool) -> float:
    """Return the wall time of a command until its mark, or until its end.

    Raises:
        SystemExit: The command failed, or made no mark; with what it said.
    """
    mark = folder / "mark"
    mark.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), _MARK: str(mark)}
    began = time.time()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    ended = time.time()
    if done.returncode or (to_mark and not mark.exists()):
        raise SystemExit(f"{' '.join(command)}: failed, or trained no batch\n{done.stdout}{done.stderr}")
    return (float(mark.read_text(encoding="utf-8")) if to_mark else ended) - began


def main() -> None:
    """Measure, print and store."""
    from benchmarks.report import at_least_one, show, spread, store  # not above: the trained process imports this file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least_one, default=15)
    parser.add_argument("--quick", action="store_true", help="one round, nothing stored")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        places = [f"output_root={folder}/outputs", f"tracking.root={folder}/mlruns"]
        clock = "+callbacks.extra.clock={_target_: benchmarks.start.FirstStep}"
        commands = {
            "import": [sys.executable, "-c", "import lightning.pytorch"],
            "first step": [*TRAIN, *places, "trainer.max_epochs=1", "trainer.progress=none", clock],
            "--help": [*TRAIN, "--help"],
            "--cfg job": [*TRAIN, "--cfg", "job"],
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(1 + (1 if args.quick else args.rounds)):
            for name, command in list(commands.items())[:: 1 if number % 2 == 0 else -1]:
                found = seconds(command, folder, to_mark=name == "first step")
                if number > 0:
                    taken[name].append(found)
    for name, own in taken.items():
        print(f"{name:<12}{show(spread(own)):>24} s")
    ratio = spread([step / bare for step, bare in zip(taken["first step"], taken["import"], strict=True)])
    print(f"first step / import: {show(ratio)}; the aim is at most 1.2")
    result = {"seconds": {name: spread(own) for name, own in taken.items()}, "first_step_to_import": ratio}
    store("start", result, args.quick)


if __name__ == "__main__":
    main()
