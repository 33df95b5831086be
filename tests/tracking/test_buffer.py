import logging
import math

import pytest

from lr_lightning.tracking.local_log import History, RowBuffer


def test_epoch_is_kept_only_where_it_changes() -> None:
    buffer = RowBuffer()
    for step in range(6):
        buffer.add_metrics({"loss": 1.0, "epoch": step // 3}, step, 0)
    assert [(r.step, r.value) for r in buffer.rows() if r.key == "epoch"] == [(0, 0.0), (3, 1.0)]


def test_after_a_kill_the_repeated_steps_add_nothing() -> None:
    rows = [("loss", 1.0 / (s + 1), s) for s in range(10)]
    killed = History(last_steps={"loss": 6, "epoch": 5, "summary/best": 0}, last_values={"loss": 1 / 7, "epoch": 1.0})
    buffer = RowBuffer()
    buffer.resume(killed)
    for key, value, step in rows[4:]:
        buffer.add_metrics({key: value, "epoch": step // 5}, step, 0)
    assert [(r.key, r.step) for r in buffer.rows()] == [("loss", 7), ("loss", 8), ("loss", 9)]


def test_a_killed_run_that_goes_back_an_epoch_repeats_no_epoch_row() -> None:
    buffer = RowBuffer()
    buffer.resume(History(last_steps={"epoch": 8}, last_values={"epoch": 2.0}))
    for step in range(5, 13):
        buffer.add_metrics({"epoch": step // 4}, step, 0)
    assert [(r.step, r.value) for r in buffer.rows()] == [(12, 3.0)]


def test_summaries_are_stored_again_only_where_they_changed() -> None:
    buffer = RowBuffer()
    buffer.resume(
        History(
            last_steps={"summary/best": 0, "summary/same": 0}, last_values={"summary/best": 0.5, "summary/same": 1.0}
        )
    )
    buffer.add_summary({"best": 0.7, "same": 1.0}, 5)
    buffer.add_summary({"summary/best": 0.7}, 6)
    assert buffer.rows() == [("summary/best", 0.7, 0, 5)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_values_are_counted_told_and_left_out(value: float, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[str, int]] = []
    buffer = RowBuffer()
    buffer.on_nonfinite = lambda key, _, step: told.append((key, step))
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            buffer.add("loss", value, step, 0)
            buffer.add("acc", 1.0, step, 0)
    assert buffer.nonfinite == {"loss": 3}
    assert told == [("loss", 0), ("loss", 1), ("loss", 2)]
    assert [r.key for r in buffer.rows()] == ["acc"] * 3
    assert len(caplog.records) == 1
    assert "'loss'" in caplog.text


def test_text_and_bad_names_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    buffer = RowBuffer()
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            buffer.add("a=b", 1.0, step, 0)
            buffer.add("word", "hello", step, 0)
    assert {r.key for r in buffer.rows()} == {"a_b"}
    assert len(caplog.records) == 2


def test_many_rows_are_due() -> None:
    buffer = RowBuffer()
    assert not buffer.is_due()
    for step in range(2000):
        buffer.add("a", 1.0, step, 0)
    assert not buffer.is_due()
    buffer.add("a", 1.0, 2000, 0)
    assert buffer.is_due()


def test_old_rows_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.9, 105.1])
    monkeypatch.setattr("lr_lightning.tracking.local_log.time.monotonic", lambda: next(clock))
    buffer = RowBuffer()
    buffer.add("a", 1.0, 0, 0)
    assert not buffer.is_due()
    assert buffer.is_due()
