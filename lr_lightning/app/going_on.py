"""Which checkpoint a stopped run goes on from: the last whole one, of this very run."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lr_lightning.app.checkpoints import config_differences, read_checkpoint
from lr_lightning.app.config import Config
from lr_lightning.app.errors import ConfigError
from lr_lightning.app.output import BEFORE_LAST, LAST
from lr_lightning.app.processes import is_first_rank
from lr_lightning.app.resume import Previous, identity
from lr_lightning.app.validate import flatten
from lr_lightning.training.data import ImageDataModule
from lr_lightning.training.images import DataError

_MOST_DIFFERENCES = 8


def checked(previous: Previous, config: Config, data: ImageDataModule) -> Previous:
    """The run with the checkpoint to go on from: `last`, or the one before it if that is damaged, which is said.

    Nothing is written: the run may turn out to be alive.

    Args:
        previous: The run.
        config: Its config.
        data: Its data, loaded.

    Raises:
        ConfigError: If no checkpoint is whole, it is of another config or other data, or the run is to end before it.
    """
    path, checkpoint = _newest_whole(previous.checkpoint)
    if different := config_differences(checkpoint, identity(flatten(asdict(config)))):
        more = len(different) - _MOST_DIFFERENCES
        shown = different[:_MOST_DIFFERENCES] + ([f"and {more} more"] if more > 0 else [])
        raise ConfigError("\n".join([f"resume: {path} is of a run with another config:", *shown]))
    _check_length(checkpoint, config)
    try:
        data.load_state_dict(checkpoint.get(type(data).__qualname__, {}))
    except DataError as e:
        raise ConfigError(str(e)) from e
    return replace(previous, checkpoint=path)


def _check_length(checkpoint: Mapping[str, Any], config: Config) -> None:
    """Refuse an end that lies before what the run has made: Lightning would, but only with the record open."""
    if "loops" not in checkpoint:  # weights alone, which Lightning does not go on from
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    epochs, steps = checkpoint["epoch"] + (progress["completed"] > 0), checkpoint["global_step"]  # begun ones count
    # the optimizers of one batch each count as a step, so the last batch may have gone beyond the limit
    beyond = max(0, len(checkpoint.get("optimizer_states", ())) - 1)
    for key, made, least in (("max_epochs", epochs, epochs), ("max_steps", steps, steps - beyond)):
        limit = getattr(config.trainer, key)
        if 0 <= limit < least:
            raise ConfigError(
                f"trainer.{key}: {limit}, but the run has made {steps} steps, to epoch {epochs}. Give "
                f"trainer.{key}={made + 1} or more to train on; a shorter run is a new one."
            )


def _newest_whole(last: Path) -> tuple[Path, dict[str, Any]]:
    before = last.with_name(BEFORE_LAST)
    try:
        if not last.is_file():  # set aside by another rank, or killed between two renamings
            return before, read_checkpoint(before, "resume")
        return last, read_checkpoint(last, "resume")
    except ConfigError as e:
        if not before.is_file():
            raise
        checkpoint = read_checkpoint(before, "resume")
        if is_first_rank():
            print(f"{e}\ngoing on from the one before, {before}, of step {checkpoint['global_step']}", file=sys.stderr)
        return before, checkpoint


def set_damaged_aside(previous: Previous) -> None:
    """Rename a damaged `last`, so that the next one does not put it in the place of the whole one before it."""
    last = previous.checkpoint.with_name(LAST)
    if previous.checkpoint.name == BEFORE_LAST and last.is_file():
        last.replace(last.with_suffix(".damaged"))
