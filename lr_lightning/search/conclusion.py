"""What a search came to: the table of its trials, the best one as a command, what mattered, and the comparison."""

import csv
import io
import secrets
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from lr_lightning.app.commands.multirun import compare_sweep
from lr_lightning.app.run.record import sweep_record
from lr_lightning.search.progress import in_words, say, values
from lr_lightning.search.settings import Search
from lr_lightning.search.standing import Standing, order, result_of
from lr_lightning.search.storage import patient
from lr_lightning.search.study import Study
from lr_lightning.tracking.files import write_atomically
from lr_lightning.tracking.keys import hide_password

__all__ = ["best_command", "conclude", "importances", "write_table"]

_SHOWN = 10
_FEWEST = 10  # complete trials below which an importance is a guess


def conclude(search: Search, study: Study, console: Console, *, compare: bool) -> None:
    """Print and write what came out; compare the trials; record it all as a run of its own.

    Args:
        search: The search.
        study: Its study.
        console: Where it is printed.
        compare: Whether the trials are compared and recorded: one of several workers does it, and once.
    """
    standing = study.standing()
    ended, best = standing.ended, standing.best
    table = write_table(search, standing)
    _print_trials(search, ended, console)
    command = None if best is None else best_command(search, best)
    found = importances(study, search)
    if found:
        text = ", ".join(f"{key} {share:.0%}" for key, share in found.items())
        few = sum(t.state == TrialState.COMPLETE for t in ended.values())
        doubt = f" (of {few} trials only: a guess)" if few < _FEWEST else ""
        say(console, f"importance:  {text}{doubt}")
    if command is not None:
        say(console, f"train with the best:  {command}")
        if standing.equal > 1:
            text = f"{standing.equal} trials share its value; the lowest validation loss decided between them"
            say(console, text)
    else:
        say(console, "no trial is complete, so there is no best one; trials.csv has the reasons")
    say(console, f"trials:  {table}")
    if standing.left:
        text = f"{standing.left} trials are left or run elsewhere; go on:  {same_again(search)}"
        say(console, text)
    if not compare or search.config.tracking.name != "mlflow":
        return
    if study.study.user_attrs.get("compared") == len(ended):
        text = f"compared before:  python scripts/compare.py --filter \"tags.sweep = '{search.name}'\""
        say(console, text)
        return
    patient(study.study.set_user_attr)("compared", len(ended))
    print(flush=True)
    tracking = search.config.tracking
    compare_sweep(tracking, search.config.output_root, search.name, _by(search), [tracking.experiment], brief=True)
    _record(search, standing, table, command, found)


def write_table(search: Search, standing: Standing) -> Path:
    """Write ``trials.csv`` into the search's folder, a row for each trial that has ended."""
    search.folder.mkdir(parents=True, exist_ok=True)
    table = search.folder / "trials.csv"
    write_atomically(table, _csv(search, standing.ended))
    return table


def best_command(search: Search, best: FrozenTrial) -> str:
    """The best trial as a command line; its seed stays the training's own."""
    script = Path(sys.argv[0]).with_name("train.py")
    point = {key: best.params[key] for key in search.space.keys if key in best.params}
    return hide_password(shlex.join(["python", str(script), *search.composer.overrides(point)]))


def same_again(search: Search) -> str:
    """The command that goes on with this search."""
    words = [word for word in sys.argv[1:] if not word.startswith(("sweep=", "search.sweep="))]
    return hide_password(shlex.join(["python", sys.argv[0], *words, f"sweep={search.name}"]))


def importances(study: Study, search: Search) -> dict[str, float]:
    """Each key's share in the variance of the objective (functional ANOVA), the largest first.

    There are none where too little varies to tell. Keys under a condition are left out, unless it held in all trials.

    Source: Hutter, Hoos & Leyton-Brown 2014 (ICML, PMLR 32).
    """
    complete = [t for t in study.trials(TrialState.COMPLETE) if t.value is not None]
    if len(search.space.keys) < 2 or len(complete) < 4 or len({t.value for t in complete}) < 2:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            found: dict[str, float] = optuna.importance.get_param_importances(study.study, evaluator=evaluator)
    except (ValueError, RuntimeError):
        return {}
    return found


def _state(trial: FrozenTrial) -> str:
    return {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}.get(trial.state, "failed")


def _csv(search: Search, ended: dict[int, FrozenTrial]) -> str:
    out = io.StringIO(newline="")
    keys = list(search.space.keys)
    names = ["trial", "state", search.node.objective, "standard_error", *keys, "epochs", "seconds", "verdict", "reason"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "runs"])
    for number, trial in sorted(ended.items()):
        attrs = result_of(trial)
        value = trial.value if trial.state == TrialState.COMPLETE else None
        cells = [number, _state(trial), value, attrs.get("error"), *(trial.params.get(key) for key in keys)]
        cells += [attrs.get(name) for name in ("epochs", "seconds", "verdict", "reason")]
        writer.writerow([*cells, " ".join(attrs.get("runs", []))])
    return out.getvalue()


def _print_trials(search: Search, ended: dict[int, FrozenTrial], console: Console) -> None:
    states = [_state(trial) for trial in ended.values()]
    counts = ", ".join(f"{states.count(name)} {name}" for name in ("complete", "pruned", "failed") if name in states)
    table = Table(title=f"{search.name}: {counts or 'no trial has ended'}", title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column(search.node.objective, justify="right")
    table.add_column("values")
    table.add_column("time", justify="right")
    table.add_column("verdict")
    best_first = sorted(ended.items(), key=lambda item: (order(item[1], higher=search.higher), item[0]))
    for number, trial in best_first[:_SHOWN]:
        value, result = _state(trial), result_of(trial)
        if trial.state == TrialState.COMPLETE:
            error = result.get("error")
            value = f"{trial.value:.4g}" + (f" ± {error:.2g}" if error is not None else "")
        seconds = in_words(float(result.get("seconds") or 0))
        point = {key: trial.params[key] for key in search.space.keys if key in trial.params}
        table.add_row(str(number), value, values(point), seconds, result.get("verdict") or "")
    console.print(table)
    if len(ended) > _SHOWN:
        say(console, f"... and {len(ended) - _SHOWN} more")


def _by(search: Search) -> Sequence[str]:
    """What makes the groups: the searched keys where each of their combinations is meant, as on a grid."""
    keys = list(search.space.keys)
    if search.node.sampler == "grid" and len(keys) <= 3:
        return keys
    return ["trial"]


def _record(search: Search, standing: Standing, table: Path, command: str | None, found: dict[str, float]) -> None:
    """A run of its own in MLflow with the table and the best command. Best effort, as the comparison."""
    folder = search.folder / f"record-{secrets.token_hex(2)}"
    text = f"best: {command}" if command else "no trial is complete"
    shares = "\n".join(f"- {key}: {share:.0%}" for key, share in found.items())
    numbers = {"trials": float(len(standing.ended))}
    if standing.best is not None and standing.best.value is not None:
        numbers["best_objective"] = standing.best.value
    try:
        with sweep_record(search.config, folder, search.name, "search") as logger:
            logger.log_artifact(table)
            logger.set_tags({"mlflow.note.content": f"`{text}`\n\n{shares}".strip()})
            logger.log_summary(numbers)
    except Exception as e:
        print(f"the search itself is not recorded: {type(e).__name__}: {e}", file=sys.stderr)
