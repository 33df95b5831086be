"""Opening a search's study: it is made once, by whichever worker is first, and never taken for another search's."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import optuna

from lr_lightning.errors import ConfigError
from lr_lightning.search.pruners import pruner_of
from lr_lightning.search.settings import Search
from lr_lightning.search.space import Value
from lr_lightning.tracking.keys import hide_password

__all__ = ["Prepare", "open_study"]

Prepare = Callable[[], Sequence[Mapping[str, Value]]]
"""What is done before a study is made: it gives the points of the first tickets."""


def open_study(search: Search, storage: optuna.storages.BaseStorage, prepare: Prepare) -> tuple[optuna.Study, bool]:
    """Make the study, or open it if there is one of that name.

    Args:
        search: What is searched.
        storage: Where.
        prepare: Called before a study is made; what it raises leaves none behind.

    Returns:
        The study, and whether it is new.

    Raises:
        ConfigError: The name belongs to another search.
    """
    name, node = search.name, search.node
    prune = pruner_of(node.pruners, search.validations, node.patience)
    if name not in optuna.get_all_study_names(storage):
        start = [dict(point) for point in prepare()]
        direction = cast(Any, search.direction)
        try:
            study = optuna.create_study(storage=storage, study_name=name, direction=direction, pruner=prune)
        except optuna.exceptions.DuplicatedStudyError:
            pass  # another worker was faster
        else:
            study.set_user_attr("start", start)
            study.set_user_attr("search", json.dumps(search.identity, sort_keys=True))
            return study, True
    study = optuna.load_study(study_name=name, storage=storage, pruner=prune)
    _compare(study, search)
    return study, False


def _compare(study: optuna.Study, search: Search) -> None:
    """Refuse a study of that name that searches something else."""
    until = time.monotonic() + 10
    while "search" not in (attrs := study.user_attrs):
        if time.monotonic() > until:
            raise ConfigError(
                f"sweep: {hide_password(search.storage)} has a study '{study.study_name}' that is not this "
                "program's, or whose maker was killed at that very moment. Give another sweep=NAME."
            )
        time.sleep(0.2)
    theirs = json.loads(attrs["search"])
    ours = json.loads(json.dumps(search.identity))
    differences = [
        f"{key}: there {_short(theirs.get(key))}, here {_short(ours.get(key))}"
        for key in ours
        if ours[key] != theirs.get(key)
    ]
    if differences:
        raise ConfigError(
            f"sweep: '{study.study_name}' is another search already ({'; '.join(differences)}). "
            "Give another sweep=NAME, or the same search to go on with it."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
