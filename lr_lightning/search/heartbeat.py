"""Signs of life: by them the other workers of a search know that a trial is still being run."""

import contextlib
import threading
from typing import Any

from lr_lightning.search.storage import HEARTBEAT

__all__ = ["Heartbeats"]


class Heartbeats:
    """A thread for each trial that this process runs; ``in`` says whether it runs one.

    Args:
        storage: Optuna's, which takes them.
    """

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self._stops: dict[int, threading.Event] = {}

    def __contains__(self, trial_id: int) -> bool:
        return trial_id in self._stops

    def start(self, trial_id: int) -> None:
        """Give them for a trial until it is told."""
        stop = self._stops[trial_id] = threading.Event()

        def beat() -> None:
            while True:
                with contextlib.suppress(Exception):  # a database that is away for a while: it is tried again
                    self._storage.record_heartbeat(trial_id)
                if stop.wait(HEARTBEAT):
                    return

        threading.Thread(target=beat, daemon=True, name=f"heartbeat of trial {trial_id}").start()

    def stop(self, trial_id: int) -> None:
        """The trial is told, or given back."""
        self._stops.pop(trial_id, threading.Event()).set()
