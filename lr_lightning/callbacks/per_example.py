"""The losses of single examples: how a module gives them, and how they come from all ranks to the host."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_calibration_error

from lr_lightning._lightning import (
    LightningModule,
    Trainer,
    gather_numbers,
    gather_rows,
    isolate_rng,
    overrides,
    rank_zero_warn,
)
from lr_lightning.diagnosis.calibration import scale_gap
from lr_lightning.errors import ArgumentError

# Metrics that need the logits of the validation, and those that need to know which predictions are right.
LOGIT_METRICS = frozenset({"overfit/ece", "overfit/temperature", "overfit/gap_loss_scaled", "overfit/overconfident"})
ACCURACY_METRICS = frozenset({"probe/acc", "overfit/gap_acc"})

LossFunction = Callable[[LightningModule, Any], Tensor | tuple[Tensor | None, ...]]

_NO_BATCHES = -1  # in place of the width of the logits, on a rank that had no batch
_EXPECTED = "OverfittingMonitor takes batches (x, y) with class labels y and logits module(x)"
_REMEDY = "Pass a function that computes a loss per example from a batch: OverfittingMonitor(loss=...)."


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
    x, y = batch
    logits = module(x)
    if not isinstance(y, Tensor) or not isinstance(logits, Tensor):
        raise ArgumentError(f"{_EXPECTED}, got y: {type(y).__name__}, module(x): {type(logits).__name__}. {_REMEDY}")
    if logits.ndim < 2 or y.is_floating_point() or logits.shape[:1] + logits.shape[2:] != y.shape:
        raise ArgumentError(
            f"{_EXPECTED}, got logits {tuple(logits.shape)} for y {tuple(y.shape)} of {y.dtype}. {_REMEDY}"
        )
    losses = cross_entropy(logits.float(), y, reduction="none")
    right = (logits.argmax(dim=1) == y).float()
    if losses.ndim > 1:
        return Examples(losses.flatten(1).mean(1), right.flatten(1).mean(1))
    return Examples(losses, right, logits.float(), y)


def default_loss(module: LightningModule, batch: Any) -> Tensor | tuple[Tensor | None, ...]:
    """Call the module's own ``per_example_loss(batch)`` if it has one, else :func:`classification_loss`."""
    own: LossFunction | None = getattr(type(module), "per_example_loss", None)
    return own(module, batch) if own is not None else classification_loss(module, batch)


def can_measure(module: LightningModule) -> bool:
    """Return whether the default loss suits the module: it has a ``per_example_loss`` or a ``forward``."""
    return hasattr(module, "per_example_loss") or _has_forward(module)


def check_forward(module: LightningModule, loss: LossFunction) -> None:
    """Refuse a module without a ``forward`` if the loss is computed from it."""
    needed = loss is classification_loss or (loss is default_loss and not hasattr(module, "per_example_loss"))
    if needed and not _has_forward(module):
        raise ArgumentError(
            f"{_EXPECTED}, but {type(module).__name__} has no forward. Add one, or a per_example_loss(batch). Or: "
            f"{_REMEDY}"
        )


def _has_forward(module: LightningModule) -> bool:
    return overrides("forward", module)


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

    def add(self, result: Tensor | tuple[Tensor | None, ...]) -> None:
        """Add what a loss function returned for a batch; refuse losses that do not have the shape [batch]."""
        examples = Examples(result) if isinstance(result, Tensor) else Examples(*result)  # type: ignore[arg-type]
        if not isinstance(examples.losses, Tensor) or examples.losses.ndim != 1:
            got = tuple(examples.losses.shape) if isinstance(examples.losses, Tensor) else examples.losses
            raise ArgumentError(
                f"OverfittingMonitor(loss=...) must return one loss for each example, shape [batch], got {got}. "
                "Compute it with reduction='none'."
            )
        self._batches.append(examples)

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
        parts: dict[str, Any] = {}
        if width:
            own = columns.new_empty(0, width) if detail is None else detail
            mine = own[:: max(1, -(-len(own) * trainer.world_size // self.keep))]
            kept = gather_rows(trainer, mine.to(device)).cpu().numpy()
            parts = {"logits": kept[:, :-1], "labels": kept[:, -1].astype(np.int64), "confidences": confidences}
        return Sample(
            float(losses.mean(dtype=np.float64)),
            float(right.mean(dtype=np.float64)) if known else None,
            len(every),
            losses[::stride].copy(),
            right=right if known else None,
            **parts,
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
    """Return :data:`LOGIT_METRICS` by name, as far as the logits are known."""
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


class _NotRecordedError(Exception):
    """A loss function asked for a forward pass that the validation step did not make."""


class _ForwardRecord:
    """Remembers what a module's ``forward`` returned for each input of a validation batch, and replays it.

    A loss function that calls ``module(x)`` with the ``x`` of ``validation_step`` gets the same output without a second
    pass. If ``validation_step`` calls a direct child instead (``self.net(x)``), the child's output is replayed, and the
    module's own ``forward`` runs around it.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        # A hook would make torch recompile a compiled or scripted child.
        plain = (child for child in module.children() if not isinstance(child, torch.jit.ScriptModule | Metric))
        children = (child for child in plain if getattr(child, "_compiled_call_impl", None) is None)
        self._watched: list[nn.Module] = [module, *children]
        self._outputs: dict[tuple[Any, ...], tuple[Tensor, Any]] = {}
        self._handles: list[RemovableHandle] = [m.register_forward_hook(self._keep) for m in self._watched]

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor):
            # The input is kept too, so that its memory, which is part of the key, is not used again.
            self._outputs.setdefault(_key(module, args[0]), (args[0], output))

    def clear(self) -> None:
        """Forget the batch."""
        self._outputs.clear()

    def close(self) -> None:
        """Release the module."""
        self.clear()
        while self._handles:
            self._handles.pop().remove()

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Make ``forward`` return what it returned in the validation step, or raise if the step made no such pass."""
        before = [(m, "forward" in m.__dict__, m.forward) for m in self._watched]
        try:
            for module, _, forward in before:
                module.__dict__["forward"] = self._player(module, forward)
            yield
        finally:
            for module, own, forward in before:
                if own:
                    module.__dict__["forward"] = forward
                else:
                    del module.__dict__["forward"]

    def _player(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def play(*args: Any, **kwargs: Any) -> Any:
            known = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            if known and (found := self._outputs.get(_key(module, args[0]))) is not None:
                return found[1]
            if module is self._module and self._outputs:
                return forward(*args, **kwargs)  # the validation step called the children instead
            raise _NotRecordedError

        return play


def _key(module: nn.Module, x: Tensor) -> tuple[Any, ...]:
    # The memory identifies an input, not the object: x.flatten(1) makes a new tensor at every call.
    return (id(module), x.data_ptr(), tuple(x.shape), tuple(x.stride()), x.dtype, x.device)


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
        self._record: _ForwardRecord | None = None
        self._warned = False

    @property
    def watching(self) -> bool:
        """Whether a validation is being measured."""
        return self._record is not None

    def start(self, module: LightningModule) -> None:
        """Start to watch a validation."""
        self.close()
        self._collector, self._record = SampleCollector(self.keep), _ForwardRecord(module)

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
            except _NotRecordedError:
                self.source = "own"  # for this validation; its end compares the mean with val/loss
        self._collector.add(self._losses(trainer, module, batch))

    def _losses(self, trainer: Trainer, module: LightningModule, batch: Any) -> Any:
        undrawn = nullcontext() if self.loss is default_loss else isolate_rng()  # a user's loss may draw numbers
        with trainer.precision_plugin.forward_context(), undrawn:
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
        return sample

    def _compare_with_logged(self, trainer: Trainer, sample: Sample) -> None:
        """Use ``val/loss`` from now on if it is the same loss; warn once."""
        logged = trainer.callback_metrics.get("val/loss")
        same = logged is not None and abs(float(logged) - sample.loss) <= 0.01 * abs(sample.loss) + 1e-6
        same = trainer.strategy.reduce_boolean_decision(same, all=True)  # val/loss may differ between ranks
        how = "It evaluates the validation batches a second time"
        if same:
            self.source, how = "logged", "It takes val/loss, and estimates its noise from the curve alone"
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
