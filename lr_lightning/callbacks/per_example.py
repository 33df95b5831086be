"""What is measured of each example, and how it comes from the ranks' devices to one place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_calibration_error

from lr_lightning._lightning import gather_numbers, gather_rows
from lr_lightning.diagnosis.calibration import scale_gap

__all__ = [
    "WITH_LOGITS",
    "WITH_RIGHT",
    "Examples",
    "ForwardRecord",
    "Gathered",
    "LossFunction",
    "NotRecordedError",
    "Sample",
    "ValidationLosses",
    "calibration",
    "can_measure",
    "check_forward",
    "classification_loss",
    "default_loss",
]


class Examples(NamedTuple):
    """What a loss function may say of the examples of a batch.

    Attributes:
        losses: Shape [batch].
        right: 1 where the prediction is right, 0 elsewhere; shape [batch].
        logits: Shape [batch, classes]; with ``labels``, for the calibration.
        labels: Integers, shape [batch].
    """

    losses: Tensor
    right: Tensor | None = None
    logits: Tensor | None = None
    labels: Tensor | None = None


WITH_LOGITS = frozenset({"overfit/ece", "overfit/temperature", "overfit/gap_loss_scaled", "overfit/overconfident"})
"""What :func:`calibration` says, where the logits of the validation are known."""

WITH_RIGHT = frozenset({"probe/acc", "overfit/gap_acc"})
"""What is known only where a loss function says which predictions are right."""

_NO_SAY = -1  # the width of the logits of a rank without batches

LossFunction = Callable[[LightningModule, Any], Tensor | tuple[Tensor | None, ...]]


def classification_loss(module: LightningModule, batch: Any) -> Examples:
    """Cross-entropy and correctness of each example of a batch ``(x, y)`` whose logits are ``module(x)``.

    Returns:
        Losses in nats, and 1 where the prediction is right; for a dense prediction the means over an example.

    Raises:
        ValueError: The batch is no such pair, or the module gives no logits [batch, classes, ...] for it.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"{_EXPECTED}, got a batch that is a {type(batch).__name__}. {_REMEDY}")
    x, y = batch
    logits = module(x)
    if not isinstance(y, Tensor) or not isinstance(logits, Tensor):
        raise ValueError(f"{_EXPECTED}, got y: {type(y).__name__}, module(x): {type(logits).__name__}. {_REMEDY}")
    if logits.ndim < 2 or y.is_floating_point() or logits.shape[:1] + logits.shape[2:] != y.shape:
        raise ValueError(
            f"{_EXPECTED}, got logits {tuple(logits.shape)} for y {tuple(y.shape)} of {y.dtype}. {_REMEDY}"
        )
    losses = cross_entropy(logits.float(), y, reduction="none")
    right = (logits.argmax(dim=1) == y).float()
    if losses.ndim > 1:
        return Examples(losses.flatten(1).mean(1), right.flatten(1).mean(1))
    return Examples(losses, right, logits.float(), y)


_EXPECTED = "OverfittingMonitor takes batches (x, y) with class labels y and logits module(x)"
_REMEDY = "Say how a loss per example comes from a batch: OverfittingMonitor(loss=...)."


def can_measure(module: LightningModule) -> bool:
    """Whether a probe can be measured without being told how: the module has ``per_example_loss`` or a ``forward``."""
    return hasattr(module, "per_example_loss") or _has_forward(module)


def _has_forward(module: LightningModule) -> bool:
    return type(module).forward is not LightningModule.forward or "forward" in vars(module)


def check_forward(module: LightningModule, loss: LossFunction) -> None:
    """Refuse a module without a ``forward`` where the loss is computed from it.

    Raises:
        ValueError: There is none.
    """
    needed = loss is classification_loss or (loss is default_loss and not hasattr(module, "per_example_loss"))
    if needed and not _has_forward(module):
        raise ValueError(
            f"{_EXPECTED}, but {type(module).__name__} has no forward. Give it one, or a per_example_loss(batch). Or: "
            f"{_REMEDY}"
        )


def default_loss(module: LightningModule, batch: Any) -> Tensor | tuple[Tensor | None, ...]:
    """The module's own ``per_example_loss(batch)`` where it has one, else :func:`classification_loss`."""
    own: LossFunction | None = getattr(type(module), "per_example_loss", None)
    return own(module, batch) if own is not None else classification_loss(module, batch)


@dataclass(frozen=True)
class Sample:
    """What was measured of a set of examples, of all ranks, on the host.

    Attributes:
        loss: Mean over all examples.
        acc: Share that is right; None where that is not known.
        size: Number of examples.
        losses: Of the examples that are kept, the same ones each time where the order is; shape [K].
        confidences: Highest probability of each example, shape [N]; with ``right``, shape [N].
        logits: Of the kept examples, shape [K, classes].
        labels: Shape [K].
    """

    loss: float
    acc: float | None
    size: int
    losses: NDArray[np.float32]
    right: NDArray[np.float32] | None = None
    confidences: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | None = None


@dataclass
class Gathered:
    """Collects what batches say on the device, and fetches it at once.

    Attributes:
        keep: Most examples of which single losses and logits are fetched.
    """

    keep: int
    _batches: list[Examples] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, result: Tensor | tuple[Tensor | None, ...]) -> None:
        """Take what a loss function returned for a batch."""
        examples = Examples(result) if isinstance(result, Tensor) else Examples(*result)  # type: ignore[arg-type]
        if not isinstance(examples.losses, Tensor) or examples.losses.ndim != 1:
            got = tuple(examples.losses.shape) if isinstance(examples.losses, Tensor) else examples.losses
            raise ValueError(
                f"OverfittingMonitor(loss=...) must return one loss for each example, shape [batch], got {got}. "
                "Compute it with reduction='none'."
            )
        self._batches.append(examples)

    def finish(self, trainer: Trainer, device: torch.device) -> Sample | None:
        """Bring everything to the host, from all ranks; None without examples.

        A collective, if there are several ranks: also one that has no batches, or no logits, must take part.
        """
        columns, detail = self._columns(), self._detail()
        width = _agreed(trainer, detail.shape[1] if detail is not None else 0 if self._batches else _NO_SAY)
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

    def _detail(self) -> Tensor | None:
        """Logits and label of each example, shape [N, classes + 1]; None where a batch has none."""
        rows = [_thin(b.logits, b.labels) for b in self._batches if b.logits is not None and b.labels is not None]
        return torch.cat(rows) if rows and len(rows) == len(self._batches) else None

    def _columns(self) -> Tensor:
        """Loss, correctness and confidence of each example, nan where not known; shape [N, 3], in float32."""
        rows = []
        for losses, right, logits, _ in self._batches:
            unknown = torch.full_like(losses, torch.nan, dtype=torch.float32)
            confidence = unknown if logits is None else logits.softmax(1).amax(1).float().clamp(max=1.0)
            rows.append(torch.stack([losses.float(), unknown if right is None else right.float(), confidence], 1))
        return torch.cat(rows).detach() if rows else torch.empty(0, 3)


def calibration(val: Sample | None, probe: Sample) -> dict[str, float]:
    """``overfit/ece`` of the validation, and what temperature scaling would do to the gap, where logits are known."""
    if val is None or val.confidences is None or val.right is None or not np.isfinite(val.confidences).all():
        return {}
    # The multiclass error is the binary one of the confidences, so the probabilities need not be kept.
    confidences, right = torch.from_numpy(val.confidences), torch.from_numpy(val.right).int()
    metrics = {"overfit/ece": float(binary_calibration_error(confidences, right, n_bins=15, validate_args=False))}
    if val.logits is None or val.labels is None or probe.logits is None or probe.labels is None:
        return metrics
    scaling = scale_gap(val.logits, val.labels, probe.logits, probe.labels)
    if scaling is not None:
        metrics["overfit/temperature"] = scaling.temperature
        metrics["overfit/gap_loss_scaled"] = scaling.gap
        metrics["overfit/overconfident"] = float(scaling.overconfident)
    return metrics


def _thin(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([logits.float(), labels[:, None].float()], 1).detach()


def _agreed(trainer: Trainer, width: int) -> int:
    """The width of the ranks' logits where all that have batches know them, else 0."""
    widths = {int(one) for (one,) in gather_numbers(trainer, [width])} - {_NO_SAY}
    return widths.pop() if len(widths) == 1 else 0


# --- The losses of single validation examples, taken from the validation that runs anyway.

_Key = tuple[Any, ...]


class NotRecordedError(Exception):
    """A forward pass was asked for that the validation step did not make."""


class ForwardRecord:
    """Remembers what a module's ``forward`` gave for each input of a validation batch, and plays it back.

    A loss function that calls ``module(x)`` with the ``x`` that ``validation_step`` has used gets the same output,
    without a second pass. Where ``validation_step`` calls a direct child instead (``self.net(x)``), that is played back
    below the module's own ``forward``.

    Args:
        module: The module that is validated.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        # A compiled or scripted child would be compiled again for a hook.
        children = [
            child
            for child in module.children()
            if getattr(child, "_compiled_call_impl", None) is None
            and not isinstance(child, torch.jit.ScriptModule | Metric)
        ]
        self._watched: list[nn.Module] = [module, *children]
        self._outputs: dict[_Key, tuple[Tensor, Any]] = {}
        self._handles: list[RemovableHandle] = [m.register_forward_hook(self._keep) for m in self._watched]

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor):
            # The input is kept with it, so that its memory, which is the key, is not used again.
            self._outputs.setdefault(_key(module, args[0]), (args[0], output))

    def clear(self) -> None:
        """Forget the batch."""
        self._outputs.clear()

    def close(self) -> None:
        """Let go of the module."""
        self.clear()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Within it the module's ``forward`` gives what it gave in the validation step.

        Raises:
            NotRecordedError: In ``forward``, where the validation step made no such pass.
        """
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
            found = None
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                found = self._outputs.get(_key(module, args[0]))
            if found is not None:
                return found[1]
            if module is self._module and self._outputs:
                return forward(*args, **kwargs)  # its children were called instead
            raise NotRecordedError

        return play


def _key(module: nn.Module, x: Tensor) -> _Key:
    # By the memory rather than the object: x.flatten(1) is another tensor at every call.
    return (id(module), x.data_ptr(), tuple(x.shape), tuple(x.stride()), x.dtype, x.device)


class ValidationLosses:
    """Gathers the losses of single validation examples, without a second pass wherever that can be.

    Args:
        loss: From ``(module, batch)`` to the losses of the examples.
        keep: Most examples whose single losses are kept.

    Attributes:
        source: ``"pass"``: from what the validation step computes; ``"logged"``: not gathered, ``val/loss`` is the same
            loss; ``"own"``: from passes of its own.
    """

    def __init__(self, loss: LossFunction, keep: int) -> None:
        self.loss, self.keep = loss, keep
        self.source = "pass"
        self._gathered = Gathered(keep)
        self._record: ForwardRecord | None = None
        self._told = False

    @property
    def watching(self) -> bool:
        """Whether a validation is being measured."""
        return self._record is not None

    def start(self, module: LightningModule) -> None:
        """Watch a validation from its start."""
        self.close()
        self._gathered, self._record = Gathered(self.keep), ForwardRecord(module)

    def before_batch(self) -> None:
        """Forget what other callbacks have run through the module."""
        if self._record is not None:
            self._record.clear()

    def take(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """Take a batch that the validation step has had."""
        if self._record is None or self.source == "logged":
            return
        try:
            if self.source == "pass":
                with self._record.playing():
                    self._gathered.add(self._losses(trainer, module, batch))
                return
        except NotRecordedError:
            self.source = "own"  # for this validation; at its end it is compared with val/loss
        self._gathered.add(self._losses(trainer, module, batch))

    def _losses(self, trainer: Trainer, module: LightningModule, batch: Any) -> Any:
        with trainer.precision_plugin.forward_context():
            if self.loss is default_loss:
                return self.loss(module, batch)
            with isolate_rng():  # an outside loss may draw random numbers
                return self.loss(module, batch)

    def finish(self, trainer: Trainer, module: LightningModule) -> Sample | None:
        """What was gathered; None if nothing was. A collective, if there are several ranks."""
        self.close()
        # Where one rank had to evaluate batches again all are compared with val/loss; one may have had no batch.
        if self.source != "logged" and trainer.strategy.reduce_boolean_decision(self.source == "own", all=False):
            self.source = "own"
        sample = self._gathered.finish(trainer, module.device)
        self._gathered = Gathered(self.keep)
        if self.source == "own" and sample is not None:
            self._settle(trainer, sample)
        return sample

    def _settle(self, trainer: Trainer, sample: Sample) -> None:
        """After batches had to be evaluated again, see whether ``val/loss`` will do from now on."""
        logged = trainer.callback_metrics.get("val/loss")
        same = logged is not None and abs(float(logged) - sample.loss) <= 0.01 * abs(sample.loss) + 1e-6
        same = trainer.strategy.reduce_boolean_decision(same, all=True)  # val/loss may be each rank's own
        if same:
            self.source = "logged"
        if not self._told:
            self._told = True
            how = (
                "It takes val/loss, whose noise it can tell from the curve alone"
                if same
                else "It evaluates the validation batches a second time"
            )
            rank_zero_warn(
                "OverfittingMonitor cannot take the losses of single examples from this validation: validation_step "
                f"does not call the module as loss= does. {how}. Call self(x) in validation_step to avoid that."
            )

    def close(self) -> None:
        """Let go of the module."""
        if self._record is not None:
            self._record.close()
            self._record = None
