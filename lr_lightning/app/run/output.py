"""A run's output folder: unique, and holding all that is needed to go on with the run."""

import os
import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from lr_lightning.app.config import Config
from lr_lightning.errors import ConfigError
from lr_lightning.tracking.files import write_atomically

LAST = "last.ckpt"
"""Name of the checkpoint a run is resumed from, in the output folder's `checkpoints/`."""

BEFORE_LAST = "before_last.ckpt"
"""Name of the one that `last` has taken the place of, which a run is resumed from if `last` is damaged."""


def new_output_dir(config: Config, job: str | None = None) -> Path:
    """Make a folder of its own for a run below ``config.output_root``.

    Two runs that start in the same moment get different ones, also on a file system they share.

    Args:
        config: The run's config.
        job: What stands in its name in place of the schedule.

    Raises:
        ConfigError: If no folder can be made there.
    """
    names = [config.data.name, config.model.name, job or config.schedule.name, f"s{config.seed}"]
    stem = "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *(re.sub(r"[^\w.]+", "_", name) for name in names)])
    root = output_root(config)
    while True:
        folder = root / f"{stem}-{secrets.token_hex(2)}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def output_root(config: Config) -> Path:
    """The folder of all runs' folders; it is made if need be.

    Raises:
        ConfigError: If it cannot be made or written to.
    """
    root = Path(config.output_root).expanduser().absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"output_root: no folder can be made at '{root}' ({e.strerror}). Give another one.") from e
    if not os.access(root, os.W_OK):
        raise ConfigError(f"output_root: '{root}' cannot be written to. Give another one.")
    return root


def write_config(folder: Path, container: dict[str, Any]) -> Path:
    """Store the resolved config, which ``resume`` reads back."""
    path = folder / "config.yaml"
    write_atomically(path, yaml.safe_dump(container, sort_keys=False, allow_unicode=True))
    return path
