"""Start the processes of a search. This file imports little, so that the processes begin their own imports at once."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

Launched = tuple["subprocess.Popen[bytes]", Connection]
"""A process, and this end of the socket to it."""

PRELOAD = "LR_LIGHTNING_PRELOAD"
"""Environment variable of a fork server: the modules that it imports while it is idle, separated by commas."""


def preloaded(words: Sequence[str]) -> str:
    """Return the value of `PRELOAD` for a search: the modules of MLflow, so that no trial has to import them itself."""
    return "" if {"tracking=csv", "tracking=none"} & set(words) else "mlflow.store.tracking.sqlalchemy_store"


def launch(role: str, environment: dict[str, str] | None = None) -> Launched:
    """Start `lr_lightning.search.worker` in a new session, so that Ctrl-C reaches the search alone."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "lr_lightning.search.worker", role, str(theirs.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    return process, Connection(ours.detach())
