"""A rank that lives on after the process that started it would train, or wait for the others, for nobody."""

import os
import signal
import threading

from lr_lightning.app.processes import launched

_PERIOD = 1.0
_GRACE = 30.0  # for the step under way and a checkpoint; one that waits in a collective does not hear the signal


def is_child() -> bool:
    """Whether a launcher on this machine has started this process, and would have to end it.

    SLURM ends its own; and the first process of Lightning's launcher is the user's, who may close the terminal.
    """
    started = launched()
    if started is not None:
        return started.by == "torchrun"
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


class ParentWatch(threading.Thread):
    """Sends this process SIGTERM when its parent is gone, and ends it if that does not.

    Args:
        period: Seconds between two looks.
        grace: Seconds until it is ended; None: never.
        parent: The parent's id, where it may be gone already.
    """

    def __init__(self, period: float = _PERIOD, grace: float | None = _GRACE, parent: int | None = None) -> None:
        super().__init__(name="parent-watch", daemon=True)
        self._period, self._grace = period, grace
        self._parent = os.getppid() if parent is None else parent
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def run(self) -> None:
        """Look at the parent's id from time to time: it changes when the parent is gone."""
        while os.getppid() == self._parent:
            if self._stopped.wait(self._period):
                return
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._stopped.wait(self._grace):
            os._exit(128 + signal.SIGTERM)


def watch_parent() -> ParentWatch | None:
    """Start to watch, if this process is a launcher's child."""
    if not is_child():
        return None
    watch = ParentWatch()
    watch.start()
    return watch
