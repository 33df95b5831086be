"""The learning rate of every step as a CSV file, from a run's local log."""

import csv
from pathlib import Path

from lr_lightning.tracking.local_log import Metric, MetricLog, decode

RATES_NAME = "lr.csv"


def write_rates(log: MetricLog, folder: Path) -> Path | None:
    """Write one row a step and one column a param group.

    Args:
        log: The run's local log, flushed.
        folder: Where the file goes.

    Returns:
        The file, or None of a run without a rate.

    Raises:
        OSError: The file cannot be written.
    """
    if not log.path.exists():
        return None
    rates: dict[int, dict[str, float]] = {}
    with log.path.open("rb") as lines:
        for line in lines:
            # Most lines are something else: reading them as JSON would take ten times as long.
            if line.startswith(b'{"metric":"lr/') and isinstance(row := decode(line), Metric):
                rates.setdefault(row.step, {})[row.key] = row.value
    if not rates:
        return None
    groups = sorted({key for row in rates.values() for key in row}, key=lambda key: (len(key), key))
    path = folder / RATES_NAME
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *groups])
        for step in sorted(rates):
            writer.writerow([step, *(repr(rates[step][key]) if key in rates[step] else "" for key in groups)])
    return path
