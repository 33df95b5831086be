"""Tags that describe the environment of a run: versions, device, host, git commit and command line."""

import getpass
import importlib.metadata
import platform
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import torch

from lr_lightning.tracking.keys import MAX_TAG, clip, hide_password

_PACKAGES = {"torch": "torch", "lightning": "lightning", "mlflow": "mlflow", "lr_lightning": "lr-lightning"}
_GIT_SECONDS = 5.0


def environment_tags(checkout: Path | None = None) -> dict[str, str]:
    """Return tags for versions, device, host, git commit and command line.

    Args:
        checkout: Folder of the git checkout. Default: the one that contains this package.

    Returns:
        Tags ``env.<package>``, ``env.device``, ``env.host``, ``env.command`` and, in a git checkout, ``git.commit`` and
        ``git.dirty``; and the tags from which MLflow's UI shows source, user and commit. Passwords in addresses are
        masked.
    """
    tags = {f"env.{name}": _version(package) for name, package in _PACKAGES.items()}
    tags["env.python"] = platform.python_version()
    tags["env.device"] = device_name()
    tags["env.host"] = socket.gethostname()
    tags["env.command"] = clip(hide_password(shlex.join([sys.executable, *sys.argv])), MAX_TAG)
    tags["mlflow.source.name"] = clip(sys.argv[0], MAX_TAG)
    tags["mlflow.source.type"] = "LOCAL"
    tags["mlflow.user"] = _user()
    folder = checkout if checkout is not None else Path(__file__).resolve().parents[2]
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        tags["git.commit"] = tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def device_name() -> str:
    """Return the name of the accelerator, or of the processor if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.backends.mps.is_available():
        return "Apple MPS"
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
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
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
