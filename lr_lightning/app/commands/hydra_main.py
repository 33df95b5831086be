"""`scripts/train.py` and `scripts/find_lr.py`: compose the config, run the job, turn errors into an exit status."""

import gc
import io
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, fields
from itertools import islice, product
from math import comb, prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lr_lightning.app.composition import (
    choices_help,
    explain_overrides,
    keys_help,
    prepare,
    readable,
    refuse_options,
    validate,
    wants_tracebacks,
)
from lr_lightning.app.config import Config
from lr_lightning.app.error_messages import BAD_INPUT, FAILED, explain, explain_divergence, explain_path_of, print_error
from lr_lightning.app.schemas.search import LRGridConfig, RaceConfig, RangeTestConfig
from lr_lightning.app.world import world_size
from lr_lightning.errors import ConfigError, Diverged, RunFailed

if TYPE_CHECKING:
    from lr_lightning.app.run.fork import ForkedRun
    from lr_lightning.app.run.resume import ResumedRun

_MOST_KEYS = 3  # that name the groups of a multirun's comparison
_MOST_GROUPS = 500  # whose colours are chosen beforehand
_NOT_GROUPED = ("seed", "resume")
_FEWEST_SETTINGS = 2  # to compare
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

Keys of finder=race:
{race}

Keys of finder=lr_grid:
{lr_grid}

Choose with group=choice, set any key with key=value, as for train.py:
  python scripts/find_lr.py model=resnet9 optimizer=adam           Smith's range test of what train.py would train
  python scripts/find_lr.py data=cifar10 finder.max_lr=1 finder.repeats=3
  python scripts/find_lr.py finder=lr_grid finder.num_lrs=9        trains each learning rate of a grid for a while
It trains nothing: its steps are undone. You get a learning rate, its curve, and the command of train.py that uses it.
Range test and race answer for the configured schedule and length. Refused: finder=none, experiment, search and resume.
--cfg job shows every key and its value; -m searches one after another for comma-separated values.""",
}


class Multirun:
    """The runs of a multirun, in order. Nothing heavy is imported before there are two runs to compare."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[Config, list[str]]] = {}
        self._name = ""

    def add(self, config: Config, overrides: Sequence[str], name: str, number: int) -> None:
        """Add a run that is about to start to the multirun ``name``; tag, name and colour it by what varies."""
        name_and_colour = _name_and_colour(config, overrides, sys.argv[1:])
        config.tracking.tags = {"sweep": name, "trial": str(number), **name_and_colour, **config.tracking.tags}
        if number == 0:
            from lr_lightning.app.run.messages import places_from_environment

            notes = seeds_note(sys.argv[1:], config), places_from_environment(config.tracking).strip()
            for note in filter(None, notes):
                print(note, flush=True)
        self.take(number, config, overrides, name)

    def take(self, number: int, config: Config, overrides: Sequence[str], name: str) -> None:
        """Add a run that has its tags."""
        self._runs[number] = (config, list(overrides))
        self._name = name

    def compare(self) -> None:
        """Compare the runs and print the result. Never raises."""
        configs = [config for config, _ in self._runs.values()]
        tracked = [config for config in configs if config.tracking.name == "mlflow"]
        with suppress(OSError):  # the terminal may be closed
            if len(configs) > 1:
                print(f"\nsweep {self._name}: {len(configs)} runs, in {configs[-1].output_root}", flush=True)
        if len(tracked) < 2:
            return
        from lr_lightning.app.commands.compare import compare_sweep

        experiments = sorted({config.tracking.experiment_name for config in tracked})
        node, out = tracked[-1].tracking, tracked[-1].output_root
        compare_sweep(node, out, node.tags["sweep"], self._varied_keys(), experiments=experiments)

    def _varied_keys(self) -> list[str]:
        """Return the keys that vary, except the seed and the keys of a learning rate that a finder replaces."""
        ignored = set(_NOT_GROUPED)
        if any(config.keys_set_by_finder() for config, _ in self._runs.values()):
            ignored |= {"optimizer.lr", "schedule.max_lr"}
        values: dict[str, set[str]] = {}
        for _, overrides in self._runs.values():
            for override in overrides:
                key, _, value = override.lstrip("+~").partition("=")
                values.setdefault(key, set()).add(value)
        if len({override.strip("'").rpartition("@")[0] for override in values.get("fork", ())}) == 1:
            values["fork.point"] = values.pop("fork")  # the points of one run, which no group need name
        varied = [key for key, given in values.items() if len(given) > 1 and key not in ignored]
        return varied[:_MOST_KEYS] or ["schedule"]


def _varied_values(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the keys that the command line of a multirun varies, each with its values."""
    try:
        given = OverridesParser.create().parse_overrides([word for word in words if not word.startswith("-")])
    except HydraException:  # the value of an option of Hydra's, such as a config's name
        return {}
    sweeps = [one for one in given if one.is_sweep_override() and not one.is_interval_sweep()]
    return {one.key_or_group: [*one.sweep_string_iterator()] for one in sweeps}


def _name_and_colour(config: Config, overrides: Sequence[str], words: Sequence[str]) -> dict[str, str]:
    """Name a run after the keys that the command line ``words`` varies. Return the tag with its group's colour."""
    from lr_lightning._plotting import style, styles
    from lr_lightning.tracking.keys import COLOUR_TAG, name_values

    varied = {key: [_short_value(key, value) for value in values] for key, values in _varied_values(words).items()}
    given = (word.lstrip("+").partition("=") for word in overrides)
    own = {key: _short_value(key, value) for key, _, value in given if key in varied}
    seed = [f"s{config.seed}"] if "seed" in own else []
    keys = [key for key in varied if key in own and key not in _NOT_GROUPED]
    if not keys or len(own) < len(varied):
        return {}
    config.tracking.run_name = config.tracking.run_name or " ".join(name_values({key: own[key] for key in keys}) + seed)
    several = product(*(varied[key] for key in keys[:_MOST_KEYS]))
    names = [", ".join(name_values(dict(zip(keys, values, strict=False)))) for values in islice(several, _MOST_GROUPS)]
    mine = ", ".join(name_values({key: own[key] for key in keys[:_MOST_KEYS]}))
    return {COLOUR_TAG: (styles(names).get(mine) or style(mine)).colour}


def _short_value(key: str, value: str) -> str:
    """Shorten a value for the name of a run. A fork keeps only its point, because its path is long.

    >>> _short_value("fork", "outputs/20261129-digits@50%"), _short_value("schedule", "wsd")
    ('fork@50%', 'wsd')
    """
    return f"fork@{value.strip(chr(39)).rpartition('@')[2]}" if key == "fork" else value


def seeds_note(words: Sequence[str], config: Config | None = None) -> str:
    """Say how many seeds tell the settings of a multirun apart, and what fewer can show; "" for one setting.

    Earlier runs of the same data set and model in the store of ``config`` tell how large a difference can be proven.
    """
    from lr_lightning.diagnosis.statistics import difference_seen, seeds_needed

    varied = _varied_values(words)
    settings = prod(len(values) for key, values in varied.items() if key not in _NOT_GROUPED)
    if settings < _FEWEST_SETTINGS:
        return ""
    pairs, seeds = comb(settings, 2), len(varied.get("seed", [""]))
    needed, own = seeds_needed(pairs), f"{seeds} seed{'s' * (seeds > 1)}"
    what = (
        f"{settings} settings, {own} each: {pairs} pair{'s' * (pairs > 1)} to compare, for which {needed} seeds are "
        "needed."
    )
    if config is not None:
        from lr_lightning.app.commands.compare import seed_spread

        if (spread := seed_spread(config.tracking, config.data.name, config.model.name)) is not None:
            sd, runs = spread
            seen = difference_seen(max(seeds, needed), sqrt(2) * sd, level=0.05 / pairs)
            what += (
                f" Seeds of {runs} earlier runs of {config.model.name} on {config.data.name} differ by {sd:.2g} "
                f"(standard deviation): {max(seeds, needed)} seeds show differences from about {seen:.2g} on."
            )
    if seeds >= needed:
        return f"{what} A clear difference can be proven."
    few = f'the report can say "better in {seeds} of {seeds} seeds, unproven"' if seeds > 1 else "nothing can be told"
    against = seeds_needed(settings - 1)
    rest = f" (compare.py --against ONE, chosen beforehand, needs {against})" if against < needed else ""
    return f"{what} With {own} {few}. For a proof: seed={','.join(map(str, range(needed)))}{rest}"


@contextmanager
def _composing_once(checkout: Path, words: Sequence[str]) -> Iterator[None]:
    """Stop Hydra from composing the config a second time, which takes 0.25 s, to read a ``hydra.mode`` that is not set.

    The mode may be set by an override, by a config of another place, or by a file of `conf/`.
    """
    from hydra._internal.hydra import Hydra

    elsewhere = any(re.match(r"[+~]*hydra|-(?!m$|-multirun$)", word) for word in words)
    files = (file for file in sorted((checkout / "conf").rglob("*.yaml")) if file.is_file())
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    ask = Hydra.get_mode
    if not elsewhere and not any("hydra" in text and re.search(r"\bmode:|searchpath", text) for text in texts):
        Hydra.get_mode = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = ask  # type: ignore[method-assign]


def main(checkout: Path, job: Job = "train") -> int:
    """Run the command line and return the exit status.

    It is 0; 1 if a run diverged, or lost memory, its disk or a process; 2 for bad input. Any other failure raises;
    SIGTERM, Ctrl-C and SIGHUP exit with 143, 130 and 129. `conf/` lies in ``checkout``; `mlruns/`
    and `outputs/` go there, whatever the working directory.
    """
    if job == "find_lr" and not any(word.startswith("finder=") for word in sys.argv[1:]):
        sys.argv.append("finder=range_test")
    if {"-h", "--help"} & set(sys.argv[1:]):  # Hydra's own composes its config once for each of its groups: seconds
        print(f"{_PURPOSES[job]}\n\nGroups and their choices:\n{choices_help(checkout)}\n\n{_usage(job)}")
        return 0
    prepare(checkout)
    try:
        refuse_options(checkout, sys.argv[1:])
        sys.argv[1:] = readable(sys.argv[1:])
    except ConfigError as e:
        print_error(e)
        return BAD_INPUT
    jobs, status = Jobs(checkout, job), 0
    _results.clear()
    try:
        with _composing_once(checkout, sys.argv[1:]):
            hydra.main(version_base="1.3", config_path=str(checkout / "conf"), config_name="config")(jobs.run)()
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as e:
        if wants_tracebacks() or _results:
            raise
        print_error(explain_overrides(checkout, sys.argv[1:], e))
        return BAD_INPUT
    except RuntimeError as e:  # joblib's, if a process of it was killed
        if not type(e).__module__.startswith(("joblib.", "submitit.")):
            raise
        print_error(f"a process of the launcher is gone ({str(e).splitlines()[0]}).")
        status = FAILED
    except OSError as e:  # the folder of a multirun cannot be made
        message = explain_path_of(e, (f"output_root={checkout / 'outputs'}", *sys.argv[1:]))
        if message is None or wants_tracebacks():
            raise
        print_error(message)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130  # before the run handles signals
    multirun = Multirun()
    for result in (_results[number] for number in sorted(_results)):
        print(result.output, end="")
        if result.run is not None:
            multirun.take(result.number, *result.run)
    multirun.compare()
    messages = [result.message for result in _results.values() if result.message is not None]
    for text, count in Counter(messages).items():  # all runs may fail for one reason, such as a password
        print_error(text if count == 1 else f"{text} ({count} runs)")
    statuses = {status, *(result.status for result in _results.values())} - {0}
    return max((status for status in statuses if status > BAD_INPUT), default=min(statuses, default=0))


@dataclass
class JobResult:
    """How a job ended.

    Hydra's launcher may run the job in another process and send this object back. Unpickling it here adds it to
    ``_results``, and gives Hydra the job's value, which one of its sweepers may need.
    """

    number: int
    value: float | None = None
    status: int = 0
    message: str | None = None
    output: str = ""  # what it printed, if nobody has seen that
    run: tuple[Config, list[str], str] | None = None  # of a multirun: its config, its overrides, the sweep's name

    def __reduce__(self) -> Any:
        return _received, tuple(getattr(self, f.name) for f in fields(self))


_results: dict[int, JobResult] = {}


def _received(*values: Any) -> float | None:
    result = JobResult(*values)
    _results[result.number] = result
    return result.value


class Jobs:
    """The task function of Hydra: runs one job, in this process or in one of the launcher's."""

    def __init__(self, checkout: Path, job: Job) -> None:
        self.checkout, self.job, self.argv = checkout, job, list(sys.argv)
        self._pid, self._stdout = os.getpid(), _identity_of_stdout()

    def run(self, cfg: DictConfig) -> Any:
        """Run a job and report how it ended. If its error were raised, Hydra would print a traceback and stop -m."""
        hydra_config = HydraConfig.get()
        result = JobResult(int(hydra_config.job.num) if hydra_config.mode == RunMode.MULTIRUN else 0)
        if os.getpid() == self._pid:
            _results[result.number] = result
            self._do(cfg, result)
            return result.value
        sys.argv = list(self.argv)  # for the commands that are printed
        prepare(self.checkout)
        shown = _Copy(sys.stdout)
        with nullcontext() if _identity_of_stdout() == self._stdout else redirect_stdout(shown):
            try:
                self._do(cfg, result)
            except SystemExit as e:  # a signal, which must not end the launcher's process
                result.status = e.code if isinstance(e.code, int) else FAILED
        result.output = "".join(shown.texts)
        return result

    def _do(self, cfg: DictConfig, result: JobResult) -> None:
        try:
            result.value = _run_job(cfg, self.job, result)
        except (ConfigError, OmegaConfBaseException, Diverged, RunFailed) as e:
            if wants_tracebacks():
                raise
            result.message = _message(e)
            result.status = FAILED if isinstance(e, Diverged | RunFailed) else BAD_INPUT
        except OSError as e:
            result.message = None if wants_tracebacks() else explain_path_of(e, sys.argv[1:])
            if result.message is None:
                raise
            result.status = BAD_INPUT


class _Copy(io.TextIOBase):
    """Text that is written to a stream and kept."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.texts = stream, list[str]()

    def write(self, text: str) -> int:
        self.texts.append(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


def _identity_of_stdout() -> tuple[int, int] | None:
    try:
        found = os.fstat(1)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _message(error: Exception) -> str:
    if isinstance(error, Diverged):
        return explain_divergence(error)
    return str(error) if isinstance(error, ConfigError | RunFailed) else explain(error)


def _usage(job: Job) -> str:
    finders = {
        "range_test": RangeTestConfig,
        "race": RaceConfig,
        "lr_grid": LRGridConfig,
    }  # without apply: find_lr.py applies nothing
    keys = {name: keys_help("finder", schema, without=["apply"]) for name, schema in finders.items()}
    return _USAGES[job].format_map(keys)


def _run_job(cfg: DictConfig, job: Job, result: JobResult) -> Any:
    """Run one job: the only one, or one of several with `-m`."""
    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    several_jobs = hydra_config.mode == RunMode.MULTIRUN
    _refuse_groups(cfg, job)
    start: ResumedRun | ForkedRun | None
    if cfg.resume is not None:
        from lr_lightning.app.run.resume import stored_config

        config, start = stored_config(cfg, overrides)
    elif cfg.fork is not None:
        from lr_lightning.app.run.fork import forked_config

        config, start = forked_config(cfg, overrides)
    else:
        config, start = validate(cfg), None
    processes = world_size(config.trainer)
    if config.lr_effects is not None and processes > 1:
        raise ConfigError("lr_effects: its runs take one process each. Set trainer.devices=1.")
    if several_jobs and processes > 1:
        raise ConfigError(
            "trainer: -m with several processes would train the ranks on different overrides. "
            "Start the runs one by one, or set trainer.devices=1."
        )
    if several_jobs and config.lr_effects is not None:
        raise ConfigError(
            "experiment: lr_effects has many runs. Leave -m out; give lr_effects.seeds=[...] or lr_effects.lrs=[...]."
        )
    if job == "find_lr":
        from lr_lightning.app.commands.find_lr import run_finder

        return run_finder(config, overrides).summary.get("suggested_lr")
    if config.lr_effects is not None:
        from lr_lightning.app.commands.lr_effects import run_grid

        return run_grid(config)
    if several_jobs:
        name = Path(hydra_config.sweep.dir).name
        Multirun().add(config, overrides, name, result.number)
        result.run = config, overrides, name
    from lr_lightning.app.run.train import train

    if not several_jobs:
        return train(config, start).objective
    if len(_results) == 1:
        gc.freeze()  # the collector then skips the imported objects after each run
    try:
        return _run_in_a_line(config, start, _place_in_multirun(hydra_config, overrides)).objective
    except ConfigError:
        result.run = None  # it could not start
        raise
    finally:
        gc.collect()  # a model and its trainer refer to each other


def _run_in_a_line(config: Config, start: Any, title: str) -> Any:
    """Run one job of a multirun, and print a line: what varies, and the result."""
    from lr_lightning.app.run.messages import outcome_line
    from lr_lightning.app.run.train import train

    on_terminal = sys.stdout.isatty()  # which shows a bar meanwhile
    print(title, end="\n" if on_terminal else ": ", flush=True)
    try:
        outcome = train(config, start, report=False, notes=True)
    except (ConfigError, RunFailed, Diverged) as e:
        print(e.headline if isinstance(e, Diverged) else f"failed: {str(e).splitlines()[0]}", flush=True)
        raise
    print(f"  {outcome_line(outcome)}" if on_terminal else outcome_line(outcome), flush=True)
    return outcome


def _place_in_multirun(hydra_config: Any, overrides: Sequence[str]) -> str:
    """Return ``run 3 of 18`` and what varies; without the number of runs if a sweeper of another kind chooses them."""
    place, words = f"run {hydra_config.job.num + 1}", [word for word in sys.argv[1:] if not word.startswith("-")]
    if str(hydra_config.sweeper._target_).endswith(".BasicSweeper"):
        words += [f"{key}={value}" for key, value in (hydra_config.sweeper.params or {}).items()]
        swept = [parsed for parsed in OverridesParser.create().parse_overrides(words) if parsed.is_sweep_override()]
        place += f" of {math.prod(sum(1 for _ in parsed.sweep_iterator()) for parsed in swept)}"
        keys = {parsed.key_or_group for parsed in swept}
        varied = [word for word in overrides if word.lstrip("+").partition("=")[0] in keys]
    else:
        varied = [word for word in overrides if word not in words]
    return f"{place}: {', '.join(varied)}" if varied else place


def _refuse_groups(cfg: DictConfig, job: Job) -> None:
    """Refuse the groups and keys of another command."""
    if cfg.search is not None:
        raise ConfigError("search: belongs to scripts/search.py. Start that script, or leave search out.")
    if job == "find_lr" and cfg.lr_effects is not None:
        raise ConfigError("experiment: find_lr.py cannot run lr_effects. Leave it out.")
    if cfg.resume is not None and cfg.fork is not None:
        raise ConfigError("fork: cannot be given with resume, which brings its own checkpoint. Leave one of them out.")
    if job == "find_lr" and cfg.fork is not None:
        raise ConfigError("fork: a search trains nothing. Leave fork out, or give ckpt=... its weights.")
    if job == "find_lr" and cfg.resume is not None:
        raise ConfigError("resume: a stopped run has its lr already. Leave resume out, or give ckpt=... its weights.")
