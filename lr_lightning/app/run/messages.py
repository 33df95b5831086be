"""What a run prints: what it is about to do, the table at its end, and the commands that come next."""

import os
import shlex
import sys
from pathlib import Path

from lightning.pytorch import LightningModule
from rich.console import Console
from rich.table import Table

from lr_lightning.app.config import Config
from lr_lightning.app.lr_scaling import effective_batch_size, process_batch_size
from lr_lightning.app.run.resume import Previous, untrusted
from lr_lightning.app.world import world_size
from lr_lightning.diagnosis import Verdict
from lr_lightning.tracking.keys import hide_password
from lr_lightning.training.datamodule import ImageDataModule

_ROWS = (
    ("best validation accuracy", "best_val_acc", "{:.2%}"),
    ("last validation accuracy", "last_val_acc", "{:.2%}"),
    ("test accuracy (best checkpoint)", "test_acc", "{:.2%}"),
    ("best validation loss", "best_val_loss", "{:.4f}"),
    ("last validation loss", "last_val_loss", "{:.4f}"),
    ("probe loss (training images)", "probe_loss", "{:.4f}"),
    ("gap: validation − probe loss", "gap_loss", "{:+.4f}"),
    ("gap: probe − validation accuracy", "gap_acc", "{:+.2%}"),
    ("optimizer steps", "steps", "{:,.0f}"),
    ("seconds", "seconds", "{:.1f}"),
    ("examples per second", "examples_per_second", "{:,.0f}"),
    ("seconds to the target", "seconds_to_target", "{:.1f}"),
    ("optimizer steps to the target", "steps_to_target", "{:,.0f}"),
    ("price", "price", "{:.4g}"),
    ("spikes of the training loss", "spikes", "{:.0f}"),
)
"""Of the table at the end: what a value is called, its key, and how it is written."""


def print_start(
    config: Config, folder: Path, data: ImageDataModule, module: LightningModule, previous: Previous | None
) -> None:
    """Say in a few lines what is about to be trained, and where it will lie."""
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    sizes = data.sizes
    channels, (height, width) = data.in_channels, data.image_size
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{config.data.name}: {sizes['train']:,} training, {sizes['val']:,} validation, {sizes.get('test', 0):,} test "
        f"images of {channels}×{height}×{width}, {data.num_classes} classes"
    )
    console.print(
        f"{config.model.name}: {parameters:,} parameters; {config.optimizer.name}, "
        f"{_peak(config)}, schedule {config.schedule.name}, batch {_batch(config)}"
    )
    if previous:
        changes = "".join(f", {key}={value}" for key, value in previous.changed.items())
        console.print(f"resuming from {previous.checkpoint}{changes}")
    else:
        console.print(f"output: {folder}")


def _peak(config: Config) -> str:
    if getattr(config.finder, "apply", False):
        return f"peak lr from {config.finder.name} (else {config.optimizer.lr:g})"
    rule = config.optimizer.lr_rule
    by_rule = f" ({rule} rule, for {config.optimizer.lr_reference_batch})" if rule != "none" else ""
    return f"peak lr {config.optimizer.lr:g}{by_rule}"


def _batch(config: Config) -> str:
    """The batch of an update, and what it is made of if that is more than one batch."""
    one, update = process_batch_size(config), effective_batch_size(config)
    factors = [one, world_size(config.trainer), config.trainer.accumulate_grad_batches]
    return str(one) if update == one else f"{update} ({' × '.join(map(str, factors))}: processes, accumulated)"


def print_summary(
    config: Config,
    folder: Path,
    run_id: str | None,
    summary: dict[str, float],
    verdict: Verdict | None = None,
    *,
    idle: bool = False,
) -> None:
    """The table at the end, and the commands that come next.

    Args:
        config: The run's config.
        folder: Its output folder.
        run_id: Its MLflow run id, where it has one.
        summary: The values of ``summary/*``, without the prefix.
        verdict: Whether it over- or underfits, where that was measured.
        idle: Whether it was gone on with though it had come to its end.
    """
    console = Console(highlight=False, markup=False)
    table = Table(title=f"{config.model.name} on {config.data.name}, {config.schedule.name}", title_justify="left")
    table.add_column("result")
    table.add_column("value", justify="right")
    for name, key, form in _ROWS:
        if key in summary:
            table.add_row(name, form.format(summary[key]))
    if summary.get("target_reached") == 0.0:
        table.add_row("target", "not reached")
    if verdict is not None:
        table.add_row("verdict", verdict.label + (f" ({verdict.detail})" if verdict.detail else ""))
    console.print(table)
    for line in verdict.advice if verdict is not None else ():
        console.print(f"- {line}", soft_wrap=True)
    console.print(f"MLflow run {run_id}" if run_id else "not in MLflow", f"output {folder}", sep=", ", soft_wrap=True)
    longer = _longer(config, summary)
    if idle:
        made = f"nothing was left to do: the run had made all its {summary['steps']:,.0f} steps."
        console.print(f"{made} To train longer, resume it with {longer}", soft_wrap=True)
    for name, command in _next_commands(config, folder, longer, verdict):
        console.print(f"{name}:  {command}", soft_wrap=True)


def print_interrupted(config: Config, checkpoint: Path | None, reason: str, step: int) -> None:
    """Say that the run was stopped, and how to go on with it."""
    console = Console(stderr=True, highlight=False, markup=False)
    console.print(f"{reason} at step {step}", soft_wrap=True)
    if checkpoint is not None and checkpoint.is_file():
        command = shlex.join(["python", sys.argv[0], f"resume={checkpoint.parent.parent}", *_trust(config)])
        console.print(f"go on with it:  {command}", soft_wrap=True)


def _trust(config: Config) -> list[str]:
    """What a resume of this run must be told to trust."""
    targets = untrusted(config)
    return [f"trust=[{','.join(targets)}]"] if targets else []


def _longer(config: Config, summary: dict[str, float]) -> str:
    """What makes the run twice as long: the limit that it came to."""
    node = config.trainer
    by_steps = node.max_steps > 0 and (node.max_epochs < 0 or summary.get("steps", 0.0) >= node.max_steps)
    return f"trainer.max_steps={2 * node.max_steps}" if by_steps else f"trainer.max_epochs={2 * node.max_epochs}"


def _next_commands(config: Config, folder: Path, longer: str, verdict: Verdict | None) -> list[tuple[str, str]]:
    """The commands that come next, as they can be typed in the folder the run was started from."""
    script = Path(sys.argv[0])
    root = Path(__file__).resolve().parents[2] / "mlruns"
    own = ["--root", config.tracking.root] if Path(config.tracking.root) != root else []
    own += ["--uri", config.tracking.uri] if config.tracking.uri else []
    by_make = "MAKELEVEL" in os.environ  # started by `make train`: the virtual environment may not be active
    later = _trainings(config, folder, longer, verdict, by_make=by_make)
    if config.data.name == "image_folder":
        later.append(("predict", _command(script.with_name("predict.py"), str(folder), "NEW_IMAGES")))
    if config.tracking.name == "mlflow":
        if (config.tracking.uri or "").startswith("http"):
            return [("look at it", str(config.tracking.uri)), *later]
        return [("look at it", "make ui" if by_make and not own else _command(script.with_name("ui.py"), *own)), *later]
    return [("another one, tracked", _command(script, "schedule=constant", "tracking=mlflow")), *later]


def _trainings(
    config: Config, folder: Path, longer: str, verdict: Verdict | None, *, by_make: bool
) -> list[tuple[str, str]]:
    """The training that the verdict advises, as far as it is known; none that it speaks against."""
    if verdict is None or verdict.can_train_longer:
        name, arguments = "train on", [f"resume={folder}", *_trust(config), longer]
    elif verdict.sufficient_epochs is not None and (own := _own_overrides()) is not None:
        key = longer.split("=")[0]
        limit = getattr(config.trainer, key.removeprefix("trainer."))
        length = max(1, round(limit * verdict.sufficient_epochs / verdict.evidence["epochs"]))
        name, arguments = "a shorter one", [*(w for w in own if w.lstrip("+").split("=")[0] != key), f"{key}={length}"]
    else:
        return []
    script = Path(sys.argv[0])
    return [
        (name, f'make train ARGS="{hide_password(shlex.join(arguments))}"' if by_make else _command(script, *arguments))
    ]


def _own_overrides() -> list[str] | None:
    """What this run was started with; None if that is not one run's overrides (a sweep's, say, or a resume)."""
    words = sys.argv[1:]
    return None if any(word.startswith(("-", "resume=")) for word in words) else words


def _command(script: Path, *arguments: str) -> str:
    return hide_password(shlex.join(["python", str(script), *arguments]))
