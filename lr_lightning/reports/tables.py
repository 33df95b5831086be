"""The tables of a report as rows of text: of groups, of pairs of groups, and of runs."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from lr_lightning.diagnosis.cost import Reach, Target
from lr_lightning.reports import run_metrics as names
from lr_lightning.reports import wording as words
from lr_lightning.reports.groups import Group, Outcome
from lr_lightning.reports.run_metrics import Measured
from lr_lightning.tracking.query import Run

_MOST_PARAMS = 12


@dataclass(frozen=True)
class Table:
    """Titles of the columns and rows of cells; the first cell of a row is its name."""

    columns: list[str]
    rows: list[list[str]]


def link(base: str, run: Run) -> str:
    """Address of a run's page in MLflow."""
    experiment, run_id = quote(run.experiment_id, safe=""), quote(run.id, safe="")
    return f"{base}/#/experiments/{experiment}/runs/{run_id}"


def group_table(outcome: Outcome, target: Target | None) -> Table:
    """What each group comes to; columns that no group has a value for are left out."""
    objective = outcome.objective or "validation metric"
    test = objective.replace("val", "test", 1)
    columns: list[tuple[str, Callable[[Group], str]]] = [
        ("n", words.counted_of),
        (f"best {objective}", lambda g: words.with_interval(g.mean(lambda m: m.best))),
        (f"last {objective}", lambda g: words.with_interval(g.mean(lambda m: m.last))),
        (test, lambda g: words.with_interval(g.mean(lambda m: m.test))),
        ("gap (val − probe loss)", lambda g: words.with_interval(g.mean(lambda m: m.gap))),
        ("verdicts", lambda g: words.plain(g.verdicts) or "–"),
        ("steps", lambda g: _short(g, lambda m: m.steps)),
        ("seconds", lambda g: _short(g, lambda m: m.seconds)),
    ]
    if target is not None:
        columns += [
            (f"steps to {target}, median", lambda g: g.time_to_target(lambda m: m.steps_to, "{:,.0f}")),
            (f"seconds to {target}, median", lambda g: g.time_to_target(lambda m: m.seconds_to, "{:,.1f}")),
        ]
    else:
        columns += [
            (f"{unit} to the runs' target", lambda g, unit=unit: _recorded_target(g, unit))  # type: ignore[misc]
            for unit in ("steps", "seconds")
        ]
    columns += [
        ("examples seen", lambda g: _short(g, lambda m: m.examples)),
        ("examples / s", lambda g: _short(g, lambda m: m.run.last.get("summary/examples_per_second", math.nan))),
        ("price", lambda g: _short(g, lambda m: m.run.last.get("summary/price", math.nan))),
        ("worst setback", lambda g: _short(g, lambda m: m.setback)),
        ("loss spikes", lambda g: _short(g, lambda m: m.spikes)),
        ("lost runs", lambda g: g.states or "none"),
    ]
    rows = [[words.plain(group.name), *(cell(group) for _, cell in columns)] for group in outcome.groups]
    keep = [0, 1, *(i for i in range(2, len(columns) + 1) if any(row[i] != "–" for row in rows))]
    titles = ["group", *(words.plain(title) for title, _ in columns)]
    return Table([titles[i] for i in keep], [[row[i] for i in keep] for row in rows])


def _short(group: Group, value: Callable[[Measured], float]) -> str:
    return words.number(group.mean(value).mean)


def _recorded_target(group: Group, unit: str) -> str:
    """The time to the target that the runs had been given, as they recorded it."""

    def reach(m: Measured) -> Reach | None:
        reached = m.run.last.get("summary/target_reached")
        time = m.run.last.get(f"summary/{unit}_to_target")
        if time is not None:
            return Reach(time, True)
        if reached is None:
            return None
        if m.state == "diverged":
            return Reach(math.inf, False)
        return Reach(m.steps if unit == "steps" else m.seconds, False)

    return group.time_to_target(reach, "{:,.0f}" if unit == "steps" else "{:,.1f}")


def comparison_table(outcome: Outcome) -> Table:
    """Pairs of groups that share more than one seed; the better one first."""
    columns = [
        *("better", "than", f"mean difference in best {words.plain(outcome.objective or '')}", "95 % interval"),
        *("n", "better in", "p", "adjusted p", "finding"),
    ]
    rows = [
        [
            words.plain(c.better),
            words.plain(c.worse),
            words.difference(c),
            words.interval(c),
            f"{c.n} pairs" if c.paired else f"{c.n}, unpaired",
            f"{c.wins} of {c.n}" if c.paired else "–",
            words.p_value(c.p),
            words.p_value(c.adjusted),
            words.finding(c),
        ]
        for c in words.worth_showing(outcome)
    ]
    return Table(columns, rows)


def run_table(outcome: Outcome) -> tuple[Table, list[Run]]:
    """Every run with what differs between them, and the runs the rows are of."""
    params = [key for key in outcome.varying if key != "seed"][:_MOST_PARAMS]
    objective = words.plain(outcome.objective or "validation metric")
    columns = ["run", "group", "seed", "state", f"best {objective}", f"last {objective}", "test", "steps", "seconds"]
    rows, runs = [], []
    for group in outcome.groups:
        for m in group.runs:
            numbers = [words.number(v) for v in (m.best, m.last, m.test, m.steps, m.seconds)]
            own = [words.plain(names.rounded(m.run.params.get(key, "–"))) for key in params]
            notes = words.plain("; ".join(m.notes))
            who = [words.plain(m.run.name), words.plain(group.name), words.plain(m.seed) or "–", m.state]
            rows.append([*who, *numbers, *own, notes])
            runs.append(m.run)
    return Table([*columns, *map(words.plain, params), "notes"], rows), runs


def differed_note(outcome: Outcome) -> str:
    """Which params vary, in one sentence."""
    if not outcome.varying:
        return "The runs have the same params."
    left = [key for key in outcome.varying if key != "seed"][_MOST_PARAMS:]
    more = f" Not shown: {', '.join(map(words.plain, left))}." if left else ""
    count = len(outcome.varying)
    return f"{count} param{'s' * (count > 1)} differ{'s' * (count == 1)} between the runs: " + (
        ", ".join(map(words.plain, [*outcome.varying][:20])) + "." + more
    )


def csv_rows(measured: Sequence[Measured], target: Target | None, varying: Sequence[str]) -> list[list[str]]:
    """Every run with its numbers at full precision, for other programs."""
    numbers: dict[str, Callable[[Measured], float]] = {
        "best": lambda m: m.best,
        "last": lambda m: m.last,
        "test": lambda m: m.test,
        "gap_loss": lambda m: m.gap,
        "setback": lambda m: m.setback,
        "spikes": lambda m: m.spikes,
        "steps": lambda m: m.steps,
        "seconds": lambda m: m.seconds,
        "examples": lambda m: m.examples,
        "peak_lr": lambda m: m.peak,
    }
    reached = ["steps_to_target", "seconds_to_target", "target_reached"] if target else []
    head = ["run_id", "name", "group", "seed", "status", "state", "counted", "verdict", *numbers, *reached, *varying]
    rows = [head]
    for m in measured:
        cells = [m.run.id, m.run.name, m.group, m.seed, m.run.status, m.state, str(m.counts).lower(), m.verdict]
        cells += ["" if math.isnan(value(m)) else repr(value(m)) for value in numbers.values()]
        if target:
            cells += [repr(r.time) if r is not None else "" for r in (m.steps_to, m.seconds_to)]
            cells.append("" if m.steps_to is None else str(m.steps_to.reached).lower())
        cells += [m.run.params.get(key, "") for key in varying]
        rows.append([_inert(cell) for cell in cells])
    return rows


def _inert(cell: str) -> str:
    """A spreadsheet takes text that begins like this for a formula; numbers stay numbers."""
    if cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
        try:
            float(cell)
        except ValueError:
            return f"'{cell}"
    return cell


# --- A comparison in the terminal.

_MOST_ROWS = 30
_WIDE = 160
# What a narrow terminal has no room for; the report has it.
_IN_THE_REPORT = re.compile(r"last .*|examples.*|worst setback|loss spikes|price|steps|(steps|seconds) to the runs' .*")
# With a target, the times to it are what was asked for: these make room for them.
_FOR_A_TARGET = re.compile(r"gap .*|verdicts|seconds|test/.*")
# What else goes, from the left on, where the words of the others would have to be broken.
_GIVEN_UP = ("gap .*", "seconds", "verdicts", "test.*", "lost runs")
_FRAME = 3  # a column's border and the spaces beside its text
_LEAST_NAME = 8
_RESULT = 2  # the column that gets what room there is first


def print_outcome(outcome: Outcome, target: Target | None, title: str) -> None:
    """Print the tables of groups and pairs, and the findings."""
    console = Console(highlight=False, markup=False)  # a name is a name, not markup
    narrow = console.width < _WIDE
    without = [] if not narrow else [_IN_THE_REPORT] if target is None else [_IN_THE_REPORT, _FOR_A_TARGET]
    _print(console, group_table(outcome, target), words.plain(title), without)
    pairs = comparison_table(outcome)
    if pairs.rows:
        console.print()
        title = "who won: pairs of groups, the better one first"
        if narrow:
            console.print(title)
            for c in words.worth_showing(outcome)[:_MOST_ROWS]:
                console.print(f"  {words.plain(words.in_a_line(c))}", soft_wrap=True)
        else:
            _print(console, pairs, title, [])
    if outcome.comparisons and (why := words.not_compared(outcome)):
        console.print(words.plain(why), soft_wrap=True)
    console.print()
    for finding in words.findings(outcome):
        console.print(words.plain(finding), soft_wrap=True)
    for warning in outcome.warnings:
        console.print(f"note: {words.plain(warning)}", soft_wrap=True)


def _print(console: Console, table: Table, title: str, without: Sequence[re.Pattern[str]]) -> None:
    shown = RichTable(title=title, title_justify="left")
    keep = [i for i, name in enumerate(table.columns) if i == 0 or not any(p.fullmatch(name) for p in without)]
    widths = _widths(table, keep, console.width)
    for i, width in widths.items():
        shown.add_column(table.columns[i], justify="right" if i else "left", overflow="ellipsis", width=width)
    for row in table.rows[:_MOST_ROWS]:
        shown.add_row(*(row[i] for i in widths))
    console.print(shown)
    if len(table.rows) > _MOST_ROWS:
        console.print(f"and {len(table.rows) - _MOST_ROWS} more, in the report")


def _widths(table: Table, keep: Sequence[int], room: int) -> dict[int, int]:
    """The columns that fit without a break inside a word, and their widths; of long names the end is left out."""
    cells = {i: [table.columns[i], *(row[i] for row in table.rows[:_MOST_ROWS])] for i in keep}
    least = {i: max(cell_len(word) for text in texts for word in text.split() or [""]) for i, texts in cells.items()}
    full = {i: max(map(cell_len, texts)) for i, texts in cells.items()}

    def spare() -> int:
        return room - 1 - sum(width + _FRAME for width in least.values())

    for pattern in _GIVEN_UP:
        if spare() < 0:
            least = {i: width for i, width in least.items() if not re.fullmatch(pattern, table.columns[i])}
    least[0] = max(min(least[0], _LEAST_NAME), least[0] + min(0, spare()))
    for _ in range(max(0, spare())):
        widest = max(least, key=lambda i: (i == _RESULT and full[i] > least[i], full[i] - least[i]))
        least[widest] += full[widest] > least[widest]
    return least
