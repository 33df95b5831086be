"""A race of learning rates before training: whole trainings in short, judged by validation, without a trace."""

import json
import logging
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import partial
from hashlib import sha256
from pathlib import Path

from lr_lightning._lightning import LightningModule, Trainer, rank_zero_info
from lr_lightning.callbacks.base_finder import Metric
from lr_lightning.callbacks.lr_finder import LRFinder, NoRun, planned_run
from lr_lightning.errors import ArgumentError
from lr_lightning.lr_finder.planned_run import PlannedRun
from lr_lightning.lr_finder.race import FEWEST_UPDATES, RacePlan, RaceTest, range_steps
from lr_lightning.schedules.clock import DurationLike, parse_duration

__all__ = ["LRRace"]

log = logging.getLogger(__name__)

_SAME_START = 1e-5  # relative difference of two values before any update; another seed differs by far more


class LRRace(LRFinder):
    """Find the peak learning rate of the planned run by racing several, and train with the one that it suggests.

    A short range test says where to begin. Then five or more learning rates train the run's own schedule, shortened,
    from the same weights and over the same batches, and are judged by the validation. The best learning rates then
    train four times as long, and so on, as far as ``budget`` goes. If the best learning rate is the lowest or highest
    one, the race goes beyond it. How the best learning rate changed with the length of the trainings foretells the best
    one for the length of the run (:func:`~lr_lightning.lr_finder.race.read_race`).

    As with LRFinder, the schedule is taken from ``LRSchedule``, or else constant, and nothing but the peak differs
    afterwards, bit for bit. If a race was killed, it continues when the same run is started again: until the race is
    over, its results are kept in a file beside the checkpoints.

    Args:
        budget: The most updates that range test and race take together, such as ``"50%"`` of the run or ``500``.
        metric: What decides: ``"val_loss"`` or ``"accuracy"`` of the validation, or ``"loss"``, the training loss of
            the last fifth of the updates.
        apply: Whether to train with the lr that was found.
        min_lr: The first lr of the range test, > 0.
        max_lr: The last lr of the range test, > ``min_lr``. The race may go beyond both.
        val_batches: Number of validation batches, >= 1; fewer if there are fewer.
        monitor: The name under which the module logs the metric, if it is not a usual one.
        attribute: The name of the module's own lr, if it is not ``lr`` or ``learning_rate``; dots lead into hparams.
        folder: Where a race that is not over is kept. Default: the Trainer's ``default_root_dir``.
        progress: Whether to show a progress bar on a terminal.

    Attributes:
        result: What was found, None before it.

    Raises:
        ArgumentError: An argument is out of range. At the start of a fit, before anything trains: as LRFinder, or there
            is no validation, the length of the run is not known, the budget is below 50 updates, or the schedule is
            cyclical above a base_lr or comes from ``configure_optimizers``.

    Example:
        >>> race = LRRace(budget="25%")
    """

    kind = RaceTest
    artifact = "lr_race/race"

    def __init__(
        self,
        budget: DurationLike = "50%",
        metric: Metric = "val_loss",
        apply: bool = True,
        *,
        min_lr: float = 1e-6,
        max_lr: float = 10.0,
        val_batches: int = 50,
        monitor: str | None = None,
        attribute: str | None = None,
        folder: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        parse_duration(budget, "budget", positive=True)
        super().__init__(
            *(min_lr, max_lr),
            metric=metric,
            apply=apply,
            retry=False,
            budget=budget,
            val_batches=val_batches,
            monitor=monitor,
            attribute=attribute,
            progress=progress,
        )
        self.folder = folder

    def _find(self, trainer: Trainer, module: LightningModule, reference: float) -> RaceTest:
        with self._instruments(trainer, module, reference, "LR race", 0, "step") as instruments:
            planned = self._planned(instruments.dry_run)
            if isinstance(planned, NoRun):
                raise ArgumentError(f"LRRace {planned.value}")
            driver, clock = planned
            run, budget = planned_run(driver, clock), clock.steps(self.budget or 0)
            if budget < FEWEST_UPDATES:
                raise ArgumentError(
                    f"LRRace: budget must be {FEWEST_UPDATES} updates or more, and {str(self.budget)!r} of this run of "
                    f"{run.steps} updates is {budget}. Give more, or use LRFinder."
                )
            instruments.bar.extend(budget)
            level = None
            if instruments.validation is not None:
                with instruments.dry_run.run():
                    level = instruments.validation()
            steps = range_steps(budget)
            found = self._test(instruments._replace(validation=None), self._grid(self.min_lr, self.max_lr, steps))
            values = {field.name: getattr(found, field.name) for field in fields(found)}
            values |= {"run": run, "judged": self.metric, "level": found.start if level is None else level}
            kept = _KeptRace(self._file(trainer, module, run), trainer, self.say or rank_zero_info)
            race = kept.load(RaceTest(**values))
            plan = RacePlan.of(budget - min(len(race.runs[0]) + 1, steps), run.steps)
            instruments.bar.update(sum(len(rung.lrs) * rung.num_steps for rung in race.trials))
            while (trial := race.next_trial(plan)) is not None:
                rung, lr = trial
                length = plan.rungs[rung].length
                ((losses, final),) = self._trial(instruments, lr, length, driver, clock)
                race = race.with_trial(rung, length, lr, losses, final)
                kept.save(race)
            kept.remove()
            return race

    def _file(self, trainer: Trainer, module: LightningModule, run: PlannedRun) -> Path:
        """Return the file that keeps this race until it is over; another run or another race has another file."""
        groups = [
            {key: repr(value) for key, value in group.items() if key != "params"}
            for group in trainer.optimizers[0].param_groups
        ]
        names = [name for name, _ in module.named_parameters()]
        race = [str(self.budget), self.metric, self.min_lr, self.max_lr, self.val_batches, self.monitor]
        key = json.dumps(
            [run.describe(), race, trainer.world_size, type(trainer.optimizers[0]).__name__, groups, names]
        )
        return Path(self.folder or trainer.default_root_dir) / f".lr_race-{sha256(key.encode()).hexdigest()[:16]}.json"


class _KeptRace:
    """The file in which the first process keeps a race that is not over."""

    def __init__(self, path: Path, trainer: Trainer, say: Callable[[str], None]) -> None:
        self.path, self.trainer, self.say = path, trainer, say

    def load(self, begun: RaceTest) -> RaceTest:
        """Return the race that was interrupted, if it began as this one does, else this one."""
        text = None
        if self.trainer.is_global_zero:
            with suppress(OSError):
                text = self.path.read_text(encoding="utf-8")
        text = self.trainer.strategy.broadcast(text)
        if text is None:
            return begun
        try:
            kept = RaceTest.from_state(json.loads(text))
        except (ValueError, TypeError, KeyError):
            return begun
        one, other = ((race.level, *race.runs[0][:1]) for race in (kept, begun))
        if len(one) != len(other) or not all(map(partial(math.isclose, rel_tol=_SAME_START), one, other)):
            return begun
        done = sum(len(rung.lrs) for rung in kept.trials)
        if self.trainer.is_global_zero:
            self.say(f"LRRace: continues a race that was interrupted after {done} trainings ({self.path}).")
        return kept

    def save(self, race: RaceTest) -> None:
        """Replace the file by one with the race so far, in one step, so that a kill leaves no damaged file."""
        if not self.trainer.is_global_zero:
            return
        try:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(race.state()), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as e:
            log.info("the race is not kept in %s: %s", self.path, e)

    def remove(self) -> None:
        """Remove the file of a race that is over."""
        if self.trainer.is_global_zero:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
