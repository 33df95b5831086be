"""Starting from another run's weights."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from lightning.pytorch import LightningModule

from lr_lightning.app.errors import ConfigError


def load_weights(module: LightningModule, path: Path) -> None:
    """Load a checkpoint's weights into a module; nothing else of the checkpoint, and no code.

    Raises:
        ConfigError: If the file is no checkpoint, or its weights do not fit the module.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(checkpoint["state_dict"])
    except (UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, OSError, ValueError) as e:
        reason = " ".join(str(e).split())
        reason = reason if len(reason) <= 300 else reason[:300] + "..."
        raise ConfigError(f"ckpt: {path} does not hold weights for this module: {reason}") from e
