"""How the values of a trial are suggested."""

from collections.abc import Mapping

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lr_lightning.search.settings import Search
from lr_lightning.search.space import Choice, Range, Space, Value

__all__ = ["distribution", "sampler", "suggest"]


def suggest(trial: optuna.Trial, space: Space, base: Mapping[str, Value]) -> dict[str, Value]:
    """Have the values of those keys suggested whose conditions hold."""
    point: dict[str, Value] = {}
    for key, domain in space.keys.items():
        if space.active(key, point, base):
            value = trial._suggest(key, distribution(domain))
            point[key] = int(value) if isinstance(domain, Range) and domain.integer else value
    return point


def distribution(domain: Range | Choice) -> BaseDistribution:
    """Optuna's description of a domain."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if domain.integer:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)


def sampler(search: Search, ticket: int) -> optuna.samplers.BaseSampler:
    """The sampler for one ticket. Its seed depends on the ticket alone, so it does not matter which worker takes it."""
    seed = int(np.random.SeedSequence([search.node.seed, ticket]).generate_state(1)[0])
    kind = search.node.sampler
    if kind == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    if kind == "gp":
        return optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)
    if kind == "qmc":
        first = optuna.samplers.RandomSampler(seed=seed)  # until a trial has ended, its own would draw all alike
        return optuna.samplers.QMCSampler(
            seed=search.node.seed, scramble=True, independent_sampler=first, warn_independent_sampling=False
        )
    return optuna.samplers.RandomSampler(seed=seed)
