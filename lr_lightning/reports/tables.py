"""The tables of a report: of groups, of pairs of groups and of runs, as text, as CSV and in the terminal."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from lr_lightning.diagnosis.comparison import GroupDifference
from lr_lightning.diagnosis.cost import Reach, Target, median_time
from lr_lightning.reports import wording
from lr_lightning.reports.groups import ComparedGroups, RunGroup
from lr_lightning.reports.run_metrics import RunResult, RunState
from lr_lightning.tracking.keys import short_number
from lr_lightning.tracking.query import Run
from lr_lightning.tracking.ui import run_page

_PARAMS_SHOWN = 12


@dataclass(frozen=True)
class Table:
    """Rows of text cells below titles; the first cell of a row is its name."""

    keys: list[str]  # a short name of each column, which does not depend on the metric or the target
    titles: list[str]
    rows: list[list[str]]


def run_link(server: str, run: Run) -> str:
    """Return the address of a run's page in MLflow."""
    return run_page(server, run.experiment_id, run.id)


def group_table(compared: ComparedGroups, target: Target | None) -> Table:
    """List the groups with their means over seeds; a column in which no group has a value is left out."""
    objective = compared.objective or "validation metric"
    columns: list[tuple[str, str, Callable[[RunGroup], str]]] = [
        ("group", "group", lambda g: wording.printable(g.name)),
        ("n", "n", wording.seeds_counted),
        ("best", f"best {objective}", _mean_with_interval(lambda r: r.best)),
        ("last", f"last {objective}", _mean_with_interval(lambda r: r.last)),
        ("test", objective.replace("val", "test", 1), _mean_with_interval(lambda r: r.test)),
        ("gap", "gap (val − probe loss)", _mean_with_interval(lambda r: r.gap_loss)),
        ("verdicts", "verdicts", lambda g: wording.printable(g.verdicts) or "–"),
        ("steps", "steps", _mean(lambda r: r.steps)),
        ("seconds", "seconds", _mean(lambda r: r.seconds)),
    ]
    for unit, form in (("steps", "{:,.0f}"), ("seconds", "{:,.1f}")):
        if target is not None:
            cell = partial(_time_to_target, attrgetter(f"{unit}_to_target"), form)
            columns.append((f"{unit}_to", f"{unit} to {target}, median", cell))
        else:
            cell = partial(_time_to_target, partial(_recorded_reach, unit), form)
            columns.append((f"{unit}_to_own", f"{unit} to the runs' target", cell))
    columns += [
        ("examples", "examples seen", _mean(lambda r: r.examples)),
        ("speed", "examples/s", _mean(lambda r: r.summary("examples_per_second"))),
        ("price", "price", _mean(lambda r: r.summary("price"))),
        ("setback", "worst setback", _mean(lambda r: r.setback)),
        ("spikes", "loss spikes", _mean(lambda r: r.spikes)),
        ("lost", "lost runs", lambda g: g.not_counted or "none"),
    ]
    rows = [[cell(group) for _, _, cell in columns] for group in compared.groups]
    keep = [i for i in range(len(columns)) if i < 2 or any(row[i] != "–" for row in rows)]
    keys, titles = [columns[i][0] for i in keep], [wording.printable(columns[i][1]) for i in keep]
    return Table(keys, titles, [[row[i] for i in keep] for row in rows])


def _mean(value: Callable[[RunResult], float]) -> Callable[[RunGroup], str]:
    return lambda group: wording.number(group.mean(value).mean)


def _mean_with_interval(value: Callable[[RunResult], float]) -> Callable[[RunGroup], str]:
    return lambda group: wording.mean_with_interval(group.mean(value))


def _time_to_target(of_run: Callable[[RunResult], Reach | None], form: str, group: RunGroup) -> str:
    """State the median time to a target, how many runs reached it and how many were censored."""
    reaches = [reach for r in group.runs if (reach := of_run(r)) is not None]
    if not reaches:
        return "–"
    median = median_time(reaches)
    text = form.format(median) if math.isfinite(median) else "not reached by half"
    missed = [r for r in reaches if not r.reached]
    if not missed:
        return f"{text} (all {len(reaches)})"
    longest = max((r.time for r in missed if math.isfinite(r.time)), default=math.nan)
    beyond = f", {len(missed)} censored" + (f" at > {form.format(longest)}" if math.isfinite(longest) else "")
    return f"{text} ({len(reaches) - len(missed)} of {len(reaches)}{beyond})"


def _recorded_reach(unit: str, result: RunResult) -> Reach | None:
    """Return the time to the target that the run itself had, as it recorded it."""
    time = result.run.last.get(f"summary/{unit}_to_target")
    if time is not None:
        return Reach(time, True)
    if "summary/target_reached" not in result.run.last:
        return None
    if result.state is RunState.DIVERGED:
        return Reach(math.inf, False)
    return Reach(result.steps if unit == "steps" else result.seconds, False)


def comparison_table(compared: ComparedGroups) -> Table:
    """List the pairs of groups that share more than one seed, the better group first."""
    columns: list[tuple[str, str, Callable[[GroupDifference], str]]] = [
        ("better", "better", lambda d: wording.printable(d.better)),
        ("worse", "than", lambda d: wording.printable(d.worse)),
        ("difference", f"mean difference in best {wording.printable(compared.objective or '')}", wording.difference),
        ("interval", "95 % interval", wording.interval),
        ("n", "n", lambda d: f"{d.n} pairs" if d.paired else f"{d.n}, unpaired"),
        ("wins", "better in", lambda d: f"{d.wins} of {d.n}" if d.paired else "–"),
        ("p", "p", lambda d: wording.p_value(d.p if d.enough_seeds else math.nan)),
        ("adjusted", "adjusted p", lambda d: wording.p_value(d.adjusted if d.enough_seeds else math.nan)),
        ("finding", "finding", wording.finding),
    ]
    keys, titles, cells = zip(*columns, strict=True)
    return Table([*keys], [*titles], [[cell(d) for cell in cells] for d in compared.testable])


def run_table(compared: ComparedGroups) -> tuple[Table, list[Run]]:
    """List every run with the params that differ, and return the runs of the rows as well."""
    params = [key for key in compared.varying if key != "seed"][:_PARAMS_SHOWN]
    objective = wording.printable(compared.objective or "validation metric")
    keys = ["run", "group", "seed", "state", "best", "last", "test", "steps", "seconds", *params, "notes"]
    results = [(group, r) for group in compared.groups for r in group.runs]
    rows = []
    for group, r in results:
        who = [wording.printable(r.run.name), wording.printable(group.name), wording.printable(r.seed) or "–", r.state]
        numbers = [wording.number(value) for value in (r.best, r.last, r.test, r.steps, r.seconds)]
        own = [wording.printable(short_number(r.run.params.get(key, "–"))) for key in params]
        rows.append([*who, *numbers, *own, wording.printable("; ".join(r.notes))])
    titles = {"best": f"best {objective}", "last": f"last {objective}"}
    table = Table(keys, [titles.get(key, wording.printable(key)) for key in keys], rows)
    return table, [r.run for _, r in results]


def varying_note(compared: ComparedGroups) -> str:
    """State in a sentence which params differ between the runs."""
    if not compared.varying:
        return "The runs have the same params."
    hidden = [key for key in compared.varying if key != "seed"][_PARAMS_SHOWN:]
    more = f" Not shown: {', '.join(map(wording.printable, hidden))}." if hidden else ""
    count = len(compared.varying)
    return f"{count} param{'s' * (count > 1)} differ{'s' * (count == 1)} between the runs: " + (
        ", ".join(map(wording.printable, [*compared.varying][:20])) + "." + more
    )


def csv_rows(results: Sequence[RunResult], target: Target | None, varying: Sequence[str]) -> list[list[str]]:
    """Return a header and a row for each run, with numbers at full precision, for other programs."""
    numbers = ["best", "last", "test", "gap_loss", "setback", "spikes", "steps", "seconds", "examples", "peak_lr"]
    reached = ["steps_to_target", "seconds_to_target", "target_reached"] if target else []
    head = ["run_id", "name", "group", "seed", "status", "state", "counted", "verdict", *numbers, *reached, *varying]
    rows = [head]
    for r in results:
        cells = [r.run.id, r.run.name, r.group, r.seed, r.run.status, r.state, str(r.counts).lower()]
        cells.append(r.run.tags.get("verdict", ""))
        cells += ["" if math.isnan(value) else repr(value) for value in attrgetter(*numbers)(r)]
        if target:
            times = (r.steps_to_target, r.seconds_to_target)
            cells += [repr(reach.time) if reach is not None else "" for reach in times]
            cells.append("" if r.steps_to_target is None else str(r.steps_to_target.reached).lower())
        cells += [r.run.params.get(key, "") for key in varying]
        rows.append([_without_formula(cell) for cell in cells])
    return rows


def _without_formula(cell: str) -> str:
    """Quote text that a spreadsheet would take for a formula; numbers stay numbers."""
    if cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
        try:
            float(cell)
        except ValueError:
            return f"'{cell}"
    return cell


_ROWS_SHOWN = 30
_WIDE_TERMINAL = 160
# A narrow terminal has no room for these columns; they are in the report.
_ONLY_IN_REPORT = {"last", "examples", "speed", "setback", "spikes", "price", "steps", "steps_to_own", "seconds_to_own"}
# If the user gave a target, these columns make room for the times to it.
_HIDDEN_FOR_TARGET = {"gap", "verdicts", "seconds", "test"}
# Columns to drop next, in this order, if the words of the others would have to be broken.
_DROPPED_FOR_WIDTH = ("gap", "seconds", "verdicts", "test", "lost")
_COLUMN_FRAME = 3  # a column's border and the spaces beside its text
_SHORTEST_NAME = 8
_FIRST_SERVED = 2  # the result: the column that gets spare width first


def print_comparison(compared: ComparedGroups, target: Target | None, title: str) -> None:
    """Print the tables of groups and pairs, and the findings."""
    console = Console(highlight=False, markup=False)  # names may look like markup
    narrow = console.width < _WIDE_TERMINAL
    hidden = (_ONLY_IN_REPORT | (_HIDDEN_FOR_TARGET if target else set())) if narrow else set()
    _print_table(console, group_table(compared, target), wording.printable(title), hidden)
    pairs = comparison_table(compared)
    if pairs.rows:
        console.print()
        title = "who won: pairs of groups, the better one first"
        if narrow:
            console.print(title)
            for d in compared.testable[:_ROWS_SHOWN]:
                console.print(f"  {wording.printable(wording.one_line(d))}", soft_wrap=True)
        else:
            _print_table(console, pairs, title, set())
    if compared.differences and (why := wording.not_compared(compared)):
        console.print(wording.printable(why), soft_wrap=True)
    console.print()
    for text in [*wording.findings(compared), *(f"note: {warning}" for warning in compared.warnings)]:
        console.print(wording.printable(text), soft_wrap=True)


def _print_table(console: Console, table: Table, title: str, hidden: Collection[str]) -> None:
    shown = RichTable(title=title, title_justify="left")
    widths = _widths(table, [i for i, key in enumerate(table.keys) if key not in hidden], console.width)
    for i, width in widths.items():
        shown.add_column(table.titles[i], justify="right" if i else "left", overflow="ellipsis", width=width)
    for row in table.rows[:_ROWS_SHOWN]:
        shown.add_row(*(row[i] for i in widths))
    console.print(shown)
    if len(table.rows) > _ROWS_SHOWN:
        console.print(f"and {len(table.rows) - _ROWS_SHOWN} more, in the report")


def _widths(table: Table, keep: Sequence[int], room: int) -> dict[int, int]:
    """Choose the columns that fit without breaking a word, and their widths; long names lose their end."""
    cells = {i: [table.titles[i], *(row[i] for row in table.rows[:_ROWS_SHOWN])] for i in keep}
    widths = {i: max(cell_len(word) for text in texts for word in text.split() or [""]) for i, texts in cells.items()}
    full = {i: max(map(cell_len, texts)) for i, texts in cells.items()}

    def spare() -> int:
        return room - 1 - sum(width + _COLUMN_FRAME for width in widths.values())

    for key in _DROPPED_FOR_WIDTH:
        if spare() < 0:
            widths = {i: width for i, width in widths.items() if table.keys[i] != key}
    widths[0] = max(min(widths[0], _SHORTEST_NAME), widths[0] + min(0, spare()))
    for _ in range(max(0, spare())):
        widest = max(widths, key=lambda i: (i == _FIRST_SERVED and full[i] > widths[i], full[i] - widths[i]))
        widths[widest] += full[widest] > widths[widest]
    return widths
