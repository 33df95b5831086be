"""A run's output folder, which holds everything that a resume needs."""

import os
import re
import secrets
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from lr_lightning.errors import ConfigError, RunFailed
from lr_lightning.tracking.files import write_atomically

LAST, BEFORE_LAST = "last.ckpt", "before_last.ckpt"
"""Names of the checkpoint that a run is resumed from, and of the one before it, in case `last` is damaged."""


def new_output_dir(root: str, *parts: str) -> Path:
    """Make a run's folder, named after the time and ``parts``; no other run has it, even on a shared file system."""
    stem = "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *(re.sub(r"[^\w.]+", "_", part) for part in parts)])
    parent = output_root(root)
    while True:
        folder = parent / f"{stem}-{secrets.token_hex(2)}"
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


def output_root(path: str) -> Path:
    """Return the folder that holds all runs' folders, and make it if it does not exist."""
    root = Path(path).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"output_root: cannot make the folder '{root}' ({e.strerror}). Give another one.") from e
    if not os.access(root, os.W_OK):
        raise ConfigError(f"output_root: '{root}' cannot be written to. Give another one.")
    return root


def folder_gone(folder: Path) -> RunFailed:
    """Return the error of a run whose folder is not there any more."""
    return RunFailed(
        f"output_root: {folder} was moved or removed while the run was writing to it. If it was moved, resume it where "
        "it is now, resume=FOLDER; else start the run anew."
    )


def write_config(folder: Path, container: dict[str, Any]) -> Path:
    """Store the resolved config, which a resume reads back."""
    path = folder / "config.yaml"
    write_atomically(path, yaml.safe_dump(container, sort_keys=False, allow_unicode=True))
    return path
