"""A Trainer's own training steps, at rates of one's choice, without a trace."""

import logging
import math
import multiprocessing.process
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import Optimizer

from lr_lightning._lightning import (
    DataFetcher,
    call_module_hook,
    control_accumulation,
    logger_connector,
    set_callback_metric,
    to_device,
    training_step_arguments,
    use_train_loaders,
)
from lr_lightning._param_groups import peak_lr, set_value
from lr_lightning.lr_finder.dataloaders import Batches, training_loaders
from lr_lightning.lr_finder.snapshot import Snapshot

__all__ = ["DryRun", "check_optimization"]

# --- Whose training steps can be moved from outside.


def check_optimization(trainer: Trainer, module: LightningModule, who: str) -> None:
    """Refuse what cannot be measured, before anything has run.

    Raises:
        ValueError: Manual optimization, several optimizers, one without rates, or a ``training_step`` that takes the
            loader's iterator.
    """
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ValueError(
            f"{who} works with automatic optimization, and {name} has automatic_optimization=False: its rates are set "
            f"by its own training_step. Remove {who}, and compare a few rates in whole runs instead."
        )
    if len(trainer.optimizers) != 1:
        raise ValueError(
            f"{who} works with one optimizer, and {name}.configure_optimizers gives {len(trainer.optimizers)}. "
            f"Remove {who}, or return one optimizer with several param groups: their ratios are kept."
        )
    groups = trainer.optimizers[0].param_groups
    if not groups or any("lr" not in group for group in groups):
        raise ValueError(
            f"{who} works with an optimizer that has lr, and {type(trainer.optimizers[0]).__name__} has none."
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(f"{who} does not support {name}.training_step(dataloader_iter). Take a batch instead.")


_OPAQUE = (
    Trainer,
    Strategy,
    Accelerator,
    Callback,
    Logger,
    Profiler,
    CombinedLoader,
    DataFetcher,
    logging.Logger,
    threading.Thread,
    multiprocessing.process.BaseProcess,
)
_EPOCHS_APART = 1000  # between the epochs that two runs tell the samplers
_MOST_SKIPPED = 100  # updates in a row for which training_step gives no loss


class DryRun:
    """Training steps of a Trainer that can be taken back.

    As a context manager it keeps everything a step may touch (:class:`~lr_lightning.lr_finder.snapshot.Snapshot`),
    keeps loggers, callbacks and profiler out of it, and puts everything back at its end, whatever happens. Within it,
    each :meth:`run` starts from the same state.

    A step is Lightning's own: transfer hooks, ``training_step``, precision, accumulation, clipping and the
    optimizer's update, with the module's ``on_train_batch_start`` and ``_end``. What ``training_step`` logs goes
    nowhere.

    Args:
        trainer: In a fit, with its optimizer.
        module: Its module.
        ratios: Of each param group's rate to the one that is asked for.
        accumulate: Batches for one update.
        started: Whether the module's ``on_fit_start`` and ``on_train_start`` have been called.

    Raises:
        ValueError: In the first step, if the module sets the rate itself.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        ratios: list[float],
        accumulate: int = 1,
        *,
        started: bool = False,
    ) -> None:
        self.trainer, self.module, self.started = trainer, module, started
        self.optimizer: Optimizer = trainer.optimizers[0]
        self.ratios, self.accumulate = ratios, accumulate
        own = zip(self.optimizer.param_groups, ratios, strict=True)
        self._reference = next((peak_lr(group) / ratio for group, ratio in own if ratio > 0), 1.0)
        self.log: Callable[[str, Any], None] | None = None
        """Gets what the module logs, while it is set."""
        self._stack = ExitStack()
        self._snapshots: list[Snapshot] = []
        self._batches: Batches | None = None
        self._accumulating = False
        self._micro = 0  # batches that have gone into gradients
        self._loss: Tensor | None = None  # of the last one
        self._set: list[float] = []

    # -- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        trainer, loop = self.trainer, self.trainer.fit_loop
        self._stack.enter_context(isolate_rng())
        self._stack.callback(self._give_back)
        roots = {
            "module": self.module,
            "module parameters": [*self.module.parameters(), *self.module.buffers()],  # of scripted modules too
            "datamodule": getattr(trainer, "datamodule", None),
            "optimizer": self.optimizer,
            "lr_schedulers": [config.scheduler for config in trainer.lr_scheduler_configs],
            "precision": trainer.precision_plugin,
            "fit_loop": loop,
            "logger_connector": logger_connector(trainer),
            "trainer.state": trainer.state,
        }
        try:
            self._snapshots.append(Snapshot(roots, shallow=[trainer], opaque=_OPAQUE))
            with isolate_rng():
                self._loaders = training_loaders(trainer)
            self.keep({"train_dataloader": self._loaders.flattened})
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def keep(self, roots: Mapping[str, object]) -> None:
        """Put these back as well: what a step may touch that nothing led to when the dry_run was entered."""
        self._snapshots.append(Snapshot(roots, opaque=_OPAQUE, before=self._snapshots))

    def _restore(self) -> list[str]:
        return [name for snapshot in reversed(self._snapshots) for name in snapshot.restore()]

    def _give_back(self) -> None:
        changed = self._restore()
        self._snapshots = []
        if changed:
            rank_zero_warn(
                "The search for a rate has moved what it cannot put back, so this run may differ from one without it: "
                f"{', '.join(dict.fromkeys(changed))}."
            )

    @contextmanager
    def run(self, number: int = 0) -> Iterator[None]:
        """Steps from the start; afterwards everything is back.

        Args:
            number: Of the run. The first one, 0, sees the batches and random numbers that training is about to see;
                others draw their own.
        """
        with self.undone():
            try:
                self._begin(number)
                yield
            finally:
                if self._batches is not None:
                    self._batches.close()
                    self._batches = None

    @contextmanager
    def undone(self) -> Iterator[None]:
        """What happens in it is put back at its end, and draws no random numbers of others."""
        # a rate that is too high is no anomaly here
        with isolate_rng(), torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
            try:
                yield
            finally:
                self._restore()

    def _begin(self, number: int) -> None:
        trainer, loop = self.trainer, self.trainer.fit_loop
        trainer.callbacks = []  # type: ignore[attr-defined]
        trainer.loggers = [DummyLogger() for _ in trainer.loggers]
        trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
        trainer.accumulate_grad_batches = self.accumulate
        use_train_loaders(trainer, self._loaders)
        control_accumulation(trainer, lambda: self._accumulating)
        loop.epoch_loop.automatic_optimization.output_result_cls = SimpleNamespace(  # type: ignore[assignment]
            from_training_step_output=self._note
        )
        self.module.log = self._take  # type: ignore[method-assign]
        self.module.log_dict = self._take_all  # type: ignore[method-assign]
        if number > 0:
            self._reseed(number)
        epoch = trainer.current_epoch
        self._batches = Batches(self._loaders, epoch + number * _EPOCHS_APART)
        self._micro, self._set = 0, []
        for hook in ([] if self.started else ["on_fit_start", "on_train_start"]) + ["on_train_epoch_start"]:
            call_module_hook(trainer, hook)
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()  # schedule-free: the weights at which gradients are taken
        self.optimizer.register_step_pre_hook(self._check_rates)

    def _reseed(self, number: int) -> None:
        """Other random numbers than in the first run, the same ones each time."""
        seed = (torch.initial_seed() + number) % 2**32
        random.seed(seed)
        torch.manual_seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)
        for snapshot in self._snapshots:
            for generator in snapshot.instances(torch.Generator):
                generator.manual_seed((generator.initial_seed() + number) % 2**32)

    # -- steps -------------------------------------------------------------------------------------------------------

    def step(self, lr: float) -> float:
        """One update of the optimizer.

        Args:
            lr: The rate; each param group's is this times its ratio.

        Returns:
            The training loss of its batches before the update: the mean over them, and over all processes.

        Raises:
            ValueError: The module sets the rate itself, the loader gives no batch, or ``training_step`` no loss.
        """
        groups = self.optimizer.param_groups
        # a module may add groups in its hooks
        ratios = [*self.ratios, *(peak_lr(group) / self._reference for group in groups[len(self.ratios) :])]
        self._set = [lr * ratio for ratio in ratios]
        for group, rate in zip(groups, self._set, strict=True):
            group.setdefault("initial_lr", float(group["lr"]))
            set_value(group, "lr", rate)
        losses: list[Tensor] = []
        for _ in range(_MOST_SKIPPED):
            for number in range(self.accumulate):
                self._accumulating = number + 1 < self.accumulate
                self._batch()
                losses += [] if self._loss is None else [self._loss]
            if losses:
                break
        else:
            raise ValueError(
                "The search for a rate: training_step gave no loss for "
                f"{_MOST_SKIPPED * self.accumulate} batches in a row."
            )
        mean = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        if self.trainer.world_size > 1:
            mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
        return float(mean)

    def _batch(self) -> None:
        """Forward, backward and, unless it accumulates, the update."""
        trainer, loop = self.trainer, self.trainer.fit_loop.epoch_loop
        batch, index = self._next()
        self._loss = None
        kwargs = training_step_arguments(trainer, batch, index)
        # the count of micro-batches says when gradients are to be zeroed
        outputs = loop.automatic_optimization.run(self.optimizer, self._micro, kwargs)
        self._micro += 1
        call_module_hook(trainer, "on_train_batch_end", outputs, batch, index)

    def _next(self) -> tuple[Any, int]:
        """The next batch that is trained on, and its index in its epoch."""
        trainer, batches = self.trainer, self._batches
        if batches is None:
            raise RuntimeError("step() belongs into a run()")
        for _ in range(_MOST_SKIPPED):
            host, index = next(batches)
            if host is None:  # Lightning passes over it as well
                continue
            batch = to_device(trainer, host)
            trainer.fit_loop.epoch_loop.batch_progress.increment_ready()
            if call_module_hook(trainer, "on_train_batch_start", batch, index) != -1:
                return batch, index
            batches.skip_rest()
        raise ValueError(f"The search for a rate: the module passed over {_MOST_SKIPPED} batches in a row.")

    def _note(self, output: Any, normalize: int = 1) -> ClosureResult:
        """Take the loss as ``training_step`` gives it, where an optimizer asks more than once at its first weights."""
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if self._loss is None and isinstance(loss, Tensor):
            whole = loss.detach().clone().mean()
            self._loss = whole.float() if whole.dtype in (torch.float16, torch.bfloat16) else whole
        return ClosureResult.from_training_step_output(output, normalize)

    def _check_rates(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        used = [float(group["lr"]) for group in optimizer.param_groups]
        if any(not math.isclose(a, b, rel_tol=1e-5) for a, b in zip(used, self._set, strict=True)):
            name = type(self.module).__name__
            raise ValueError(
                f"The search for a rate: {name} sets the learning rate itself (to {used}, where the search had set "
                f"{self._set}), in optimizer_step or another hook, so it cannot be moved. Use "
                "LRSchedule(Warmup(...)) instead."
            )

    # -- what the module logs ----------------------------------------------------------------------------------------

    def _take(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if self.log is not None:
            self.log(name, value)
        elif isinstance(value, Tensor | int | float):  # a later hook may ask the Trainer for it
            set_callback_metric(self.trainer, name, value)

    def _take_all(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in dictionary.items():
            self._take(name, value)
