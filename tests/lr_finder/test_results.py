"""What the results of a range test and of a grid say, and that they survive a checkpoint."""

import json
import math

import numpy as np
import pytest

from lr_lightning.lr_finder.curve import Abstention, Cause
from lr_lightning.lr_finder.results import GridTest, RangeTest

LRS = (1e-3, 1e-2, 1e-1)


def grid_test(*finals: float, start: float = 2.0) -> GridTest:
    """One training of ten steps for each lr, which ends at the given loss at once; nan diverges."""
    curves = tuple(((start, *[final] * (0 if math.isnan(final) else 9)),) for final in finals)
    return GridTest(LRS, curves, 10)


@pytest.mark.parametrize(
    ("finals", "cause", "number", "advice"),
    [
        ((math.nan,) * 3, Cause.ALL_DIVERGED, 0.0, "Lower min_lr."),
        ((1.0, 1.5, 1.8), Cause.LOWEST_IS_BEST, 1e-3, "Lower min_lr."),
        ((1.8, 1.5, 1.0), Cause.HIGHEST_IS_BEST, 1e-1, "Raise max_lr."),
        ((2.5, 2.2, 2.6), Cause.NO_PROGRESS, 0.0, "Give more num_steps."),
    ],
)
def test_a_grid_without_a_suggestion_says_why(
    finals: tuple[float, ...], cause: Cause, number: float, advice: str
) -> None:
    found = grid_test(*finals)
    assert found.suggestion is None
    assert found.interval is None
    assert found.abstention == Abstention(cause, number)
    assert found.advice == advice
    assert found.describe().endswith(advice)


def test_a_grid_suggests_its_best_lr() -> None:
    found = grid_test(1.8, 1.0, math.nan)
    assert (found.suggestion, found.abstention, found.reason, found.advice) == (1e-2, None, None, None)
    assert found.describe() == "lr = 0.01 is the best of 3 after 10 steps"


@pytest.mark.parametrize(("cause", "wider"), [(c, c.widen) for c in Cause])
def test_a_second_range_moves_the_end_that_the_cause_names(cause: Cause, wider: str | None) -> None:
    found = RangeTest(LRS, ((1.0,) * 3,))
    vars(found)["reading"] = type("Reading", (), {"abstention": Abstention(cause)})
    expected = {"max_lr": (1e-3, 0.5), "min_lr": (2e-4, 0.1), None: None}[wider]
    assert found.wider(5.0) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("cause", Cause)
def test_an_abstention_reads_as_two_sentences(cause: Cause) -> None:
    text = str(Abstention(cause, 3.0))
    assert "{" not in text
    assert text[0].isupper()
    assert text.endswith(f". {cause.advice}")


@pytest.mark.parametrize(
    "found",
    [
        RangeTest(LRS, ((1.0, 0.5), (1.0, 0.4, 2.0)), metric="accuracy", mode="linear", epoch=3, seed=7),
        grid_test(1.8, 1.0, 1.4),
        GridTest(LRS, (((1.0,),),) * 3, 10, ((0.5,), (0.6,), (math.inf,)), metric="val_loss", epoch=2),
    ],
)
def test_a_result_survives_a_checkpoint(found: RangeTest | GridTest) -> None:
    state = json.loads(json.dumps(found.state()))
    assert type(found).from_state(state) == found
    if not isinstance(found, GridTest):  # as earlier versions wrote them, who refuse a key that they do not know
        assert {"runs", "run", "trials"} <= state.keys()
        assert not {"curves", "planned"} & state.keys()


def test_the_csv_has_every_repeat() -> None:
    lines = RangeTest(LRS, ((1.0, 0.5), (1.0, 0.4, 2.0))).to_csv().splitlines()
    assert lines[0] == "lr,loss,smoothed,loss_0,loss_1"
    assert lines[2].split(",")[0::3] == ["0.01", "0.5"]
    assert len(lines) == 3  # as far as every repeat got
    assert np.isclose(float(lines[2].split(",")[1]), 0.45)


@pytest.mark.parametrize("found", [RangeTest(LRS, ((1.0, 0.5, 0.7),)), grid_test(1.8, 1.0, math.nan)])
def test_a_result_draws_itself_in_a_figure_or_into_axes(found: RangeTest | GridTest) -> None:
    pytest.importorskip("matplotlib")
    figure = found.plot()
    assert figure.axes
    assert found.plot(figure.axes[0]) is figure


def test_the_picture_shows_the_caps_and_rounds_each_number_once() -> None:
    pytest.importorskip("matplotlib")
    grid = np.geomspace(1e-6, 10, 100)
    noise = 0.02 * np.random.default_rng(0).standard_normal(100)
    losses = 2.3 - 2.0 / (1 + (0.02 / grid) ** 2) + np.where(grid > 0.5, 40 * (grid - 0.5), 0.0) + noise
    found = RangeTest(tuple(grid), (tuple(losses),))
    (axes,) = found.plot().axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    caps = lines["capped"]
    assert len(caps.get_xdata()) > 3
    assert len(set(caps.get_ydata())) == 1
    assert axes.get_ylim()[0] < caps.get_ydata()[0] < axes.get_ylim()[1]
    title = axes.get_title(loc="left")
    for name in ("suggestion", "base_lr", "max_lr"):
        (label,) = (label for label in lines if label.startswith(f"{name} "))
        assert f"= {label.split()[1]}" in title
