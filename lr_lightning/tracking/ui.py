"""The MLflow UI, for this machine only."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from pathlib import Path

from lr_lightning.errors import StoreUnavailable, TrackingError
from lr_lightning.tracking.query import experiments
from lr_lightning.tracking.store import Store, open_store, prepare_mlflow
from lr_lightning.tracking.view import chart_page, keep_view, runs_shown

HOST = "127.0.0.1"
_MOST_LINKS = 5


def serve(root: Path, uri: str | None, port: int, experiment: str | None = None, *, show: bool = False) -> int:
    """Run MLflow's server on a store until it is stopped.

    It listens on the loopback interface alone, starts no job workers and sends no telemetry.

    Args:
        root: Folder of the default store.
        uri: Another store, or None.
        port: The port that is tried first.
        experiment: Whose charts the link leads to; None for the one that was written to last.
        show: Whether to open the link in a browser.

    Returns:
        The server's exit status; 0 when it was stopped by Ctrl-C.

    Raises:
        TrackingError: If the store cannot be used, or has no such experiment.
        StoreUnavailable: If it does not answer.
    """
    prepare_mlflow()
    store = open_store(root, uri)
    if store.artifact_root is None:
        raise TrackingError(f"--uri: {store.public_uri} is a server already; open it in a browser.")
    newest = _newest_first(store)
    if experiment is not None:
        if experiment not in newest:
            known = ", ".join(sorted(newest)) or "none"
            raise TrackingError(f"--experiment: {store.public_uri} has no experiment {experiment!r}. It has: {known}.")
        newest = {experiment: newest[experiment]}
    free = free_port(port)
    server = f"http://{HOST}:{free}"
    if free != port:
        print(f"port {port} is in use, so this is port {free}")
    links = {
        name: chart_page(server, key, view=keep_view(store, key, runs_shown(store, key)))
        for name, key in list(newest.items())[:_MOST_LINKS]
    }
    print(f"MLflow UI on {server}/#/experiments?workflowType=machine_learning (Ctrl-C stops it)")
    for name, link in links.items():
        print(f"charts of {name!r}: {link}")
    sys.stdout.flush()
    process = subprocess.Popen(_command(store, free), env=_environment())
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    if show:
        address = next(iter(links.values()), server)
        threading.Thread(target=_open_when_up, args=(address, free, process), daemon=True).start()
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        return 0


def _newest_first(store: Store) -> dict[str, str]:
    """Name to id of the experiments with runs, that of the newest run first; of a new store, none."""
    starts: dict[str, int] = {}
    names = {key: name for name, key in experiments(store).items()}
    for key in names:
        newest = store.call("search_runs", [key], max_results=1, order_by=["attributes.start_time DESC"])
        if newest:
            starts[key] = int(newest[0].info.start_time or 0)
    return {names[key]: key for key in sorted(starts, key=lambda key: -starts[key])}


def _command(store: Store, port: int) -> list[str]:
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]
    command += ["--backend-store-uri", store.uri, "--allowed-hosts", f"{HOST}:{port},localhost:{port}"]
    if store.artifact_root is not None:
        command += ["--default-artifact-root", store.artifact_root.as_uri()]
    return command


def _environment() -> dict[str, str]:
    return {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}


def _open_when_up(address: str, port: int, process: "subprocess.Popen[bytes]", patience: float = 120.0) -> None:
    """Open a browser once the server listens."""
    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            webbrowser.open(address)
            return


def free_port(first: int) -> int:
    """The first port from ``first`` on that nothing listens on; any free one after a hundred tries."""
    for port in [*range(first, min(first + 100, 65536)), 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError(f"no free port on {HOST}")


__all__ = ["HOST", "StoreUnavailable", "TrackingError", "free_port", "serve"]
