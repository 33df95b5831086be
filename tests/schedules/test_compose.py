"""Warmups, joins and products."""

from typing import Any

import pytest

from lr_lightning.schedules import (
    WSD,
    Clock,
    Constant,
    Cosine,
    Join,
    Linear,
    MultiStep,
    Product,
    Schedule,
    Step,
    Triangular,
    Warmup,
)


def test_default_warmup_wastes_no_step_on_zero() -> None:
    assert Warmup(4, Constant(0.5)).factors(6) == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]


def test_warmup_aims_at_where_the_next_schedule_starts_even_if_no_step_is_left_for_it() -> None:
    assert Warmup("100%", Cosine()).factors(2) == [0.5, 1.0]
    assert Warmup("100%", Cosine())(2, Clock(2)) == 0.0
    assert Warmup(2, Triangular(0.25, 4), start=0.0).factors(3) == [0.0, 0.125, 0.25]


def test_exponential_warmup_multiplies_by_the_same_ratio() -> None:
    factors = Warmup(3, Constant(), shape="exponential", start=0.001).factors(4)
    assert factors == pytest.approx([0.001, 0.01, 0.1, 1.0])
    with pytest.raises(ValueError, match="an exponential rise cannot end at 0"):
        Warmup(3, Linear(0, 1), shape="exponential").check(Clock(10))


def test_durations_in_percent_are_of_the_piece_they_stand_in() -> None:
    inner = Join((Constant(1), "10%"), (Constant(0.5), None))
    outer = Join((Constant(0), 50), (inner, None))
    assert outer.factors(100).count(1.0) == 5


def test_a_product_multiplies_what_each_of_them_says_also_within_a_join() -> None:
    product = Product(Linear(1.0, 0.0), Step(2, 0.5), Constant(0.5))
    assert product.factors(4) == [0.5, 0.375, 0.125, 0.0625]
    assert Join((Constant(), 2), (product, None)).factors(6) == [1.0, 1.0, *product.factors(4)]


def test_epochs_count_from_the_start_of_the_piece() -> None:
    schedule = Join((Constant(), 5), (Step("1 epoch", 0.5), None))
    assert schedule.factors(30, steps_per_epoch=10)[5::10] == [1.0, 0.5, 0.25]


def test_durations_may_be_lists_as_config_files_give() -> None:
    assert MultiStep(["50%", 3]) == MultiStep(("50%", 3))
    assert hash(MultiStep(["50%", 3])) == hash(MultiStep(("50%", 3)))
    assert Join([Constant(), 3], [Linear(), None]) == Join((Constant(), 3), (Linear(), None))


def test_join_and_product_take_one_list_as_yaml_gives() -> None:
    pairs = [(Constant(), 3), (Linear(), None)]
    assert Join(pairs) == Join(*pairs) == Join(pieces=pairs) == Join([list(pair) for pair in pairs])
    assert Join([pairs[0]]) == Join(pairs[0])
    assert Product([Constant(), Linear()]) == Product(Constant(), Linear()) == Product(schedules=[Constant(), Linear()])
    assert eval(repr(Join(pairs))) == Join(pairs)


@pytest.mark.parametrize("empty", [Join, Product])
def test_an_empty_list_is_refused(empty: Any) -> None:
    with pytest.raises(ValueError, match=f"{empty.__name__} needs at least one"):
        empty([])


def test_they_can_be_written_in_the_yaml_of_lightning_cli() -> None:
    jsonargparse = pytest.importorskip("jsonargparse")

    def node(name: str, **arguments: Any) -> dict[str, Any]:
        return {"class_path": f"lr_lightning.schedules.{name}", "init_args": arguments}

    pieces = [[node("Linear", start=0.0, end=1.0), "500 steps"], [node("Product", schedules=[node("WSD")]), None]]
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--schedule", type=Schedule)
    read = parser.instantiate(parser.parse_object({"schedule": node("Join", pieces=pieces)})).schedule
    assert read == Join((Linear(0.0, 1.0), "500 steps"), (Product(WSD()), None))
