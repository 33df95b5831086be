"""Which training the lines below a run's table propose: the one the verdict is about, and none it speaks against."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lr_lightning.app.config import Config
from lr_lightning.app.run.messages import places_from_environment, print_outcome
from lr_lightning.app.run.record import RunOutcome
from lr_lightning.diagnosis import Advice, Label, Reason, Verdict

OVER = Verdict(
    Label.OVERFITTING, None, 7.0, {"epochs": 30.0, "lr": 0.0, "peak_lr": 0.1}, (Advice.SHORTEN_OR_REGULARISE,)
)
STARTED = ["schedule=constant", "trainer.max_epochs=30"]


def advising(label: Label, *advice: Advice) -> Verdict:
    """A verdict with this advice."""
    return Verdict(label, None, None, {**OVER.evidence, "probe_loss": 0.5, "planned": 0.5}, advice)


def proposed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that train, without the path of the script."""
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if line.startswith(("train on:", "try:"))]


@pytest.mark.parametrize(
    ("verdict", "words", "expected"),
    [
        (None, STARTED, ["train on:  python train.py resume=run trainer.max_epochs=60"]),
        (Verdict(Label.HEALTHY), STARTED, []),
        (
            OVER,
            STARTED,
            [
                "try:  python train.py schedule=constant trainer.max_epochs=7",
                "try:  python train.py schedule=constant trainer.max_epochs=30 model.kwargs.dropout=0.3",
            ],
        ),
        (OVER, ["-m", *STARTED], []),  # the overrides are those of several runs
        (OVER, ["resume=run"], []),
        (
            advising(Label.HEALTHY, Advice.COOL_DOWN),
            STARTED,
            ["try:  python train.py trainer.max_epochs=30 schedule=wsd"],
        ),
        (advising(Label.UNDERFITTING, Advice.FINISH), STARTED, ["train on:  python train.py resume=run"]),
        (
            advising(Label.UNDERFITTING, Advice.RAISE_LR_BY_TENS),
            [*STARTED, "optimizer.lr=0.1"],
            [
                "try:  python train.py schedule=constant trainer.max_epochs=30 optimizer.lr=1",
                "try:  python train.py schedule=constant trainer.max_epochs=30 optimizer.lr=10",
            ],
        ),
        (
            advising(Label.COLLAPSED, Advice.LOWER_LR_AND_WARM_UP, Advice.INSPECT_NETWORK),
            STARTED,
            [
                "try:  python train.py schedule=constant trainer.max_epochs=30 optimizer.lr=0.01 schedule.warmup=10%",
                "try:  python train.py schedule=constant trainer.max_epochs=30 optimizer.lr=0.001 schedule.warmup=10%",
            ],
        ),
        (
            advising(Label.UNDERFITTING, Advice.LARGER_OR_LONGER),
            STARTED,
            [
                "try:  python train.py schedule=constant trainer.max_epochs=30 model.kwargs.width=64",
                "try:  python train.py schedule=constant trainer.max_epochs=60",
            ],
        ),
        (
            advising(Label.OVERFITTING, Advice.REGULARISE),
            STARTED,
            ["try:  python train.py schedule=constant trainer.max_epochs=30 model.kwargs.dropout=0.3"],
        ),
        (Verdict(Label.UNDERFITTING, Reason.LIMITED), STARTED, []),
    ],
)
def test_the_run_of_each_advice_is_a_command_that_starts_it(
    configured: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verdict: Verdict | None,
    words: list[str],
    expected: list[str],
) -> None:
    monkeypatch.delenv("MAKELEVEL", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    print_outcome(configured(*STARTED), Path("run"), RunOutcome({"steps": 900.0}, verdict=verdict))
    assert proposed(capsys) == expected


@pytest.mark.parametrize(
    ("advice", "words", "found_lr", "expected"),
    [
        (
            Advice.RAISE_CALM_LR,  # of the learning rate that the finder has set, which would set another one
            ["schedule=constant", "finder=range_test", "finder.num_steps=50"],
            0.02,
            ["schedule=constant optimizer.lr=0.06 finder=none"],
        ),
        (
            Advice.COOL_DOWN,  # wsd has other keys
            ["schedule=plateau", "schedule.patience=3", "optimizer.lr=0.1"],
            None,
            ["optimizer.lr=0.1 schedule=wsd"],
        ),
        (
            Advice.LOWER_LR_AND_WARM_UP,  # 1cycle rises for 30 % of the run; its base stays the same share of its peak
            ["schedule=one_cycle", "schedule.max_lr=1", "schedule.base_lr=0.5"],
            None,
            [
                "schedule=one_cycle schedule.max_lr=0.1 schedule.base_lr=0.05",
                "schedule=one_cycle schedule.max_lr=0.01 schedule.base_lr=0.005",
            ],
        ),
        (
            Advice.LOWER_OR_COOL_DOWN,
            ["schedule=constant", "optimizer.lr=0.3"],
            None,
            ["schedule=constant optimizer.lr=0.1", "optimizer.lr=0.3 schedule=wsd"],
        ),
    ],
)
def test_the_run_of_an_advice_keeps_only_the_words_that_fit_it(
    configured: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    advice: Advice,
    words: list[str],
    found_lr: float | None,
    expected: list[str],
) -> None:
    monkeypatch.delenv("MAKELEVEL", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    outcome = RunOutcome({"steps": 900.0}, verdict=advising(Label.HEALTHY, advice), applied_lr=found_lr)
    print_outcome(configured(*words), Path("run"), outcome)
    assert proposed(capsys) == [f"try:  python train.py {line}" for line in expected]
    for line in expected:
        configured(*line.split())  # and it is a config


def test_the_summary_says_for_which_run_the_lr_was_found(
    configured: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    planned = "12 epochs (1,000 steps) of cosine 1 to 0 over 1000 steps"
    print_outcome(configured(), Path("run"), RunOutcome({"steps": 900.0}, applied_lr=0.2134, found_for=planned))
    assert f"peak lr 0.213, found for {planned}\n" in capsys.readouterr().out
    print_outcome(configured(), Path("run"), RunOutcome({"steps": 900.0}, applied_lr=0.2134))
    assert "found for" not in capsys.readouterr().out


def test_a_run_limited_by_steps_is_shortened_in_steps(
    configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAKELEVEL", "1")
    monkeypatch.setattr(sys, "argv", ["train.py", "trainer.max_steps=900"])
    print_outcome(configured("trainer.max_steps=900"), Path("run"), RunOutcome({"steps": 900.0}, verdict=OVER))
    assert proposed(capsys)[0] == 'try:  make train ARGS="trainer.max_steps=210"'


def test_a_command_that_is_printed_to_be_copied_shows_no_password(
    configured: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tracking.uri=postgresql://me:secret@db/x", "trainer.max_steps=900"]
    monkeypatch.delenv("MAKELEVEL", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    print_outcome(configured(*words), Path("run"), RunOutcome({"steps": 900.0}, verdict=OVER, run_id="1"))
    out = capsys.readouterr().out
    assert "--uri postgresql://me:***@db/x" in out
    assert "tracking.uri=postgresql://me:***@db/x" in out
    assert "secret" not in out


@pytest.mark.parametrize(
    ("variables", "words", "said"),
    [
        ({"TRACKING_URI": "http://s.test", "EXPERIMENT_NAME": "x"}, [], "http://s.test, experiment x (from {0}, {1})"),
        ({"TRACKING_URI": "http://s.test", "TRACKING_TOKEN": "secret"}, [], "experiment lr_lightning (from {0}, {1})"),
        ({"TRACKING_TOKEN": "secret"}, [], None),  # of a server
        ({"RUN_CONTEXT": "{}", "RUN_ID": "1"}, [], "(from {0}, {1})"),
        ({"RUN_ID": "1"}, ["+tracking.tags.sweep=s"], None),  # of several runs
        (
            {"TRACKING_URI": "http://s.test"},
            ["tracking.root=/here"],
            "{0} is not obeyed: tracking.root names",
        ),
        ({"ENABLE_SYSTEM_METRICS_LOGGING": "true"}, [], "{0} is not obeyed: callbacks.cost records"),
    ],
)
def test_the_variables_that_are_obeyed_are_named(
    configured: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    words: list[str],
    said: str | None,
) -> None:
    names = [f"MLFLOW_{name}" for name in variables]
    for name, value in zip(names, variables.values(), strict=True):
        monkeypatch.setenv(name, value)
    text = places_from_environment(configured(*words).tracking)
    assert said.format(*names) in text if said else text == ""
    assert "secret" not in text


@pytest.mark.parametrize("own", [True, False])
def test_only_a_store_of_another_place_is_named_in_the_command_that_shows_it(
    configured: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    own: bool,
) -> None:
    monkeypatch.delenv("MAKELEVEL", raising=False)
    monkeypatch.setattr(sys, "argv", ["scripts/train.py"])
    root = tmp_path if own else Path(__file__).resolve().parents[3] / "mlruns"
    print_outcome(configured(f"tracking.root={root}"), Path("run"), RunOutcome({"steps": 900.0}))
    command = f"look at it:  python scripts/ui.py{f' --root {root}' if own else ''}\n"
    assert command in capsys.readouterr().out
