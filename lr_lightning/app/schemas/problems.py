"""Rules for the values of config keys, and the problems that they find."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from lr_lightning.app.error_messages import did_you_mean

Rule = Callable[[Any], str | None]
"""Returns what is wrong with a value, with the remedy; None for a good value."""


@dataclass(frozen=True)
class Problem:
    """One problem of a config.

    Attributes:
        key: The key, dotted, below the schema that reports it.
        text: What is wrong with its value, and the remedy.
    """

    key: str
    text: str

    def under(self, prefix: str) -> "Problem":
        """Return the same problem as the schema above sees it."""
        return Problem(f"{prefix}.{self.key}", self.text)

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


class Schema:
    """A schema that checks its own values. OmegaConf has checked their types before."""

    def _rules(self) -> Mapping[str, Rule]:
        """Return the rules of keys. A key that a choice lacks, or that is null, is not checked."""
        return {}

    def _conflicts(self) -> Iterator[Problem]:
        """Find keys of this schema that do not fit each other."""
        yield from ()

    def problems(self) -> Iterator[Problem]:
        """Find every problem of this schema and of those nested in it."""
        for key, rule in self._rules().items():
            value = getattr(self, key, None)
            if value is not None and (text := rule(value)) is not None:
                yield Problem(key, text)
        yield from self._conflicts()
        for f in fields(cast(Any, self)):
            if isinstance(nested := getattr(self, f.name), Schema):
                yield from (problem.under(f.name) for problem in nested.problems())


def must(requirement: str, good: Callable[[Any], bool]) -> Rule:
    """Make a rule from its requirement, such as "be 1 or more", and a test for it."""
    return lambda value: None if good(value) else f"must {requirement}, got {value}."


def positive(hint: str) -> Rule:
    """Require a finite number above 0; the hint names a usual value."""
    return must(f"be a finite number above 0, {hint}", lambda v: math.isfinite(v) and v > 0)


def below_one(hint: str) -> Rule:
    """Require a number in [0, 1), as a momentum is; the hint names a usual value."""
    return must(f"lie in [0, 1), {hint}", lambda v: 0 <= v < 1)


def one_of(*choices: str) -> Rule:
    """Require one of the choices."""

    def rule(value: str) -> str | None:
        if value in choices:
            return None
        return f"unknown choice '{value}'. Choices: {', '.join(choices)}.{did_you_mean(value, choices)}"

    return rule


def existing_file(remedy: str) -> Rule:
    """Require the path of a file."""

    def rule(value: str) -> str | None:
        found = Path(value).expanduser().is_file()
        return None if found else f"no such file: '{value}' (in {Path.cwd()}). {remedy}"

    return rule


AT_LEAST_ONE = must("be 1 or more", lambda v: v >= 1)
NOT_NEGATIVE = must("be a finite number, 0 or more", lambda v: math.isfinite(v) and v >= 0)
SEED = must("lie in 0..4294967295", lambda v: 0 <= v < 2**32)
