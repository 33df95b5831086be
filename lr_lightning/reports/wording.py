"""Numbers and findings as text, the same in the terminal, the page and the pictures."""

import math
import re
import unicodedata

from lr_lightning.diagnosis.comparison import GoodBand, GroupDifference, Outcome
from lr_lightning.diagnosis.statistics import Mean
from lr_lightning.reports.groups import ComparedGroups, DataSets, RunGroup

_DATA_SETS_LISTED = 6


def printable(text: str) -> str:
    """Replace control characters, which could move a terminal's cursor or hide what follows."""
    return "".join(c if unicodedata.category(c)[0] != "C" else "\ufffd" for c in text)


def number(value: float, digits: int = 4) -> str:
    """Format a number with ``digits`` significant digits; nan is a dash."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
    return text.replace("-", "−")


def mean_with_interval(mean: Mean, decimals: int = 4) -> str:
    """Format a mean as ``mean ± half the interval``, or alone if it is of one value."""
    if math.isnan(mean.mean):
        return "–"
    text = f"{mean.mean:.{decimals}f}".replace("-", "−")
    return text if math.isnan(mean.half) else f"{text} ± {mean.half:.{decimals}f}"


def p_value(p: float) -> str:
    """Format a p value, such as ``0.031`` or ``< 0.001``."""
    return "–" if math.isnan(p) else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def _p_equals(name: str, p: float) -> str:
    return f"{name} {p_value(p)}" if p < 0.001 else f"{name} = {p_value(p)}"


def interval(d: GroupDifference) -> str:
    """Format the bootstrap interval of a difference."""
    return "–" if math.isnan(d.low) else f"{d.low:+.4f} to {d.high:+.4f}".replace("-", "−")


def difference(d: GroupDifference) -> str:
    """Format how much better the first group's mean is, over the runs that did not diverge."""
    return "–" if math.isnan(d.difference) else f"{d.difference:.4f}".replace("-", "−")


def finding(d: GroupDifference) -> str:
    """State whether the difference of two groups is significant."""
    sides = zip((d.better, d.worse), d.diverged, d.sizes, strict=True)
    lost = ", ".join(f"{name}: {lost} of {size} diverged" for name, lost, size in sides if lost)
    by_rank = f"; by ranks, {lost}" if lost else ""
    if d.significant:
        return f"significant{by_rank}"
    if d.same:
        return f"no difference that matters: less than {d.same_within:g} ({_p_equals('p', d.p_same)})"
    won = f"better in {d.wins} of {d.n} seeds, " if d.paired and d.wins > 0 and d.n > 1 else ""
    what = "seeds" if d.paired else "runs each"
    now = f"{d.n} {what}" if d.n > 1 else "1 seed" if d.paired else "1 run"
    more = "" if math.isnan(d.more_seeds) else f"; {_count(d.more_seeds)} more {what} would decide"
    if not d.enough_seeds:
        return f"{won}unproven: {now}, {d.seeds_needed} can prove it{by_rank}{more}"
    return f"{won}not significant (n = {d.n}){by_rank}{more}"


def _count(seeds: float) -> str:
    return f"about {seeds:.0f}" if seeds < 500 else "hundreds"


def not_compared(compared: ComparedGroups) -> str:
    """Explain in one line why groups are not compared; "" if all are."""
    if not compared.differences:
        where = " of one data set" if compared.data_sets else ""
        return f"There are not two groups{where} with finished runs to compare."
    few = [d for d in compared.differences if d.n < 2]
    if not few:
        return ""
    which = "These" if len(few) == len(compared.differences) else "Other"
    needed = max(d.seeds_needed for d in few)
    return f"{which} groups share only one seed, which tells nothing; {needed} seeds each are needed."


def one_line(d: GroupDifference) -> str:
    """Summarize the difference of two groups in a short line."""
    ci = "" if math.isnan(d.low) else f" ({interval(d)})"
    p = f", {_p_equals('adjusted p', d.adjusted)}" if d.enough_seeds else ""
    return f"{d.better} > {d.worse}: {difference(d)}{ci}{p}: {finding(d)}"


def headline(compared: ComparedGroups) -> str:
    """State who won, by how much, and how certain that is."""
    return " ".join(findings(compared))


def findings(compared: ComparedGroups) -> list[str]:
    """Return the headline in pieces: one, or a note on the data sets and one for each."""
    if compared.data_sets is None:
        return [_finding(compared)]
    parts = [f"{data_set}: {_finding(part)}" for data_set, part in compared.by_data_set().items()]
    return [_data_sets_note(compared.data_sets), *parts]


def _data_sets_note(data_sets: DataSets) -> str:
    counts = data_sets.counts
    labels = [f"{label} ({count} run{'s' * (count > 1)})" for label, count in counts[:_DATA_SETS_LISTED]]
    more = [f"{len(counts) - _DATA_SETS_LISTED} more"] * (len(counts) > _DATA_SETS_LISTED)
    quoted = re.sub(r'([\\"$`])', r"\\\1", data_sets.filter_string)  # for a shell; the search language has backticks
    return (
        f"The runs are of {len(counts)} data sets, {', '.join([*labels, *more])}: they are grouped by data set as "
        "well, and only runs of one data set are compared. To compare one data set alone: "
        f'scripts/compare.py --filter "{quoted}" '
        f"(data sets with each other: --by {','.join(data_sets.by)})."
    )


def _finding(compared: ComparedGroups) -> str:
    """State what the comparison of one data set's groups shows.

    The means are over finished runs only, so the number of diverged runs is given beside them.
    """
    ranking, objective = compared.ranking, compared.objective
    leader = next((group for group in compared.groups if group.name == ranking.leader and group.counted), None)
    if leader is None or objective is None:
        return "No finished run has a validation metric, so there is nothing to rank."
    if ranking.lead is None:
        alone = "There is no other group to compare it with."
        if ranking.outcome is Outcome.REFERENCE_MISSING:  # a data set may lack the group chosen beforehand
            alone = "The group to compare it with has no runs here."
        return f"{leader.name} has {_mean_of(leader, objective)}. {alone}"
    if ranking.outcome is Outcome.WON:
        largest = max(d.adjusted for d in ranking.wins)
        which = "the best mean" if leader is compared.groups[0] else "a mean"
        return (
            f"{leader.name} won: {_mean_of(leader, objective, which)}, significantly better than every "
            f"other group (largest {_p_equals('adjusted p', largest)}). {_lead(ranking.lead)}"
        )
    wins = ", ".join(d.worse for d in ranking.wins)
    rest = f" It is significantly better than {wins}, not than the others." if wins else ""
    doubt, lead = "No winner can be named", ranking.lead
    if lead.better == leader.name and not lead.enough_seeds and lead.wins == lead.n > 1:
        doubt = f"{leader.name} is ahead in every seed, which {lead.n} seeds cannot prove"
    own = [d for d in compared.differences if d.same and not d.significant and leader.name in (d.better, d.worse)]
    if own:
        same = ", ".join(d.worse if d.better == leader.name else d.better for d in own)
        rest += f" It is as good as {same}, within {own[0].same_within:g}."
    return f"{doubt}. {leader.name} has {_mean_of(leader, objective)}. {_lead(lead)}{rest}"


def _mean_of(group: RunGroup, objective: str, which: str = "the best mean") -> str:
    mean = group.mean(lambda r: r.best)
    lost = f"; {len(group.diverged)} of {len(group.runs)} diverged" if group.diverged else ""
    return f"{which} {objective}, {mean_with_interval(mean)} (n = {mean.n}{lost})"


def _lead(d: GroupDifference) -> str:
    seeds = f"by {d.n} paired seeds" if d.paired else f"unpaired, at least {d.n} runs each"
    ci = "" if math.isnan(d.low) else f", 95 % interval {interval(d)}"
    lead = f"is {difference(d)} ahead of" if d.difference >= 5e-5 else "is level with"
    if any(d.diverged):  # the difference of the surviving runs would say the opposite, or nothing
        lead = "ranks before" if d.p < 1 else "is level with"
    if d.n < 2:
        return f"{d.better} {lead} {d.worse} by one {'seed' if d.paired else 'run'}, {finding(d)}."
    # With too few seeds even the clearest difference has a p above the level, so that it would read like chance.
    ps = f", {_p_equals('p', d.p)}, {_p_equals('adjusted', d.adjusted)}" if d.enough_seeds else ""
    return f"{d.better} {lead} {d.worse} ({seeds}{ci}{ps}): {finding(d)}."


def seeds_counted(group: RunGroup) -> str:
    """State how many seeds the means are over, and how many of the runs if that differs."""
    n, runs = group.mean(lambda r: r.best).n, len(group.runs)
    return str(n) if n == runs else f"{n} ({len(group.counted)} of {runs} runs)"


def good_lrs(band: GoodBand) -> str:
    """Say which learning rates are good, and where higher or lower ones are still to be tried."""
    low, high = f"{band.low:.3g}", f"{band.high:.3g}"
    text = f"only {low}" if low == high else f"{low} to {high}, a factor of {band.high / band.low:.2g}"
    untried = [word for is_open, word in ((band.open_low, "lower"), (band.open_high, "higher")) if is_open]
    return f"{text}; {' or '.join(untried)} was not tried" if untried else text
