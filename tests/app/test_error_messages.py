"""Errors of the package as messages in the app's keys."""

import pytest

from lr_lightning.app.error_messages import causes, config_error, explain_path, is_out_of_memory
from lr_lightning.errors import ArgumentError, DurationError, TotalStepsUnknown
from lr_lightning.schedules import Cosine


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ArgumentError("must be > 0, got -1", "end"), "schedule.end: must be > 0, got -1"),
        (ArgumentError("must be > 0, got -1", "value"), "schedule: value must be > 0, got -1"),
        (ArgumentError("two arguments do not fit"), "schedule: two arguments do not fit"),
        (TypeError("unexpected"), "schedule: unexpected"),
    ],
)
def test_an_argument_is_named_by_its_key(error: Exception, message: str) -> None:
    assert str(config_error(error, "schedule", {"end": "schedule.end"})) == message


def test_errors_at_the_start_of_a_training_name_the_keys_of_the_schedule() -> None:
    assert str(config_error(DurationError("Warmup: 30 > 18 steps"))) == "schedule: Warmup: 30 > 18 steps"
    text = str(config_error(TotalStepsUnknown(Cosine())))
    assert text.startswith("schedule.total_steps: Cosine needs the number of steps")
    assert "schedule.total_steps=..., trainer.max_epochs=..." in text
    assert str(config_error(ValueError("something else"))) == "something else"


@pytest.mark.parametrize(
    ("path", "given", "key"),
    [
        ("/a/b/c", [("data.root", "/a/b"), ("seed", "1")], "data.root"),
        ("/a/b", [("fork", "'/a/b@last'"), ("x", None)], "fork"),
        ("/a/b/c", [("output_root", "/a"), ("data.root", "/a/b")], "data.root"),
        ("/other", [("data.root", "/a/b")], None),
        (None, [("data.root", "/a/b")], None),
    ],
)
def test_a_path_that_cannot_be_reached_is_named_by_its_key(
    path: str | None, given: list[tuple[str, object]], key: str | None
) -> None:
    said = explain_path(PermissionError(13, "Permission denied", path), given)
    assert said == (key and f"{key}: {path}: Permission denied. Give another path, or the right to use this one.")
    assert explain_path(FileNotFoundError(2, "No such file", path), given) is None  # a fault of the program


def test_a_path_is_not_inside_another_whose_name_begins_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    for key, value, path in (("data.root", "/data", "/data2/x"), ("seed", "1", "/10/runs")):
        assert explain_path(PermissionError(13, "Permission denied", path), [(key, value)]) is None


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried to", "DefaultCPUAllocator: can't allocate memory"])
def test_torch_running_out_of_memory_is_known(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_errors_that_cause_each_other_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert causes(first) == [first, second]
    itself = ValueError("itself")
    itself.__cause__ = itself
    assert causes(itself) == [itself]
