"""What a search says: a line a trial while it runs, and at its end the table, the best trial, and a comparison."""

import csv
import io
import secrets
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from lr_lightning._commands import override, python_command
from lr_lightning.app.config import Config
from lr_lightning.search.settings import Search
from lr_lightning.search.space import Range, Value
from lr_lightning.search.study import Study, StudySummary, Trial, number_of, patient, rank_key, result_of
from lr_lightning.search.task import Call, TrialOutcome
from lr_lightning.tracking.files import write_atomically
from lr_lightning.tracking.keys import hide_password

_SHOWN = 10
_MOST_KEYS = 4  # that name a trial in the comparison
_FEW = 10
"""Complete trials below which an importance is a guess."""


def say(console: Console, text: str) -> None:
    """Print a line without wrapping or markup."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def format_seconds(seconds: float) -> str:
    """Format a duration: ``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_count(number: float, noun: str) -> str:
    """Format a number of things: ``1 trial``, ``3 trials``, ``0.5 hours``."""
    return f"{number:.15g} {noun}{'' if number == 1 else 's'}"


def _format_point(point: Mapping[str, Value]) -> str:
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else override(key, value) for key, value in point.items()
    )


def _format_value(value: float, error: float | None) -> str:
    return f"{value:.4g}" + (f" ± {error:.2g}" if error is not None else "")


class Progress:
    """Shows a line for each trial, and on a terminal a bar with the best value and the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started, self._told = time.monotonic(), 0
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self.bar.add_task("trials", total=None, note="")
        self._said: str | None = None

    def say(self, text: str) -> None:
        """Print a line, unless it is the one before."""
        if text != self._said:
            say(self.console, text)
        self._said = text

    def tell(self, trial: Trial, outcome: TrialOutcome, summary: StudySummary) -> None:
        """Show a trial that has ended."""
        done, total, best = len(summary.ended), len(summary.ended) + summary.left, summary.best
        self._told += 1
        waiting = total - done
        left = (time.monotonic() - self._started) / self._told * waiting
        rest = f"; about {format_seconds(left)} left" if waiting else ""
        top = ""
        if best is not None and best.value is not None:
            top = f"; best {best.value:.4g} (trial {number_of(best)})"
        values, result = _format_point(trial.point), _format_outcome(outcome)
        self.say(f"[{done}/{total}] trial {trial.number}: {values}: {result}{top}{rest}")
        self.bar.update(self._task, completed=done, total=total, note=f"{top.lstrip('; ')}{rest}")


def _format_outcome(outcome: TrialOutcome) -> str:
    seconds = format_seconds(float(outcome.attributes.get("seconds") or 0))
    if outcome.state == TrialState.COMPLETE and outcome.value is not None:
        return f"{_format_value(outcome.value, outcome.attributes.get('error'))}, {seconds}"
    word = "pruned" if outcome.state == TrialState.PRUNED else "failed"
    reason = (outcome.reason or "").splitlines()
    return f"{word} after {seconds} ({reason[0] if reason else 'no reason is known'})"


def conclude(search: Search, study: Study, console: Console, call: Call, *, compare: bool) -> None:
    """Print and write the results; one machine of all also compares and records the trials, if `compare`."""
    summary = study.summary()
    ended, best = summary.ended, summary.best
    table = write_table(search, summary)
    _print_trials(search, ended, console)
    shares = importances(study, search)
    if shares:
        text = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
        count = sum(t.state == TrialState.COMPLETE for t in ended.values())
        doubt = f" (of {count} trials only: a guess)" if count < _FEW else ""
        say(console, f"importance:  {text}{doubt}")
    command = None if best is None else best_command(search, best)
    if command is not None:
        say(console, f"train with the best:  {command}")
        if summary.equal > 1:
            say(console, f"{summary.equal} trials share its value; the lowest validation loss decided between them")
    else:
        say(console, "no trial is complete, so there is no best one; trials.csv has the reasons")
    say(console, f"trials:  {table}")
    if summary.left:
        state = "is left or runs" if summary.left == 1 else "are left or run"
        say(console, f"{format_count(summary.left, 'trial')} {state} elsewhere; resume:  {resume_command(search)}")
    if not compare or search.config.tracking.name != "mlflow":
        return
    if study.optuna.user_attrs.get("compared") == len(ended):
        again = python_command("compare.py", "--filter", f"tags.sweep = '{search.name}'")
        say(console, f"compared before:  {again}")
        return
    patient(study.optuna.set_user_attr)("compared", len(ended))
    print(flush=True)
    numbers = {"trials": float(len(ended))}
    if best is not None and best.value is not None:
        numbers["best_objective"] = best.value
    note = f"`best: {command}`" if command else "`no trial is complete`"
    note = f"{note}\n\n" + "\n".join(f"- {key}: {share:.0%}" for key, share in shares.items())
    folder = search.folder / f"record-{secrets.token_hex(2)}"
    asked = {"by": _compared_by(search), "metric": search.monitor, "higher_is_better": search.monitor_higher}
    call(compare_and_record, search.config, search.name, asked, folder, table, note.strip(), numbers)


def compare_and_record(
    config: Config,
    name: str,
    asked: Mapping[str, Any],
    folder: Path,
    table: Path,
    note: str,
    numbers: Mapping[str, float],
) -> None:
    """Compare the trials, and record the search as a run in MLflow. Neither failing is an error."""
    from lr_lightning.app.commands.compare import compare_sweep
    from lr_lightning.app.run.record import sweep_record

    node = config.tracking
    compare_sweep(node, config.output_root, name, experiments=[node.experiment_name], brief=True, **asked)
    try:
        with sweep_record(config, folder, name, "search") as logger:
            logger.log_artifact(table)
            logger.log_note(note)
            logger.log_summary(dict(numbers))
    except Exception as e:
        print(f"the search itself is not recorded: {type(e).__name__}: {e}", file=sys.stderr)


def _compared_by(search: Search) -> list[str]:
    """Return the keys that name the groups of the comparison: the searched keys, or ``trial`` if they are many."""
    keys = list(search.space.keys)
    lrs = [key for key in keys if key.endswith(".lr")]
    return keys if len(keys) <= _MOST_KEYS else ["trial", *lrs]


def write_table(search: Search, summary: StudySummary) -> Path:
    """Write ``trials.csv`` into the search's folder, a row for each trial that has ended."""
    keys = list(search.space.keys)
    names = ["trial", "state", search.node.objective, "standard_error", *keys, "epochs", "seconds", "verdict", "reason"]
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "runs"])
    for number, trial in sorted(summary.ended.items()):
        result = result_of(trial)
        value = trial.value if trial.state == TrialState.COMPLETE else None
        cells = [number, _state(trial), value, result.get("error"), *map(_point_of(search, trial).get, keys)]
        cells += [result.get(name) for name in ("epochs", "seconds", "verdict", "reason")]
        writer.writerow([*cells, " ".join(result.get("runs", []))])
    search.folder.mkdir(parents=True, exist_ok=True)
    table = search.folder / "trials.csv"
    write_atomically(table, out.getvalue())
    return table


def best_command(search: Search, best: FrozenTrial) -> str:
    """Return the command that trains with the best trial's values; the seed is not a part of it."""
    script = Path(sys.argv[0]).with_name("train.py")
    return hide_password(python_command(script, *search.composer.overrides(_point_of(search, best))))


def resume_command(search: Search) -> str:
    """Return the command that resumes this search."""
    words = [word for word in sys.argv[1:] if not word.startswith(("sweep=", "search.sweep="))]
    return hide_password(python_command(Path(sys.argv[0]), *words, f"sweep={search.name}"))


def importances(study: Study, search: Search) -> dict[str, float]:
    """Return each key's share in the variance of the objective (functional ANOVA), the largest first.

    It is empty if too little varies to tell. A key with a condition is left out unless that held in every trial.

    Source: Hutter, Hoos & Leyton-Brown 2014 (ICML, PMLR 32).
    """
    complete = [t for t in study.trials(TrialState.COMPLETE) if t.value is not None]
    if len(search.space.keys) < 2 or len(complete) < 4 or len({t.value for t in complete}) < 2:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            found: dict[str, float] = optuna.importance.get_param_importances(study.optuna, evaluator=evaluator)
    except (ValueError, RuntimeError):
        return {}
    return found


def _state(trial: FrozenTrial) -> str:
    return {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")


def _point_of(search: Search, trial: FrozenTrial) -> dict[str, Value]:
    """Return the values that a trial was trained with."""
    given = {key: (domain, trial.params[key]) for key, domain in search.space.keys.items() if key in trial.params}
    return {
        key: domain.short(value) if isinstance(domain, Range) and isinstance(value, float) else value
        for key, (domain, value) in given.items()
    }


def _print_trials(search: Search, ended: Mapping[int, FrozenTrial], console: Console) -> None:
    states = [_state(trial) for trial in ended.values()]
    counts = ", ".join(f"{states.count(name)} {name}" for name in ("complete", "pruned", "failed") if name in states)
    table = Table(title=f"{search.name}: {counts or 'no trial has ended'}", title_justify="left")
    for name in ("trial", search.node.objective, "values", "time", "verdict"):
        table.add_column(name, justify="left" if name in ("values", "verdict") else "right")
    best_first = sorted(ended.items(), key=lambda item: (rank_key(item[1], higher=search.higher), item[0]))
    for number, trial in best_first[:_SHOWN]:
        value, result = _state(trial), result_of(trial)
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            value = _format_value(trial.value, result.get("error"))
        seconds = format_seconds(float(result.get("seconds") or 0))
        table.add_row(str(number), value, _format_point(_point_of(search, trial)), seconds, result.get("verdict") or "")
    console.print(table)
    if len(ended) > _SHOWN:
        say(console, f"... and {len(ended) - _SHOWN} more")
