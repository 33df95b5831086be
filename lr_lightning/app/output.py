"""A run's output folder: unique, and holding all that is needed to go on with the run."""

import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from lr_lightning.app.config import Config

LAST = "last.ckpt"
"""Name of the checkpoint a run is resumed from, in the output folder's `checkpoints/`."""


def new_output_dir(config: Config) -> Path:
    """Make a folder of its own for a run below ``config.output_root``.

    Two runs that start in the same moment get different ones, also on a file system they share.
    """
    names = [config.data.name, config.model.name, config.schedule.name, f"s{config.seed}"]
    stem = "-".join([datetime.now().strftime("%Y%m%d-%H%M%S"), *(re.sub(r"[^\w.]+", "_", name) for name in names)])
    root = Path(config.output_root).expanduser().absolute()
    root.mkdir(parents=True, exist_ok=True)
    while True:
        folder = root / f"{stem}-{secrets.token_hex(2)}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def write_config(folder: Path, container: dict[str, Any]) -> Path:
    """Store the resolved config, which ``resume`` reads back."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(container, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
