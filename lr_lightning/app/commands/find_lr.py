"""`scripts/find_lr.py`: search for a learning rate without training."""

import math
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from lr_lightning._commands import python_command
from lr_lightning.app import build
from lr_lightning.app.config import Config
from lr_lightning.app.run.train import RunOutcome, build_data_and_module, open_run, prepare_process
from lr_lightning.callbacks.lr_finder import LRFinder
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.errors import ConfigError
from lr_lightning.lr_finder.planned_run import PlannedRun
from lr_lightning.lr_finder.results import GridTest, RangeTest
from lr_lightning.schedules import WSD, Clock, Constant, Cosine, Linear
from lr_lightning.tracking.keys import hide_password

__all__ = ["run_finder"]

_SCHEDULES = {"constant": Constant(), "linear": Linear(1, 0), "cosine": Cosine(1, 0), "wsd": WSD()}
_LR_KEYS = ("finder", "optimizer.lr=", "schedule.max_lr=", "schedule.base_lr=")


def run_finder(config: Config, overrides: list[str]) -> RunOutcome:
    """Build everything as for training, search for a learning rate, record the search as a run, and print the result.

    The outcome's summary has ``suggested_lr``, ``base_lr`` and ``max_lr``, if they were found. The overrides of
    the command line are for the next command.
    """
    prepare_process(config.trainer, config.output_root)
    schedules = build.build_schedules(config.schedule, config.optimizer.lr)
    data, module = build_data_and_module(config)
    finder = build.build_finder(config.finder, module, config.trainer.progress, config.output_root)
    if finder is None:
        raise ConfigError("finder: 'none' finds nothing. Give finder=range_test, finder=race or finder=lr_grid.")
    finder.apply = False
    if isinstance(finder, LRFinder):
        planned = LRSchedule(schedules.lr, momentum=schedules.momentum, total_steps=config.schedule.total_steps)
        finder.answer_for(planned, config.trainer.max_steps, config.trainer.max_epochs)
    # The record says so too: nothing trains with the found lr, so it does not replace the configured one.
    config = replace(config, finder=replace(config.finder, apply=False))  # type: ignore[call-arg]
    run = open_run(config, data, module, [finder], job="find_lr")

    def work() -> RunOutcome:
        run.trainer.fit(module, datamodule=data)
        if not finder.results:
            raise ConfigError("trainer.kwargs.fast_dev_run: a development run does not search. Leave it out.")
        found = finder.results[0]
        lrs = {"suggested_lr": found.suggestion, "base_lr": found.cycle_base_lr, "max_lr": found.cycle_max_lr}
        return RunOutcome({name: lr for name, lr in lrs.items() if lr is not None})

    outcome = run.record(work)
    if run.folder:
        found = finder.results[0]
        _print_found(found, f"{config.finder.name}: {config.model.name} on {config.data.name}, {config.optimizer.name}")
        console = Console(highlight=False, markup=False, soft_wrap=True)
        for path in sorted((run.folder / "artifacts").rglob("*.[pc][ns][gv]")):
            console.print(path)
        for name, command in _next_commands(found, overrides):
            console.print(f"{name}:  {hide_password(command)}")
        if others := _other_schedules(found, config.schedule.name):
            console.print(others)
    return outcome


def _next_commands(found: RangeTest | GridTest, overrides: list[str]) -> list[tuple[str, str]]:
    """Return the commands that train with the found learning rate, or that search for one without a rule."""
    own = [word for word in overrides if not word.lstrip("+").startswith(_LR_KEYS)]
    script, commands = Path(sys.argv[0]), []
    train = script.with_name("train.py")
    if found.suggestion is not None:
        commands.append(("train with it", python_command(train, *own, f"optimizer.lr={found.suggestion:.3g}")))
    elif isinstance(found, RangeTest):  # a grid needs no rule to read a curve
        commands.append(("try each learning rate of a grid", python_command(script, *own, "finder=lr_grid")))
    low, high = found.cycle_base_lr, found.cycle_max_lr
    if low is not None and high is not None:
        bounds = ["schedule=triangular", f"schedule.base_lr={low:.3g}", f"schedule.max_lr={high:.3g}"]
        others = [word for word in own if not word.lstrip("+").startswith("schedule")]
        commands.append(("in cycles", python_command(train, *others, *bounds)))
    return commands


def _other_schedules(found: RangeTest | GridTest, configured: str) -> str:
    """Say what the suggestion becomes on other schedules of the same length; "" if its run is not known."""
    run = found.planned if isinstance(found, RangeTest) else None
    if run is None or found.suggestion is None:
        return ""
    clock = Clock(run.steps)
    others = {name: schedule for name, schedule in _SCHEDULES.items() if name != configured}
    lrs = {name: run.equivalent_lr(found.suggestion, PlannedRun.of(other, clock)) for name, other in others.items()}
    return "with another schedule:  " + ", ".join(f"schedule={name} optimizer.lr={lr:.2g}" for name, lr in lrs.items())


def _print_found(found: RangeTest | GridTest, title: str) -> None:
    """Print the table of a search: its suggestion and other rules', or the score of each learning rate."""
    if isinstance(found, RangeTest):
        table = Table("rule", Column("lr", justify="right"), Column("plausible", justify="right"))
        lrs = {
            "suggestion": found.suggestion,
            **({"suggestion, if the lr is constant": found.if_constant} if found.if_constant else {}),
            **({"from the range test alone": found.reading.suggestion} if found.trials else {}),
            "base_lr, for a cyclical schedule": found.cycle_base_lr,
            "max_lr, for a cyclical schedule": found.cycle_max_lr,
            **{f"for comparison: {name}": lr for name, lr in found.rules.items()},
        }
        plausible = "" if found.interval is None else f"{found.interval[0]:.2g} to {found.interval[1]:.2g}"
        for name, lr in lrs.items():
            own = plausible if name == "suggestion" else ""
            table.add_row(name, "none" if lr is None else f"{lr:.3g}", own)
    else:
        names = "lr", f"{found.metric} after {found.num_steps} steps", "± s.e."
        table = Table(*(Column(name, justify="right") for name in names))
        for lr, mean, error in zip(found.lrs, found.mean_scores, found.errors, strict=True):
            best = "  ← best" if lr == found.suggestion else ""
            score = "diverged" if math.isnan(mean) else f"{mean:.4g}{best}"
            table.add_row(f"{lr:.3g}", score, f"{error:.2g}" if error else "")
    table.title, table.title_justify = title, "left"
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(found.describe().removesuffix(".") + ".", soft_wrap=True)
