"""A trial's run as a process of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lr_lightning.search.run import STORAGE, Result, Task, earlier_result
from lr_lightning.tracking.files import write_atomically

__all__ = ["RunProcess"]

LOG = "log.txt"


@dataclass
class RunProcess:
    """A run that is under way in a process of its own, the leader of a group of its own.

    So Ctrl-C reaches the driver alone, which ends its runs in order.
    """

    task: Task
    process: "subprocess.Popen[bytes]" = field(repr=False)
    born: float = 0.0

    @classmethod
    def start(cls, task: Task, storage: str, environment: dict[str, str]) -> "RunProcess":
        """Start it; what it prints goes to a file in its folder.

        Args:
            task: What it is to do.
            storage: The study's storage.
            environment: Variables of its own.
        """
        folder = Path(task.folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "task.json"
        write_atomically(path, json.dumps(asdict(task), indent=1))
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "lr_lightning.search.run", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, STORAGE: storage, "PYTHONUNBUFFERED": "1", **environment},
            )
        try:
            born = psutil.Process(process.pid).create_time()
        except psutil.Error:
            born = 0.0
        return cls(task, process, born)

    @property
    def child(self) -> list[Any]:
        """Its process, so that a later driver can end it."""
        return [self.process.pid, self.born]

    def result(self) -> Result | None:
        """What it came to, or None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        self._kill_group()  # ranks of a process that was killed may live on
        found = earlier_result(Path(self.task.folder))
        if found is not None:
            return found
        if status in (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT):
            return Result("interrupted", "stopped by a signal")
        return Result("failed", self._reason(status))

    def stop(self) -> None:
        """Ask it to stop, with a checkpoint."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, with all it has started."""
        self._kill_group()
        self.process.wait()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _reason(self, status: int) -> str:
        log = Path(self.task.folder) / LOG
        if status == -signal.SIGKILL:
            return f"killed by SIGKILL, perhaps for want of memory (see {log})"
        if status < 0:
            return f"killed by {signal.Signals(-status).name} (see {log})"
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"exit {status}: {lines[-1] if lines else 'no output'} (see {log})"
