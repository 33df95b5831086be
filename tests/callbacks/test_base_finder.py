"""Lines of progress where no bar can be drawn: rare ones, and the seconds left."""

from types import SimpleNamespace

import pytest

from lr_lightning.callbacks import base_finder as search_bar
from lr_lightning.callbacks.base_finder import FinderProgressBar


@pytest.mark.parametrize(
    ("seconds_each", "said_at"),
    [
        (1.0, [30, 60, 90]),  # every 30 s
        (10.0, [10, 20, 30, 40, 50, 60, 70, 80, 90]),  # every 10 %
        (0.1, []),  # it is over before
    ],
)
def test_a_line_comes_every_tenth_or_half_minute_whichever_is_rarer(
    monkeypatch: pytest.MonkeyPatch, seconds_each: float, said_at: list[int]
) -> None:
    now, lines = 0.0, list[str]()
    monkeypatch.setattr(search_bar, "time", SimpleNamespace(monotonic=lambda: now))
    with FinderProgressBar("LR range test", 100, "step", drawn=False, say=lines.append) as bar:
        for _ in range(100):
            now += seconds_each
            bar.update()
    assert [int(line.split("/")[0].split()[-1]) for line in lines] == said_at
    if lines:
        n, seconds = said_at[0], said_at[0] * seconds_each
        left = (100 - n) * seconds_each
        assert lines[0] == f"LR range test: {n}/100 steps  {seconds:.0f} s, {left:.0f} s left"


def test_a_wider_range_is_counted_in_and_nobody_listening_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_bar, "_SECONDS", 0.0)
    lines: list[str] = []
    with FinderProgressBar("LR grid", 4, "run", drawn=False, say=lines.append) as bar:
        bar.update(4)
        bar.extend(4)
        bar.update(2)
        bar.say = None
        bar.update()
    assert [line.split("  ")[0] for line in lines] == ["LR grid: 6/8 runs"]
