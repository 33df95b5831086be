"""What a study says about a trial that is under way: Optuna's pruner, and whether it is dominated by its peers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.trial import TrialState

from lr_lightning.diagnosis.early_stopping import dominated
from lr_lightning.search.pruners import pruner_of
from lr_lightning.search.storage import connect

if TYPE_CHECKING:
    from lr_lightning.search.run import Task

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
        before = trial.storage.get_trial(trial._trial_id).intermediate_values  # of a run that is gone on with
        self._now = 0
        self._values = {int(at): self._sign * value for at, value in before.items()}

    @classmethod
    def connected(cls, storage: str, task: "Task") -> "StudyJudge":
        """The judge of a task's trial, by way of the storage."""
        pruner = pruner_of(task.pruners, task.validations, task.patience)
        study = optuna.load_study(study_name=task.study, storage=connect(storage), pruner=pruner)
        return cls.of(optuna.Trial(study, cast(int, task.trial)), task)

    @classmethod
    def of(cls, trial: optuna.Trial, task: "Task") -> "StudyJudge":
        """The judge of a task's trial, where that is at hand."""
        return cls(trial, task.pruners, task.higher, task.patience)

    def report(self, value: float, validation: int) -> None:
        """Take the value of a validation, counted from 1; Optuna gets it in the direction of the objective."""
        if validation not in self._values:
            self._trial.report(self._sign * value, validation)
        self._values[validation] = value
        self._now = validation

    def verdict(self, progress: float, counts: bool) -> str | None:
        """Why the trial should end now, or None."""
        if "hyperband" in self._pruners and self._trial.should_prune():
            return "hyperband: its bracket goes on with better ones"
        if progress < self._patience or not counts:
            return None
        if "median" in self._pruners and self._trial.should_prune():
            return "median: below the median of the trials before it"
        if "verdict" in self._pruners and (reason := self._dominated()):
            return f"dominated: {reason}"
        return None

    def _dominated(self) -> str | None:
        own = _until(self._values, self._now)
        return dominated(own, self._peers(), higher=self._higher)

    @staticmethod
    def _phase(attributes: Mapping[str, Any]) -> Any:
        return attributes.get("run", {}).get("phase")

    def _peers(self) -> list[list[float]]:
        """What the other trials of the same schedule and length had reported by the same validation, each in order."""
        own = self._phase(self._trial.user_attrs)
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        return [
            [self._sign * value for value in _until(trial.intermediate_values, self._now)]
            for trial in self._trial.study.get_trials(deepcopy=False, states=states)
            if trial._trial_id != self._trial._trial_id
            and self._phase(trial.user_attrs) == own
            and self._now in trial.intermediate_values
        ]


def _until(values: Mapping[int, float], last: int) -> list[float]:
    return [value for at, value in sorted(values.items()) if at <= last]
