"""What a search says while it runs: a line a trial, and on a terminal a bar with the best so far and the time left."""

import time
from types import TracebackType
from typing import Any, Self

from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from lr_lightning.search.settings import Search
from lr_lightning.search.space import Value, override
from lr_lightning.search.standing import Standing, ticket_of
from lr_lightning.search.study import Ticket
from lr_lightning.search.trial import Ending

__all__ = ["Progress", "in_words", "say", "values"]


def in_words(seconds: float) -> str:
    """A duration as a person says it: ``40 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def say(console: Console, text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


class Progress:
    """The view of a search under way; a context manager.

    Args:
        search: The search.
        console: Where it is shown.
    """

    def __init__(self, search: Search, console: Console) -> None:
        self.search, self.console = search, console
        self._started, self._told = time.monotonic(), 0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: Any = None
        self._said: str | None = None

    def __enter__(self) -> Self:
        self._task = self._bar.add_task("trials", total=None, note="")
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line, once."""
        if text != self._said:
            say(self.console, text)
        self._said = text

    def tell(self, ticket: Ticket, ending: Ending, standing: Standing) -> None:
        """A trial that has ended."""
        done, total, best = len(standing.ended), len(standing.ended) + standing.left, standing.best
        self._told += 1
        waiting = total - done
        left = (time.monotonic() - self._started) / self._told * waiting
        rest = f"; about {in_words(left)} left" if waiting else ""
        top = ""
        if best is not None and best.value is not None:
            top = f"; best {best.value:.4g} (trial {ticket_of(best)})"
        self.say(f"[{done}/{total}] trial {ticket.number}: {values(ticket.point)}: {outcome(ending)}{top}{rest}")
        self._bar.update(self._task, completed=done, total=total, note=f"{top.lstrip('; ')}{rest}")


def values(point: dict[str, Value]) -> str:
    """A point as overrides, short."""
    return " ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else override(key, value) for key, value in point.items()
    )


def outcome(ending: Ending) -> str:
    """What a trial came to, in a few words."""
    seconds = float(ending.attributes.get("seconds") or 0)
    if ending.state == TrialState.COMPLETE and ending.value is not None:
        error = ending.attributes.get("error")
        spread = f" ± {error:.2g}" if error is not None else ""
        return f"{ending.value:.4g}{spread}, {in_words(seconds)}"
    word = "pruned" if ending.state == TrialState.PRUNED else "failed"
    reason = (ending.reason or "").splitlines()
    return f"{word} after {in_words(seconds)} ({reason[0] if reason else 'no reason is known'})"
