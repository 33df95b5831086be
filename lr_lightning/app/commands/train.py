"""`scripts/train.py` and `scripts/find_lr.py`: compose the config, run the job, turn errors into an exit status."""

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lr_lightning.app.composition import keys_help, prepare, validate, wants_tracebacks
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import BAD_INPUT, FAILED, explain, explain_divergence, print_error
from lr_lightning.app.schemas.search import LRGridConfig, RangeTestConfig
from lr_lightning.app.world import world_size
from lr_lightning.errors import ConfigError, Diverged, RunFailed

_MOST_KEYS = 3  # that name the groups of a multirun's comparison
Job = Literal["train", "find_lr"]
_PURPOSES: dict[Job, str] = {
    "train": "Train a CNN on a learning rate schedule; the run is tracked in MLflow.",
    "find_lr": "Search for a learning rate, without training; the search is tracked in MLflow.",
}
_USAGES: dict[Job, str] = {
    "train": """Choose with group=choice, set any key with key=value:
  python scripts/train.py schedule=constant optimizer.lr=0.05 trainer.max_epochs=30
--cfg job shows every key and its value; -m runs one after another for comma-separated values.""",
    "find_lr": """Keys of finder=range_test, which is the default:
{range_test}

Keys of finder=lr_grid:
{lr_grid}

Choose with group=choice, set any key with key=value, as for train.py:
  python scripts/find_lr.py model=resnet9 optimizer=adam           Smith's range test of what train.py would train
  python scripts/find_lr.py data=cifar10 finder.max_lr=1 finder.repeats=3
  python scripts/find_lr.py finder=lr_grid finder.num_lrs=9        trains each learning rate of a grid for a while
It trains nothing: its steps are undone. You get a learning rate, its curve, and the command of train.py that uses it.
The schedule only appears in that command; finder=none, experiment, search and resume are refused.
--cfg job shows every key and its value; -m searches one after another for comma-separated values.""",
}


class Multirun:
    """The runs of a multirun, in order. Nothing heavy is imported before there are two runs to compare."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[Config, list[str]]] = {}
        self._name = ""

    def add(self, config: Config, overrides: Sequence[str], name: str, number: int) -> None:
        """Add a run that is about to start to the multirun ``name``, and give it the tags `sweep` and `trial`."""
        config.tracking.tags = {"sweep": name, "trial": str(number), **config.tracking.tags}
        self._runs[number] = (config, list(overrides))
        self._name = name

    def forget(self, number: int) -> None:
        """Leave out a run that could not start."""
        self._runs.pop(number, None)

    def compare(self) -> None:
        """Compare the runs and print the result. Never raises."""
        tracked = [config for config, _ in self._runs.values() if config.tracking.name == "mlflow"]
        if len(tracked) < 2:
            return
        with suppress(OSError):  # the terminal may be closed
            print(f"\nsweep {self._name}: {len(self._runs)} runs", flush=True)
        from lr_lightning.app.commands.compare import compare_sweep

        experiments = sorted({config.tracking.experiment for config in tracked})
        compare_sweep(tracked[-1], tracked[-1].tracking.tags["sweep"], self._varied_keys(), experiments)

    def _varied_keys(self) -> list[str]:
        """Return the keys that vary, except the seed and the keys of a learning rate that a finder replaces."""
        ignored = {"seed", "resume"}
        if any(config.keys_set_by_finder() for config, _ in self._runs.values()):
            ignored |= {"optimizer.lr", "schedule.max_lr"}
        values: dict[str, set[str]] = {}
        for _, overrides in self._runs.values():
            for override in overrides:
                key, _, value = override.lstrip("+~").partition("=")
                values.setdefault(key, set()).add(value)
        varied = [key for key, given in values.items() if len(given) > 1 and key not in ignored]
        return varied[:_MOST_KEYS] or ["schedule"]


def main(root: Path, job: Job = "train") -> int:
    """Run the command line and return the exit status.

    It is 0; 1 if a run diverged, or lost memory, its disk or a process; 2 for bad input. Any other failure raises;
    SIGTERM, Ctrl-C and SIGHUP exit with 143, 130 and 129. ``root`` is the checkout: it holds `conf/`, and `mlruns/` and
    `outputs/` go there, whatever the working directory.
    """
    if job == "find_lr" and not any(word.startswith("finder=") for word in sys.argv[1:]):
        sys.argv.append("finder=range_test")
    prepare(root, _PURPOSES[job], lambda: _usage(job))
    errors: list[Exception] = []
    composed = False
    multirun = Multirun()

    def run_job(cfg: DictConfig) -> Any:
        """Run one job, and keep its error for the end; Hydra would print a traceback and skip the other jobs of -m."""
        nonlocal composed
        composed = True
        try:
            return _run_job(cfg, job, multirun)
        except (ConfigError, OmegaConfBaseException, Diverged, RunFailed) as e:
            if wants_tracebacks():
                raise
            errors.append(e)

    try:
        hydra.main(version_base="1.3", config_path=str(root / "conf"), config_name="config")(run_job)()
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as e:
        if wants_tracebacks() or composed:
            raise
        errors.append(e)
    except KeyboardInterrupt:
        return 130  # before the run handles signals
    multirun.compare()
    for text, count in Counter(map(_message, errors)).items():  # all runs may fail for one reason, such as a password
        print_error(text if count == 1 else f"{text} ({count} runs)")
    if not errors:
        return 0
    return FAILED if any(isinstance(e, Diverged | RunFailed) for e in errors) else BAD_INPUT


def _message(error: Exception) -> str:
    if isinstance(error, Diverged):
        return explain_divergence(error)
    return str(error) if isinstance(error, ConfigError | RunFailed) else explain(error)


def _usage(job: Job) -> str:
    finders = {"range_test": RangeTestConfig, "lr_grid": LRGridConfig}  # without apply: find_lr.py applies nothing
    keys = {name: keys_help("finder", schema, without=["apply"]) for name, schema in finders.items()}
    return _USAGES[job].format_map(keys)


def _run_job(cfg: DictConfig, job: Job, multirun: Multirun) -> Any:
    """Run one job: the only one, or one of several with `-m`."""
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    several_jobs = hydra_config.mode == RunMode.MULTIRUN
    _refuse_groups(cfg, job)
    if cfg.resume is not None:
        from lr_lightning.app.run.resume import stored_config

        config, resumed = stored_config(cfg, overrides)
    else:
        config, resumed = validate(cfg), None
    processes = world_size(config.trainer)
    if config.study is not None and processes > 1:
        raise ConfigError("study: its runs take one process each. Set trainer.devices=1.")
    if several_jobs and processes > 1:
        raise ConfigError(
            "trainer: -m with several processes would train the ranks on different overrides. "
            "Start the runs one by one, or set trainer.devices=1."
        )
    if several_jobs and config.study is not None:
        raise ConfigError("experiment: a study has many runs. Leave -m out; give study.seeds=[...] or study.lrs=[...].")
    if job == "find_lr":
        from lr_lightning.app.commands.find_lr import find_lr

        return find_lr(config, overrides).summary.get("suggested_lr")
    if config.study is not None:
        from lr_lightning.app.commands.lr_effects import run_study

        return run_study(config)
    if several_jobs:
        number = int(hydra_config.job.num)  # Hydra counts: a launcher such as submitit's runs each job elsewhere
        multirun.add(config, overrides, Path(hydra_config.sweep.dir).name, number)
    from lr_lightning.app.run.train import train

    try:
        return train(config, resumed).objective
    except ConfigError:
        if several_jobs:
            multirun.forget(number)
        raise


def _refuse_groups(cfg: DictConfig, job: Job) -> None:
    """Refuse the groups and keys of another command."""
    if cfg.search is not None:
        raise ConfigError("search: belongs to scripts/search.py. Start that script, or leave search out.")
    if job == "find_lr" and cfg.study is not None:
        raise ConfigError("experiment: find_lr.py cannot run a study. Leave it out.")
    if job == "find_lr" and cfg.resume is not None:
        raise ConfigError("resume: a stopped run has its lr already. Leave resume out, or give ckpt=... its weights.")
