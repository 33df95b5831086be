"""Figures, texts and tags for whichever loggers a trainer has. Best effort: none of it ever fails a run."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["log_figure", "log_tags", "log_text"]

log = logging.getLogger(__name__)


def log_figure(trainer: Trainer, figure: "Figure", artifact_file: str) -> None:
    """Give a matplotlib figure to every logger of a trainer that can take one.

    Args:
        trainer: Its loggers are written to, on the first rank alone.
        figure: The figure; it is left open.
        artifact_file: Where it is kept, such as ``"verdict.png"``.
    """

    def give(logger: Any) -> None:
        kind = type(logger).__name__
        if hasattr(logger, "log_figure"):
            logger.log_figure(figure, artifact_file)
        elif kind == "MLFlowLogger":
            logger.experiment.log_figure(logger.run_id, figure, artifact_file)
        elif kind == "TensorBoardLogger":
            logger.experiment.add_figure(artifact_file, figure, trainer.global_step)
        elif kind == "WandbLogger":
            logger.log_image(artifact_file, [figure])
        elif getattr(logger, "log_dir", None):
            figure.savefig(_file(logger, artifact_file), bbox_inches="tight")

    _each(trainer, give, artifact_file)


def log_text(trainer: Trainer, text: str, artifact_file: str) -> None:
    """Give a text to every logger of a trainer that can take one.

    Args:
        trainer: Its loggers are written to, on the first rank alone.
        text: The text.
        artifact_file: Where it is kept, such as ``"verdict.txt"``.
    """

    def give(logger: Any) -> None:
        kind = type(logger).__name__
        if kind == "MLFlowLogger":
            logger.experiment.log_text(logger.run_id, text, artifact_file)
        elif kind == "TensorBoardLogger":
            logger.experiment.add_text(artifact_file, text, trainer.global_step)
        elif kind == "WandbLogger":
            logger.log_text(artifact_file, columns=["text"], data=[[text]])
        elif hasattr(logger, "log_text"):
            logger.log_text(text, artifact_file)
        elif getattr(logger, "log_dir", None):
            _file(logger, artifact_file).write_text(text, encoding="utf-8")

    _each(trainer, give, artifact_file)


def log_tags(trainer: Trainer, tags: Mapping[str, str]) -> None:
    """Set tags in every logger of a trainer that knows tags."""

    def give(logger: Any) -> None:
        if hasattr(logger, "set_tags"):
            logger.set_tags(tags)
        elif type(logger).__name__ == "MLFlowLogger":
            for key, value in tags.items():
                logger.experiment.set_tag(logger.run_id, key, value)

    _each(trainer, give, "tags")


def _each(trainer: Trainer, give: Callable[[Any], None], what: str) -> None:
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        try:
            give(logger)
        except Exception as e:  # whatever an outside logger does, the training is worth more than a picture of it
            log.warning("%s could not take %s: %s", type(logger).__name__, what, e)


def _file(logger: Any, artifact_file: str) -> Path:
    path = Path(str(logger.log_dir)) / artifact_file
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
