"""`scripts/train.py`: Hydra composes the config, and every error of input becomes one message and an exit status."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lr_lightning.app.checks import validate
from lr_lightning.app.commands.multirun import Sweep
from lr_lightning.app.composition import keys_help, prepare, wants_tracebacks
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import BAD_INPUT, FAILED, explain, explain_divergence, print_error
from lr_lightning.app.schemas.search import LRGridConfig, RangeTestConfig
from lr_lightning.app.world import world_size
from lr_lightning.errors import ConfigError, Diverged, RunFailed

Job = Literal["train", "find_lr"]
_PURPOSES: dict[Job, str] = {
    "train": "Train a CNN on a learning-rate schedule; the run is tracked in MLflow.",
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
  python scripts/find_lr.py finder=lr_grid finder.num_lrs=9        each rate of a grid trained for a while
It trains nothing: the steps it takes are thrown away, and what stays is a rate, its curve, and the command of train.py
that takes it. A schedule only goes into that command; finder=none, experiment, search and resume are refused.
--cfg job shows every key and its value; -m searches one after another for comma-separated values.""",
}


def main(root: Path, job: Job = "train") -> int:
    """Run the command line.

    Args:
        root: The checkout: `conf/`, and where `mlruns/` and `outputs/` go, whatever the working directory.
        job: What to do with a config: train, or only search for a rate.

    Returns:
        The exit status: 0; 1 if a run diverged, lost a process or its disk; 2 for bad input. Any other failure
        raises; SIGTERM, Ctrl-C and SIGHUP exit with 143, 130 and 129.
    """
    if job == "find_lr" and not any(word.startswith("finder=") for word in sys.argv[1:]):
        sys.argv.append("finder=range_test")
    prepare(root, _PURPOSES[job], lambda: _usage(job))
    errors: list[Exception] = []
    composed = False
    sweep = Sweep()

    def one(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        # Errors are kept rather than raised: Hydra would print a traceback, and they must not end the other jobs of -m.
        try:
            return _job(cfg, job, sweep)
        except (ConfigError, OmegaConfBaseException, Diverged, RunFailed) as e:
            if wants_tracebacks():
                raise
            errors.append(e)

    try:
        hydra.main(version_base="1.3", config_path=str(root / "conf"), config_name="config")(one)()
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as e:
        if wants_tracebacks() or composed:
            raise
        errors.append(e)
    except KeyboardInterrupt:
        return 130  # before the run itself takes care of it
    sweep.compare()
    said = Counter(_message(e) for e in errors)
    for text, count in said.items():  # the runs of a sweep may all fail of one thing, such as a password
        print_error(text if count == 1 else f"{text} ({count} runs)")
    if not errors:
        return 0
    return FAILED if any(isinstance(e, Diverged | RunFailed) for e in errors) else BAD_INPUT


def _message(error: Exception) -> str:
    if isinstance(error, Diverged):
        return explain_divergence(error)
    return str(error) if isinstance(error, ConfigError | RunFailed) else explain(error)


def _usage(job: Job) -> str:
    # finder.apply is not listed: a search that trains nothing has nothing to apply a rate to
    keys = {
        "range_test": keys_help("finder", RangeTestConfig, without=["apply"]),
        "lr_grid": keys_help("finder", LRGridConfig, without=["apply"]),
    }
    return _USAGES[job].format_map(keys)


def _job(cfg: DictConfig, job: Job, sweep: Sweep) -> Any:
    """One job of Hydra's: a run, or one of several with `-m`."""
    overrides = list(HydraConfig.get().overrides.task)
    many = HydraConfig.get().mode == RunMode.MULTIRUN
    _refuse_together(cfg, job)
    if cfg.resume is not None:
        from lr_lightning.app.run.resume import stored_config

        config, resumed = stored_config(cfg, overrides)
    else:
        config, resumed = validate(cfg), None
    _refuse_processes(config, many=many)
    if many and job == "train":
        # a launcher of its own, such as submitit's, has each job in another process: the number is Hydra's
        sweep.add(config, overrides, Path(HydraConfig.get().sweep.dir).name, int(HydraConfig.get().job.num))
    if job == "find_lr":
        from lr_lightning.app.commands.find_lr import find_lr

        return find_lr(config, overrides).summary.get("suggested_lr")
    if config.study is not None:
        from lr_lightning.app.commands.lr_effects import run_study

        return run_study(config)
    from lr_lightning.app.run.train import train

    try:
        return train(config, resumed).objective
    except ConfigError:
        sweep.forget(config)
        raise


def _refuse_together(cfg: DictConfig, job: Job) -> None:
    """What does not go with this command."""
    if cfg.search is not None:
        raise ConfigError("search: is what scripts/search.py takes. Start that one, or leave search out.")
    if job == "find_lr" and cfg.study is not None:
        raise ConfigError("experiment: a study is no search for a rate. Leave it out.")
    if job == "find_lr" and cfg.resume is not None:
        raise ConfigError("resume: a stopped run has its rate already. Leave resume out, or give ckpt=... its weights.")


def _refuse_processes(config: Config, *, many: bool) -> None:
    """What several processes, or several runs (with `-m`), cannot do."""
    several = world_size(config.trainer) > 1
    if config.study is not None and several:
        raise ConfigError("study: its runs take one process each. Set trainer.devices=1.")
    if many and several:
        raise ConfigError(
            "trainer: -m with several processes would train the ranks on different overrides. "
            "Start the runs one by one, or set trainer.devices=1."
        )
    if many and config.study is not None:
        raise ConfigError(
            "experiment: a study is a sweep of its own. Leave -m out; give study.seeds=[...] or study.lrs=[...]."
        )
