"""The effects of the learning rate, measured: a table over learning rates, and which textbook claims held."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lr_lightning.diagnosis.statistics import holm, mean_ci
from lr_lightning.diagnosis.verdict import Label
from lr_lightning.errors import ArgumentError

Floats = NDArray[np.float64]
_MOST_EXACT = 20_000  # permutations that are all tried; if there are more, as many random ones


@dataclass(frozen=True)
class GridRun:
    """One run of the grid, with its losses at the end of the budget."""

    lr: float
    seed: int
    label: Label
    verdict: str  # as text: the label, with its detail if there is one
    diverged: bool  # whether a loss was not finite or far above chance
    steps: int
    device_seconds: float  # seconds times devices
    spikes: int  # jumps of the training loss above its smoothed course
    grad_ratio: float  # 95th percentile of the gradient norm over its median, as RunCost measures; nan if unknown
    steps_to_target: float  # inf if the run never reached it
    device_seconds_to_target: float
    val_loss: float  # nan if not finite
    probe_loss: float
    curve: tuple[tuple[float, float], ...] = ()  # (probe loss, validation loss) at each validation

    @property
    def gap(self) -> float:
        """Validation minus probe loss at the end of the budget."""
        return self.val_loss - self.probe_loss

    @property
    def instability(self) -> float:
        """Spikes in a thousand steps; inf if the run diverged."""
        return math.inf if self.diverged else 1000.0 * self.spikes / max(self.steps, 1)


# -- the table -------------------------------------------------------------------------------------------------------


def matched_level(trials: Sequence[GridRun]) -> float:
    """Return the probe loss at which gaps are compared: the lowest to which every run that met the target came down.

    It is nan if no run reached the target.
    """
    able = [t for t in trials if not t.diverged and math.isfinite(t.steps_to_target)]
    lowest = [min((p for p, _ in t.curve if math.isfinite(p)), default=math.inf) for t in able]
    return max(lowest) if lowest and max(lowest) < math.inf else math.nan


def matched_gap(trial: GridRun, level: float) -> float:
    """Return the gap at which a run's probe loss first fell to ``level``.

    It is interpolated between two validations, linearly in the logarithm of the probe loss. It is nan if the probe
    loss never fell to ``level``, or was below half of it at the first validation.

    Example:
        >>> curve = ((1.0, 1.0), (0.1, 1.5))
        >>> trial = GridRun(0.1, 0, Label.HEALTHY, "healthy", False, 2, 1.0, 0, 1.0, 1, 1.0, 1.5, 0.1, curve)
        >>> round(matched_gap(trial, 0.1), 3)
        1.4
    """
    before: tuple[float, float] | None = None
    for probe, val in trial.curve:
        if not (math.isfinite(probe) and math.isfinite(val)):
            return math.nan
        if probe <= level:
            if before is None or before[0] == probe or probe <= 0:
                return val - probe if probe > level / 2 else math.nan
            share = math.log(before[0] / level) / math.log(before[0] / probe)
            return before[1] + share * (val - before[1]) - level
        before = (probe, val)
    return math.nan


@dataclass(frozen=True)
class Row:
    """The results at one learning rate.

    Each pair is a mean over the seeds and half the width of its confidence interval; nan if unknown. Runs that diverged
    are only in the two means to the target, which are over the runs that reached it.
    """

    lr: float
    runs: int
    diverged: int
    reached: int  # runs that reached the target
    steps_to_target: tuple[float, float]
    device_seconds_to_target: tuple[float, float]
    spikes: tuple[float, float]  # in a thousand steps
    grad_ratio: tuple[float, float]
    val_loss: tuple[float, float]
    probe_loss: tuple[float, float]
    gap: tuple[float, float]
    gap_matched: tuple[float, float]  # where the probe loss is matched_level
    matched: int  # runs that reached that level
    verdicts: tuple[tuple[str, int], ...]  # how often each was given, the most frequent first


def table(trials: Sequence[GridRun], level: float = 0.95) -> list[Row]:
    """Return a row for each learning rate, the lowest first, with Student's intervals of this level over the seeds."""
    matched = matched_level(trials)
    rows = []

    def mean(values: Iterable[float]) -> tuple[float, float]:
        known = mean_ci([v for v in values if math.isfinite(v)], level)
        return known.mean, known.half

    for lr in sorted({t.lr for t in trials}):
        mine = [t for t in trials if t.lr == lr]
        alive = [t for t in mine if not t.diverged]
        counts = sorted(Counter(t.verdict for t in mine).items(), key=lambda pair: (-pair[1], pair[0]))
        gaps = [matched_gap(t, matched) for t in alive]
        rows.append(
            Row(
                lr=lr,
                runs=len(mine),
                diverged=len(mine) - len(alive),
                reached=sum(math.isfinite(t.steps_to_target) for t in mine),
                steps_to_target=mean(t.steps_to_target for t in mine),
                device_seconds_to_target=mean(t.device_seconds_to_target for t in mine),
                spikes=mean(t.instability for t in alive),
                grad_ratio=mean(t.grad_ratio for t in alive),
                val_loss=mean(t.val_loss for t in alive),
                probe_loss=mean(t.probe_loss for t in alive),
                gap=mean(t.gap for t in alive),
                gap_matched=mean(gaps),
                matched=sum(math.isfinite(g) for g in gaps),
                verdicts=tuple(counts),
            )
        )
    return rows


# -- the claims ------------------------------------------------------------------------------------------------------

_MEASURES: dict[str, Callable[[GridRun, float], float]] = {
    "steps to the target": lambda t, level: t.steps_to_target,
    "device seconds to the target": lambda t, level: t.device_seconds_to_target,
    "spikes in 1000 steps": lambda t, level: t.instability,
    "gap at the end of the budget": lambda t, level: math.nan if t.diverged else t.gap,
    "gap at matched probe loss": lambda t, level: math.nan if t.diverged else matched_gap(t, level),
    "probe loss at the end of the budget": lambda t, level: math.nan if t.diverged else t.probe_loss,
}

CLAIMS: tuple[tuple[str, str, str, int], ...] = (
    ("a high learning rate converges faster", "high", "steps to the target", -1),
    ("a high learning rate costs less device time", "high", "device seconds to the target", -1),
    ("a high learning rate is less stable", "high", "spikes in 1000 steps", 1),
    ("a high learning rate overfits", "high", "gap at the end of the budget", 1),
    ("a high learning rate overfits, at the same probe loss", "high", "gap at matched probe loss", 1),
    ("a low learning rate is more stable", "low", "spikes in 1000 steps", -1),
    ("a low learning rate is slower", "low", "steps to the target", 1),
    ("a low learning rate costs more device time", "low", "device seconds to the target", 1),
    ("a low learning rate underfits", "low", "probe loss at the end of the budget", 1),
)
"""The textbook claims: text, which learning rates, the measure, and the sign of the expected difference."""


class Finding(StrEnum):
    """What the runs say about a claim."""

    HELD = "held"
    OPPOSITE_HELD = "the opposite held"
    NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class Claim:
    """A claim and its test on the pairs of runs, one at such a learning rate and one at the reference."""

    text: str
    outcome: Finding  # at the adjusted p
    measure: str
    share: float  # of the pairs for which the claim is true; a tie counts a half
    p: float  # two-sided permutation p-value of the ranks
    adjusted: float  # p with Holm's correction over all claims
    runs: tuple[int, int]  # how many at such learning rates, and at the reference, were compared


def claims(trials: Sequence[GridRun], reference: float, alpha: float = 0.05) -> list[Claim]:
    """Test :data:`CLAIMS`: compare the learning rates above, or below, a reference with it.

    The runs are compared by rank, so a run that never reached the target counts as the slowest, and one that diverged
    as the least stable. With few runs nothing can be shown, and that is the finding.

    Args:
        trials: The runs of the grid.
        reference: A learning rate of the runs that was chosen before they were seen. The best of them would be best by
            luck as well, and every other one would look worse than it is.
        alpha: Family-wise error rate. A claim (or its opposite) holds if its adjusted p is below it. Claims without
            runs also count in the correction.

    Raises:
        ArgumentError: No run has the reference learning rate.
    """
    if all(t.lr != reference for t in trials):
        raise ArgumentError(f"reference must be a learning rate of the trials, got {reference:g}")
    level = matched_level(trials)
    tested = []
    for _, side, measure, sign in CLAIMS:
        measured = [(t.lr, sign * _MEASURES[measure](t, level)) for t in trials]
        some = [v for lr, v in measured if (lr > reference if side == "high" else lr < reference) and not math.isnan(v)]
        others = [v for lr, v in measured if lr == reference and not math.isnan(v)]
        tested.append((*_rank_test(np.array(some), np.array(others)), (len(some), len(others))))
    found = []
    corrected = holm([p for _, p, _ in tested])
    for (text, _, measure, _), (share, p, runs), adjusted in zip(CLAIMS, tested, corrected, strict=True):
        shown = Finding.HELD if share > 0.5 else Finding.OPPOSITE_HELD
        found.append(Claim(text, shown if adjusted < alpha else Finding.NOT_SHOWN, measure, share, p, adjusted, runs))
    return found


def _rank_test(some: Floats, others: Floats) -> tuple[float, float]:
    """Return the share of pairs in which the first is larger, and its two-sided permutation p-value."""
    if not len(some) or not len(others):
        return math.nan, 1.0
    every = np.concatenate([some, others])
    above = (every[:, None] > every[None, :]) + 0.5 * (every[:, None] == every[None, :])
    n, few = len(every), len(others)
    possible = math.comb(n, few)
    if possible <= _MOST_EXACT:
        drawn = np.array(list(combinations(range(n), few)))
    else:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(0)))
        drawn = np.stack([rng.permutation(n)[:few] for _ in range(_MOST_EXACT)])
    beaten = above.sum(axis=0)  # how often each value is beaten by any; pairs among the drawn ones count a half each
    shares = (beaten[drawn].sum(axis=1) - few * few / 2) / (few * (n - few))
    share = float((beaten[np.arange(len(some), n)].sum() - few * few / 2) / (few * (n - few)))
    extreme = int((np.abs(shares - 0.5) >= abs(share - 0.5) - 1e-12).sum())
    return share, extreme / len(drawn) if possible <= _MOST_EXACT else (extreme + 1) / (len(drawn) + 1)
