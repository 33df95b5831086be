"""What a run leaves behind, read back: its checkpoints, its metrics.csv, and its rows in the store; and a search."""

import csv
import sqlite3
from pathlib import Path
from typing import Any

import torch

COSTS = ("second", "step_ms", "memory")
"""Parts of the names of metrics in which two runs differ that are otherwise equal."""


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return state


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return dict(checkpoint(folder, name)["state_dict"])


def plain(node: Any) -> Any:
    """A nested state with lists for tensors, so that == compares all of it."""
    if isinstance(node, torch.Tensor):
        return node.tolist()
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, list | tuple) else node


def metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every metric of a run with tracking=csv, by step."""
    found: dict[str, list[tuple[int, float]]] = {}
    with (folder / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["key"], []).append((int(row["step"]), float(row["value"])))
    return {key: sorted(rows) for key, rows in found.items()}


def values(folder: Path) -> dict[str, list[float]]:
    """The same without the steps."""
    return {key: [value for _, value in rows] for key, rows in metrics(folder).items()}


def untimed(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The metrics that two equal runs share."""
    return {key: rows for key, rows in metrics(folder).items() if not any(part in key for part in COSTS)}


def trials(root: Path, sweep: str = "s") -> list[dict[str, str]]:
    """The rows of a search's trials.csv."""
    with (root / "outputs" / sweep / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def query(root: Path, sql: str, *arguments: str) -> list[tuple[Any, ...]]:
    """Ask the store below `root`. Not read-only: what a kill left half-written must be rolled back."""
    database = sqlite3.connect(f"file:{root}/mlruns/mlflow.db?mode=rw", uri=True)
    try:
        return database.execute(sql, arguments).fetchall()
    finally:
        database.close()
