"""The runs of one `-m` command: the tags they share, and their comparison at the end."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lr_lightning.app.config import Config

_MOST_KEYS = 3


class Multirun:
    """The runs of a multirun, in order. Nothing heavy is imported before there are two runs to compare."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[Config, list[str]]] = {}
        self._name = ""

    def add(self, config: Config, overrides: Sequence[str], name: str, number: int) -> None:
        """Add a run that is about to start to the multirun ``name``, and give it the tags `sweep` and `trial`."""
        config.tracking.tags = {"sweep": name, "trial": str(number), **config.tracking.tags}
        self._runs[number] = (config, list(overrides))
        self._name = name

    def forget(self, number: int) -> None:
        """Leave out a run that could not start."""
        self._runs.pop(number, None)

    def compare(self) -> None:
        """Compare the runs and print the result. Never raises."""
        tracked = [config for config, _ in self._runs.values() if config.tracking.name == "mlflow"]
        if len(tracked) < 2:
            return
        with suppress(OSError):  # the terminal may be closed
            print(f"\nsweep {self._name}: {len(self._runs)} runs", flush=True)
        experiments = sorted({config.tracking.experiment for config in tracked})
        compare_sweep(tracked[-1], tracked[-1].tracking.tags["sweep"], self._varied_keys(), experiments)

    def _varied_keys(self) -> list[str]:
        """Return the keys that vary, except the seed and the keys of a learning rate that a finder replaces."""
        ignored = {"seed", "resume"}
        if any(config.keys_set_by_finder() for config, _ in self._runs.values()):
            ignored |= {"optimizer.lr", "schedule.max_lr"}
        values: dict[str, set[str]] = {}
        for _, overrides in self._runs.values():
            for override in overrides:
                key, _, value = override.lstrip("+~").partition("=")
                values.setdefault(key, set()).add(value)
        varied = [key for key, given in values.items() if len(given) > 1 and key not in ignored]
        return varied[:_MOST_KEYS] or ["schedule"]


def compare_sweep(config: Config, sweep: str, by: Sequence[str], experiments: list[str], brief: bool = False) -> None:
    """Compare the runs that share the tag ``sweep``. Never raises: the runs are done, and their command succeeded."""
    try:
        from lr_lightning.app.commands.compare import run

        places = Path(config.tracking.root), config.tracking.uri, Path(config.output_root)
        runs = f"tags.sweep = '{sweep}'"
        run(*places, experiments=experiments, by_varied=by, filter_string=runs, after_sweep=True, brief=brief)
    except Exception as e:
        print(f"the runs are not compared: {type(e).__name__}: {e}", file=sys.stderr)
