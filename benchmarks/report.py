"""What every benchmark shares: the machine it ran on, ratios with their spread, and the stored result."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lr_lightning.tracking.environment import device_name

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "device": device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "lightning", "mlflow", "torchmetrics")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of several rounds, and how many there were."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def show(value: dict[str, float], form: str = "{:.2f}") -> str:
    """A spread as text: median (min to max)."""
    return f"{form.format(value['median'])} ({form.format(value['min'])} to {form.format(value['max'])})"


def store(name: str, result: dict[str, Any], quick: bool) -> None:
    """Write the result beside the benchmark, unless it is the small form."""
    if quick:
        print("(quick form: nothing stored)")
        return
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n", encoding="utf-8")
    print(f"stored in {path.relative_to(RESULTS.parent.parent)}")
