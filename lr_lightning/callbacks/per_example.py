"""The losses of single examples: how a module gives them, and how they come from all ranks to the host."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import binary_calibration_error

from lr_lightning._batches import Place, at, parts, written
from lr_lightning._lightning import (
    LightningModule,
    Trainer,
    gather_numbers,
    gather_rows,
    is_compiled,
    isolate_rng,
    overrides,
    rank_zero_warn,
)
from lr_lightning.callbacks.forward_calls import ForwardRecord, NotRecordedError, ObservedCall, silent
from lr_lightning.diagnosis.calibration import scale_gap
from lr_lightning.errors import ArgumentError
from lr_lightning.lr_finder.dry_run import LOGGED_NAMES

# Metrics that need the logits of the validation, and those that need to know which predictions are right.
LOGIT_METRICS = frozenset({"overfit/ece", "overfit/temperature", "overfit/gap_loss_scaled", "overfit/overconfident"})
ACCURACY_METRICS = frozenset({"probe/acc", "overfit/gap_acc"})

LossFunction = Callable[[LightningModule, Any], Tensor | tuple[Tensor | None, ...]]

_NO_BATCHES = -1  # in place of the width of the logits, on a rank that had no batch
EXAMPLE_LINE = "torch.nn.functional.cross_entropy(module(batch[0]), batch[1], reduction='none')"
_EXPECTED = "The default loss takes batches (x, y) with class labels y and logits module(x)"
_REMEDY = "Pass a function that computes a loss per example from a batch: loss=..."


# -- from a batch to losses ------------------------------------------------------------------------------------------


class Examples(NamedTuple):
    """What a loss function may return for the examples of a batch; logits and labels are for the calibration."""

    losses: Tensor  # shape [batch]
    right: Tensor | None = None  # 1 if the prediction is right, else 0; shape [batch]
    logits: Tensor | None = None  # shape [batch, classes]
    labels: Tensor | None = None  # integers, shape [batch]


def classification_loss(module: LightningModule, batch: Any) -> Examples:
    """Compute the cross-entropy and correctness of each example of a batch ``(x, y)`` with logits ``module(x)``.

    Losses are in nats. For a dense prediction, both are means over an example.

    Raises:
        ArgumentError: The batch is no such pair, or the module gives no logits [batch, classes, ...] for it.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ArgumentError(f"{_EXPECTED}, got a batch that is a {type(batch).__name__}. {_REMEDY}")
    if not _has_forward(module):
        raise ArgumentError(f"{_EXPECTED}, but {type(module).__name__} has no forward. {_REMEDY}")
    x, y = batch
    logits = module(x)
    if not isinstance(y, Tensor) or not isinstance(logits, Tensor):
        raise ArgumentError(f"{_EXPECTED}, got y: {type(y).__name__}, module(x): {type(logits).__name__}. {_REMEDY}")
    if logits.ndim < 2 or y.is_floating_point() or logits.shape[:1] + logits.shape[2:] != y.shape:
        raise ArgumentError(
            f"{_EXPECTED}, got logits {tuple(logits.shape)} for y {tuple(y.shape)} of {y.dtype}. {_REMEDY}"
        )
    return _classified(logits.float(), y)


def _classified(logits: Tensor, y: Tensor) -> Examples:
    losses, right = cross_entropy(logits, y, reduction="none"), (logits.argmax(dim=1) == y).float()
    if losses.ndim > 1:
        return Examples(losses.flatten(1).mean(1), right.flatten(1).mean(1))
    return Examples(losses, right, logits, y)


def default_loss(module: LightningModule, batch: Any) -> Tensor | tuple[Tensor | None, ...]:
    """Call the module's own ``per_example_loss(batch)`` if it has one, else :func:`classification_loss`."""
    own: LossFunction | None = getattr(type(module), "per_example_loss", None)
    return own(module, batch) if own is not None else classification_loss(module, batch)


def is_default(loss: LossFunction, module: LightningModule) -> bool:
    """Return whether a loss is neither the user's nor the module's own."""
    return loss is classification_loss or (loss is default_loss and not hasattr(type(module), "per_example_loss"))


def can_measure(module: LightningModule) -> bool:
    """Return whether the default loss suits the module: it has a ``per_example_loss`` or a ``forward``."""
    return hasattr(module, "per_example_loss") or _has_forward(module)


def _has_forward(module: LightningModule) -> bool:
    return overrides("forward", module)


# -- a loss learned from the module's own training step ----------------------------------------------------------------


@dataclass(frozen=True)
class LearnedLoss:
    """The loss that the module's training step computes, for single examples: a call, its target and a function."""

    call: ObservedCall
    prediction: Place  # in what the call returns
    target: Place  # in the batch
    function: str  # of torch.nn.functional

    def __call__(self, module: LightningModule, batch: Any) -> Examples:
        """Compute the loss of each example of a batch."""
        prediction, target = at(self.prediction, self.call(module, batch)), at(self.target, batch)
        found = _losses(self.function, prediction.float(), target)
        if found is None:
            shapes = f"predictions {tuple(prediction.shape)} for targets {tuple(target.shape)}"
            raise ArgumentError(f"{self.function} does not take {shapes}.")
        return found

    @property
    def is_regression(self) -> bool:
        """Whether the targets are no classes."""
        return self.function in ("mse_loss", "l1_loss", "smooth_l1_loss")

    def of_constant(self, targets: Sequence[Tensor]) -> float | None:
        """Return the loss of a constant guess, the mean of the targets; None if these have no mean."""
        if self.function == "cross_entropy" or not targets or len({each.shape[1:] for each in targets}) > 1:
            return None
        every = torch.cat([each.float() for each in targets])
        found = _losses(self.function.removesuffix("_with_logits"), every.mean(0, keepdim=True).expand_as(every), every)
        return None if found is None else float(found.losses.mean())


def learn_loss(record: ForwardRecord, batch: Any, loss: float) -> tuple[LearnedLoss, float] | str:
    """Return the loss of single examples whose mean is the training step's loss, and that mean; else a line to write.

    If the batch can be read as a classification in one way only, that is taken, even if the mean is another one: the
    step may weight the classes, smooth the labels or scale the loss.

    Args:
        record: The calls that the step made.
        batch: Its batch.
        loss: Its loss.
    """
    calls, tensors = record.observed(batch), [(p, part) for p, part in parts(batch) if isinstance(part, Tensor)]
    fitting = [
        (LearnedLoss(call, place, target, name), found, prediction)
        for call, output in calls
        for place, prediction in parts(output)
        if isinstance(prediction, Tensor) and prediction.is_floating_point()
        for target, y in tensors
        for name in _FUNCTIONS
        if (found := _losses(name, prediction.detach().float(), y)) is not None
    ]
    for learned, found, _ in fitting:
        if abs(float(found.losses.mean()) - loss) <= 1e-4 * abs(loss) and loss:
            return learned, loss
    classified = [each for each in fitting if each[0].function == "cross_entropy"]
    if len({(id(output), each.target) for each, _, output in classified}) == 1:
        learned, found, _ = classified[0]
        return learned, float(found.losses.mean())
    if not fitting:
        call = calls[0][0].written() if calls else "module(...)"
        return f"my_loss({call}, batch)"
    guess = fitting[0][0]
    prediction = written(guess.prediction, guess.call.written())
    return f"torch.nn.functional.{guess.function}({prediction}, {written(guess.target)}, reduction='none')"


class LossLearner:
    """Learns the loss of single examples from the module's first training step, where the default does not suit it.

    Attributes:
        wanted: Whether the default loss does not suit the module.
        networks: Children that the default loss calls; a step that does not call them has another loss.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.networks: set[str] = set()
        self._step: tuple[ForwardRecord, Any] | None = None

    @property
    def waits(self) -> bool:
        """Whether a training step of interest has not been watched yet."""
        return bool(self.wanted or self.networks)

    def watch(self, module: LightningModule, batch: Any) -> None:
        """Watch a training step from its start, if it is the first one of interest."""
        if self.waits and self._step is None and not is_compiled(module):
            self._step = ForwardRecord(module), batch

    def learn(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> tuple[LearnedLoss, float] | str | None:
        """Return the result of :func:`learn_loss`, before the step's update; None if there is nothing to learn."""
        if self._step is None:
            return None
        (record, batch), networks, wanted = self._step, self.networks, self.wanted
        self.networks, self.wanted = set(), False
        try:
            if not wanted and (networks <= (called := record.called()) or "" in called):
                return None
            scale = trainer.accumulate_grad_batches if module.automatic_optimization else 1
            return learn_loss(record, batch, float(loss.detach()) * scale)
        except Exception:  # a batch of a library's own class
            return ""
        finally:
            self.close()

    def close(self) -> None:
        """Release the module; if the step made no backward pass, the next one is watched."""
        if self._step is not None:
            self._step[0].close()
            self._step = None


_FUNCTIONS = (
    "cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "binary_cross_entropy",
)


def _losses(name: str, prediction: Tensor, target: Tensor) -> Examples | None:
    """Return one loss for each example, or None if the function does not take these tensors."""
    if not target.ndim or not target.numel() or not prediction.ndim or len(prediction) != len(target):
        return None
    with torch.autocast(prediction.device.type, enabled=False):
        if name == "cross_entropy":
            whole = not target.is_floating_point() and prediction.ndim > 1
            if whole and prediction.shape[:1] + prediction.shape[2:] == target.shape:
                known = int(target.min()) >= 0 and int(target.max()) < prediction.shape[1]
                return _classified(prediction, target.long()) if known else None
            return None
        if prediction.numel() != target.numel():
            return None
        prediction, target = prediction.reshape(len(target), -1), target.float().reshape(len(target), -1)
        shares = [target, *([prediction] if name == "binary_cross_entropy" else [])]
        if name.startswith("binary") and not all(float(x.min()) >= 0 and float(x.max()) <= 1 for x in shares):
            return None
        return Examples(getattr(functional, name)(prediction, target, reduction="none").mean(1))


# -- from batches on each rank to one sample on the host -------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """The measurements of N examples, of which K are kept: the same ones each time if the order is the same."""

    loss: float
    acc: float | None
    size: int  # N
    losses: NDArray[np.float32]  # shape [K]
    right: NDArray[np.float32] | None = None  # 1 if the prediction is right, else 0; shape [N]
    confidences: NDArray[np.float32] | None = None  # highest probability of each example; shape [N]
    logits: NDArray[np.float32] | None = None  # shape [K, classes]
    labels: NDArray[np.int64] | None = None  # shape [K]


@dataclass
class SampleCollector:
    """Collects the results of batches on the device, and fetches them all at once."""

    keep: int  # most examples whose single losses and logits are fetched
    _batches: list[Examples] = field(default_factory=list)

    @property
    def examples(self) -> int:
        """The number of examples of this rank."""
        return sum(len(batch.losses) for batch in self._batches)

    def add(self, result: Tensor | tuple[Tensor | None, ...]) -> None:
        """Add what a loss function returned for a batch; refuse losses that do not have the shape [batch]."""
        examples = Examples(result) if isinstance(result, Tensor) else Examples(*result)  # type: ignore[arg-type]
        if not isinstance(examples.losses, Tensor) or examples.losses.ndim != 1:
            got = tuple(examples.losses.shape) if isinstance(examples.losses, Tensor) else examples.losses
            raise ArgumentError(
                f"loss=... must return one loss for each example, shape [batch], got {got}. "
                "Compute it with reduction='none'."
            )
        self._batches.append(examples)

    def has_probabilities(self) -> bool:
        """Return whether the supposed logits are probabilities, as of a module whose ``forward`` predicts."""
        logits = [batch.logits for batch in self._batches if batch.logits is not None]
        return bool(logits) and all(float(x.min()) >= 0 and bool((x.sum(1) - 1).abs().max() < 1e-3) for x in logits)

    def mean(self) -> Tensor | None:
        """Return the mean loss of this rank's examples; None if there are none."""
        return torch.cat([batch.losses for batch in self._batches]).float().mean() if self.examples else None

    def finish(self, trainer: Trainer, device: torch.device) -> Sample | None:
        """Gather everything from all ranks; None if there are no examples.

        Every rank must call this, even one that has no batches or no logits.
        """
        columns, detail = self._columns(), self._logits_and_labels()
        own_width = detail.shape[1] if detail is not None else 0 if self._batches else _NO_BATCHES
        widths = {int(width) for (width,) in gather_numbers(trainer, [own_width])} - {_NO_BATCHES}
        width = widths.pop() if len(widths) == 1 else 0  # the logits count if every rank that had batches knows them
        every = gather_rows(trainer, columns.to(device)).cpu().numpy()
        if not len(every):
            return None
        losses, right, confidences = every.T.copy()
        stride = -(-len(every) // self.keep)
        known = not np.isnan(right).any()
        detailed: dict[str, Any] = {}
        if width:
            own = columns.new_empty(0, width) if detail is None else detail
            mine = own[:: max(1, -(-len(own) * trainer.world_size // self.keep))]
            kept = gather_rows(trainer, mine.to(device)).cpu().numpy()
            detailed = {"logits": kept[:, :-1], "labels": kept[:, -1].astype(np.int64), "confidences": confidences}
        return Sample(
            float(losses.mean(dtype=np.float64)),
            float(right.mean(dtype=np.float64)) if known else None,
            len(every),
            losses[::stride].copy(),
            right=right if known else None,
            **detailed,
        )

    def _columns(self) -> Tensor:
        """Return loss, correctness and confidence of each example, nan if unknown; shape [N, 3], float32."""
        rows = []
        for losses, right, logits, _ in self._batches:
            unknown = torch.full_like(losses, torch.nan, dtype=torch.float32)
            confidence = unknown if logits is None else logits.softmax(1).amax(1).float().clamp(max=1.0)
            rows.append(torch.stack([losses.float(), unknown if right is None else right.float(), confidence], 1))
        return torch.cat(rows).detach() if rows else torch.empty(0, 3)

    def _logits_and_labels(self) -> Tensor | None:
        """Return the logits and the label of each example, shape [N, classes + 1]; None if a batch lacks them."""
        rows = [
            torch.cat([batch.logits.float(), batch.labels[:, None].float()], 1).detach()
            for batch in self._batches
            if batch.logits is not None and batch.labels is not None
        ]
        return torch.cat(rows) if rows and len(rows) == len(self._batches) else None


def calibration_metrics(val: Sample | None, probe: Sample) -> dict[str, float]:
    """Return :data:`LOGIT_METRICS` by name; those that need unknown logits are left out."""
    if val is None or val.confidences is None or val.right is None or not np.isfinite(val.confidences).all():
        return {}
    # The multiclass error is the binary one of the confidences, so the probabilities need not be kept.
    confidences, right = torch.from_numpy(val.confidences), torch.from_numpy(val.right).int()
    metrics = {"overfit/ece": float(binary_calibration_error(confidences, right, n_bins=15, validate_args=False))}
    if val.logits is None or val.labels is None or probe.logits is None or probe.labels is None:
        return metrics
    scaling = scale_gap(val.logits, val.labels, probe.logits, probe.labels)
    if scaling is None:
        return metrics
    metrics |= {"overfit/temperature": scaling.temperature, "overfit/gap_loss_scaled": scaling.gap}
    return metrics | {"overfit/overconfident": float(scaling.overconfident)}


# -- losses from the validation that runs anyway ---------------------------------------------------------------------


def logged_by_validation(trainer: Trainer, kind: Literal["val_loss", "accuracy"]) -> tuple[str, Tensor | None]:
    """Return the validation loss or accuracy that the module has logged under a usual name, and that name."""
    names = [name for name in LOGGED_NAMES[kind] if name.startswith("val")]
    for name in (*names, *(f"{name}/dataloader_idx_0" for name in names)):
        if (value := trainer.callback_metrics.get(name)) is not None:
            return name, value
    return "", None


def warn_of_other_loss(trainer: Trainer, loss: LossFunction, mean: float, callback: str) -> bool:
    """Warn if the module validates with another loss than the one that is measured, and say how to give its own.

    Return whether it does. With several processes this is unknown, since each may log the loss of its own examples.
    """
    name, logged = logged_by_validation(trainer, "val_loss")
    if logged is None or abs(float(logged) - mean) <= 0.05 * abs(mean) + 1e-6 or trainer.world_size > 1:
        return False
    function = loss.function if isinstance(loss, LearnedLoss) else "cross_entropy"
    rank_zero_warn(
        f"{callback} measures {function}, {mean:.4g} in this validation, but the module logs {name} "
        f"{float(logged):.4g}: it has weights, smoothed labels or another loss. To measure that one, write "
        f"{callback}(loss=lambda module, batch: ...), with one loss for each example."
    )
    return True


class ValidationLosses:
    """Collects the losses of single validation examples, without a second pass if possible.

    Attributes:
        source: ``"pass"``: the losses come from the passes of the validation step. ``"own"``: the batches are evaluated
            a second time. ``"logged"``: nothing is collected, because ``val/loss`` is the same loss.
    """

    def __init__(self, loss: LossFunction, keep: int) -> None:
        self.loss, self.keep = loss, keep
        self.source: Literal["pass", "own", "logged"] = "pass"
        self._collector = SampleCollector(keep)
        self._record: ForwardRecord | None = None
        self._warned = False

    @property
    def examples(self) -> int:
        """The examples of this rank that were collected in this validation."""
        return self._collector.examples

    @property
    def watching(self) -> bool:
        """Whether a validation is being measured."""
        return self._record is not None

    def start(self, module: LightningModule) -> None:
        """Start to watch a validation."""
        self.close()
        self._collector, self._record = SampleCollector(self.keep), ForwardRecord(module)

    def before_batch(self) -> None:
        """Forget the passes that other callbacks made."""
        if self._record is not None:
            self._record.clear()

    def after_batch(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """Collect the losses of a batch that the validation step has processed."""
        if self._record is None or self.source == "logged":
            return
        if self.source == "pass":
            try:
                with self._record.replaying():
                    self._collector.add(self._losses(trainer, module, batch))
                return
            except NotRecordedError:
                self.source = "own"  # for this validation; its end compares the mean with val/loss
        self._collector.add(self._losses(trainer, module, batch))

    def _losses(self, trainer: Trainer, module: LightningModule, batch: Any) -> Any:
        undrawn = nullcontext() if self.loss is default_loss else isolate_rng()  # a user's loss may draw numbers
        with trainer.precision_plugin.forward_context(), undrawn, silent(module):
            return self.loss(module, batch)

    def finish(self, trainer: Trainer, module: LightningModule) -> Sample | None:
        """Return the collected sample; None if there are no examples. Every rank must call this."""
        self.close()
        # If one rank evaluated batches again, all compare their losses with val/loss, even one that had no batch.
        if self.source != "logged" and trainer.strategy.reduce_boolean_decision(self.source == "own", all=False):
            self.source = "own"
        sample = self._collector.finish(trainer, module.device)
        self._collector = SampleCollector(self.keep)
        if self.source == "own" and sample is not None:
            self._compare_with_logged(trainer, sample)
        elif sample is not None and (is_default(self.loss, module) or isinstance(self.loss, LearnedLoss)):
            self._warn_of_other_loss(trainer, sample)
        return sample

    def _warn_of_other_loss(self, trainer: Trainer, sample: Sample) -> None:
        if not self._warned:
            self._warned = warn_of_other_loss(trainer, self.loss, sample.loss, "OverfittingMonitor")

    def _compare_with_logged(self, trainer: Trainer, sample: Sample) -> None:
        """Use ``val/loss`` from now on if it is the same loss; warn once."""
        name, logged = logged_by_validation(trainer, "val_loss")
        same = logged is not None and abs(float(logged) - sample.loss) <= 0.01 * abs(sample.loss) + 1e-6
        same = trainer.strategy.reduce_boolean_decision(same, all=True)  # val/loss may differ between ranks
        how = "It evaluates the validation batches a second time"
        if same:
            self.source, how = "logged", f"It takes {name}, and estimates its noise from the curve alone"
        if self._warned:
            return
        self._warned = True
        rank_zero_warn(
            "OverfittingMonitor cannot take the losses of single examples from this validation: validation_step "
            f"does not call the module as loss= does. {how}. Call self(x) in validation_step to avoid that."
        )

    def close(self) -> None:
        """Release the module."""
        if self._record is not None:
            self._record.close()
            self._record = None
