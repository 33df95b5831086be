"""Optuna's pruners by name."""

from collections.abc import Sequence

import optuna

__all__ = ["pruner_of"]


def pruner_of(names: Sequence[str], validations: int | None, patience: float) -> optuna.pruners.BasePruner:
    """Optuna's pruner among the names, or one that prunes nothing.

    Args:
        names: Of ``median``, ``hyperband`` and ``verdict``, the last of which is none of Optuna's.
        validations: In a whole run, where that is known.
        patience: Share of a run before which the median says nothing.
    """
    if "hyperband" in names:
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=validations or "auto")
    if "median" in names:
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=int(patience * (validations or 0)))
    return optuna.pruners.NopPruner()
