"""A process beside a run of several that closes the run's record if the first rank is killed.

A process that gets SIGKILL can close nothing, and that is what Lightning's launcher, torchrun and SLURM send to the
other ranks when one of them has died. So a process that does nothing but wait holds the other end of a pipe, which
breaks when the first rank is gone.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from lr_lightning.tracking.errors import StoreUnavailable, TrackingError
from lr_lightning.tracking.replay import replay

# Bare Python until something is to be done: torch and MLflow take seconds, and hundreds of megabytes.
_WAIT = """
import sys
if not sys.stdin.buffer.read():
    from lr_lightning.tracking.closer import close
    close(sys.argv[1])
"""
_LOCK_SECONDS = 20.0  # children that a killed process has forked hold its locks until they notice


class Closer:
    """Holds the process for as long as the record is open; on leaving, the record must have been closed.

    Args:
        output_dir: The run's folder; None for nothing to watch.
    """

    def __init__(self, output_dir: Path | None) -> None:
        self._output_dir = output_dir
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self._output_dir is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WAIT, str(self._output_dir)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # a signal to the run's process group is not for it
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None:
            try:
                self._process.communicate(b"closed", timeout=5)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()


def close(output_dir: Path | str) -> None:
    """Give a run whose first rank is gone the status FAILED, and send what it had not sent."""
    try:
        done = replay(Path(output_dir), left="FAILED", lock_seconds=_LOCK_SECONDS)
    except (TrackingError, StoreUnavailable) as error:
        print(f"the record of the run in {output_dir} is not closed: {error}", file=sys.stderr)
        return
    print(
        f"the first process of run {done.run_id} is gone: its record is closed. Go on with it by resume={output_dir}",
        file=sys.stderr,
    )
