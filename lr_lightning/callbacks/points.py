"""What was measured at validations, as a checkpoint holds it."""

from typing import Any

import torch

from lr_lightning.diagnosis.history import Point

__all__ = ["packed", "unpacked"]

_ROWS = ("val_losses", "probe_losses")


def packed(points: list[Point]) -> dict[str, Any]:
    """The points as plain values and one tensor of each kind: a checkpoint of many small tensors is slow to write."""
    state: dict[str, Any] = {"points": [{k: v for k, v in vars(p).items() if k not in _ROWS} for p in points]}
    for name in _ROWS:
        rows = [getattr(point, name) for point in points]
        sizes = [-1 if row is None else len(row) for row in rows]
        known = [torch.from_numpy(row) for row in rows if row is not None]
        state[name] = (torch.cat(known) if known else torch.empty(0), sizes)
    return state


def unpacked(state: dict[str, Any]) -> list[Point]:
    """The points that :func:`packed` was given."""
    kinds: list[list[Any]] = []
    for name in _ROWS:
        values, sizes = state[name]
        rows = iter(values.split([size for size in sizes if size >= 0]))
        kinds.append([None if size < 0 else next(rows).numpy() for size in sizes])
    return [
        Point(**values, val_losses=val, probe_losses=probe)
        for values, val, probe in zip(state["points"], *kinds, strict=True)
    ]
