"""A run whose batch grows: its updates, and what it logs."""

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from lr_lightning.app.composition import validate
from lr_lightning.app.run.train import train
from tests.leftovers import metrics

Compose = Callable[..., DictConfig]

SMALL = [
    "test=false",
    "tracking=csv",
    "model.kwargs.width=4",
    "trainer=cpu",
    "trainer.max_epochs=5",
    "trainer.progress=none",
    "trainer.deterministic=false",  # a global switch
]


def run(composed: Compose, *overrides: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every metric of a run."""
    folder = train(validate(composed(*SMALL, *overrides))).output_dir
    assert folder is not None
    return metrics(folder)


def test_the_default_grows_at_the_papers_fractions_and_keeps_the_lr(composed: Compose) -> None:
    # 1,294 images: 20 batches of 64; four of 320; then what 512 allows: three of 431 for one update
    found = run(composed, "schedule=batch_growth")
    assert [value for _, value in found["batch/size"]] == [64, 64, 320, 1293, 1293]
    assert [value for _, value in found["batch/updates"]] == [20, 40, 44, 45, 46]
    assert [step for step, _ in found["batch/updates"]] == [19, 39, 43, 44, 45]
    assert [step for step, _ in found["train/loss"]] == list(range(46))
    assert {value for _, value in found["lr/group0"]} == {0.1}


def test_any_schedule_of_the_lr_may_have_it_beside(composed: Compose) -> None:
    growth = ["schedule.growth.milestones=[1 epoch]", "schedule.growth.factor=4"]
    target = "schedule._target_=lr_lightning.schedules.Linear"
    found = run(composed, "schedule=batch_growth", target, *growth, "trainer.max_epochs=2")
    assert [value for _, value in found["batch/updates"]] == [20, 25]
    rates = [value for _, value in found["lr/group0"]]
    assert rates == pytest.approx([0.1 * (1 - step / 25) for step in range(25)])
