"""A comparison in the terminal."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable

from lr_lightning.diagnosis.cost import Target
from lr_lightning.reports import tables, words
from lr_lightning.reports.groups import Outcome

_MOST_ROWS = 30
_WIDE = 160
# What a narrow terminal has no room for; the report has it.
_IN_THE_REPORT = re.compile(r"last .*|examples.*|worst setback|loss spikes|price|steps|(steps|seconds) to the runs' .*")
# With a target, the times to it are what was asked for: these make room for them.
_FOR_A_TARGET = re.compile(r"gap .*|verdicts|seconds|test/.*")


def print_outcome(outcome: Outcome, target: Target | None, title: str) -> None:
    """Print the tables of groups and pairs, and the findings."""
    console = Console(highlight=False, markup=False)  # a name is a name, not markup
    narrow = console.width < _WIDE
    without = [] if not narrow else [_IN_THE_REPORT] if target is None else [_IN_THE_REPORT, _FOR_A_TARGET]
    _print(console, tables.group_table(outcome, target), words.plain(title), without)
    pairs = tables.comparison_table(outcome)
    if pairs.rows:
        console.print()
        title = "who won: pairs of groups, the better one first"
        if narrow:
            console.print(title)
            for c in outcome.comparisons[:_MOST_ROWS]:
                console.print(f"  {words.plain(words.in_a_line(c))}", soft_wrap=True)
        else:
            _print(console, pairs, title, [])
    console.print()
    console.print(words.plain(words.headline(outcome)), soft_wrap=True)
    for warning in outcome.warnings:
        console.print(f"note: {words.plain(warning)}", soft_wrap=True)


def _print(console: Console, table: tables.Table, title: str, without: Sequence[re.Pattern[str]]) -> None:
    shown = RichTable(title=title, title_justify="left")
    keep = [i for i, name in enumerate(table.columns) if i == 0 or not any(p.fullmatch(name) for p in without)]
    for i in keep:
        shown.add_column(table.columns[i], justify="left" if i == 0 else "right", overflow="fold")
    for row in table.rows[:_MOST_ROWS]:
        shown.add_row(*(row[i] for i in keep))
    console.print(shown)
    if len(table.rows) > _MOST_ROWS:
        console.print(f"and {len(table.rows) - _MOST_ROWS} more, in the report")
