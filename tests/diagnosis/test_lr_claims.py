"""The table of learning rates and its claims, on trials whose truth is known."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from lr_lightning.app.commands.lr_effects import results_as_text
from lr_lightning.app.schemas.search import LREffectsConfig
from lr_lightning.diagnosis import Label
from lr_lightning.diagnosis.lr_claims import CLAIMS, GridRun, _rank_test, claims, matched_gap, matched_level, table
from lr_lightning.diagnosis.statistics import holm


def _trial(
    lr: float, seed: int, *, steps: float, gap: float, probe: float, spikes: int = 0, diverged: bool = False
) -> GridRun:
    luck = 1 + 0.02 * seed
    curve = tuple((2.3 * 0.5**n, 2.3 * 0.5**n + gap * n / 6) for n in range(7) if 2.3 * 0.5**n >= probe / 1.5)
    return GridRun(
        lr=lr,
        seed=seed,
        label=Label.DIVERGED if diverged else Label.HEALTHY,
        verdict="diverged" if diverged else "healthy",
        diverged=diverged,
        steps=100,
        device_seconds=10.0,
        spikes=spikes,
        grad_ratio=2.0,
        steps_to_target=steps * luck,
        device_seconds_to_target=steps * luck / 10,
        val_loss=math.nan if diverged else (probe + gap) * luck,
        probe_loss=math.nan if diverged else probe * luck,
        curve=curve,
    )


def _textbook() -> list[GridRun]:
    trials = []
    for seed in range(4):
        trials += [
            _trial(1e-3, seed, steps=math.inf, gap=0.01, probe=1.5),
            _trial(1e-2, seed, steps=90, gap=0.02, probe=0.5),
            _trial(1e-1, seed, steps=60, gap=0.03, probe=0.05, spikes=1),
            _trial(3e-1, seed, steps=30, gap=0.30, probe=0.05, spikes=9),
            _trial(1e0, seed, steps=40, gap=0.50, probe=0.05, spikes=20),
        ]
    return trials


def test_where_the_textbook_is_right_every_claim_holds() -> None:
    found = claims(_textbook(), 0.1)
    assert [claim.text for claim in found] == [text for text, *_ in CLAIMS]
    assert {claim.outcome for claim in found} == {"held"}
    assert all(claim.p <= claim.adjusted < 0.05 and claim.share == 1.0 for claim in found)


def test_a_claim_may_fail_or_turn_round_and_divergence_is_the_least_stable_and_slowest() -> None:
    trials = [t for t in _textbook() if t.lr <= 0.1]
    for seed in range(4):
        trials += [
            _trial(1.0, seed, steps=math.inf, gap=0.0, probe=0.1, diverged=True),
            _trial(10.0, seed, steps=math.inf, gap=0.0, probe=0.1, diverged=True),
        ]
    outcomes = {claim.text: claim.outcome for claim in claims(trials, 0.1)}
    assert outcomes["a high learning rate converges faster"] == "the opposite held"
    assert outcomes["a high learning rate is less stable"] == "held"
    assert outcomes["a high learning rate overfits"] == "not shown"
    row = table(trials)[-1]
    assert (row.diverged, row.reached, row.verdicts) == (4, 0, (("diverged", 4),))
    assert math.isnan(row.val_loss[0])


def test_with_one_seed_nothing_is_shown() -> None:
    assert {c.outcome for c in claims([t for t in _textbook() if t.seed == 0], 0.1)} == {"not shown"}


def test_at_every_rate_a_run_diverged() -> None:
    trials = [_trial(lr, 0, steps=math.inf, gap=0.0, probe=0.1, diverged=True) for lr in (1.0, 10.0)]
    assert {c.outcome for c in claims(trials, 1.0)} == {"not shown"}
    assert len(table(trials)) == 2


def test_the_claims_are_corrected_for_being_many() -> None:
    """With three seeds the smallest p of this grid is 2 / 84: below 0.05 alone, not among nine."""
    few = [t for t in _textbook() if t.seed < 3 and t.lr in (1e-2, 1e-1, 3e-1, 1e0)]
    found = claims(few, 0.1)
    assert [c.adjusted for c in found] == holm([c.p for c in found])
    assert min(c.p for c in found) == pytest.approx(2 / 84)
    assert {c.outcome for c in found} == {"not shown"}


def test_the_reference_is_the_one_that_was_given_and_not_the_best() -> None:
    one, best = claims(_textbook(), 0.01), claims(_textbook(), 0.1)
    assert one[0].runs == (12, 4)
    assert best[0].runs == (8, 4)
    with pytest.raises(ValueError, match=r"reference must be a learning rate of the trials, got 0\.2"):
        claims(_textbook(), 0.2)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (LREffectsConfig(), 0.0316),
        (LREffectsConfig(points=4), 0.215),
        (LREffectsConfig(lrs=[1.0, 0.1, 0.01]), 0.1),
        (LREffectsConfig(reference=10.0), 10.0),
    ],
)
def test_the_reference_of_lr_effects_follows_from_its_config_alone(node: LREffectsConfig, expected: float) -> None:
    assert node.reference_lr() == expected
    assert expected in node.all_lrs()


def test_the_report_says_what_the_reference_is_and_that_p_is_corrected() -> None:
    trials = _textbook()
    text = results_as_text(
        table(trials), claims(trials, 0.1), trials, 0.95, "val/acc>=0.9", (0.1, "lr_effects.reference")
    )
    assert "against it (lr_effects.reference: fixed before any of these runs" in text
    assert "Holm's correction over all 9 claims" in text
    assert re.search(
        r"a high learning rate overfits: held \(.*100% of pairs, p = 0\.004, adjusted 0\.0[0-9]+, 8 against 4", text
    )
    assert "diverged: give" not in text
    lost = [replace(t, diverged=t.diverged or (t.lr, t.seed) == (0.1, 0)) for t in trials]
    again = results_as_text(table(lost), claims(lost, 0.1), lost, 0.95, "val/acc>=0.9", (0.1, "the middle of the grid"))
    assert "1 of the 4 runs at 0.1 diverged: give a lower lr_effects.reference." in again


def test_the_table_has_means_with_students_interval() -> None:
    row = table(_textbook())[1]
    values = np.array([90 * (1 + 0.02 * seed) for seed in range(4)])
    assert row.steps_to_target[0] == pytest.approx(values.mean())
    assert row.steps_to_target[1] == pytest.approx(3.182 * values.std(ddof=1) / 2, rel=1e-3)
    assert (row.lr, row.runs, row.reached) == (0.01, 4, 4)


def test_gaps_are_matched_at_a_probe_loss_that_every_run_that_reached_the_target_reached() -> None:
    trials = _textbook()
    level = matched_level(trials)
    assert level == max(min(p for p, _ in t.curve) for t in trials if t.lr > 1e-3)
    assert math.isnan(matched_gap(trials[0], level))  # it never came down to it
    assert matched_gap(trials[3], 2.3 * 0.5**3) == pytest.approx(0.30 * 3 / 6)
    assert matched_gap(trials[3], 2.3 * 0.5**2.5) == pytest.approx(0.30 * 2.5 / 6, abs=0.06)
    assert math.isnan(matched_gap(trials[3], 9.0))  # it was far below before it was first measured
    assert math.isnan(matched_level([t for t in trials if t.lr == 1e-3]))


@pytest.mark.parametrize(("n", "m"), [(3, 9), (5, 5), (6, 24)])
def test_the_rank_test_is_mann_whitneys(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    some, others = rng.normal(size=m) + 0.8, rng.normal(size=n)
    share, p = _rank_test(some, others)
    expected = mannwhitneyu(some, others, method="exact")
    assert share == pytest.approx(expected.statistic / (n * m))
    assert p == pytest.approx(expected.pvalue, abs=0.01)
