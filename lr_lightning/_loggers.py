"""Figures, texts, tags and notes for every logger of a Trainer. A logger that fails gets a warning, not the run.

Only this file knows how each kind of logger takes them. Lightning is imported only when it is needed.
"""

import io
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lr_lightning._lightning import Trainer

NOTE_TAG = "mlflow.note.content"
"""Tag that MLflow shows as a run's description."""

DRAWING = threading.RLock()
"""Held while a figure is drawn: two threads that draw the same one spoil both pictures."""

log = logging.getLogger(__name__)


def log_figure(trainer: "Trainer", figure: "Figure", artifact_file: str) -> None:
    """Log a matplotlib figure to every logger that accepts one; a logger without artifacts uses the name as a tag."""

    def action(logger: Any) -> None:
        with DRAWING:
            _figure(logger, figure, artifact_file, trainer.global_step)

    for_each_logger(trainer, artifact_file, action)


def log_text(trainer: "Trainer", text: str, artifact_file: str) -> None:
    """Log a text, such as a CSV table, to every logger that keeps texts or files."""
    for_each_logger(trainer, artifact_file, lambda logger: _text(logger, text, artifact_file, trainer.global_step))


def log_tags(trainer: "Trainer", tags: Mapping[str, str]) -> None:
    """Set tags, name to value, in every logger that has tags."""
    for_each_logger(trainer, "tags", lambda logger: _tags(logger, tags))


def log_note(trainer: "Trainer", text: str) -> None:
    """Set the run's description, in Markdown, in every logger that has one."""
    for_each_logger(trainer, "the description", lambda logger: _note(logger, text))


def for_each_logger(trainer: "Trainer", name: str, action: Callable[[Any], None]) -> None:
    """Call a function with each logger, on the first process alone; warn if a logger does not accept ``name``.

    In a development run (``fast_dev_run``) nothing is called: its logger has every attribute and keeps nothing.
    """
    if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
        return
    for logger in trainer.loggers:
        try:
            action(logger)
        except Exception as e:
            from lr_lightning._lightning import rank_zero_warn

            rank_zero_warn(f"{type(logger).__name__} did not take {name} ({type(e).__name__}: {e}).")


def _figure(logger: Any, figure: "Figure", name: str, step: int) -> None:
    run, experiment = _mlflow_run(logger)
    tag = name.rsplit(".", 1)[0]
    if run is not None:
        experiment.log_figure(run, figure, name)
    elif _has(logger, "log_figure"):
        logger.log_figure(figure, name)
    elif _has(experiment, "add_figure"):  # TensorBoard
        experiment.add_figure(tag, figure, step, close=False)
    elif _is_wandb(logger):
        from PIL import Image  # matplotlib depends on it

        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        buffer.seek(0)
        logger.log_image(f"figures/{tag}", [Image.open(buffer)])  # the verdict's label is called "verdict" there
    elif (path := _file(logger, name)) is not None:
        figure.savefig(path)


def _text(logger: Any, text: str, name: str, step: int) -> None:
    run, experiment = _mlflow_run(logger)
    if run is not None:
        experiment.log_text(run, text, name)
        return
    if _has(logger, "log_text") and not _is_wandb(logger):  # that of Weights & Biases takes tables
        logger.log_text(text, name)
        return
    if _has(experiment, "add_text"):  # TensorBoard shows Markdown: it shows an indented block unchanged
        experiment.add_text(name.rsplit(".", 1)[0], indent(text, "    "), step)
    if (path := _file(logger, name)) is not None:
        path.write_text(text, encoding="utf-8")


def _tags(logger: Any, tags: Mapping[str, str]) -> None:
    run, experiment = _mlflow_run(logger)
    if run is not None:
        for key, value in tags.items():
            experiment.set_tag(run, key, value)
    elif _has(logger, "set_tags"):
        logger.set_tags(tags)
    elif _is_wandb(logger):
        plain = {key: str(value) for key, value in tags.items()}  # it would show the name of an enum
        experiment.summary.update(plain)  # columns of the table of runs: its tags have no values


def _note(logger: Any, text: str) -> None:
    run, experiment = _mlflow_run(logger)
    if run is not None:
        experiment.set_tag(run, NOTE_TAG, text)
    elif _has(logger, "log_note"):
        logger.log_note(text)
    elif _is_wandb(logger):
        experiment.notes = text


def _has(thing: Any, method: str) -> bool:
    return callable(getattr(thing, method, None))


def _is_wandb(logger: Any) -> bool:
    return _has(logger, "log_image") and _has(logger, "log_table")


def _mlflow_run(logger: Any) -> tuple[str | None, Any]:
    """Return the run id, if this is Lightning's MLFlowLogger or one like it, and the logger's experiment."""
    if hasattr(logger, "log_rows"):
        return None, None  # this package's logger: it keeps an artifact first, and uploads it when the store answers
    experiment = getattr(logger, "experiment", None)
    is_mlflow = hasattr(logger, "run_id") and hasattr(experiment, "log_text")
    return (logger.run_id if is_mlflow else None), experiment


def _file(logger: Any, name: str) -> Path | None:
    """Return a path in the folder that a logger, such as CSVLogger, writes to; None if it has none."""
    folder = logger.experiment.dir if _is_wandb(logger) else getattr(logger, "log_dir", None)  # wandb uploads its own
    if folder is None:
        log.debug("%s keeps no files, so %s is not logged there", type(logger).__name__, name)
        return None
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
