"""Whether a space fits the config: every key is there, takes its values, and goes with the others; and the store."""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lr_lightning.app.config import Config
from lr_lightning.app.errors import ConfigError, did_you_mean
from lr_lightning.search.compose import Composer
from lr_lightning.search.domains import Choice, Value
from lr_lightning.search.space import Space

__all__ = ["check_space", "check_store"]

_MOST_CHECKED = 60


def check_space(space: Space, base: Mapping[str, Value], composer: Composer) -> None:
    """Make configs at the ends of every range and of every choice: keys and types that do not fit are found now.

    Raises:
        ConfigError: One does not.
    """
    groups = composer.groups
    chosen = [key for key in space.keys if key in groups]
    for key in chosen:
        domain = space.keys[key]
        if not isinstance(domain, Choice):
            raise ConfigError(f"search.space.{key}: is a config group: give a list of {', '.join(groups[key])}.")
        for value in domain.values:
            if value not in groups[key]:
                raise ConfigError(
                    f"search.space.{key}: unknown choice '{value}'. Choices: {', '.join(groups[key])}."
                    f"{did_you_mean(str(value), groups[key])}"
                )
    _check_conditions(space, groups)
    products = itertools.product(*(space.keys[key].grid() for key in chosen))
    for values in itertools.islice(products, _MOST_CHECKED):
        point: dict[str, Value] = {}
        for key, value in zip(chosen, values, strict=True):
            if space.active(key, point, base):
                point[key] = value
        rest = [key for key in space.keys if key not in chosen]
        for example in range(max((len(space.keys[key].examples) for key in rest), default=1)):
            trial = dict(point)
            for key in rest:
                if space.active(key, trial, base):
                    examples = space.keys[key].examples
                    trial[key] = examples[min(example, len(examples) - 1)]
                    composer.check_key(key, trial)
            composer.config(trial)


def check_store(config: Config) -> None:
    """Ask a server once: one that lets nobody in would fail each trial, one after another.

    One that does not answer is no hindrance: the trials keep their rows.

    Raises:
        ConfigError: It refuses.
    """
    from lr_lightning.tracking import StoreUnavailable, TrackingError, open_store

    if config.tracking.name != "mlflow" or config.tracking.uri is None:
        return
    try:
        with suppress(StoreUnavailable):
            open_store(Path(config.tracking.root), config.tracking.uri).call(
                "get_experiment_by_name", config.tracking.experiment
            )
    except TrackingError as e:
        raise ConfigError(f"tracking: {e}") from e


def _check_conditions(space: Space, groups: Mapping[str, Sequence[str]]) -> None:
    """Find values of conditions that a key never has: what depends on them would never be searched."""
    for key, conditions in space.conditions.items():
        for other, values in conditions.items():
            domain = space.keys.get(other)
            allowed = domain.values if isinstance(domain, Choice) else groups.get(other)
            for value in values:
                if domain is not None and not isinstance(domain, Choice):
                    raise ConfigError(
                        f"search.space.{key}.when.{other}: is searched as a range; a condition needs values."
                    )
                if allowed is not None and str(value) not in map(str, allowed):
                    close = did_you_mean(str(value), map(str, allowed))
                    raise ConfigError(f"search.space.{key}.when.{other}: '{value}' is never one of its values.{close}")
