"""What the rate did, measured: a table of rates, and which of the textbook's claims held. Pure functions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from lr_lightning.diagnosis.statistics import holm, mean_ci

__all__ = ["CLAIMS", "Claim", "Row", "Trial", "claims", "matched_gap", "matched_level", "table"]

Floats = NDArray[np.float64]
_DRAWS = 20_000  # permutations that are drawn where there are too many to take all


@dataclass(frozen=True)
class Trial:
    """One run of the grid.

    Attributes:
        lr: Its rate.
        seed: Its seed.
        verdict: Its label, with the detail where there is one.
        diverged: Whether a loss was not finite, or far above chance.
        steps: Optimizer steps made.
        device_seconds: Seconds times devices.
        spikes: Jumps of the training loss above its smoothed course.
        grad_ratio: 95th percentile of the gradient norm over its median; nan where there is none.
        steps_to_target: Steps until the target; inf where it was not reached.
        device_seconds_to_target: The same in device seconds.
        val_loss: At the end of the budget; nan if it is not finite.
        probe_loss: The same of the probe.
        curve: (probe loss, validation loss) of each validation.
    """

    lr: float
    seed: int
    verdict: str
    diverged: bool
    steps: int
    device_seconds: float
    spikes: int
    grad_ratio: float
    steps_to_target: float
    device_seconds_to_target: float
    val_loss: float
    probe_loss: float
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def gap(self) -> float:
        """Validation minus probe loss at the end of the budget."""
        return self.val_loss - self.probe_loss

    @property
    def instability(self) -> float:
        """Spikes in a thousand steps; inf where it diverged."""
        return math.inf if self.diverged else 1000.0 * self.spikes / max(self.steps, 1)


def matched_level(trials: Sequence[Trial]) -> float:
    """The probe loss at which gaps are compared: the lowest that every run that reached the target came down to.

    Returns:
        nan if no run reached it.
    """
    able = [t for t in trials if not t.diverged and math.isfinite(t.steps_to_target)]
    lowest = [min((p for p, _ in t.curve if math.isfinite(p)), default=math.inf) for t in able]
    return max(lowest) if lowest and max(lowest) < math.inf else math.nan


def matched_gap(trial: Trial, level: float) -> float:
    """The gap where a run's probe loss first came down to a level, between two validations in the probe loss's log.

    Returns:
        nan if it never did, or had come down to half of it by the first validation.

    Example:
        >>> trial = Trial(0.1, 0, "healthy", False, 2, 1.0, 0, 1.0, 1, 1.0, 1.5, 0.1, ((1.0, 1.0), (0.1, 1.5)))
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
    """What was measured at one rate. Each pair is a mean over the seeds and the half width of its CI; nan: unknown.

    Attributes:
        lr: The rate.
        runs: How many seeds.
        diverged: How many of them diverged.
        reached: How many reached the target; only these are in the two numbers to the target.
        steps_to_target: Speed.
        device_seconds_to_target: Cost.
        spikes: In a thousand steps, of runs that did not diverge.
        grad_ratio: 95th percentile of the gradient norm over its median.
        val_loss: At the end of the budget.
        probe_loss: The same.
        gap: The same: validation minus probe loss.
        gap_matched: The gap where the probe loss is :func:`matched_level`.
        matched: How many runs reached that.
        verdicts: How often each verdict was given, the most frequent first.
    """

    lr: float
    runs: int
    diverged: int
    reached: int
    steps_to_target: tuple[float, float]
    device_seconds_to_target: tuple[float, float]
    spikes: tuple[float, float]
    grad_ratio: tuple[float, float]
    val_loss: tuple[float, float]
    probe_loss: tuple[float, float]
    gap: tuple[float, float]
    gap_matched: tuple[float, float]
    matched: int
    verdicts: tuple[tuple[str, int], ...]


def table(trials: Sequence[Trial], level: float = 0.95) -> list[Row]:
    """A row for each rate, the lowest first.

    Args:
        trials: The runs.
        level: Of the confidence intervals: Student's, over the seeds; with one run there is none.
    """
    matched = matched_level(trials)
    rows = []
    for lr in sorted({t.lr for t in trials}):
        mine = [t for t in trials if t.lr == lr]
        alive = [t for t in mine if not t.diverged]
        labels = [t.verdict for t in mine]
        counts = sorted(((v, labels.count(v)) for v in set(labels)), key=lambda pair: (-pair[1], pair[0]))
        gaps = [matched_gap(t, matched) for t in alive]

        def mean(of: Callable[[Trial], float], among: list[Trial] = alive) -> tuple[float, float]:
            return _mean([of(t) for t in among], level)

        rows.append(
            Row(
                lr=lr,
                runs=len(mine),
                diverged=len(mine) - len(alive),
                reached=sum(math.isfinite(t.steps_to_target) for t in mine),
                steps_to_target=mean(lambda t: t.steps_to_target, mine),
                device_seconds_to_target=mean(lambda t: t.device_seconds_to_target, mine),
                spikes=mean(lambda t: t.instability),
                grad_ratio=mean(lambda t: t.grad_ratio),
                val_loss=mean(lambda t: t.val_loss),
                probe_loss=mean(lambda t: t.probe_loss),
                gap=mean(lambda t: t.gap),
                gap_matched=_mean(gaps, level),
                matched=sum(math.isfinite(g) for g in gaps),
                verdicts=tuple(counts),
            )
        )
    return rows


def _mean(values: Sequence[float], level: float) -> tuple[float, float]:
    """The mean of the finite values, and half the width of its confidence interval."""
    known = mean_ci([v for v in values if math.isfinite(v)], level)
    return known.mean, known.half


# -- the claims ------------------------------------------------------------------------------------------------------

_Measure = Callable[[Trial, float], float]
_MEASURES: dict[str, _Measure] = {
    "steps to the target": lambda t, level: t.steps_to_target,
    "device seconds to the target": lambda t, level: t.device_seconds_to_target,
    "spikes in 1000 steps": lambda t, level: t.instability,
    "gap at the end of the budget": lambda t, level: math.nan if t.diverged else t.gap,
    "gap at matched probe loss": lambda t, level: math.nan if t.diverged else matched_gap(t, level),
    "probe loss at the end of the budget": lambda t, level: math.nan if t.diverged else t.probe_loss,
}

CLAIMS: tuple[tuple[str, str, str, int], ...] = (
    ("a high rate converges faster", "high", "steps to the target", -1),
    ("a high rate costs less device time", "high", "device seconds to the target", -1),
    ("a high rate is less stable", "high", "spikes in 1000 steps", 1),
    ("a high rate overfits", "high", "gap at the end of the budget", 1),
    ("a high rate overfits, at the same probe loss", "high", "gap at matched probe loss", 1),
    ("a low rate is more stable", "low", "spikes in 1000 steps", -1),
    ("a low rate is slower", "low", "steps to the target", 1),
    ("a low rate is dearer", "low", "device seconds to the target", 1),
    ("a low rate underfits", "low", "probe loss at the end of the budget", 1),
)
"""What textbooks say: the claim, of which rates, by which measure, and which way."""


@dataclass(frozen=True)
class Claim:
    """A claim, and what became of it.

    Attributes:
        text: The claim.
        outcome: ``"held"``, ``"the opposite held"`` or ``"not shown"``.
        measure: By what it was measured.
        share: In what share of the pairs of runs, one at such a rate and one at the reference, it was so; ties half.
        p: Of a share as far from a half, were there no difference: a two-sided permutation test of the ranks.
        adjusted: p with Holm's correction over all claims; the outcome is by this one.
        runs: How many runs at such rates, and how many at the reference, could be compared.
    """

    text: str
    outcome: str
    measure: str
    share: float
    p: float
    adjusted: float
    runs: tuple[int, int]


def claims(trials: Sequence[Trial], reference: float, alpha: float = 0.05) -> list[Claim]:
    """Which of :data:`CLAIMS` held: of the rates above, or below, the reference against it.

    The runs are compared by rank, so that a run that never reached the target counts as the slowest, and one that
    diverged as the least stable. With few runs nothing can be shown, and that is what it says.

    Args:
        trials: The runs.
        reference: One of their rates, chosen before they were seen: the best of them, chosen afterwards, would be best
            by luck as well, and every other rate would look worse than it is.
        alpha: A claim held, or its opposite, where its adjusted p is below it: the chance of any false finding at all.
            A claim that no run speaks to counts in the correction, since which these are is known only afterwards.

    Raises:
        ValueError: No run has the reference rate.
    """
    if not any(t.lr == reference for t in trials):
        raise ValueError(f"reference must be a rate of the trials, got {reference:g}")
    level = matched_level(trials)
    tested = []
    for _, side, measure, sign in CLAIMS:
        theirs = [t for t in trials if (t.lr > reference if side == "high" else t.lr < reference)]
        ours = [t for t in trials if t.lr == reference]
        some, others = (
            np.array([v for t in group if not math.isnan(v := _MEASURES[measure](t, level))])
            for group in (theirs, ours)
        )
        tested.append((*_rank_test(sign * some, sign * others), (len(some), len(others))))
    found = []
    for (text, _, measure, _), (share, p, runs), adjusted in zip(
        CLAIMS, tested, holm([p for _, p, _ in tested]), strict=True
    ):
        outcome = "not shown" if not adjusted < alpha else "held" if share > 0.5 else "the opposite held"
        found.append(Claim(text, outcome, measure, share, p, adjusted, runs))
    return found


def _rank_test(some: Floats, others: Floats) -> tuple[float, float]:
    """In what share of pairs the first is larger, and a two-sided permutation p-value of that."""
    if not len(some) or not len(others):
        return math.nan, 1.0
    every = np.concatenate([some, others])
    above = (every[:, None] > every[None, :]) + 0.5 * (every[:, None] == every[None, :])
    n, few = len(every), len(others)
    possible = math.comb(n, few)
    if possible <= _DRAWS:
        drawn = np.array(list(combinations(range(n), few)))
    else:
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(0)))
        drawn = np.stack([rng.permutation(n)[:few] for _ in range(_DRAWS)])
    totals = above.sum(axis=0)  # how often each is beaten by any; pairs among the drawn ones count a half each
    shares = (totals[drawn].sum(axis=1) - few * few / 2) / (few * (n - few))
    share = float((totals[np.arange(len(some), n)].sum() - few * few / 2) / (few * (n - few)))
    extreme = int((np.abs(shares - 0.5) >= abs(share - 0.5) - 1e-12).sum())
    return share, extreme / len(drawn) if possible <= _DRAWS else (extreme + 1) / (len(drawn) + 1)
