"""A comparison in the terminal."""

import re
from collections.abc import Sequence

from rich.cells import cell_len
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
    _print(console, tables.group_table(outcome, target), words.plain(title), without)
    pairs = tables.comparison_table(outcome)
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


def _print(console: Console, table: tables.Table, title: str, without: Sequence[re.Pattern[str]]) -> None:
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


def _widths(table: tables.Table, keep: Sequence[int], room: int) -> dict[int, int]:
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
