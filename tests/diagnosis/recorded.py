"""The recorded curves: what real trainings measured, with the losses of some single examples."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from lr_lightning.diagnosis import History, Point

FOLDER = Path(__file__).parent / "curves"
KEPT = 32  # examples whose single losses are recorded


def save(name: str, history: History) -> None:
    """Write a history to ``curves/<name>.jsonl``, a line a validation."""
    head = {"chance": history.chance, "start": history.start, "total_steps": history.total_steps}
    lines = [json.dumps(head)]
    for point in history.points:
        row: dict[str, Any] = {}
        for key, value in vars(point).items():
            if isinstance(value, np.ndarray):
                row[key] = base64.b64encode(value[:KEPT].astype("<f4").tobytes()).decode()
            else:
                row[key] = float(f"{value:.7g}") if isinstance(value, float) else value
        lines.append(json.dumps(row, separators=(",", ":")))
    (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(name: str) -> History:
    """Read what :func:`save` wrote."""
    head, *rows = map(json.loads, (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
    for row in rows:
        for key in ("val_losses", "probe_losses"):
            row[key] = np.frombuffer(base64.b64decode(row[key]), "<f4")
    return History(tuple(Point(**row) for row in rows), **head)


def names() -> list[str]:
    """Of all recorded curves."""
    return sorted(path.stem for path in FOLDER.glob("*.jsonl"))
