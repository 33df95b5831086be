"""What the trials of a study come to: pure, from trials as Optuna keeps them."""

from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from lr_lightning.search.standing import Standing, order


def trial(number: int, state: TrialState, value: float | None = None, ticket: int | None = None, **result: Any) -> Any:
    attributes: dict[str, Any] = {"ticket": number if ticket is None else ticket, "result": result}
    made = optuna.create_trial(state=state, value=value, user_attrs=attributes)
    made.number = number
    return made


TRIALS: list[FrozenTrial] = [
    trial(0, TrialState.FAIL),
    trial(1, TrialState.COMPLETE, 0.9, val_loss=0.4),
    trial(2, TrialState.COMPLETE, 0.9, val_loss=0.3),
    trial(3, TrialState.COMPLETE, 0.9),
    trial(4, TrialState.COMPLETE, 0.5, val_loss=0.1),
    trial(5, TrialState.PRUNED),
    trial(6, TrialState.WAITING),
    trial(7, TrialState.COMPLETE, 0.7, ticket=0),  # taken up again
]


@pytest.mark.parametrize(("higher", "first"), [(True, [2, 1, 3, 7, 4]), (False, [4, 7, 2, 1, 3])])
def test_the_best_come_first_and_the_lowest_loss_decides_between_equals(higher: bool, first: list[int]) -> None:
    ranked = sorted(TRIALS, key=lambda t: (order(t, higher=higher), t.number))
    assert [t.number for t in ranked][:5] == first
    best = Standing.of(TRIALS, 10, higher=higher).best
    assert best is not None
    assert best.number == first[0]


def test_a_ticket_is_ended_by_its_last_trial_and_those_beyond_the_limit_are_not_left() -> None:
    standing = Standing.of(TRIALS, 10, higher=True)
    assert {ticket: t.number for ticket, t in standing.ended.items()} == {0: 7, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
    assert (standing.left, standing.equal) == (1, 3)
    assert Standing.of(TRIALS, 6, higher=True).left == 0
    assert Standing.of([], 6, higher=True).best is None
