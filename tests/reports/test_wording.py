"""What is said about groups: who won, or why that cannot be told."""

import pytest

from lr_lightning.app.commands import compare as app_compare
from lr_lightning.diagnosis.comparison import GoodBand
from lr_lightning.errors import CompareError
from lr_lightning.reports import tables, wording

from .conftest import Compare, Runs, page, table


@pytest.mark.parametrize(
    ("value", "text"),
    [(float("nan"), "–"), (float("inf"), "∞"), (-0.5, "−0.5"), (1234567.0, "1,234,567"), (0.12345, "0.1235"), (0, "0")],
)
def test_numbers_as_text(value: float, text: str) -> None:
    assert wording.number(value) == text


def test_no_winner_without_enough_seeds_and_one_with_them(sweep: Runs, comparison: Compare) -> None:
    few = comparison(log_run=False)
    assert wording.headline(few.compared).startswith("No winner can be named. ")
    assert "unproven: 6 seeds, 7 can prove it" in wording.headline(few.compared)
    two = comparison(log_run=False, filter_string="tags.schedule != 'wsd'", against="constant")
    (c,) = two.compared.differences
    assert (c.better, c.significant, c.seeds_needed) == ("cosine", c.adjusted <= 0.05, 6)
    assert wording.p_value(c.adjusted) in wording.headline(two.compared)
    assert wording.interval(c) in wording.headline(two.compared)


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_a_group_does_not_win_by_the_runs_that_did_not_diverge(runs: Runs, comparison: Compare, lost: int) -> None:
    gone = {"status": "FAILED", "tags": {"diverged": "true"}}
    for seed in range(6):
        runs.train("cosine", seed, 0.95 + 0.001 * seed, **(gone if seed < lost else {}))
        runs.train("constant", seed, 0.9)
    done = comparison(log_run=False)
    said = wording.headline(done.compared)
    assert said.startswith("cosine won: " if not lost else "No winner can be named. cosine has the best mean")
    (c,) = done.compared.differences
    assert c.n == 6
    if lost:
        assert f"(n = {6 - lost}; {lost} of 6 diverged)" in said
        won = f"better in {max(lost, 6 - lost)} of 6 seeds"
        assert wording.finding(c) == f"{won}, not significant (n = 6); by ranks, cosine: {lost} of 6 diverged"
        assert said in page(done)
        assert ("cosine ranks before constant" if lost < 4 else "constant ranks before cosine") in said


def test_the_winner_need_not_have_the_best_mean_of_the_survivors(runs: Runs, comparison: Compare) -> None:
    for seed in range(6):
        gone = {"status": "FAILED", "tags": {"diverged": "true"}} if seed else {}
        runs.train("cosine", seed, 0.99 if not seed else 0.1, **gone)
        runs.train("constant", seed, 0.9 if seed else 0.995)
    done = comparison(log_run=False)
    assert wording.headline(done.compared).startswith("constant won: a mean val/acc, 0.9158")
    assert "cosine: 5 of 6 diverged" in wording.headline(done.compared)


def test_three_clear_seeds_do_not_read_like_chance(runs: Runs, comparison: Compare) -> None:
    for seed, (high, low) in enumerate([(0.961, 0.695), (0.972, 0.712), (0.965, 0.702)]):
        runs.train("cosine", seed, high)
        runs.train("constant", seed, low)
    done = comparison(log_run=False)
    said = wording.headline(done.compared)
    assert said.startswith("cosine is ahead in every seed, which 3 seeds cannot prove. cosine has the best mean")
    assert "better in 3 of 3 seeds, unproven: 3 seeds, 6 can prove it; about 3 more seeds would decide" in said
    assert "p = " not in said + wording.one_line(done.compared.differences[0])
    shown = tables.comparison_table(done.compared)
    assert dict(zip(shown.keys, shown.rows[0], strict=True))["adjusted"] == "–"


def test_equality_within_what_matters_is_an_answer(runs: Runs, comparison: Compare) -> None:
    for seed in range(6):
        runs.train("cosine", seed, 0.950 + 0.001 * (seed % 3))
        runs.train("constant", seed, 0.951 - 0.001 * (seed % 2))
    done = comparison(log_run=False, same_within=0.01)
    assert wording.finding(done.compared.differences[0]) == "no difference that matters: less than 0.01 (p = 0.016)"
    assert "It is as good as constant, within 0.01." in wording.headline(done.compared)
    assert "differ by 0.01 or more (TOST" in page(done)
    assert "TOST" not in page(comparison(log_run=False))


@pytest.mark.parametrize("margin", [0.0, -0.1, float("nan"), float("inf")])
def test_a_margin_of_equality_is_above_zero(runs: Runs, comparison: Compare, margin: float) -> None:
    runs.train("cosine", 0, 0.9)
    with pytest.raises(CompareError, match=r"must be above 0, such as 0\.003") as caught:
        comparison(log_run=False, same_within=margin)
    assert caught.value.on_the_command_line.startswith("--same-within: ")


def test_a_tie_is_decided_by_the_validation_loss(runs: Runs, comparison: Compare) -> None:
    for schedule, loss in (("cosine", 0.3), ("constant", 0.1), ("wsd", 0.2)):
        runs.train(schedule, 0, 0.9, rows={"val/loss": [(39, loss)]})
    assert [group.name for group in comparison(log_run=False).compared.groups] == ["constant", "wsd", "cosine"]


def test_two_seeds_say_that_six_are_needed(runs: Runs, comparison: Compare) -> None:
    for seed in range(2):
        runs.train("cosine", seed, 0.95)
        runs.train("constant", seed, 0.9)
    done = comparison(log_run=False)
    assert "better in 2 of 2 seeds, unproven: 2 seeds, 6 can prove it" in page(done)


def test_groups_of_one_seed_are_one_line_and_no_p(
    runs: Runs, comparison: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, schedule in enumerate(("cosine", "constant", "wsd")):
        runs.train(schedule, 0, 0.95 - 0.01 * i)
    one = comparison(log_run=False)
    line = "These groups share only one seed, which tells nothing; 7 seeds each are needed."
    assert len(one.compared.differences) == 3
    assert not tables.comparison_table(one.compared).rows
    assert wording.headline(one.compared) == (
        "No winner can be named. cosine has the best mean val/acc, 0.9500 (n = 1). cosine is 0.0100 ahead of constant "
        "by one seed, unproven: 1 seed, 7 can prove it."
    )
    app_compare.report(one)
    said = capsys.readouterr().out
    assert said.count(line) == page(one).count(line) == 1
    assert "p = " not in said + page(one).split("The curves")[0]
    runs.train("cosine", 1, 0.95)
    runs.train("constant", 1, 0.94)
    two = comparison(log_run=False)
    assert [row[:2] for row in tables.comparison_table(two.compared).rows] == [["cosine", "constant"]]
    assert "Other groups share only one seed" in page(two)


def test_a_data_set_without_the_group_chosen_beforehand_says_so(runs: Runs, comparison: Compare) -> None:
    for schedule, name in (("cosine", "digits"), ("constant", "digits"), ("cosine", "mnist"), ("wsd", "mnist")):
        runs.train(schedule, 0, 0.9, params={"data.name": name})
    digits, mnist = wording.findings(comparison(log_run=False, against="constant").compared)[1:]
    assert "The group to compare it with has no runs here." in mnist
    assert "no runs here" not in digits


def test_a_single_run_is_a_report_without_a_winner(runs: Runs, comparison: Compare) -> None:
    runs.train("cosine", 0, 0.9)
    done = comparison(log_run=False)
    assert "There is no other group to compare it with." in page(done)
    assert table(done)["cosine"]["best val/acc"] == "0.9000"


@pytest.mark.parametrize(
    ("low", "high", "open_low", "open_high", "text"),
    [
        (0.01, 0.1, False, False, "0.01 to 0.1, a factor of 10"),
        (0.01, 0.03, True, False, "0.01 to 0.03, a factor of 3; lower was not tried"),
        (0.2734, 0.2734, False, True, "only 0.273; higher was not tried"),
        (0.1, 0.1, True, True, "only 0.1; lower or higher was not tried"),
    ],
)
def test_good_learning_rates_are_said_in_words(
    low: float, high: float, open_low: bool, open_high: bool, text: str
) -> None:
    assert wording.good_lrs(GoodBand(low, high, 0.9, low, 0.89, open_low, open_high)) == text
