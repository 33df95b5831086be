"""A run's output folder, which holds everything that a resume needs."""

import os
import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from lr_lightning.errors import ConfigError
from lr_lightning.tracking.files import write_atomically

LAST = "last.ckpt"
"""Name of the checkpoint a run is resumed from, in the output folder's `checkpoints/`."""

BEFORE_LAST = "before_last.ckpt"
"""Name of the checkpoint before `last`, which a run is resumed from if `last` is damaged."""


def new_output_dir(root: str, *parts: str) -> Path:
    """Make a new folder for a run below ``root``.

    Two runs that start at the same moment get different folders, even on a shared file system.

    Args:
        root: The config's ``output_root``.
        parts: Words that follow the time in the folder's name, such as the data set and the model.

    Raises:
        ConfigError: If no folder can be made there.
    """
    stem = "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *(re.sub(r"[^\w.]+", "_", part) for part in parts)])
    parent = output_root(root)
    while True:
        folder = parent / f"{stem}-{secrets.token_hex(2)}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def output_root(path: str) -> Path:
    """Return the folder that holds all runs' folders, and make it if it does not exist.

    Raises:
        ConfigError: If it cannot be made or written to.
    """
    root = Path(path).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"output_root: cannot make the folder '{root}' ({e.strerror}). Give another one.") from e
    if not os.access(root, os.W_OK):
        raise ConfigError(f"output_root: '{root}' cannot be written to. Give another one.")
    return root


def write_config(folder: Path, container: dict[str, Any]) -> Path:
    """Store the resolved config, which a resume reads back."""
    path = folder / "config.yaml"
    write_atomically(path, yaml.safe_dump(container, sort_keys=False, allow_unicode=True))
    return path
