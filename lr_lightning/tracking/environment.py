"""Tags that describe the environment of a run: versions, device, host, git commit and command line."""

import getpass
import importlib.metadata
import platform
import shlex
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from lr_lightning.tracking.keys import MAX_TAG, clip, hide_password

_GIT_SECONDS = 5.0


def environment_tags(checkout: Path | None = None) -> dict[str, str]:
    """Return tags for versions, device, host, command line and git commit, with the passwords in addresses masked.

    ``checkout`` is the folder of the git checkout; by default the one that contains this package. Some tags are those
    from which MLflow's UI shows source, user and commit.
    """
    packages = ("torch", "lightning", "mlflow", "lr-lightning")
    tags = {f"env.{package.replace('-', '_')}": _version(package) for package in packages} | {
        "env.python": platform.python_version(),
        "env.device": device_name(),
        "env.host": socket.gethostname(),
        "env.command": clip(hide_password(shlex.join([sys.executable, *sys.argv])), MAX_TAG),
        "mlflow.source.name": clip(sys.argv[0], MAX_TAG),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
    }
    folder = checkout if checkout is not None else Path(__file__).resolve().parents[2]
    if commit := _git(folder, "rev-parse", "HEAD"):
        tags["git.commit"] = tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def device_name() -> str:
    """Return the name of the accelerator, or of the processor if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return "Apple MPS"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a name
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
