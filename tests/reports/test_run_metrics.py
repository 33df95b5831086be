"""A run's steps on the other x axes, and which of its metrics is which."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from lr_lightning.reports import run_metrics
from lr_lightning.reports.run_metrics import RunAxes
from lr_lightning.tracking.query import MetricCurve, Run

STEPS = np.array([0, 9, 19, 39])


def curve(points: Sequence[tuple[int, float]], ms: int = 100) -> MetricCurve:
    step, value = map(np.array, zip(*points, strict=True))
    return MetricCurve(step, value.astype(np.float64), 1_000 + ms * step)


def axes(curves: Mapping[str, MetricCurve], finished: bool = True, world: str = "", **params: str) -> RunAxes:
    given = {k.replace("__", "."): v for k, v in params.items()}
    run = Run(
        "id", "name", "1", "FINISHED", 0, None, params=given, tags={run_metrics.WORLD_SIZE_TAG: world} if world else {}
    )
    dense = {run_metrics.TRAIN_LOSS: curve([(i, 1.0) for i in range(40)])}
    return RunAxes(run, {**dense, **curves}, finished)


def at(found: RunAxes, axis: str) -> list[float]:
    places = found.at(axis, STEPS)
    assert places is not None
    return places.tolist()


def test_steps_seconds_and_shares() -> None:
    plain = axes({})
    assert at(plain, "step") == [0, 9, 19, 39]
    assert at(plain, "seconds") == pytest.approx([0, 0.9, 1.9, 3.9])
    assert at(plain, "fraction") == [1 / 40, 0.25, 0.5, 1.0]
    assert plain.at("epochs", STEPS) is None
    assert plain.at("examples", STEPS) is None


def test_epochs_end_where_their_means_were_logged_or_where_the_epoch_changes() -> None:
    means = {run_metrics.TRAIN_LOSS_EPOCH: curve([(9, 1.0), (19, 0.9), (39, 0.8)])}  # the last epoch is twice as long
    assert at(axes(means), "epochs") == pytest.approx([0.1, 1.0, 2.0, 3.0])
    foreign = {run_metrics.EPOCH: curve([(4, 0.0), (19, 0.0), (29, 1.0), (39, 1.0), (40, 2.0)])}
    assert at(axes(foreign), "epochs") == pytest.approx([0.05, 0.5, 1.0, 2.0])
    after = axes(means).at("epochs", np.array([59]))
    assert after is not None
    assert after[0] == pytest.approx(4.0)  # a test after the last epoch has a place too


def test_examples_by_the_batch_or_as_it_grows() -> None:
    assert at(axes({}, data__batch_size="32"), "examples") == [32, 320, 640, 1280]
    accumulated = axes({}, data__batch_size="32", trainer__accumulate_grad_batches="2")
    assert at(accumulated, "examples") == [64, 640, 1280, 2560]
    grows = {run_metrics.BATCH_SIZE: curve([(19, 32.0), (39, 64.0)])}
    assert at(axes(grows), "examples") == [32, 320, 640, 640 + 20 * 64]
    assert axes({}, batch_size="many").at("examples", STEPS) is None


@pytest.mark.parametrize(
    ("world", "params", "times"),
    [
        ("", {"trainer__devices": "1"}, 1),
        ("", {"trainer__devices": "4", "trainer__num_nodes": "2"}, 8),
        ("", {"trainer__devices": "[0, 2]"}, 2),
        ("", {"trainer__devices": "[1]"}, 1),
        ("", {"trainer__devices": "auto"}, None),
        ("", {"trainer__devices": "-1"}, None),
        ("2", {"trainer__devices": "auto"}, 2),
        ("2", {"trainer__devices": "auto", "trainer__accumulate_grad_batches": "2"}, 4),
    ],
)
def test_every_process_has_examples_of_its_own(world: str, params: dict[str, str], times: int | None) -> None:
    found = axes({}, world=world, data__batch_size="32", **params)
    if times is None:
        assert found.at("examples", STEPS) is None
    else:
        assert at(found, "examples") == [times * n for n in (32, 320, 640, 1280)]
    grows = {run_metrics.BATCH_SIZE: curve([(39, 64.0)])}  # which is of all processes already
    assert at(axes(grows, world=world, data__batch_size="32", **params), "examples")[-1] == 40 * 64


def test_seconds_as_the_run_measured_them() -> None:
    measured = {run_metrics.COST_SECONDS: curve([(19, 10.0), (39, 20.0)], ms=10**9)}
    assert at(axes(measured), "seconds") == pytest.approx([0, 90 / 19, 10, 20])


def test_the_budget_of_a_run_that_was_stopped_is_what_it_planned() -> None:
    assert at(axes({}, finished=False, trainer__max_steps="80"), "fraction")[-1] == 0.5
    means = {run_metrics.TRAIN_LOSS_EPOCH: curve([(19, 1.0), (39, 0.9)])}
    assert at(axes(means, finished=False, trainer__max_epochs="8", trainer__max_steps="-1"), "fraction")[-1] == 0.25
    assert at(axes({}, finished=False), "fraction")[-1] == 1.0


def test_a_run_without_rows_has_no_places() -> None:
    empty = RunAxes(Run("id", "n", "1", "RUNNING", 0, None), {}, False)
    assert empty.at("seconds", STEPS) is None
    assert empty.at("fraction", STEPS) is None


@pytest.mark.parametrize(
    ("key", "available", "found"),
    [
        ("val/acc", ["val_acc", "val/acc"], "val/acc"),
        ("val/acc", ["validation_accuracy", "x"], "validation_accuracy"),
        ("val/loss", ["valid_loss_epoch"], "valid_loss_epoch"),
        ("lr/group0", ["lr/opt1_group0", "lr-SGD"], "lr/opt1_group0"),
        ("lr/group0", ["learning_rate"], "learning_rate"),
        ("train/loss", ["train_loss_epoch", "train_loss_step"], "train_loss_step"),
        ("train/loss", ["val_loss"], None),
        ("custom metric", ["custom metric"], "custom metric"),
    ],
)
def test_a_metric_is_found_by_its_name_or_by_what_it_means(key: str, available: list[str], found: str | None) -> None:
    assert run_metrics.find_metric(key, available) == found


@pytest.mark.parametrize(
    ("better", "metrics"),
    [
        (True, ["val/acc", "val/recent_acc", "valid_accuracy", "val/acc5", "val/top1", "MulticlassF1Score", "AUROC"]),
        (False, ["val/loss", "val/wer", "val/ce", "val_cross_entropy", "val/error", "overfit/gap_acc"]),
        (False, ["BinaryHingeLoss", "val/NLL", "val/ece", "val/loss_epoch"]),
        (None, ["val/score", "val/terrain", "val/mapped", "val/acc_loss", "custom metric"]),
    ],
)
def test_which_direction_is_better_is_told_by_whole_words(better: bool | None, metrics: list[str]) -> None:
    assert {metric: run_metrics.is_higher_better(metric) for metric in metrics} == dict.fromkeys(metrics, better)
