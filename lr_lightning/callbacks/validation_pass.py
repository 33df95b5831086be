"""The losses of single validation examples, taken from the validation that runs anyway."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchmetrics import Metric

from lr_lightning.callbacks.measure import Gathered, LossFunction, Sample, default_loss

__all__ = ["ForwardRecord", "NotRecordedError", "ValidationLosses"]

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
