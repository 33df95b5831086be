"""Signals and a lost parent outside of a fit, without Lightning; `graceful_stop` says what a fit does about them."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from lr_lightning.app.world import external_launch

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Signals that batch systems send before they end a job. Their default action is to kill."""


class Interrupted(SystemExit):
    """The run was told to stop; the exit status is 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


class Signals:
    """Context that notes the first SIGTERM, SIGINT or SIGHUP and raises :class:`Interrupted` at the second one.

    Closing a terminal may send SIGHUP twice, so a repeated SIGHUP does not count; under nohup SIGHUP stays ignored. The
    warnings of a batch system (SIGUSR1, SIGUSR2, SIGXCPU) count too, unless something else handles them.
    """

    def __init__(self) -> None:
        self.signum: int | None = None  # of the last signal
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        warned = [number for number in WARNINGS if signal.getsignal(number) == signal.SIG_DFL]
        for number in (signal.SIGTERM, signal.SIGINT, *([] if nohup else [signal.SIGHUP]), *warned):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        again = self.signum is not None and (self.signum, signum) != (signal.SIGHUP, signal.SIGHUP)
        self.signum = signum
        if again:
            raise Interrupted(signum)


class ParentWatch(threading.Thread):
    """Thread that sends this process SIGTERM when its parent is gone, and ends the process if that does not.

    A rank that outlives its launcher would train in vain, or wait for the other ranks for ever. A rank that waits in a
    collective does not notice SIGTERM. So the process is ended ``grace`` seconds after SIGTERM, time enough for the
    current step and a checkpoint; None never ends it. ``parent`` is the parent's id, if the parent may be gone already.
    """

    def __init__(self, period: float = 1.0, grace: float | None = 30.0, parent: int | None = None) -> None:
        super().__init__(name="parent-watch", daemon=True)
        self._period, self._grace = period, grace
        self._parent = os.getppid() if parent is None else parent
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def run(self) -> None:
        """Compare the parent's id, which changes when the parent is gone, every ``period`` seconds."""
        while os.getppid() == self._parent:
            if self._stopped.wait(self._period):
                return
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._stopped.wait(self._grace):
            os._exit(128 + signal.SIGTERM)


def is_child() -> bool:
    """Check whether a launcher on this machine started this process, and would have to end it.

    SLURM ends its own processes. The first process of Lightning's launcher is the user's, who may close the terminal.
    """
    if (started := external_launch()) is not None:
        return started.launcher == "torchrun"
    return int(os.environ.get("LOCAL_RANK", "0")) > 0
