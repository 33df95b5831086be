"""The MLflow UI, for this machine only."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from lr_lightning.tracking.store import open_store, prepare_mlflow

HOST = "127.0.0.1"


def serve(root: Path, uri: str | None, port: int) -> int:
    """Run MLflow's server on a store until it is stopped.

    It listens on the loopback interface alone, starts no job workers and sends no telemetry.

    Args:
        root: Folder of the default store.
        uri: Another store, or None.
        port: The port that is tried first.

    Returns:
        The server's exit status; 0 when it was stopped by Ctrl-C.

    Raises:
        TrackingError: If the store cannot be used.
    """
    prepare_mlflow()
    store = open_store(root, uri)
    free = free_port(port)
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    environment = {**os.environ, **quiet}
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(free), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]
    command += ["--backend-store-uri", store.uri, "--allowed-hosts", f"{HOST}:{free},localhost:{free}"]
    if store.artifact_root is not None:
        command += ["--default-artifact-root", store.artifact_root.as_uri()]
    if free != port:
        print(f"port {port} is in use, so this is port {free}")
    print(
        f"MLflow UI on http://{HOST}:{free}/#/experiments?workflowType=machine_learning (Ctrl-C stops it)", flush=True
    )
    process = subprocess.Popen(command, env=environment)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        return 0


def free_port(first: int) -> int:
    """The first port from ``first`` on that nothing listens on; any free one after a hundred tries."""
    for port in [*range(first, first + 100), 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no free port on {HOST}")
