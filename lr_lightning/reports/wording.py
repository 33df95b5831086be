"""Numbers and comparisons as text, the same in the terminal, the page and the pictures."""

import math
import unicodedata

from lr_lightning.diagnosis.comparison import GroupDifference
from lr_lightning.diagnosis.statistics import Mean
from lr_lightning.reports.groups import Group, Outcome


def number(value: float, digits: int = 4) -> str:
    """A number with so many significant digits; a dash for nan."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
    return text.replace("-", "−")


def with_interval(mean: Mean, decimals: int = 4) -> str:
    """``mean ± half of the interval``; without the latter for one value."""
    if math.isnan(mean.mean):
        return "–"
    text = f"{mean.mean:.{decimals}f}".replace("-", "−")
    return text if math.isnan(mean.half) else f"{text} ± {mean.half:.{decimals}f}"


def p_value(p: float) -> str:
    """``p`` as it is reported."""
    return "–" if math.isnan(p) else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def p_equals(name: str, p: float) -> str:
    """``p = 0.031`` or ``p < 0.001``."""
    shown = p_value(p)
    return f"{name} {shown}" if shown.startswith("<") else f"{name} = {shown}"


def plain(text: str) -> str:
    """Text without control characters, which could move a terminal's cursor or hide what follows."""
    return "".join(c if unicodedata.category(c)[0] != "C" else "\ufffd" for c in text)


def interval(c: GroupDifference) -> str:
    """The bootstrap interval of a difference."""
    return "–" if math.isnan(c.low) else f"{c.low:+.4f} to {c.high:+.4f}".replace("-", "−")


def difference(c: GroupDifference) -> str:
    """How much better the first group is, of the runs that did not diverge; a dash where there are none."""
    return "–" if math.isnan(c.difference) else f"{c.difference:.4f}".replace("-", "−")


def finding(c: GroupDifference) -> str:
    """What may be said about two groups."""
    lost = diverged(c)
    by_rank = f"; by ranks, {lost}" if lost else ""
    if c.significant:
        return f"told apart{by_rank}"
    what = "seeds" if c.paired else "runs each"
    if not c.enough_seeds:
        return f"not enough {what} to tell (n = {c.n}, needs {c.seeds_needed}){by_rank}"
    return f"not told apart (n = {c.n}){by_rank}"


def diverged(c: GroupDifference) -> str:
    """How many runs of two groups diverged, such as ``constant: 2 of 6 diverged``; nothing where none did."""
    sides = zip((c.better, c.worse), c.diverged, c.sizes, strict=True)
    return ", ".join(f"{name}: {lost} of {size} diverged" for name, lost, size in sides if lost)


def worth_showing(outcome: Outcome) -> list[GroupDifference]:
    """The comparisons of more than one seed: of one, there is no test."""
    return [c for c in outcome.comparisons if c.n > 1]


def not_compared(outcome: Outcome) -> str:
    """Why there are no comparisons, or not all, in one line; nothing where all are shown."""
    if not outcome.comparisons:
        where = " of one data set" if outcome.mixed else ""
        return f"There are not two groups{where} with finished runs to compare."
    few = [c for c in outcome.comparisons if c.n < 2]
    if not few:
        return ""
    what = f"{'These' if len(few) == len(outcome.comparisons) else 'Other'} groups"
    needs = max(c.seeds_needed for c in few)
    return f"{what} have one seed to be compared by, from which nothing can be told; {needs} seeds each are needed."


def in_a_line(c: GroupDifference) -> str:
    """A comparison in short."""
    ci = "" if math.isnan(c.low) else f" ({interval(c)})"
    return f"{c.better} > {c.worse}: {difference(c)}{ci}, {p_equals('adjusted p', c.adjusted)}: {finding(c)}"


def headline(outcome: Outcome) -> str:
    """Who won, by how much, and how surely."""
    return " ".join(findings(outcome))


def findings(outcome: Outcome) -> list[str]:
    """The same, one or two sentences an item; of several data sets, what they are, and an item for each."""
    if not outcome.mixed:
        return [_finding(outcome)]
    each = outcome.of_each_data_set
    return [outcome.mixed, *(f"{data_set}: {_finding(part)}" for data_set, part in each.items())]


def _finding(outcome: Outcome) -> str:
    """What may be said about all groups of a data set.

    A winner is told apart from every other group, with its own diverged runs counted as losses. The means are of the
    runs that came to their end, so beside them stands how many diverged.
    """
    counted = [group for group in outcome.groups if group.counted]
    if outcome.objective is None or not counted:
        return "No finished run has a validation metric, so there is nothing to rank."
    best = counted[0]
    compared = {name for c in outcome.comparisons for name in (c.better, c.worse)}
    if not any(best.name in (c.better, c.worse) for c in outcome.comparisons):
        alone = "There is no other group to compare it with."
        if len(counted) > 1:  # a data set may lack the group chosen beforehand
            alone = "The group to compare it with has no runs here."
        return f"{best.name} has {_own(best, outcome.objective)}. {alone}"
    for group in counted:
        told = [c for c in outcome.comparisons if c.significant and c.better == group.name]
        if told and len(told) == len(compared) - 1:
            least = max(c.adjusted for c in told)
            first = "the best mean" if group is best else "a mean"
            return (
                f"{group.name} won: {_own(group, outcome.objective, first)}, told apart from every other group "
                f"(largest {p_equals('adjusted p', least)}). {_ahead(told[0])}"
            )
    own = [c for c in outcome.comparisons if best.name in (c.better, c.worse)]
    told = [c for c in own if c.significant and c.better == best.name]
    rest = f" It is told apart from {', '.join(c.worse for c in told)}, not from the others." if told else ""
    return f"No winner can be named. {best.name} has {_own(best, outcome.objective)}. {_ahead(own[0])}{rest}"


def _own(group: Group, objective: str, first: str = "the best mean") -> str:
    mean = group.mean(lambda m: m.best)
    lost = f"; {len(group.diverged)} of {len(group.runs)} diverged" if group.diverged else ""
    return f"{first} {objective}, {with_interval(mean)} (n = {mean.n}{lost})"


def _ahead(c: GroupDifference) -> str:
    seeds = f"by {c.n} paired seeds" if c.paired else f"unpaired, at least {c.n} runs each"
    ci = "" if math.isnan(c.low) else f", 95 % interval {interval(c)}"
    lead = f"is {difference(c)} ahead of" if c.difference >= 5e-5 else "is level with"
    if any(c.diverged):  # the difference of the survivors would say the opposite, or nothing
        lead = "ranks before" if c.p < 1 else "is level with"
    if c.n < 2:
        return f"{c.better} {lead} {c.worse} by one {'seed' if c.paired else 'run'}: {finding(c)}."
    ps = f"{p_equals('p', c.p)}, {p_equals('adjusted', c.adjusted)}"
    return f"{c.better} {lead} {c.worse} ({seeds}{ci}, {ps}): {finding(c)}."


def counted_of(group: Group) -> str:
    """How many seeds the means are over, and how many runs there are."""
    n = group.mean(lambda m: m.best).n
    runs = len(group.runs)
    return str(n) if n == runs else f"{n} ({len(group.counted)} of {runs} runs)"
