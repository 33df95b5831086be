"""What a study says about a trial that is under way: Optuna's pruner, and whether it is dominated by its peers."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from lr_lightning.diagnosis.dominated import dominated
from lr_lightning.search.pruners import pruner_of
from lr_lightning.search.storage import connect

__all__ = ["StudyJudge"]


class StudyJudge:
    """The judge of one trial, in whichever process trains it.

    Args:
        trial: Optuna's trial; its study has the pruner.
        pruners: Names of those that may end it.
        higher: Whether a higher reported value is better.
        patience: Share of the run before which none does.
    """

    def __init__(self, trial: optuna.Trial, pruners: list[str], higher: bool, patience: float) -> None:
        self._trial, self._pruners, self._higher, self._patience = trial, pruners, higher, patience
        self._sign = 1.0 if higher == (trial.study.direction == optuna.study.StudyDirection.MAXIMIZE) else -1.0
        self._values: list[float] = []

    @classmethod
    def connected(cls, storage: str, task: Mapping[str, Any]) -> "StudyJudge":
        """The judge of a task's trial, by way of the storage."""
        pruner = pruner_of(task["pruners"], task["validations"], task["patience"])
        study = optuna.load_study(study_name=task["study"], storage=connect(storage), pruner=pruner)
        return cls(optuna.Trial(study, task["trial"]), task["pruners"], task["higher"], task["patience"])

    def report(self, value: float, validation: int) -> None:
        """Take the value of a validation, counted from 1; Optuna gets it in the direction of the objective."""
        self._values.append(value)
        if validation not in self._reported():
            self._trial.report(self._sign * value, validation)

    def verdict(self, progress: float, counts: bool) -> str | None:
        """Why the trial should end now, or None."""
        if "hyperband" in self._pruners and self._trial.should_prune():
            return "hyperband: its bracket goes on with better ones"
        if progress < self._patience or not counts:
            return None
        if "median" in self._pruners and self._trial.should_prune():
            return "median: below the median of the trials before it"
        if "verdict" in self._pruners and (reason := dominated(self._values, self._peers(), higher=self._higher)):
            return f"dominated: {reason}"
        return None

    def _reported(self) -> dict[int, float]:
        frozen = self._trial.storage.get_trial(self._trial._trial_id)
        found: dict[int, float] = frozen.intermediate_values
        if len(self._values) == 1 and found:  # a run that is gone on with: what it had reported before
            self._values[:0] = [self._sign * value for _, value in sorted(found.items())]
        return found

    @staticmethod
    def _phase(attributes: Mapping[str, Any]) -> Any:
        return attributes.get("run", {}).get("phase")

    def _peers(self) -> list[list[float]]:
        """What the other trials of the same schedule and length reported, each in order."""
        own = self._phase(self._trial.user_attrs)
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        return [
            [self._sign * value for _, value in sorted(trial.intermediate_values.items())]
            for trial in self._trial.study.get_trials(deepcopy=False, states=states)
            if trial._trial_id != self._trial._trial_id and self._phase(trial.user_attrs) == own
        ]
