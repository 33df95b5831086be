"""The keys of the app, by group: one dataclass for each group, and a subclass for each choice that adds keys.

The comment above or beside a field is its documentation: `--help` and the page of all keys read it. A schema checks its
own values; `lr_lightning.app.config.Config` checks what groups require of each other.

A key's rule stands in its annotation: ``batch_size: Annotated[int, AT_LEAST_1] = 64``.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from inspect import get_annotations
from pathlib import Path
from typing import Any, cast

from lr_lightning.app.error_messages import did_you_mean

Rule = Callable[[Any], str | None]
"""Returns what is wrong with a value, with the remedy; None for a good value."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with the value of a key, and the remedy; the key is dotted, below the schema that reports it."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


class Schema:
    """A schema that checks its own values. OmegaConf has checked their types before."""

    def _conflicts(self) -> Iterator[Problem]:
        """Find keys of this schema that do not fit each other."""
        yield from ()

    def problems(self) -> Iterator[Problem]:
        """Find every problem of this schema and of those nested in it. A key that is null fits its rule."""
        for key, rule in rules_of(type(self)).items():
            if (value := getattr(self, key)) is not None and (text := rule(value)) is not None:
                yield Problem(key, text)
        for f in fields(cast(Any, self)):
            if isinstance(nested := getattr(self, f.name), Schema):
                yield from (Problem(f"{f.name}.{problem.key}", problem.text) for problem in nested.problems())
        yield from self._conflicts()


def rules_of(schema: type) -> dict[str, Rule]:
    """Return the rules of a schema's keys. A rule holds in subclasses, which may annotate the key again without it."""
    hints = (hint for base in reversed(schema.__mro__) for hint in get_annotations(base).items())
    return {name: hint.__metadata__[0] for name, hint in hints if hasattr(hint, "__metadata__")}


def must(requirement: str, good: Callable[[Any], bool]) -> Rule:
    """Make a rule from its requirement, such as "be 1 or more", and a test for it."""

    def rule(value: Any) -> str | None:
        shown = f"'{value}'" if isinstance(value, str) else value
        return None if good(value) else f"must {requirement}, got {shown}."

    return rule


def positive(hint: str) -> Rule:
    """Require a finite number above 0; the hint names a usual value."""
    return must(f"be a finite number above 0, {hint}", lambda v: math.isfinite(v) and v > 0)


def below_one(hint: str) -> Rule:
    """Require a number in [0, 1), as a momentum is; the hint names a usual value."""
    return must(f"lie in [0, 1), {hint}", lambda v: 0 <= v < 1)


def one_of(*choices: str) -> Rule:
    """Require one of the choices."""
    listed = ", ".join(choices)
    return lambda value: (
        None if value in choices else f"unknown choice '{value}'. Choices: {listed}.{did_you_mean(value, choices)}"
    )


def existing(kind: str, remedy: str) -> Rule:
    """Require the path of a ``file`` or a ``folder``."""
    exists = Path.is_file if kind == "file" else Path.is_dir
    return lambda value: (
        None if exists(Path(value).expanduser()) else f"no such {kind}: '{value}' (in {Path.cwd()}). {remedy}"
    )


AT_LEAST_1 = must("be 1 or more", lambda v: v >= 1)
AT_LEAST_0 = must("be 0 or more", lambda v: v >= 0)
NOT_NEGATIVE = must("be a finite number, 0 or more", lambda v: math.isfinite(v) and v >= 0)
SEED = must("lie in 0..4294967295", lambda v: 0 <= v < 2**32)
