"""What a run prints: its data, model and learning rate at the start, a table at the end, and the next commands."""

import logging
import math
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch import LightningModule
from rich.console import Console
from rich.table import Column, Table

from lr_lightning._commands import override, python_command, shell_quote
from lr_lightning.app.config import Config
from lr_lightning.app.run.fork import ForkedRun
from lr_lightning.app.run.graceful_stop import CooldownRequest
from lr_lightning.app.run.predictions import SplitPredictions
from lr_lightning.app.run.record import MODEL_ID, RunOutcome
from lr_lightning.app.run.resume import ResumedRun, resume_arguments
from lr_lightning.app.schemas.schedule import CyclicalConfig, OneCycleConfig
from lr_lightning.app.schemas.trainer import TrackingConfig
from lr_lightning.app.world import effective_batch_size, is_rank_zero, process_batch_size, world_size
from lr_lightning.callbacks.base_finder import NoSuggestionWarning
from lr_lightning.diagnosis.verdict import Advice, Change
from lr_lightning.tracking import query
from lr_lightning.tracking.keys import hide_password
from lr_lightning.tracking.store import ACCESS_VARIABLES
from lr_lightning.training.datamodule import ImageDataModule
from lr_lightning.training.images import SPLIT_WORDS

_ROWS = (  # of the table at the end: name, key of the summary, format
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
_SYSTEM_METRICS = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"
_NOT_CHANGES = ("tracking", "output_root", "trainer.progress")
_MOST_CLASSES = 20
_JUMP = 2.0  # a resume that raises the lr by more than this factor gets a warning
_BY_MAKE = "MAKELEVEL"  # a variable of make: the virtual environment may not be active
_DEFAULT_STORE = Path(__file__).resolve().parents[3] / "mlruns"


def print_start(
    config: Config,
    folder: Path,
    data: ImageDataModule,
    module: LightningModule,
    start: ResumedRun | ForkedRun | None = None,
) -> None:
    """Print in a few lines what is about to be trained, and its output folder."""
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    sizes, (height, width), node = data.sizes, data.image_size, config.optimizer
    if getattr(config.finder, "apply", False):
        peak = f"from {config.finder.name} (else {node.lr:.4g})"
    else:
        rule = f" ({node.lr_rule} rule, for {node.lr_reference_batch})" if node.lr_rule != "none" else ""
        peak = f"{node.lr:.4g}{rule}"
    one, update = process_batch_size(config.data, config.trainer), effective_batch_size(config.data, config.trainer)
    factors = [one, world_size(config.trainer), config.trainer.accumulate_grad_batches]
    batch = str(one) if update == one else f"{update} ({' × '.join(map(str, factors))}: processes, accumulated)"
    place = f"output: {folder}{places_from_environment(config.tracking)}"
    if start:
        shown = {key: value for key, value in start.changed.items() if not key.startswith(_NOT_CHANGES)}
        changes = "".join(f", {key}={value}" for key, value in shown.items())
        if isinstance(start, ForkedRun):
            begun = f", which starts at step {config.schedule.start_step}" if config.schedule.start_step else ""
            place += f"\nforked at step {start.step} from {start.checkpoint}{changes}{begun}"
        else:
            place = f"resuming from {start.checkpoint}{changes}{_jump(config.schedule.name, start)}"
    Console(soft_wrap=True, highlight=False, markup=False).print(
        f"{config.data.name}: {sizes['train']:,} training, {sizes['val']:,} validation, {sizes.get('test', 0):,} test "
        f"images of {data.in_channels}×{height}×{width}, {data.num_classes} classes\n"
        f"{_classes(data)}\n"
        f"{config.model.name}: {parameters:,} parameters; {node.name}, peak lr {peak}, "
        f"schedule {config.schedule.name}, batch {batch}\n{place}"
    )


def _jump(schedule: str, resumed: ResumedRun) -> str:
    """Say in a line that the learning rate rises, because its schedule now ends later, and what to do instead."""
    if not resumed.next_lr > _JUMP * resumed.lr:
        return ""
    length = " ".join(f"{key}={value}" for key, value in resumed.changed.items() if key.startswith("trainer.max"))
    fork = shell_quote(override("fork", f"{resumed.output_dir}@last"))
    return (
        f"\nthe learning rate jumps from {resumed.lr:.2g} to {resumed.next_lr:.2g}, since {schedule} now ends "
        f"later. Instead, start a new run of this length, or one from here at a lower learning rate: {fork} "
        f"schedule=linear optimizer.lr={resumed.peak_lr / 10:.2g} {length}"
    )


def places_from_environment(node: TrackingConfig) -> str:
    """Say in a line which of MLflow's variables chose the store, the experiment, the run or its tags; "" if none."""
    if node.name != "mlflow":
        return ""
    given = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_") and value}
    chosen = {query.URI: node.uri, query.EXPERIMENT_NAME: node.experiment}
    obeyed = [name for name, value in chosen.items() if value and given.get(name) == value]
    own_experiment = any(word.startswith("tracking.experiment=") for word in sys.argv[1:])
    more = [] if own_experiment else [query.EXPERIMENT_ID]
    more += ["MLFLOW_RUN_CONTEXT", MODEL_ID] + ([] if "sweep" in node.tags else ["MLFLOW_RUN_ID"])
    more += ACCESS_VARIABLES if (node.uri or "").startswith("http") else []
    obeyed += [name for name in more if name in given]
    where = f"{hide_password(node.uri or node.root)}, experiment {node.experiment_name}"
    said = f"\ntracking: {where} (from {', '.join(obeyed)})" if obeyed else ""
    if query.URI in given and node.uri is None:
        said += f"\n{query.URI} is not obeyed: tracking.root names the store"
    if given.get(_SYSTEM_METRICS, "").lower() in ("true", "1"):
        said += f"\n{_SYSTEM_METRICS} is not obeyed: callbacks.cost records time, memory and energy"
    return said


def _classes(data: ImageDataModule) -> str:
    """Return the first classes, each with its images in training, validation and, if there is one, the test set."""
    sizes = zip(data.class_names, *data.class_sizes.values(), strict=True)
    shown = [f"{name} {' + '.join(f'{size:,}' for size in of_class)}" for name, *of_class in sizes]
    more = len(shown) - _MOST_CLASSES
    splits = " + ".join(SPLIT_WORDS[name] for name in data.class_sizes)
    return f"{splits}: {', '.join(shown[:_MOST_CLASSES])}" + (f" and {more:,} more" if more > 0 else "")


def print_outcome(config: Config, folder: Path, outcome: RunOutcome, *, idle: bool = False) -> None:
    """Print the table and the next commands; ``idle``: a finished run was resumed, so nothing was left to train."""
    summary, verdict, run_id = outcome.summary, outcome.verdict, outcome.run_id
    console = Console(highlight=False, markup=False)
    title = f"{config.model.name} on {config.data.name}, {config.schedule.name}"
    table = Table("result", Column("value", justify="right"), title=title, title_justify="left")
    for name, key, form in _ROWS:
        if key in summary:
            table.add_row(name, form.format(summary[key]))
    if summary.get("target_reached") == 0.0:
        table.add_row("target", "not reached")
    if verdict is not None:
        table.add_row("verdict", verdict.title)
    console.print(table)
    for line in verdict.sentences() if verdict is not None else ():
        console.print(f"- {line}", soft_wrap=True)
    if outcome.predictions is not None and config.callbacks.class_accuracy:
        console.print(_class_table(outcome.predictions))
    if outcome.found_for is not None:
        console.print(f"peak lr {outcome.applied_lr:.3g}, found for {outcome.found_for}", soft_wrap=True)
    console.print(f"MLflow run {run_id}" if run_id else "not in MLflow", f"output {folder}", sep=", ", soft_wrap=True)
    epochs, steps = config.trainer.max_epochs, config.trainer.max_steps
    by_steps = steps > 0 and (epochs < 0 or summary.get("steps", 0.0) >= steps)  # the limit that ended the run
    key, limit = ("trainer.max_steps", steps) if by_steps else ("trainer.max_epochs", epochs)
    if idle:
        made = f"nothing was left to do: the run had made all its {summary['steps']:,.0f} steps."
        cooled = CooldownRequest.read(folder)
        longer = f"resume it with {key}={2 * limit}"
        if cooled is not None and cooled.start is not None:
            longer = f"fork it from a state before its cooldown, which began at step {cooled.start}"
        console.print(f"{made} To train longer, {longer}", soft_wrap=True)
    commands = [
        _look(config.tracking),
        *_training(config, outcome, key, limit, resume_arguments(folder, asdict(config))),
    ]
    if config.data.name == "image_folder":
        predict = Path(sys.argv[0]).with_name("predict.py")
        commands.append(("predict", python_command(predict, str(folder), "NEW_IMAGES")))
    for name, command in commands:
        console.print(f"{name}:  {hide_password(command)}", soft_wrap=True)


def _class_table(found: SplitPredictions) -> Table:
    """Return the accuracy of each class, or of the worst ones if there are many, with what it is taken for most."""
    accuracies = found.class_accuracies
    order = list(range(len(accuracies)))
    title = f"accuracy by class, {found.split} images"
    if len(order) > _MOST_CLASSES:
        order = sorted(order, key=lambda i: accuracies[i])[:_MOST_CLASSES]
        title += f", the {_MOST_CLASSES} worst of {len(accuracies)}"
    right = [Column(name, justify="right") for name in ("images", "accuracy")]
    table = Table("class", *right, "most often taken for", title=title, title_justify="left")
    for i in order:
        others = found.confusion[i].copy()
        others[i] = 0
        most = f"{found.class_names[others.argmax()]} ({others.max():,})" if others.any() else ""
        table.add_row(found.class_names[i], f"{found.confusion[i].sum():,}", f"{accuracies[i]:.2%}", most)
    return table


def outcome_line(outcome: RunOutcome) -> str:
    """Return a run's result in a line, for one of many runs."""
    summary, verdict = outcome.summary, outcome.verdict
    forms = {
        "best_val_acc": "best val/acc {:.2%}",
        "test_acc": "test/acc {:.2%}",
        "best_val_loss": "best val/loss {:.4g}",
        "seconds": "{:.3g} s",
    }
    parts = [f"lr {outcome.applied_lr:.3g}"] if outcome.applied_lr is not None else []
    parts += [form.format(summary[key]) for key, form in forms.items() if key in summary]
    return ", ".join([*parts, *([verdict.headline] if verdict is not None else [])])


def _look(node: TrackingConfig) -> tuple[str, str]:
    """Return the command that shows the run, or one that makes a tracked run."""
    script = Path(sys.argv[0])
    if node.name != "mlflow":
        return "a tracked run", python_command(script, "schedule=constant", "tracking=mlflow")
    if (node.uri or "").startswith("http"):
        return "look at it", str(node.uri)
    own = ["--root", node.root] if Path(node.root) != _DEFAULT_STORE else []
    own += ["--uri", node.uri] if node.uri else []
    if own or _BY_MAKE not in os.environ:
        return "look at it", python_command(script.with_name("ui.py"), *own)
    return "look at it", "make ui"


def _training(config: Config, outcome: RunOutcome, key: str, limit: int, resume: list[str]) -> list[tuple[str, str]]:
    """Return the command of each run that the verdict advises, for a run that the limit ``key=limit`` ended."""
    verdict, own = outcome.verdict, sys.argv[1:]
    if verdict is None:
        return [_command("train on", [*resume, f"{key}={2 * limit}"])]
    if Advice.FINISH in verdict.advice:
        return [_command("train on", resume)]
    commands = []
    if Advice.COOL_DOWN in verdict.advice and len(resume) == 1:  # and nothing to trust
        commands.append(_command("cool it down", [override("fork", f"{outcome.output_dir}@last"), "schedule=cooldown"]))
    if any(word.startswith(("-", "resume=", "fork=")) for word in own):
        return commands  # the overrides of a multirun or a resume do not start this run
    for advice in verdict.advice:
        for change in verdict.changes(advice):
            per_epoch = limit / verdict.evidence.get("epochs", math.nan)
            given = _overrides(config, change, key, per_epoch, outcome.applied_lr)
            if given:
                # another schedule has other keys, and a finder would replace the learning rate
                groups = [group for group in ("schedule", "finder") if group in given]
                names = [(word, word.lstrip("+~").split("=")[0]) for word in own]
                kept = [word for word, name in names if name not in given and name.split(".")[0] not in groups]
                words = [*kept, *(f"{name}={value}" for name, value in given.items())]
                commands.append(_command("try", words))
    return commands


def _overrides(
    config: Config, change: Change, key: str, per_epoch: float, applied_lr: float | None = None
) -> dict[str, str]:
    """Return the keys and values of the run that an advice asks for; empty if a setting has no key here.

    A learning rate that a finder has set, ``applied_lr``, is the one that is changed; the new run needs no finder.
    """
    lr_key = "optimizer.lr"
    if isinstance(config.schedule, CyclicalConfig) and config.schedule.max_lr is not None:
        lr_key = "schedule.max_lr"
    dropout, width = config.model.kwargs.get("dropout"), config.model.kwargs.get("width")
    values: dict[str, str | None] = {}
    if change.lr is not None:
        values[lr_key] = f"{(applied_lr or config.optimizer.lr) * change.lr:.3g}"
        if applied_lr is not None:
            values["finder"] = "none"
        if (
            isinstance(config.schedule, CyclicalConfig) and config.schedule.base_lr is not None
        ):  # the cycle keeps its ratio
            values["schedule.base_lr"] = f"{config.schedule.base_lr * change.lr:.3g}"
    if change.epochs is not None:
        values[key] = str(max(1, round(change.epochs * per_epoch)))
    if change.schedule is not None:
        values["schedule"] = change.schedule
    if change.warmup is not None and not isinstance(config.schedule, OneCycleConfig):  # it rises for longer
        values["schedule.warmup"] = change.warmup
    if change.width is not None:
        values["model.kwargs.width"] = None if width is None else str(change.width * width)
    if change.label_smoothing is not None:
        key = "module.label_smoothing" if config.module.name == "classifier" else "+module.kwargs.label_smoothing"
        values[key] = str(change.label_smoothing)
    if change.regularise:
        values["model.kwargs.dropout"] = "0.3" if dropout == 0 else None
    return {} if None in values.values() else {name: value for name, value in values.items() if value is not None}


def _command(name: str, arguments: list[str]) -> tuple[str, str]:
    if _BY_MAKE in os.environ and all(shell_quote(word) == word for word in arguments):  # make would need more quotes
        return name, f'make train ARGS="{" ".join(arguments)}"'
    return name, python_command(Path(sys.argv[0]), *arguments)


class DataNotes(logging.Handler):
    """Prints what the data module logs about the images, on the first rank, and once in a multirun."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message: a warning to stderr, another one to stdout."""
        if is_rank_zero() and (text := record.getMessage()) not in self._said:
            self._said.add(text)
            print(text, flush=True, file=sys.stdout if record.levelno < logging.WARNING else sys.stderr)


def quiet() -> None:
    """Turn off telemetry, and the messages of libraries that a user of the app can do nothing about."""
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "true")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    known = (
        "does not have many workers|The number of training batches|isinstance.treespec|"
        "Checkpoint directory .* exists and is not empty"
    )
    warnings.filterwarnings("ignore", message=f".*({known})")
    warnings.filterwarnings("ignore", category=NoSuggestionWarning)  # FoundLR prints it
