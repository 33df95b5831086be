"""Who runs a trial, and whether they still do."""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

__all__ = ["alive", "end_child", "this_process"]

_STOP_SECONDS = 30.0


def this_process() -> dict[str, Any]:
    """Who runs a trial, so that another process of the same machine can tell whether it still does."""
    return {"host": _host(), "pid": os.getpid(), "born": psutil.Process().create_time()}


def _host() -> str:
    """This machine, or rather this space of process ids: containers may share a name."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
        except OSError:
            continue
    return " ".join(parts)


def alive(pid: Any, born: Any) -> bool:
    """Whether that very process lives: a number is given to another one after a while."""
    try:
        process = psutil.Process(int(pid))
        return bool(abs(process.create_time() - float(born)) < 1.0) and bool(process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, TypeError, ValueError):
        return False


def end_child(child: Any) -> None:
    """End a trial's own process that has outlived its worker: it has noticed, and saves a checkpoint."""
    if not isinstance(child, list):
        return
    pid, born = child
    until = time.monotonic() + _STOP_SECONDS
    while alive(pid, born):
        if time.monotonic() > until:
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()
        time.sleep(0.2)
