"""Over- or underfitting, measured at every validation: the gap to a frozen training probe, and a verdict."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from lr_lightning._checks import check_count
from lr_lightning._lightning import batch_loss, mean_over_ranks, to_device
from lr_lightning._loggers import log_figure, log_note, log_tags, log_text
from lr_lightning._param_groups import first_group_lr, peak_lr
from lr_lightning._plotting import FRAME, GREY, PROBE, VALIDATION, YELLOW, new_figure, style_axes
from lr_lightning.callbacks import per_example
from lr_lightning.callbacks.per_example import LossFunction, Sample, SampleCollector, ValidationLosses
from lr_lightning.callbacks.trainer_clock import trainer_clock, updates_made
from lr_lightning.diagnosis.calibration import entropy
from lr_lightning.diagnosis.diagnose import diagnose
from lr_lightning.diagnosis.early_stopping import overfit_metrics
from lr_lightning.diagnosis.history import History, Point
from lr_lightning.diagnosis.stratify import stratified_subset
from lr_lightning.diagnosis.verdict import Label, Verdict
from lr_lightning.errors import Diverged

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class OverfittingMonitor(Callback):
    """Measure whether a model over- or underfits, and give a verdict with the numbers that decided.

    The running training loss cannot show it: that loss is averaged over moving weights, with dropout and augmentation
    on. So a frozen, stratified subset of the training set, the probe, is evaluated beside the validation set: the same
    weights, eval mode, no augmentation, the same loss for each example. Logged with each validation:

    - ``probe/loss``, ``probe/acc``; ``overfit/gap_loss`` (validation minus probe), ``overfit/gap_acc`` (probe minus
      validation): both gaps grow as the model overfits;
    - ``overfit/gl``, ``overfit/pq``, ``overfit/up``: Prechelt's measures, in strips of five validations;
    - ``overfit/ece``, the calibration error of the validation; ``overfit/temperature``, the temperature that fits it
      best; ``overfit/gap_loss_scaled``, the gap that temperature scaling would leave; and ``overfit/overconfident``, 1
      if it would leave none.

    EarlyStopping and ModelCheckpoint may monitor all of these. :attr:`verdict` may be read at any time; at the end of
    the fit it is logged with a figure.

    The monitor does not disturb the run: the weights are the same, bit for bit, with and without it. It costs one pass
    over the probe. The losses of single validation examples come from the validation that runs anyway: the outputs that
    the module gave for ``x`` in ``validation_step`` are passed to ``loss`` again. If ``validation_step`` does not call
    the module as ``loss`` does, the monitor warns once. It then uses ``val/loss`` if that is the same loss, and else
    evaluates the validation batches itself. Of several validation loaders it uses the first.

    Args:
        loss: Function from ``(module, batch)`` to the losses of the examples, shape ``[batch]``; or to a tuple of
            losses, 1/0 for right/wrong, and, for the calibration, logits and labels. Default: the module's own
            ``per_example_loss(batch)`` if it has one, else
            :func:`~lr_lightning.callbacks.per_example.classification_loss`.
        probe: Batches of training examples without augmentation, as an iterable that can be iterated again. Default:
            the data module's ``probe_dataloader()``, else as many stratified examples of the training loader's data
            set as the validation set has.
        every_n_validations: Number of validations from one measurement to the next.
        seed: Seed of the draw of the default probe.
        keep: Most examples of a set whose single losses are kept, to estimate the noise; of a larger set, every n-th.
        chance: Loss of a model that knows only the shares of the classes. Default: computed from the probe's labels.

    Raises:
        ArgumentError: A number is < 1. When the fit starts: the default loss needs a ``forward``, and the module has
            none. In the first validation: the default loss does not suit the module.
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
        check_count("every_n_validations", every_n_validations, 1)
        check_count("keep", keep, 1)
        self.loss, self.probe = loss or per_example.default_loss, probe
        self.every_n_validations, self.seed, self.keep, self.chance = every_n_validations, seed, keep, chance
        self._fitting = True
        self._reset()

    def _reset(self) -> None:
        self._drawn: Iterable[Any] | None = None
        self._val = ValidationLosses(self.loss, self.keep)
        self._chance, self._validations = self.chance, 0
        self._points: list[Point] = []
        self._first_loss: Tensor | float | None = None
        self._diverged: str | None = None
        self._overconfident = False
        self.unmeasured: frozenset[str] = frozenset()
        """Metrics that will not be logged, as far as the sanity check has shown."""
        self._total_steps: int | None = None
        self._peak_lr: float | None = None

    @property
    def history(self) -> History:
        """The measurements so far."""
        start = None if self._first_loss is None else float(self._first_loss)
        points = tuple(self._points)
        state = self._total_steps, self._diverged, self._overconfident
        return History(points, self._chance, start, *state, self._peak_lr)

    @property
    def verdict(self) -> Verdict:
        """The verdict on the run so far."""
        return diagnose(self.history)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; Lightning loads a checkpoint's state after this."""
        self._fitting = stage == "fit"
        if self._fitting:
            per_example.check_forward(pl_module, self.loss)
            self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the length of the run and the peak of its learning rate."""
        self._total_steps = trainer_clock(trainer).total
        groups = trainer.optimizers[0].param_groups if trainer.optimizers else []
        if groups and groups[0].get("lr") is not None and "d" not in groups[0]:  # d: a factor that is estimated
            self._peak_lr = peak_lr(groups[0])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss of the first batch, which is that of the initial weights; it stays on its device."""
        if self._first_loss is None and not self._points and trainer.fit_loop.total_batch_idx == 0:
            self._first_loss = batch_loss(outputs, trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the module's forward passes, also in the sanity check, where an unsuitable loss is found."""
        if trainer.state.fn == "fit" and (trainer.sanity_checking or self._validations % self.every_n_validations == 0):
            self._val.start(pl_module)

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
        """Collect the losses of this batch's examples."""
        if not dataloader_idx:
            self._val.after_batch(trainer, pl_module, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the probe and log, before the callbacks that monitor a metric read it."""
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
            probe = self._measure_probe(trainer, pl_module)
        if probe is None:
            return
        self._points.append(self._point(trainer, probe, val))
        metrics = {**overfit_metrics(self._points), **per_example.calibration_metrics(val, probe)}
        self._overconfident = bool(metrics.get("overfit/overconfident"))
        pl_module.log_dict(metrics, sync_dist=trainer.world_size > 1)  # they are equal on all ranks already

    def _unmeasured(self, val: Sample | None) -> frozenset[str]:
        if val is None:  # the sanity check had no batch
            return frozenset()
        no_logits = val.logits is None or val.right is None or self._val.source == "logged"
        unknown = per_example.LOGIT_METRICS if no_logits else frozenset()
        return unknown | (per_example.ACCURACY_METRICS if val.acc is None else frozenset())

    def _measure_probe(self, trainer: Trainer, pl_module: LightningModule) -> Sample | None:
        if self._drawn is None:
            self._drawn = self.probe if self.probe is not None else default_probe(trainer, self.seed)
        collector = SampleCollector(self.keep)
        for batch in self._drawn or ():
            batch = to_device(trainer, batch)
            with trainer.precision_plugin.forward_context():
                collector.add(self.loss(pl_module, batch))
        probe = collector.finish(trainer, pl_module.device)  # on every rank, even if its share is empty
        if self._chance is None and probe is not None and probe.labels is not None:
            self._chance = entropy(probe.labels)
        return probe

    def _point(self, trainer: Trainer, probe: Sample, val: Sample | None) -> Point:
        if not isinstance(self._first_loss, float):
            self._first_loss = mean_over_ranks(trainer, self._first_loss)
        if val is None:
            logged = (trainer.callback_metrics.get(key) for key in ("val/loss", "val/acc"))
            val_loss, val_acc = (mean_over_ranks(trainer, value) for value in logged)
        else:
            val_loss, val_acc = val.loss, val.acc
        done, batches = trainer.fit_loop.epoch_loop.batch_idx + 1, trainer.num_training_batches
        share = min(1.0, done / batches) if math.isfinite(batches) and batches else 1.0  # of the current epoch
        return Point(
            epoch=trainer.current_epoch + share,
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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the verdict as a tag, a note, a text file and a figure."""
        self._log_verdict(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the module; if the run diverged, log that verdict."""
        self._val.close()
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
            "overconfident": self._overconfident,
            **_pack(self._points),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the measurements, unless a checkpoint is only tested: then those of the fit stay."""
        if not self._fitting:
            return
        self._validations, self._first_loss = state_dict["validations"], state_dict["first_loss"]
        self._val.source, self._chance = state_dict["source"], state_dict["chance"]
        self._overconfident, self._points = state_dict["overconfident"], _unpack(state_dict)


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


# -- the probe -------------------------------------------------------------------------------------------------------


def default_probe(trainer: Trainer, seed: int) -> Iterable[Any] | None:
    """Return the data module's probe, else batches of a stratified subset of the training loader's data set.

    The subset is this rank's share of as many examples as the first validation loader has; None, with a warning, if
    none can be drawn. The training loader is not iterated, so its order of data does not change.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    if hasattr(datamodule, "probe_dataloader"):
        probe: Iterable[Any] = datamodule.probe_dataloader()
        return probe
    loader = trainer.train_dataloader
    dataset: Any = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        rank_zero_warn(
            "OverfittingMonitor cannot draw a probe from this training loader, so it measures nothing. "
            "Pass batches of training examples: OverfittingMonitor(probe=...)."
        )
        return None
    loaders = trainer.val_dataloaders
    first = loaders[0] if isinstance(loaders, Sequence) and loaders else loaders
    validation: Any = getattr(first, "dataset", ())
    size = min(len(dataset), (len(validation) if hasattr(validation, "__len__") else 0) or len(dataset))
    chosen = stratified_subset(np.fromiter(_labels(dataset), np.int64), size, seed)
    mine = chosen[trainer.global_rank :: trainer.world_size].tolist()
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
    return DataLoader(Subset(dataset, mine), batch_size=batch_size, collate_fn=loader.collate_fn)


def _labels(dataset: Any) -> Iterator[int]:
    """Return the class of each example if it can be read without decoding; else 0, for a plain random probe."""
    if isinstance(dataset, Subset):
        every = list(_labels(dataset.dataset))
        return (every[index] for index in dataset.indices)
    for name in ("targets", "labels"):
        labels = np.asarray(getattr(dataset, name, ()))
        if labels.ndim == 1 and len(labels) == len(dataset):  # of any type: only equality matters
            return iter(np.unique(labels, return_inverse=True)[1].tolist())
    tensors = getattr(dataset, "tensors", None)
    if tensors is not None and len(tensors) > 1 and tensors[1].dim() == 1 and not tensors[1].is_floating_point():
        return (int(label) for label in tensors[1])
    return iter([0] * len(dataset))


# -- the figure ------------------------------------------------------------------------------------------------------


def plot_verdict(history: History, verdict: Verdict) -> "Figure":
    """Draw a run's losses over its epochs, with the onset marked, and the learning rate below.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(8, 5.2)
    losses, lrs = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    epochs = [p.epoch for p in history.points]
    val, probe = [p.val_loss for p in history.points], [p.probe_loss for p in history.points]
    marker = "o" if len(epochs) < 40 else None
    losses.plot(epochs, val, color=VALIDATION, marker=marker, ms=3, label="validation")
    losses.plot(epochs, probe, color=PROBE, marker=marker, ms=3, label="probe (training examples)")
    if history.chance is not None:
        losses.axhline(history.chance, color=GREY, ls=":", lw=1, label="chance")
    if verdict.onset_epoch is not None:
        name = "first bad" if verdict.label is Label.DIVERGED else "onset,"
        losses.axvline(verdict.onset_epoch, color=YELLOW, lw=2, label=f"{name} epoch {verdict.onset_epoch:g}")
    positive = [v for v in (*val, *probe) if v > 0]
    if positive and len(positive) == len(val) + len(probe) and max(positive) > 20 * min(positive):
        losses.set_yscale("log")
    losses.legend(frameon=False, fontsize=9)
    losses.set_title(verdict.headline, loc="left", fontsize=11)
    if known := [(p.epoch, p.lr) for p in history.points if p.lr is not None]:
        lrs.plot(*zip(*known, strict=True), color=FRAME, marker=marker, ms=3)
        lrs.set_ylim(0, 1.1 * max(lr for _, lr in known) or 1)  # from 0, so that heights compare
    if epochs and epochs[-1] - epochs[0] >= 4:
        lrs.xaxis.get_major_locator().set_params(integer=True)
    style_axes(losses, y="loss", grid=True)
    style_axes(lrs, x="epoch", y="learning rate", grid=True)
    return figure
