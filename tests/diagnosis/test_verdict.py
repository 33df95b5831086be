"""The text of a verdict has words for its numbers, and every sentence finds the numbers that it leaves open."""

import math

import pytest

from lr_lightning.diagnosis import Advice, Label, Reason, Verdict, diagnose
from tests.diagnosis.recorded import load, names

EVIDENCE = {"epochs": 30.0, "validations": 30.0, "needed": 4.0, "lr": 0.05, "peak_lr": 0.1, "chance_loss": math.log(10)}
EVIDENCE |= {"val_loss": 1.0, "probe_loss": 0.5, "probe_fall": 0.1, "probe_fall_since_epoch": 20.0}
EVIDENCE |= {"accuracy_lost": 4.2}


@pytest.mark.parametrize("advice", Advice)
@pytest.mark.parametrize("planned", [{}, {"planned": 0.5}], ids=["whole", "half"])
def test_every_sentence_finds_its_numbers(advice: Advice, planned: dict[str, float]) -> None:
    verdict = Verdict(Label.OVERFITTING, None, 7.0, EVIDENCE | planned, (advice,))
    (sentence,) = verdict.sentences()
    assert sentence.endswith((".", "..."))
    assert "{" not in sentence
    assert "stop " not in sentence.lower()


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_finds_its_numbers(reason: Reason) -> None:
    verdict = Verdict(Label.INCONCLUSIVE, reason, None, EVIDENCE)
    assert "{" not in verdict.detail
    assert verdict.headline == f"inconclusive ({verdict.detail})"


def test_the_headline_of_a_run_that_ended_in_a_divergence_says_with_what() -> None:
    verdict = Verdict(Label.DIVERGED, Reason.NOT_FINITE, divergence="train/loss became nan at step 3")
    assert verdict.headline == "diverged (train/loss became nan at step 3)"


def test_the_text_says_what_each_number_is_of_and_keeps_its_lists_in_markdown() -> None:
    text = diagnose(load("noisy_300")).text()
    assert text.splitlines()[:3] == [
        "verdict: overfitting, from epoch 13",
        "",
        "- validation loss: 2.17 at the end; 1.25 at its best (epoch 14); up by 0.93 ± 0.13 since then",
    ]
    assert "- chance, the loss of a model that knows nothing: 2.27\n" in text
    assert "\n\nWhat to try:\n\n- Cool down" in text


@pytest.mark.parametrize("name", names())
def test_every_text_has_words_for_its_numbers(name: str) -> None:
    verdict = diagnose(load(name))
    assert "_" not in verdict.text()
    assert f"validations in {verdict.evidence['epochs']:.3g} epochs" in verdict.text()
