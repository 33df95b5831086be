"""The runs of one `-m` command: a tag they share, and their comparison at the end."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lr_lightning.app.config import Config

_MOST_KEYS = 3


class Sweep:
    """Collects the runs of a multirun. Nothing heavy is imported before there are two to compare."""

    def __init__(self) -> None:
        self._jobs: list[tuple[Config, list[str]]] = []
        self._name = ""

    def add(self, config: Config, overrides: Sequence[str], name: str, number: int) -> None:
        """Give a run that is about to start the tags `sweep` and `trial`.

        Args:
            config: Its config; the tags are added to it.
            overrides: What makes it differ from the others.
            name: Of the sweep.
            number: Of the run in it, from 0.
        """
        config.tracking.tags = {
            "sweep": name,
            "trial": str(number),
            **config.tracking.tags,
        }  # a user's own win
        self._jobs.append((config, list(overrides)))
        self._name = name

    def forget(self, config: Config) -> None:
        """Leave out a run that could not be started."""
        self._jobs = [job for job in self._jobs if job[0] is not config]

    def compare(self) -> None:
        """Compare the runs and print what came out. Never raises."""
        tracked = [config for config, _ in self._jobs if config.tracking.name == "mlflow"]
        if len(tracked) < 2:
            return
        config = tracked[-1]
        with suppress(OSError):  # nobody reads it any more
            print(f"\nsweep {self._name}: {len(self._jobs)} runs", flush=True)
        experiments = sorted({other.tracking.experiment for other in tracked})
        compare_sweep(config, config.tracking.tags["sweep"], self._by(), experiments)

    def _by(self) -> list[str]:
        """The keys that vary, other than the seed, and those that a search for the rate sets anew."""
        found_anew = (
            {"optimizer.lr", "schedule.max_lr"}
            if any(config.keys_set_by_finder() for config, _ in self._jobs)
            else set()
        )
        passed_over = {"seed", "resume", *found_anew}
        values: dict[str, set[str]] = {}
        for _, overrides in self._jobs:
            for override in overrides:
                key, _, value = override.lstrip("+~").partition("=")
                values.setdefault(key, set()).add(value)
        return [key for key, found in values.items() if len(found) > 1 and key not in passed_over][:_MOST_KEYS] or [
            "schedule"
        ]


def compare_sweep(
    config: Config, sweep: str, by: Sequence[str], experiments: Sequence[str], *, brief: bool = False
) -> None:
    """Compare the runs of a sweep. Never raises: the runs are what counts, and they are done.

    Args:
        config: The config of one of them: their store, and where the report goes.
        sweep: The tag they share.
        by: Tags or params that make the groups.
        experiments: Those that they are in.
        brief: Whether only the finding is printed.
    """
    try:
        from lr_lightning.app.commands.compare import run

        run(
            Path(config.tracking.root),
            config.tracking.uri,
            Path(config.output_root),
            experiments=experiments,
            by_varied=by,
            filter_string=f"tags.sweep = '{sweep}'",
            after_sweep=True,
            brief=brief,
        )
    except Exception as e:  # whatever it is, it must not change how the command ends
        print(f"the runs are not compared: {type(e).__name__}: {e}", file=sys.stderr)
