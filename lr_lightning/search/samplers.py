"""The samplers of a search by name. A new one is a function here and a row of `SAMPLERS`.

Settings are checked against these names, so this module imports Optuna only when a sampler is made.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def _random(seed: int, study_seed: int) -> "BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _qmc(seed: int, study_seed: int) -> "BaseSampler":
    from optuna.samplers import QMCSampler

    first = _random(seed, study_seed)  # QMC's own draws are all alike until a trial has ended
    return QMCSampler(seed=study_seed, scramble=True, independent_sampler=first, warn_independent_sampling=False)


def _tpe(seed: int, study_seed: int) -> "BaseSampler":
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def _gp(seed: int, study_seed: int) -> "BaseSampler":
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, deterministic_objective=False)


SAMPLERS: "dict[str, Callable[[int, int], BaseSampler]]" = {
    "grid": _random,  # the points of a grid are fixed when the study is filled, so nothing is drawn
    "random": _random,
    "qmc": _qmc,
    "tpe": _tpe,
    "gp": _gp,
}
"""Makes the sampler of one trial from the trial's seed and the seed of the whole search."""
