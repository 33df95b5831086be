"""Over- or underfitting, measured at every validation: the gap to a frozen training probe, and a verdict."""

import math
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lr_lightning._batches import Scalars, at, batch_loss, batch_size_of, count_examples, loaded_examples
from lr_lightning._checks import check_batches, check_count
from lr_lightning._lightning import (
    STEP_OUTPUT,
    BaseCallback,
    LightningModule,
    Trainer,
    callbacks_of,
    is_last_validation_batch,
    isolate_rng,
    loaders_of_validation,
    mean_over_ranks,
    move_data_to_device,
    rank_zero_info,
    rank_zero_warn,
    to_device,
    warn_if_results_are_lost,
)
from lr_lightning._loggers import log_figure, log_note, log_tags, log_text
from lr_lightning._param_groups import first_group_lr, peak_lr
from lr_lightning._plotting import FRAME, GREY, PROBE, VALIDATION, YELLOW, new_figure, style_axes
from lr_lightning.callbacks import batch_norm, per_example
from lr_lightning.callbacks.cooldown_preview import CooldownPreview
from lr_lightning.callbacks.forward_calls import ForwardRecord, silent
from lr_lightning.callbacks.lr_schedule import LRSchedule
from lr_lightning.callbacks.per_example import (
    LearnedLoss,
    LossFunction,
    LossLearner,
    Sample,
    SampleCollector,
    ValidationLosses,
    logged_by_validation,
)
from lr_lightning.callbacks.trainer_clock import trainer_clock, updates_made
from lr_lightning.callbacks.training_examples import KeptBatches, first_loader, fixed_subset, used_indices
from lr_lightning.diagnosis.calibration import entropy
from lr_lightning.diagnosis.diagnose import diagnose
from lr_lightning.diagnosis.early_stopping import overfit_metrics
from lr_lightning.diagnosis.history import History, Point
from lr_lightning.diagnosis.statistics import Indices
from lr_lightning.diagnosis.verdict import Label, Verdict
from lr_lightning.errors import Diverged

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_MOST_TARGETS = 1_000_000  # numbers, from which a constant guess is made
_OF_LOSSES = frozenset({"overfit/gl", "overfit/pq", "overfit/up"})  # metrics that need no probe


class OverfittingMonitor(BaseCallback):
    """Measure whether a model over- or underfits, and give a verdict with the numbers that decided.

    The running training loss cannot show overfitting, because it is averaged over moving weights, with dropout and
    augmentation on. So a frozen, stratified subset of the training set, the probe, is evaluated beside the validation
    set: the same weights, eval mode, no augmentation, the same loss for each example. Logged with each validation:

    - ``probe/loss``, ``probe/acc``; ``overfit/gap_loss`` (validation minus probe), ``overfit/gap_acc`` (probe minus
      validation): both gaps grow as the model overfits;
    - ``overfit/gl``, ``overfit/pq``, ``overfit/up``: Prechelt's measures, in strips of five validations;
    - ``overfit/ece``, the calibration error of the validation; ``overfit/temperature``, the temperature that fits it
      best; ``overfit/gap_loss_scaled``, the gap that temperature scaling would leave; and ``overfit/overconfident``, 1
      if it would leave none.

    EarlyStopping and ModelCheckpoint may monitor all of these. :attr:`verdict` may be read at any time; at the end of
    the fit it is logged with a figure.

    The monitor does not disturb the run: the weights are the same, bit for bit, with and without it. It costs one pass
    over the probe at each validation, and one of its batches before the first update. The losses of single validation
    examples come from the validation that runs anyway: the outputs that the module gave for ``x`` in
    ``validation_step`` are passed to ``loss`` again. If ``validation_step`` does not call the module as ``loss`` does,
    the monitor warns once. It then uses ``val/loss`` if this is the same loss, or else evaluates the validation
    batches itself. Of several validation loaders it uses the first.

    Where no probe can be measured, one warning before the first update says why, with the line to paste. The verdict
    then compares the validation loss that the module logs with the mean training loss, and ``probe/*`` and the gaps are
    left out. A failure in a later measurement ends the measurements, with a warning, and not the run.

    Args:
        loss: Function from ``(module, batch)`` to the losses of the examples, shape ``[batch]``; or to a tuple of
            losses, 1/0 for right/wrong, and, for the calibration, logits and labels. Default: the module's own
            ``per_example_loss(batch)`` if it has one, else
            :func:`~lr_lightning.callbacks.per_example.classification_loss`, else what the first training step computes,
            if that is a usual loss of a network's output (see
            :func:`~lr_lightning.callbacks.per_example.learn_loss`).
        probe: Batches of training examples without augmentation, as an iterable that can be iterated again. Default:
            the data module's ``probe_dataloader()``, else a stratified subset of the examples that training uses, as
            large as the first measured validation. If only the batches show which examples training uses (a stream, a
            sampler of your own, ``limit_train_batches`` with shuffling), the first batches of the training, up to
            ``keep`` examples; a resumed run then keeps other examples.
        every_n_validations: Number of validations from one measurement to the next.
        seed: Seed of the draw of the default probe.
        keep: Most single losses of a set to keep, for the estimate of the noise; of a larger set, every n-th is kept.
        chance: Loss of a model that knows only the shares of the classes, or the mean of a regression's targets.
            Default: computed from the probe.

    Raises:
        ArgumentError: A number is < 1, or ``probe`` is an iterator. Before the first update: ``loss`` does not return
            one loss for each example.
    """

    reads_weights_at_steps = False  # but the first

    def __init__(
        self,
        loss: LossFunction | None = None,
        probe: Iterable[Any] | None = None,
        every_n_validations: int = 1,
        seed: int = 0,
        keep: int = 1000,
        chance: float | None = None,
    ) -> None:
        check_count("every_n_validations", every_n_validations, 1)
        check_count("keep", keep, 1)
        check_batches("probe", probe)
        self.loss, self.probe = loss or per_example.default_loss, probe
        self.every_n_validations, self.seed, self.keep, self.chance = every_n_validations, seed, keep, chance
        self._fitting = True
        self._reset()

    def _reset(self) -> None:
        self._drawn: Iterable[Any] | None = None
        self._used: Indices | None = None  # places of the examples that training uses, in its data set
        self._kept: KeptBatches | None = None  # in place of these, if only the batches show them
        self._val = ValidationLosses(self.loss, self.keep)
        self._val_examples = 0  # of this rank, in this validation
        self._learner = LossLearner()
        self._targets: list[Tensor] = []  # of the probe, if only they tell what a constant guess would reach
        self._collector: SampleCollector | None = None  # of the probe, in this validation
        self._training_losses = Scalars()  # since the last validation, if they stand for the probe
        self._from_logs = self._ended = False
        self._failure: str | None = None
        self._chance, self._regression, self._validations = self.chance, False, 0
        self._points: list[Point] = []
        self._resumed = 0  # measurements of the checkpoint
        self._first_loss: Tensor | float | None = None  # as the probe's is measured
        self._first_training_loss: Tensor | None = None
        self._diverged: str | None = None
        self._overconfident = False
        self.unmeasured: frozenset[str] = frozenset()
        """Metrics of which the sanity check has shown that they will not be logged."""
        self._total_steps: int | None = None
        self._peak_lr: float | None = None

    @property
    def history(self) -> History:
        """The measurements so far."""
        start = None if self._first_loss is None else float(self._first_loss)
        points = tuple(self._points)
        state = self._total_steps, self._diverged, self._overconfident
        return History(points, self._chance, start, *state, self._peak_lr, self._regression)

    @property
    def verdict(self) -> Verdict:
        """The verdict on the run so far."""
        return diagnose(self.history)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; Lightning loads a checkpoint's state after this."""
        self._fitting = stage == "fit"
        if self._fitting:
            self._reset()
            warn_if_results_are_lost(trainer)

    # -- before the first update -------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the length of the run and its peak lr; find the examples that it uses, and try the loss on some."""
        self._total_steps = trainer_clock(trainer).total
        groups = trainer.optimizers[0].param_groups if trainer.optimizers else []
        if groups and groups[0].get("lr") is not None and "d" not in groups[0]:  # d: a factor that is estimated
            self._peak_lr = peak_lr(groups[0])
        if not trainer.enable_validation or self._from_logs:
            return
        loader = first_loader(trainer.train_dataloader)
        with isolate_rng():
            try:
                batch = self._some_examples(trainer, loader)
            except Exception as e:
                return self._fail(trainer, f"no example of the probe can be read ({type(e).__name__}: {e})")
            if batch is not None:
                self._try_loss(trainer, pl_module, to_device(trainer, batch))

    def _some_examples(self, trainer: Trainer, loader: Any) -> Any:
        """Return a batch of the probe, or None if only training will show its examples."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        if self.probe is not None:
            self._drawn = self.probe
        elif hasattr(datamodule, "probe_dataloader"):
            self._drawn = datamodule.probe_dataloader()
        else:
            with suppress(Exception):  # a data set or a sampler of a library's own
                self._used = used_indices(trainer, loader)
            if self._used is None or not len(self._used):
                self._kept = KeptBatches(self.keep)
                return None
        size = (batch_size_of(loader) or 1) * trainer.world_size
        some = self._drawn if self._used is None else fixed_subset(trainer, loader, self._used, size, self.seed)
        return next(iter(some or ()), None)

    def _try_loss(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """Compute the loss at the initial weights; if the default loss does not suit, learn one from the first step."""
        first, learnable = SampleCollector(self.keep), per_example.is_default(self.loss, module)
        norms = {name: norm for name, norm in batch_norm.tracking_norms(module).items() if norm.training}
        kept, many = batch_norm.statistics(norms), (count_examples(batch) or 1) > 1  # one example has no variance
        try:
            # running statistics belong to weights of later steps
            estimated = batch_norm.estimating(module, norms if many else {})
            record = ForwardRecord(module)
            with (
                closing(record),
                torch.no_grad(),
                silent(module),
                estimated,
                trainer.precision_plugin.forward_context(),
            ):
                first.add(self.loss(module, batch))
                self._learner.networks = record.called() - {""} if learnable else set()
            self._learner.wanted = learnable and first.has_probabilities()
        except Exception:
            if not learnable:
                raise
            self._learner.wanted = True
        finally:
            batch_norm.set_statistics(norms, kept)
        if not self._learner.wanted and self._first_loss is None and not self._points:
            self._first_loss = first.mean()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch if it will be the probe, and watch the first step if the loss must be learned from it."""
        keeps = self._kept is not None and self._drawn is None and not self._kept.full
        if not (keeps or self._learner.waits) or self._from_logs or self._ended or not trainer.enable_validation:
            return
        if self._kept is not None and keeps:
            if not self._kept.size:
                with isolate_rng():
                    self._try_loss(trainer, pl_module, batch)
            self._keep(trainer, batch, batch_idx)
        self._learner.watch(pl_module, batch)

    def _keep(self, trainer: Trainer, batch: Any, batch_idx: int) -> None:
        kept, size = self._kept, loaded_examples(trainer.train_dataloader, batch, batch_idx)
        try:
            if kept is not None and size:
                kept.add(batch, size)
            elif kept is not None and not kept.size:
                self._fail(trainer, f"a batch that is a {type(batch).__name__} does not tell how many examples it has")
        except Exception as e:
            self._fail(trainer, f"its batches cannot be copied ({type(e).__name__}: {e})")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Learn the loss of single examples from the first step, before its update."""
        learned = self._learner.learn(trainer, pl_module, loss)
        if learned is None:
            return
        if isinstance(learned, str):
            return self._fail(trainer, "the loss of single examples cannot be told from the training step", learned)
        self._val.loss, start = learned
        if not self._points:
            self._first_loss = torch.tensor(start)  # of this rank

    def _fail(self, trainer: Trainer, reason: str, line: str = "") -> None:
        """Take the logged losses from now on, and say so; if the probe was measured before, take nothing more."""
        self._val.close()
        self._collector, self._kept, self._learner.wanted = None, None, False
        if self._failure is not None:
            return
        self._failure = reason
        self._ended = self._ended or bool(self._points)
        self._from_logs = not self._ended
        if self._ended:
            rank_zero_warn(f"OverfittingMonitor measures no longer: {reason}. The run continues.")
            return
        self._first_loss = self._first_training_loss
        line = line or per_example.EXAMPLE_LINE
        rank_zero_warn(
            f"OverfittingMonitor has no probe: {reason}. Its verdict compares the validation loss that the module "
            "logs with the mean training loss. To measure a probe, write OverfittingMonitor(loss=lambda module, batch: "
            f"{line}), with one loss for each example, or give batches of training examples: "
            "OverfittingMonitor(probe=...)."
        )

    # -- in training and validation ------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Keep the training loss, on its device, if it stands for the probe's."""
        self._learner.close()
        if self._points and not self._from_logs:
            return  # the probe is measured
        if (loss := batch_loss(outputs, trainer, pl_module)) is None:
            return
        self._training_losses.append(loss)
        if trainer.fit_loop.total_batch_idx == 0:
            self._first_training_loss = loss.clone()
            if self._from_logs:
                self._first_loss = self._first_training_loss

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the module's forward passes, also in the sanity check, where an unsuitable loss is found."""
        if trainer.state.fn != "fit":
            return
        self._agree(trainer)
        due = trainer.sanity_checking or self._validations % self.every_n_validations == 0
        if self._learner.wanted and not trainer.sanity_checking:
            self._fail(trainer, "the losses of single examples cannot be computed from any training step")
        self._val_examples, self._collector = 0, None
        if due and not self._from_logs and not self._ended and not self._learner.wanted:
            self._val.start(pl_module)

    def _agree(self, trainer: Trainer) -> None:
        """Fail on all ranks if one has failed: they measure together."""
        if trainer.world_size > 1 and not trainer.sanity_checking:
            failed = trainer.strategy.reduce_boolean_decision(self._failure is not None, all=False)
            if failed and self._failure is None:
                self._fail(trainer, "another process cannot measure it")

    def on_validation_batch_start(self, *_: Any) -> None:
        """Forget the passes that other callbacks made."""
        self._val.before_batch()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the losses of this batch's examples; after the last one, evaluate the probe at the same weights."""
        if not self._val.watching:
            return
        try:
            if not dataloader_idx:
                self._val_examples += loaded_examples(loaders_of_validation(trainer), batch, batch_idx) or 0
                self._val.after_batch(trainer, pl_module, batch)
            if is_last_validation_batch(trainer):
                self._evaluate_probe(trainer, pl_module)
        except Exception as e:
            if not trainer.sanity_checking:
                self._fail(trainer, f"its loss fails ({type(e).__name__}: {e})")
            elif not per_example.is_default(self.loss, pl_module):
                raise
            else:  # a loss may be learned from the first training step
                self._val.close()

    def _evaluate_probe(self, trainer: Trainer, module: LightningModule) -> None:
        """Compute the losses of this rank's share of the probe; what all ranks need is gathered later."""
        if trainer.sanity_checking or self._collector is not None:
            return
        collector = SampleCollector(self.keep)
        with isolate_rng(), torch.no_grad():
            if self._drawn is None:
                size = self._val.examples or self._val_examples or self.keep
                if self._kept is not None:
                    self._drawn = self._kept.loader(size)
                elif self._used is not None:
                    loader = first_loader(trainer.train_dataloader)
                    self._drawn = fixed_subset(trainer, loader, self._used, size * trainer.world_size, self.seed)
            for batch in self._drawn or ():
                kept = self._kept is not None  # the transfer hooks have seen such a batch before
                batch = move_data_to_device(batch, module.device) if kept else to_device(trainer, batch)
                with trainer.precision_plugin.forward_context(), silent(module):
                    collector.add(self._val.loss(module, batch))
                if isinstance(self._val.loss, LearnedLoss) and sum(map(Tensor.numel, self._targets)) < _MOST_TARGETS:
                    self._targets.append(at(self._val.loss.target, batch))
        self._collector = collector

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log, before the callbacks that monitor a metric read it."""
        if trainer.state.fn != "fit":
            return
        due = self._validations % self.every_n_validations == 0
        self._validations += not trainer.sanity_checking
        if self._val.watching and not trainer.sanity_checking:  # of a rank without batches, or a loader without an end
            try:
                self._evaluate_probe(trainer, pl_module)
            except Exception as e:
                self._fail(trainer, f"its loss fails ({type(e).__name__}: {e})")
        self._agree(trainer)
        if self._from_logs and due and not trainer.sanity_checking:
            return self._log(trainer, pl_module, self._point_of_logs(trainer), {})
        if not trainer.strategy.reduce_boolean_decision(self._val.watching, all=True):
            return self._val.close()
        val = self._val.finish(trainer, pl_module)
        if trainer.sanity_checking:
            self.unmeasured = self._unmeasured(val)
            return
        probe = (self._collector or SampleCollector(self.keep)).finish(trainer, pl_module.device)  # on every rank
        if probe is None:
            return self._fail(trainer, "it has no example")
        if self._chance is None and probe.labels is not None:
            self._chance = entropy(probe.labels)
        if self._chance is None and isinstance(self._val.loss, LearnedLoss):
            self._chance = mean_over_ranks(trainer, self._val.loss.of_constant(self._targets))
            self._regression = self._val.loss.is_regression
        self._targets = []
        metrics = per_example.calibration_metrics(val, probe)
        self._overconfident = bool(metrics.get("overfit/overconfident"))
        self._log(trainer, pl_module, self._point(trainer, probe, val), metrics)

    def _log(self, trainer: Trainer, module: LightningModule, point: Point | None, metrics: dict[str, float]) -> None:
        if point is None:
            return
        self._points.append(point)
        self._training_losses.clear()
        metrics = {**overfit_metrics(self._points), **metrics}
        if self._from_logs:  # the training loss is no probe's
            metrics = {key: value for key, value in metrics.items() if key in _OF_LOSSES}
        module.log_dict(metrics, sync_dist=trainer.world_size > 1)  # they are equal on all ranks already

    def _unmeasured(self, val: Sample | None) -> frozenset[str]:
        if val is None:  # the sanity check had no batch
            return frozenset()
        no_logits = val.logits is None or val.right is None or self._val.source == "logged"
        unknown = per_example.LOGIT_METRICS if no_logits else frozenset()
        return unknown | (per_example.ACCURACY_METRICS if val.acc is None else frozenset())

    def _point(self, trainer: Trainer, probe: Sample, val: Sample | None) -> Point:
        logged = (logged_by_validation(trainer, kind)[1] if val is None else None for kind in ("val_loss", "accuracy"))
        val_loss, val_acc = (mean_over_ranks(trainer, x) for x in logged) if val is None else (val.loss, val.acc)
        return Point(
            **self._when(trainer),
            val_loss=math.nan if val_loss is None else val_loss,
            probe_loss=probe.loss,
            val_acc=val_acc,
            probe_acc=probe.acc,
            val_losses=val.losses if val else None,
            # a resumed run has kept other batches: their single losses cannot be compared with the checkpoint's
            probe_losses=None if self._resumed and self._kept is not None else probe.losses,
            val_size=val.size if val else None,
            probe_size=probe.size,
        )

    def _point_of_logs(self, trainer: Trainer) -> Point | None:
        """Return the logged validation loss and the training loss since the last one; None if one is missing."""
        trained = self._training_losses.stacked()
        train = mean_over_ranks(trainer, None if trained is None else trained.mean())
        val, acc = (mean_over_ranks(trainer, logged_by_validation(trainer, k)[1]) for k in ("val_loss", "accuracy"))
        if train is None or val is None:
            self._ended, self._from_logs = True, False
            missing = (
                "training_step returns no loss" if train is None else "the validation logs no val/loss or val_loss"
            )
            rank_zero_warn(f"OverfittingMonitor measures nothing: {missing}.")
            return None
        return Point(**self._when(trainer), val_loss=val, probe_loss=train, val_acc=acc)

    def _when(self, trainer: Trainer) -> dict[str, Any]:
        if not isinstance(self._first_loss, float):
            self._first_loss = mean_over_ranks(trainer, self._first_loss)
        done, batches = trainer.fit_loop.epoch_loop.batch_idx + 1, trainer.num_training_batches
        share = min(1.0, done / batches) if math.isfinite(batches) and batches else 1.0  # of the current epoch
        lr = first_group_lr(trainer)
        return {"epoch": trainer.current_epoch + share, "step": updates_made(trainer), "lr": lr}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what CooldownPreview has found in this validation, and whether a cooldown ends the run early."""
        measured = not trainer.sanity_checking and self._points and self._points[-1].step == updates_made(trainer)
        for preview in callbacks_of(trainer, CooldownPreview) if measured else ():
            if preview.latest is not None and preview.latest[0] == trainer.global_step:
                self._points[-1] = replace(self._points[-1], cooled_loss=preview.latest[1])
        for schedule in callbacks_of(trainer, LRSchedule):
            if schedule.is_cooling:
                self._total_steps = schedule.plan()[1].total

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the verdict's first line, and log the verdict as a tag, a note, a text file and a figure."""
        if self._points:
            rank_zero_info(f"OverfittingMonitor: {self.verdict.text().splitlines()[0]}")
        self._log_verdict(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the module; if the run diverged, log that verdict."""
        self._val.close()
        self._learner.close()
        if isinstance(exception, Diverged):
            self._diverged = exception.headline
            self._log_verdict(trainer)

    def _log_verdict(self, trainer: Trainer) -> None:
        if (not self._points and self._diverged is None) or not trainer.is_global_zero:
            return
        verdict = self.verdict
        log_tags(trainer, {"verdict": verdict.label})
        log_note(trainer, verdict.text())
        log_text(trainer, verdict.text() + "\n", "verdict.txt")
        if trainer.loggers and self._points:
            with suppress(ImportError):  # matplotlib is optional
                log_figure(trainer, plot_verdict(self.history, verdict), "verdict.png")

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements as tensors and plain values."""
        return {
            "validations": self._validations,
            "first_loss": None if self._first_loss is None else float(self._first_loss),
            "source": self._val.source,
            "chance": self._chance,
            "regression": self._regression,
            "overconfident": self._overconfident,
            "from_logs": self._from_logs,
            **_pack(self._points),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the measurements, unless a checkpoint is only tested: then the fit's measurements stay."""
        if not self._fitting:
            return
        self._resumed, self._from_logs = len(state_dict["points"]), state_dict.get("from_logs", False)
        self._validations, self._first_loss = state_dict["validations"], state_dict["first_loss"]
        self._val.source, self._chance = state_dict["source"], state_dict["chance"]
        self._overconfident, self._points = state_dict["overconfident"], _unpack(state_dict)
        self._regression = state_dict.get("regression", False)


_ROWS = ("val_losses", "probe_losses")


def _pack(points: list[Point]) -> dict[str, Any]:
    """Return the points as plain values and one tensor of each kind: many small tensors are slow to save."""
    state: dict[str, Any] = {"points": [{k: v for k, v in vars(p).items() if k not in _ROWS} for p in points]}
    for name in _ROWS:
        rows = [getattr(point, name) for point in points]
        sizes = [-1 if row is None else len(row) for row in rows]
        known = [torch.from_numpy(row) for row in rows if row is not None]
        state[name] = (torch.cat(known) if known else torch.empty(0), sizes)
    return state


def _unpack(state: dict[str, Any]) -> list[Point]:
    """Return the points from which :func:`_pack` made ``state``."""
    kinds: list[list[Any]] = []
    for name in _ROWS:
        values, sizes = state[name]
        rows = iter(values.split([size for size in sizes if size >= 0]))
        kinds.append([None if size < 0 else next(rows).numpy() for size in sizes])
    return [
        Point(**values, val_losses=val, probe_losses=probe)
        for values, val, probe in zip(state["points"], *kinds, strict=True)
    ]


# -- the figure ------------------------------------------------------------------------------------------------------


def plot_verdict(history: History, verdict: Verdict) -> "Figure":
    """Draw a run's losses over its epochs, with the onset marked, and the learning rate below.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(8, 5.2, layout=None)  # to measure every label first would take as long again, at a run's end
    figure.subplots_adjust(0.1, 0.1, 0.98, 0.93)
    losses, lrs = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    epochs = [p.epoch for p in history.points]
    val, probe = [p.val_loss for p in history.points], [p.probe_loss for p in history.points]
    marker = "o" if len(epochs) < 40 else None
    losses.plot(epochs, val, color=VALIDATION, marker=marker, ms=3, label="validation")
    losses.plot(epochs, probe, color=PROBE, marker=marker, ms=3, label="probe (training examples)")
    if history.chance is not None:
        losses.axhline(history.chance, color=GREY, ls=":", lw=1, label=verdict.reference)
    if verdict.onset_epoch is not None:
        name = "first bad" if verdict.label is Label.DIVERGED else "onset,"
        losses.axvline(verdict.onset_epoch, color=YELLOW, lw=2, label=f"{name} epoch {verdict.onset_epoch:g}")
    positive = [v for v in (*val, *probe) if v > 0]
    if positive and len(positive) == len(val) + len(probe) and max(positive) > 20 * min(positive):
        losses.set_yscale("log")
    losses.legend(frameon=False, fontsize=9)
    losses.set_title(verdict.title, loc="left", fontsize=11)
    if known := [(p.epoch, p.lr) for p in history.points if p.lr is not None]:
        lrs.plot(*zip(*known, strict=True), color=FRAME, marker=marker, ms=3)
        lrs.set_ylim(0, 1.1 * max(lr for _, lr in known) or 1)  # from 0, so that heights compare
    if epochs and epochs[-1] - epochs[0] >= 4:
        lrs.xaxis.get_major_locator().set_params(integer=True)
    style_axes(losses, y="loss", grid=True)
    style_axes(lrs, x="epoch", y="learning rate", grid=True)
    return figure
