"""Over- or underfitting, measured at every validation: the gap to a frozen training probe, and a verdict."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from lr_lightning._lightning import batch_loss, mean_over_ranks, to_device
from lr_lightning._param_groups import first_group_lr
from lr_lightning.callbacks.loggers import log_figure, log_note, log_tags, log_text
from lr_lightning.callbacks.per_example import (
    WITH_LOGITS,
    WITH_RIGHT,
    Gathered,
    LossFunction,
    Sample,
    ValidationLosses,
    calibration,
    can_measure,
    check_forward,
    classification_loss,
    default_loss,
)
from lr_lightning.callbacks.trainer_clock import trainer_clock, updates_made
from lr_lightning.diagnosis.calibration import entropy
from lr_lightning.diagnosis.early_stopping import overfit_metrics
from lr_lightning.diagnosis.history import History, Point
from lr_lightning.diagnosis.rules import diagnose
from lr_lightning.diagnosis.stratify import stratified_subset
from lr_lightning.diagnosis.verdict import Verdict
from lr_lightning.errors import Diverged

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["OverfittingMonitor", "can_measure", "classification_loss", "default_probe", "draw", "packed", "unpacked"]

# --- What was measured at validations, as a checkpoint holds it.

_ROWS = ("val_losses", "probe_losses")


def packed(points: list[Point]) -> dict[str, Any]:
    """The points as plain values and one tensor of each kind: a checkpoint of many small tensors is slow to write."""
    state: dict[str, Any] = {"points": [{k: v for k, v in vars(p).items() if k not in _ROWS} for p in points]}
    for name in _ROWS:
        rows = [getattr(point, name) for point in points]
        sizes = [-1 if row is None else len(row) for row in rows]
        known = [torch.from_numpy(row) for row in rows if row is not None]
        state[name] = (torch.cat(known) if known else torch.empty(0), sizes)
    return state


def unpacked(state: dict[str, Any]) -> list[Point]:
    """The points that :func:`packed` was given."""
    kinds: list[list[Any]] = []
    for name in _ROWS:
        values, sizes = state[name]
        rows = iter(values.split([size for size in sizes if size >= 0]))
        kinds.append([None if size < 0 else next(rows).numpy() for size in sizes])
    return [
        Point(**values, val_losses=val, probe_losses=probe)
        for values, val, probe in zip(state["points"], *kinds, strict=True)
    ]


# --- The figure of a verdict: probe and validation loss, with the rate under them and the onset marked.

_VAL, _PROBE, _LR, _MARK = "#d1495b", "#2e6f95", "#5a5a5a", "#edae49"


def draw(history: History, verdict: Verdict) -> "Figure":
    """Draw a run's losses over its epochs, without pyplot, so that no window and no global state is made.

    Args:
        history: At least one validation.
        verdict: The verdict on it.

    Returns:
        A figure of two panels.
    """
    from matplotlib.figure import Figure  # the [plot] extra

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    epochs = [p.epoch for p in history.points]
    val, probe = [p.val_loss for p in history.points], [p.probe_loss for p in history.points]
    marker = "o" if len(epochs) < 40 else None
    losses.plot(epochs, val, color=_VAL, marker=marker, ms=3, label="validation")
    losses.plot(epochs, probe, color=_PROBE, marker=marker, ms=3, label="probe (training examples)")
    if history.chance is not None:
        losses.axhline(history.chance, color="#999999", ls=":", lw=1, label="chance")
    if verdict.onset_epoch is not None:
        losses.axvline(verdict.onset_epoch, color=_MARK, lw=2, label=f"onset, epoch {verdict.onset_epoch:g}")
    positive = [v for v in (*val, *probe) if v > 0]
    if positive and len(positive) == len(val) + len(probe) and max(positive) > 20 * min(positive):
        losses.set_yscale("log")
    losses.set_ylabel("loss")
    losses.legend(frameon=False, fontsize=9)
    detail = f" ({verdict.detail})" if verdict.detail else ""
    losses.set_title(f"{verdict.label}{detail}", loc="left", fontsize=11)
    known = [(p.epoch, p.lr) for p in history.points if p.lr is not None]
    if known:
        rates.plot([e for e, _ in known], [lr for _, lr in known], color=_LR, marker=marker, ms=3)
    rates.set_ylabel("learning rate")
    rates.set_xlabel("epoch")
    for axes in (losses, rates):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure


# --- The probe: a frozen, stratified subset of the training data, drawn without touching the training loader.


def default_probe(trainer: Trainer, seed: int) -> Iterable[Any] | None:
    """The data module's probe, else a stratified subset of the training loader's data set, else None with a warning.

    Args:
        trainer: In a fit, with its loaders built.
        seed: Of the draw.

    Returns:
        Batches of as many training examples as the first validation loader has; this rank's share of them.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "probe_dataloader"):
        probe: Iterable[Any] = datamodule.probe_dataloader()
        return probe
    loader = trainer.train_dataloader
    dataset: Any = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        rank_zero_warn(
            "OverfittingMonitor cannot draw a probe from this training loader, so it measures nothing: "
            "give it batches of training examples with OverfittingMonitor(probe=...)."
        )
        return None
    size = min(len(dataset), _validation_size(trainer.val_dataloaders) or len(dataset))
    chosen = stratified_subset(np.fromiter(_labels(dataset), np.int64), size, seed)
    mine = chosen[trainer.global_rank :: trainer.world_size].tolist()
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
    return DataLoader(Subset(dataset, mine), batch_size=batch_size, collate_fn=loader.collate_fn)


def _validation_size(loaders: Any) -> int:
    first = loaders[0] if isinstance(loaders, Sequence) and loaders else loaders
    dataset = getattr(first, "dataset", None)
    return len(dataset) if dataset is not None and hasattr(dataset, "__len__") else 0


def _labels(dataset: Any) -> Iterator[int]:
    """The class of each example, as far as it can be read without decoding; else 0: a plain random probe."""
    if isinstance(dataset, Subset):
        every = list(_labels(dataset.dataset))
        return (every[index] for index in dataset.indices)
    for name in ("targets", "labels"):
        labels = np.asarray(getattr(dataset, name, ()))
        if labels.ndim == 1 and len(labels) == len(dataset):  # of any kind: only which are equal matters
            return iter(np.unique(labels, return_inverse=True)[1].tolist())
    tensors = getattr(dataset, "tensors", None)
    if tensors is not None and len(tensors) > 1 and tensors[1].dim() == 1 and not tensors[1].is_floating_point():
        return (int(label) for label in tensors[1])
    return iter([0] * len(dataset))


class OverfittingMonitor(Callback):
    """Measure whether a model over- or underfits, and say so with the numbers that decided.

    The running training loss is no measure of it: it is averaged over moving weights, with dropout and augmentation
    on. So a frozen, stratified subset of the training set (the probe) is evaluated beside the validation set: the same
    weights, eval mode, no augmentation, the same loss of each example. Logged with each validation:

    - ``probe/loss``, ``probe/acc``; ``overfit/gap_loss`` (validation minus probe), ``overfit/gap_acc`` (probe minus
      validation): both grow as the model overfits;
    - ``overfit/gl``, ``overfit/pq``, ``overfit/up``: Prechelt's measures, in strips of five validations;
    - ``overfit/ece``, the calibration error of the validation; ``overfit/temperature``, the one that fits it best;
      ``overfit/gap_loss_scaled``, the gap that temperature scaling would leave, and ``overfit/overconfident``, 1 where
      it would leave none.

    EarlyStopping and ModelCheckpoint may monitor them. :attr:`verdict` may be asked for at any time; at the end of the
    fit it is logged with a figure.

    The run is not disturbed: its weights are the same, bit for bit, with and without the monitor. It costs its pass
    over the probe. The losses of single validation examples come from the validation that runs anyway: what the module
    gave for ``x`` in ``validation_step`` is given to ``loss`` again. Where ``validation_step`` does not call the module
    as ``loss`` does, the monitor says so once, and takes ``val/loss`` where that is the same loss; only where it is
    not, or is not logged, it evaluates the validation batches itself. Of several validation loaders it takes the first.

    Args:
        loss: From ``(module, batch)`` to the losses of the examples (shape ``[batch]``), or to a tuple of them and of
            1/0 for right/wrong, and, for the calibration, logits and labels. Default: the module's own
            ``per_example_loss(batch)`` where it has one, else :func:`classification_loss`.
        probe: Batches of training examples without augmentation, as any iterable that can be iterated again. Default:
            the data module's ``probe_dataloader()``, else as many stratified examples of the training loader's data
            set as the validation set has.
        every_n_validations: Measure at every so many validations.
        seed: Of the draw of the default probe.
        keep: Most examples of a set whose single losses are kept, for the noise; beyond it, every n-th.
        chance: Loss of a model that knows nothing but the classes' shares. Default: from the probe's labels.

    Raises:
        ValueError: If a number is < 1. At the start of a fit: if the module has no ``forward`` for the default loss; in
            the first validation: if it does not fit the module.
    """

    def __init__(
        self,
        loss: LossFunction | None = None,
        probe: Iterable[Any] | None = None,
        every_n_validations: int = 1,
        seed: int = 0,
        keep: int = 1000,
        chance: float | None = None,
    ) -> None:
        for name, value in (("every_n_validations", every_n_validations), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.loss: LossFunction = loss or default_loss
        self.probe = probe
        self.every_n_validations, self.seed, self.keep, self.chance = every_n_validations, seed, keep, chance
        self._fitting = True
        self._reset()

    def _reset(self) -> None:
        self._drawn: Iterable[Any] | None = None
        self._val = ValidationLosses(self.loss, self.keep)
        self._chance = self.chance
        self._validations = 0
        self._points: list[Point] = []
        self._first_loss: Tensor | float | None = None
        self._diverged: str | None = None
        self._overconfident = False
        self.unmeasured: frozenset[str] = frozenset()
        """What of the above will not be logged, as far as the sanity check has shown."""
        self._total_steps: int | None = None

    # -- the verdict -------------------------------------------------------------------------------------------------

    @property
    def history(self) -> History:
        """What was measured so far."""
        first = self._first_loss
        return History(
            tuple(self._points),
            chance=self._chance,
            start=None if first is None else float(first),
            total_steps=self._total_steps,
            diverged=self._diverged,
            overconfident=self._overconfident,
        )

    @property
    def verdict(self) -> Verdict:
        """Under- or overfitting, diverged, collapsed or healthy, as far as the run has come; else inconclusive."""
        return diagnose(self.history)

    # -- gathering ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; a checkpoint's state is loaded after this."""
        self._fitting = stage == "fit"
        if self._fitting:
            check_forward(pl_module, self.loss)
            self._reset()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss of the first batch, which is that of the initial weights; it stays on its device."""
        if self._first_loss is None and not self._points and trainer.fit_loop.total_batch_idx == 0:
            self._first_loss = batch_loss(outputs, trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the module's forward passes, in the sanity check too: what does not fit is found there."""
        if trainer.state.fn == "fit" and (trainer.sanity_checking or self._validations % self.every_n_validations == 0):
            self._val.start(pl_module)

    def on_validation_batch_start(self, *_: Any) -> None:
        """Forget what other callbacks have run through the module."""
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
        """Take the losses of this batch's examples from what the module gave for it."""
        if not dataloader_idx:
            self._val.take(trainer, pl_module, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the probe; before the callbacks that monitor a metric look at it."""
        if trainer.state.fn != "fit":
            return
        self._validations += not trainer.sanity_checking
        if not self._val.watching:
            return
        val = self._val.finish(trainer, pl_module)
        if trainer.sanity_checking:
            self.unmeasured = self._unmeasured(val)
            return
        with isolate_rng(), torch.no_grad():
            probe = self._measure(trainer, pl_module)
        if probe is None:
            return
        self._points.append(self._point(trainer, probe, val))
        metrics = {**overfit_metrics(self._points), **calibration(val, probe)}
        self._overconfident = bool(metrics.get("overfit/overconfident"))
        pl_module.log_dict(metrics, sync_dist=trainer.world_size > 1)  # they are equal on all ranks already

    def _unmeasured(self, val: Sample | None) -> frozenset[str]:
        if val is None:  # nothing was seen
            return frozenset()
        no_logits = val.logits is None or val.right is None or self._val.source == "logged"
        return (WITH_LOGITS if no_logits else frozenset()) | (WITH_RIGHT if val.acc is None else frozenset())

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> Sample | None:
        if self._drawn is None:
            self._drawn = self.probe if self.probe is not None else default_probe(trainer, self.seed)
        gathered = Gathered(self.keep)
        for batch in self._drawn or ():
            batch = to_device(trainer, batch)
            with trainer.precision_plugin.forward_context():
                gathered.add(self.loss(pl_module, batch))
        probe = gathered.finish(trainer, pl_module.device)  # of all ranks: this one's share may be empty
        if self._chance is None and probe is not None and probe.labels is not None:
            self._chance = entropy(probe.labels)
        return probe

    def _point(self, trainer: Trainer, probe: Sample, val: Sample | None) -> Point:
        if not isinstance(self._first_loss, float):
            self._first_loss = mean_over_ranks(trainer, self._first_loss)
        val_loss, val_acc = (val.loss, val.acc) if val else [_logged(trainer, key) for key in ("val/loss", "val/acc")]
        return Point(
            epoch=_epoch(trainer),
            step=updates_made(trainer),
            lr=first_group_lr(trainer),
            val_loss=math.nan if val_loss is None else val_loss,
            probe_loss=probe.loss,
            val_acc=val_acc,
            probe_acc=probe.acc,
            val_losses=val.losses if val else None,
            probe_losses=probe.losses,
            val_size=val.size if val else None,
            probe_size=probe.size,
        )

    # -- the end -----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn how long the run will be."""
        self._total_steps = trainer_clock(trainer).total

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the verdict to every logger: as a tag, a text, and a figure."""
        self._conclude(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the module; a loss that was not finite is a verdict as well."""
        self._val.close()
        if isinstance(exception, Diverged):
            self._diverged = exception.headline
            self._conclude(trainer)

    def _conclude(self, trainer: Trainer) -> None:
        if (not self._points and self._diverged is None) or not trainer.is_global_zero:
            return
        verdict = self.verdict
        log_tags(trainer, {"verdict": verdict.label})
        log_note(trainer, verdict.text())
        log_text(trainer, verdict.text() + "\n", "verdict.txt")
        if not trainer.loggers or not self._points:
            return
        try:
            figure = draw(self.history, verdict)
        except ImportError:  # matplotlib is the [plot] extra
            return
        log_figure(trainer, figure, "verdict.png")

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were, and what was measured, as tensors and plain values."""
        first = self._first_loss
        return {
            "validations": self._validations,
            "first_loss": None if first is None else float(first),
            "source": self._val.source,
            "chance": self._chance,
            "overconfident": self._overconfident,
            **packed(self._points),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; a test of a checkpoint leaves what the fit came to."""
        if not self._fitting:
            return
        self._validations = state_dict["validations"]
        self._first_loss = state_dict["first_loss"]
        self._val.source, self._chance = state_dict["source"], state_dict["chance"]
        self._overconfident = state_dict["overconfident"]
        self._points = unpacked(state_dict)


def _logged(trainer: Trainer, key: str) -> float | None:
    """What the module has logged, the mean of the ranks that have."""
    return mean_over_ranks(trainer, trainer.callback_metrics.get(key))


def _epoch(trainer: Trainer) -> float:
    """Epochs trained so far, with the share of the one under way."""
    done, batches = trainer.fit_loop.epoch_loop.batch_idx + 1, trainer.num_training_batches
    return trainer.current_epoch + (min(1.0, done / batches) if math.isfinite(batches) and batches else 1.0)
