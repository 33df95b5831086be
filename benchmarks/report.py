"""What every benchmark shares: the machine it ran on, ratios with their spread, and the stored result."""

import argparse
import functools
import json
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lr_lightning._threads import threads_for, usable_cores
from lr_lightning.tracking.files import write_atomically
from lr_lightning.tracking.keys import device_name

torch.set_num_threads(threads_for())  # before any parallel work: the cores that a container or an affinity allows
RESULTS = Path(__file__).parent / "results"
_device = functools.cache(device_name)  # asked once: after an error that stays, a GPU does not tell its name
_version = functools.cache(version)


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "device": _device(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "lightning", "mlflow", "torchmetrics")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of several rounds, and how many there were."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def show(value: dict[str, float], form: str = "{:.2f}") -> str:
    """A spread as text: median (min to max)."""
    return f"{form.format(value['median'])} ({form.format(value['min'])} to {form.format(value['max'])})"


def at_least_one(text: str) -> int:
    """A whole number of an option, of at least 1, for argparse.

    Raises:
        argparse.ArgumentTypeError: If it is none; argparse puts the option's name before it.

    Example:
        >>> at_least_one("3")
        3
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1; give 1 or more")
    return int(text)


def store(name: str, result: dict[str, Any], quick: bool) -> None:
    """Write the result beside the benchmark, unless it is the small form."""
    if quick:
        print("(quick form: nothing stored)")
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    write_atomically(path, json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    print(f"stored in {path.relative_to(RESULTS.parent.parent)}")
