"""A growing batch through the app: what it does, what it logs, and what its keys say when they are wrong."""

from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch import LightningModule
from omegaconf import DictConfig

from lr_lightning.app import build
from lr_lightning.app.checks import validate
from lr_lightning.app.run.train import train
from lr_lightning.callbacks.batch_size import BatchSizeSchedule
from lr_lightning.errors import ConfigError
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


def test_the_default_grows_at_the_papers_fractions_and_keeps_the_rate(composed: Compose) -> None:
    # 1,294 images: 20 batches of 64; four of 320; then what 512 allows: three of 431 for one update
    found = run(composed, "schedule=batch_growth")
    assert [value for _, value in found["batch/size"]] == [64, 64, 320, 1293, 1293]
    assert [value for _, value in found["batch/updates"]] == [20, 40, 44, 45, 46]
    assert [step for step, _ in found["batch/updates"]] == [19, 39, 43, 44, 45]
    assert [step for step, _ in found["train/loss"]] == list(range(46))
    assert {value for _, value in found["lr/group0"]} == {0.1}


def test_any_schedule_of_the_rate_may_have_it_beside(composed: Compose) -> None:
    growth = ["schedule.growth.milestones=[1 epoch]", "schedule.growth.factor=4"]
    target = "schedule._target_=lr_lightning.schedules.Linear"
    found = run(composed, "schedule=batch_growth", target, *growth, "trainer.max_epochs=2")
    assert [value for _, value in found["batch/updates"]] == [20, 25]
    rates = [value for _, value in found["lr/group0"]]
    assert rates == pytest.approx([0.1 * (1 - step / 25) for step in range(25)])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.growth.factor=1"], "schedule.growth.factor: must be > 1, got 1"),
        (["schedule.growth.milestones=[60%,30%]"], "schedule.growth.milestones: must rise, got '60%' before '30%'"),
        (
            ["schedule.growth.milestones=[60]"],
            "schedule.growth.milestones: must be epochs, since a batch grows",
        ),
        (["data.batch_size=1024"], "schedule.growth.max_batch_size: 512 is below data.batch_size, 1024. Give that"),
        (["schedule.growth.max_batch_size=0", "data.batch_size=1"], "schedule.growth.max_batch_size: 0 is below"),
    ],
)
def test_bad_keys(composed: Compose, overrides: list[str], message: str) -> None:
    config = validate(composed("schedule=batch_growth", *overrides))
    with pytest.raises(ConfigError) as caught:
        build.build_callbacks(config, build.build_schedules(config.schedule, config.optimizer.lr), LightningModule())
    assert message in str(caught.value)


def test_no_growth_no_callback(composed: Compose) -> None:
    config = validate(composed("schedule=batch_growth", "schedule.growth=null"))
    callbacks: list[Any] = build.build_callbacks(
        config, build.build_schedules(config.schedule, config.optimizer.lr), LightningModule()
    )
    assert not any(isinstance(callback, BatchSizeSchedule) for callback in callbacks)
