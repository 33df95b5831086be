"""Names, tags and text values that MLflow accepts, and the tags of a run's environment. MLflow is not imported."""

import getpass
import importlib.metadata
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000

COLOUR_TAG = "mlflow.runColor"
"""Tag of the colour in which MLflow's charts draw a run."""
JOB_TAG = "job"
"""Tag that says what a run did, such as ``train``, ``find_lr`` or ``compare``. A run without the tag trained."""
LOG_LR = "summary/log10_peak_lr"
"""Metric of the highest learning rate of a run, found or given: the x axis of charts of a sweep."""
LR_EFFECTS_TAG = "study"
"""Tag of the runs of ``experiment=lr_effects``."""
RUN_KEY_TAG = "lr_lightning.run_key"
"""Tag of a run, in its local log and in the store, that links the two: the ``key`` of its ``UploadState``."""

_SAYS_NOTHING = re.compile(r"[-+.]?\d|\[|(true|false|null|none|nan|inf)$", re.IGNORECASE)  # without its key
_DECIMAL = re.compile(r"[-+]?(\d+\.\d*|\.\d+)(e[-+]?\d+)?|[-+]?\d+e[-+]?\d+", re.IGNORECASE)
_NOT_ALLOWED = re.compile(r"[^/\w.\- ]")
_PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):[^/@\s]*(?=@)")
_PASSWORD_IN_QUERY = re.compile(r"(?<=[?&])((?:password|sslpassword)=)[^&\s]+", re.IGNORECASE)


def clean_key(key: str) -> str:
    """Turn ``key`` into a name that MLflow accepts on every platform: one invalid name makes it reject a whole batch.

    MLflow allows letters, digits, ``_ - . / `` and spaces, and no name that a file system would resolve to another one
    (``a//b``, ``../a``). So other characters become ``_``, and empty or dotted parts are dropped.

    >>> clean_key("train/loss"), clean_key("/a//b=1%"), clean_key("..")
    ('train/loss', 'a/b_1_', '_')
    """
    parts = [part for part in _NOT_ALLOWED.sub("_", key).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:MAX_KEY].rstrip("/") or "_"


def clip(value: object, limit: int) -> str:
    """Return ``str(value)``, cut to ``limit`` characters with a mark that states the original length.

    >>> clip("x" * 99, 30)
    'xxxxxx... (99 characters, cut)'
    """
    text = str(value)
    if len(text) <= limit:
        return text
    mark = f"... ({len(text)} characters, cut)"
    return text[: limit - len(mark)] + mark


def short_number(text: str, digits: int = 4) -> str:
    """Write a decimal number as a person does, and return any other text, such as a version, unchanged.

    >>> [short_number(text) for text in ("0.06796580687702834", "10000000000.0", "0.10", "128", "cosine")]
    ['0.06797', '1e+10', '0.10', '128', 'cosine']
    """
    short = len(text) <= digits and not text.endswith(".0")
    return f"{float(text):.{digits}g}" if _DECIMAL.fullmatch(text) and not short else text


def name_values(values: Mapping[str, str], digits: int = 4) -> list[str]:
    """Return the parts of the name of a run with these values. A missing value becomes –.

    The first key is left out unless its value says nothing without it: ``trial=1``, ``nesterov=true``.

    >>> name_values({"schedule": "cosine", "optimizer.lr": "0.1", "search.space.width": ""})
    ['cosine', 'lr=0.1', 'width=–']
    """
    parts = [f"{key.rsplit('.', 1)[-1]}={short_number(text, digits) or '–'}" for key, text in values.items()]
    if values and not _SAYS_NOTHING.match(first := next(iter(values.values()))):
        parts[0] = first or f"(no {next(iter(values))})"
    return parts


def flatten(params: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Flatten nested mappings to dotted keys.

    >>> flatten({"optimizer": {"lr": 0.1}, "seed": 0})
    {'optimizer.lr': 0.1, 'seed': 0}
    """
    flat: dict[str, object] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def hide_password(text: str) -> str:
    """Mask the password of every URI in ``text``.

    >>> hide_password("postgresql://me:secret@db/x")
    'postgresql://me:***@db/x'
    """
    return _PASSWORD_IN_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***", text))


# -- tags that describe the environment of a run -----------------------------------------------------------------------

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
    import torch  # not above: a search's own process does without

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
