"""The ways to search, by name: samplers, and pruners, which compare a trial with others while it trains."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from lr_lightning.diagnosis.early_stopping import dominated, out_of_reach

log = logging.getLogger(__name__)

# -- samplers: a new one is a function here and a row of SAMPLERS ----------------------------------------------------


def _random(seed: int, study_seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _qmc(seed: int, study_seed: int) -> BaseSampler:
    first = _random(seed, study_seed)  # QMC's own draws are all alike until a trial has ended
    return optuna.samplers.QMCSampler(
        seed=study_seed, scramble=True, independent_sampler=first, warn_independent_sampling=False
    )


def _tpe(seed: int, study_seed: int) -> BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def _gp(seed: int, study_seed: int) -> BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)


SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {
    "grid": _random,  # the points of a grid are fixed when the study is filled, so nothing is drawn
    "random": _random,
    "qmc": _qmc,
    "tpe": _tpe,
    "gp": _gp,
}
"""Makes the sampler of one trial from the trial's seed and the seed of the whole search."""


# -- pruners ---------------------------------------------------------------------------------------------------------

PRUNERS = ("cooled", "median", "hyperband", "verdict")
"""Names of the pruners: those of Optuna, from `pruner_of`, and those that `TrialPruner` decides by itself."""


def pruner_of(names: Sequence[str], validations: int | None, patience: float) -> optuna.pruners.BasePruner:
    """Return the one of Optuna's pruners that is named, or one that prunes nothing; a whole run has `validations`."""
    if "hyperband" in names:
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=validations or "auto")
    if "median" in names:
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=int(patience * (validations or 0)))
    return optuna.pruners.NopPruner()


@dataclass(frozen=True)
class ValidationReport:
    """One validation of a trial that runs: the compared metric, which validation, and which share of the run is done.

    ``comparable``: whether other runs are at the same phase of the schedule.
    """

    value: float
    validation: int
    progress: float
    comparable: bool


Ask = Callable[[ValidationReport], str | None]
"""Asks the search, after a validation, why the trial is pruned; None if it continues."""


class TrialPruner:
    """Decides after each validation whether a trial is pruned; `reports` are the values of earlier attempts."""

    def __init__(
        self,
        trial: optuna.Trial,
        pruners: Sequence[str],
        *,
        higher: bool,
        patience: float,
        reports: Mapping[int, float],
    ) -> None:
        self._trial, self._pruners, self._higher, self._patience = trial, pruners, higher, patience
        self._sign = 1.0 if higher == (trial.study.direction == optuna.study.StudyDirection.MAXIMIZE) else -1.0
        self._values = {validation: self._sign * value for validation, value in reports.items()}

    def __call__(self, report: ValidationReport) -> str | None:
        """Record a report, and return why the trial is pruned, or None. A storage that fails prunes nothing."""
        try:
            return self._reason_to_prune(report)
        except Exception as e:  # of any database driver: it must not end a training run
            log.warning("the study does not answer, so a validation is not reported: %s", e)
            return None

    def _reason_to_prune(self, report: ValidationReport) -> str | None:
        if report.validation not in self._values:
            self._trial.report(self._sign * report.value, report.validation)
        self._values[report.validation] = report.value
        if "hyperband" in self._pruners and self._trial.should_prune():
            return "hyperband: its bracket continues with better trials"
        if report.progress < self._patience:
            return None
        own = _until(self._values, report.validation)
        if "cooled" in self._pruners and (reason := self._out_of_reach(own, report)):
            return f"cooled: {reason}"
        if not report.comparable:
            return None
        if "median" in self._pruners and self._trial.should_prune():
            return "median: worse than the median of the trials before it"
        if "verdict" in self._pruners and (
            reason := dominated(own, self._peers(report.validation), higher=self._higher)
        ):
            return f"dominated: {reason}"
        return None

    def _out_of_reach(self, own: Sequence[float], report: ValidationReport) -> str | None:
        """Compare the trial with the best finished one, of any schedule: previews of a cooldown allow that."""
        trials = self._trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        values = {trial.value: trial for trial in trials if trial.value is not None}
        if not values:
            return None
        best = max(values) if self._higher else min(values)
        theirs = [self._sign * value for value in _until(values[best].intermediate_values, report.validation)]
        return out_of_reach(own, theirs, best, report.progress, higher=self._higher)

    def _peers(self, validation: int) -> list[list[float]]:
        """Return what other trials with the same schedule and length had reported by this validation, each in order."""
        phase = self._trial.user_attrs.get("run", {}).get("phase")
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        return [
            [self._sign * value for value in _until(trial.intermediate_values, validation)]
            for trial in self._trial.study.get_trials(deepcopy=False, states=states)
            if trial.number != self._trial.number
            and trial.user_attrs.get("run", {}).get("phase") == phase
            and validation in trial.intermediate_values
        ]


def _until(values: Mapping[int, float], last: int) -> list[float]:
    return [value for validation, value in sorted(values.items()) if validation <= last]
