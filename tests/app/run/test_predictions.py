"""What a trained run gets right and wrong: numbers by hand, figures, and that nothing of it ends a run."""

import csv
import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lr_lightning.app.config import Config
from lr_lightning.app.run.checkpoints import load_weights, read_checkpoint
from lr_lightning.app.run.predictions import (
    Mistake,
    SplitPredictions,
    plot_confusion,
    plot_mistakes,
    report_predictions,
)
from lr_lightning.app.run.train import build_data_and_module, train

SMALL = ("data.train_size=96", "data.batch_size=32", "model.kwargs.width=4", "trainer=cpu", "trainer.max_epochs=1")


@pytest.fixture
def found() -> SplitPredictions:
    image = np.full((3, 4, 4), 7, np.uint8)
    mistakes = [Mistake(image, 0, 1, 0.9), Mistake(image[:1], 1, 0, 0.6)]
    return SplitPredictions("test", ["cat", "dog", "none"], np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), mistakes)


def test_the_accuracy_of_a_class_is_of_its_own_images(found: SplitPredictions) -> None:
    assert found.class_accuracies[:2] == [0.75, 0.5]
    assert math.isnan(found.class_accuracies[2])
    assert found.table() == "class,images,accuracy\ncat,4,0.7500\ndog,4,0.5000\nnone,0,nan\n"


def test_the_table_holds_class_names_with_quotes_and_commas(found: SplitPredictions) -> None:
    names = ['a "big" cat', "dog, small", "two\nlines"]
    rows = [*csv.reader(io.StringIO(replace(found, class_names=names).table()))]
    assert [row[0] for row in rows] == ["class", *names]


def test_the_figures_name_classes_numbers_and_mistakes(found: SplitPredictions) -> None:
    axes = plot_confusion(found).axes[0]
    assert axes.get_title(loc="left") == "test images: 62.50% of 8 right"
    assert {(text.get_text(), text.get_position()) for text in axes.texts} == {
        *(("3", (0, 0)), ("1", (1, 0)), ("2", (0, 1)), ("2", (1, 1)))  # the column is what is predicted
    }
    titles = [axes.get_title() for axes in plot_mistakes(found).axes]
    assert titles == ["cat, taken\nfor dog (90%)", "dog, taken\nfor cat (60%)"]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_run_reports_the_predictions_of_its_best_checkpoint(
    configured: Callable[..., Config], tmp_path: Path, split: str
) -> None:
    keys = ["callbacks.class_accuracy=true", "callbacks.confusion_matrix=true", "callbacks.mistakes=3"]
    config = configured(
        *SMALL, *keys, f"output_root={tmp_path}", "tracking=csv", f"test={str(split == 'test').lower()}"
    )
    outcome = train(config, report=False)
    assert outcome.predictions is not None
    assert outcome.output_dir is not None
    data, module = build_data_and_module(config)
    load_weights(module, read_checkpoint(outcome.output_dir / "checkpoints" / "best.ckpt", "ckpt"), "best")
    loader = data.test_dataloader() if split == "test" else data.val_dataloader()
    pairs, wrong = np.zeros((10, 10), int), []
    with torch.no_grad():
        for batch in loader:
            images, labels = data.on_after_batch_transfer(batch, 0)
            for label, shares in zip(labels.tolist(), module.eval()(images).softmax(1), strict=True):
                pairs[label, int(shares.argmax())] += 1
                wrong += [float(shares.max())] if int(shares.argmax()) != label else []
    assert outcome.predictions.split == split
    assert outcome.predictions.confusion.tolist() == pairs.tolist()
    shown = [mistake.probability for mistake in outcome.predictions.mistakes]
    assert shown == pytest.approx(sorted(wrong, reverse=True)[:3])
    accuracies = {key: value for key, value in outcome.summary.items() if key.startswith("acc_of/")}
    assert accuracies == {f"acc_of/{i}": pairs[i, i] / pairs[i].sum() for i in range(10)}
    artifacts = {path.name for path in (outcome.output_dir / "artifacts").iterdir()}
    assert {"class_accuracy.csv", "confusion_matrix.png", "mistakes.png"} <= artifacts
    if split == "test":
        assert outcome.summary["test_acc"] == pytest.approx(np.trace(pairs) / pairs.sum())
        with (outcome.output_dir / "metrics.csv").open() as file:
            assert {"summary/acc_of/0"} <= {row["key"] for row in csv.DictReader(file)}


def test_a_module_without_logits_costs_a_warning(found: SplitPredictions, configured: Callable[..., Config]) -> None:
    config = configured(*SMALL, "callbacks.confusion_matrix=true")
    data, module = build_data_and_module(config)

    class Plugin:
        """As the Trainer's; the module then fails."""

        def __getattr__(self, name: str) -> Any:
            raise TypeError("no logits")

    trainer: Any = type("Trainer", (), {"is_global_zero": True, "precision_plugin": Plugin(), "strategy": Plugin()})()
    with pytest.warns(UserWarning, match=r"The predictions of the test images are left out \(TypeError: no logits\)"):
        assert report_predictions(config.callbacks, trainer, module, data, "test") is None
