"""A search for a rate without the training after it."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lr_lightning.app import build
from lr_lightning.app.config import Config
from lr_lightning.app.run.found_lr import print_found
from lr_lightning.app.run.messages import print_start
from lr_lightning.app.run.output import new_output_dir
from lr_lightning.app.run.record import open_logger, recorded, run_id_of, watchdog_of
from lr_lightning.app.run.signals import Interrupts
from lr_lightning.app.run.summary import Outcome, Summary
from lr_lightning.app.run.train import Result, begin, build_run, make_trainer, starting
from lr_lightning.app.world import is_rank_zero
from lr_lightning.errors import ConfigError
from lr_lightning.lr_finder.results import GridTest, RangeTest
from lr_lightning.tracking.keys import hide_password

__all__ = ["find"]


def find(config: Config, overrides: list[str]) -> Result:
    """Build everything as for training, search for a rate, record it as a run of its own, and print what was found.

    Args:
        config: The checked config, with a finder.
        overrides: The command line's, for the command that comes next.

    Raises:
        ConfigError: If the input is bad.
        Interrupted: On SIGTERM or Ctrl-C; the run is KILLED.
    """
    begin(config)
    build.build_schedule(config)
    data, module = build_run(config)
    finder = build.build_finder(config, module)
    if finder is None:
        raise ConfigError("finder: 'none' finds nothing. Give finder=range_test or finder=lr_grid.")
    finder.apply = False
    # as it is recorded: the rate is found, not trained with, so the configured one is no longer to be replaced
    config = replace(config, finder=replace(config.finder, apply=False))  # type: ignore[call-arg]
    folder = new_output_dir(config, job=f"find_lr-{config.finder.name}") if is_rank_zero() else None
    interrupts = Interrupts()
    with starting(folder):
        # nothing is trained: Lightning ends the fit before its first step
        untrained = replace(config, trainer=replace(config.trainer, max_steps=0))
        trainer = make_trainer(untrained, folder, [interrupts, finder, Summary()], num_sanity_val_steps=0)
        logger = open_logger(config, folder, None, data, module, job="find_lr") if folder else None
    if logger:
        trainer.loggers = [logger]
    if folder:
        print_start(config, folder, data, module, None)

    def work() -> Outcome:
        trainer.fit(module, datamodule=data)
        if not finder.results:
            raise ConfigError("trainer.kwargs.fast_dev_run: a development run searches for no rate. Leave it out.")
        result = finder.results[0]
        found = {"suggested_lr": result.suggestion, "base_lr": result.base_lr, "max_lr": result.max_lr}
        return Outcome({name: value for name, value in found.items() if value is not None})

    with interrupts, watchdog_of(logger, config):
        summary = recorded(config, trainer, logger, interrupts, work).summary
    if folder:
        _print(config, folder, finder.results[0], overrides)
    return Result(folder, run_id_of(logger), summary)


def _print(config: Config, folder: Path, found: RangeTest | GridTest, overrides: list[str]) -> None:
    """The table, where figure and points are, and the commands that come next."""
    print_found(found, f"{config.finder.name}: {config.model.name} on {config.data.name}, {config.optimizer.name}")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for path in sorted((folder / "artifacts").rglob("*.[pc][ns][gv]")):
        console.print(path)
    rates = ("finder", "optimizer.lr=", "schedule.max_lr=", "schedule.base_lr=")
    own = [word for word in overrides if not word.lstrip("+").startswith(rates)]
    train = [Path(sys.argv[0]).with_name("train.py"), *own]
    if found.suggestion is not None:
        command = _command(*train, f"optimizer.lr={found.suggestion:.3g}")
        console.print(f"train with it:  {command}")
    elif config.finder.name != "lr_grid":  # which needs no rule to read a curve
        console.print(f"try each rate of a grid:  {_command(sys.argv[0], *own, 'finder=lr_grid')}")
    if found.base_lr is not None and found.max_lr is not None:
        bounds = ["schedule=triangular", f"schedule.base_lr={found.base_lr:.3g}", f"schedule.max_lr={found.max_lr:.3g}"]
        cyclical = [word for word in map(str, train) if not word.lstrip("+").startswith("schedule")]
        console.print(f"in cycles:  {_command(*cyclical, *bounds)}")


def _command(*words: object) -> str:
    return hide_password(shlex.join(["python", *map(str, words)]))
