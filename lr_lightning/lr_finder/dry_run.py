"""Dry run: the Trainer's own training steps, at chosen learning rates, all undone at the end."""

import copy
import logging
import math
import multiprocessing.process
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from types import SimpleNamespace, TracebackType
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torchmetrics import Metric

from lr_lightning import _lightning
from lr_lightning._batches import loaded_examples
from lr_lightning._lightning import (
    Accelerator,
    Callback,
    ClosureResult,
    CombinedLoader,
    DummyLogger,
    LightningModule,
    Logger,
    PassThroughProfiler,
    Profiler,
    RunningStage,
    Strategy,
    Trainer,
    copy_without_iterator,
    is_param_in_hook_signature,
    isolate_rng,
    prepared_loaders,
    rank_zero_warn,
    set_sampler_epoch,
)
from lr_lightning._param_groups import missing_lr, peak_lr, set_value
from lr_lightning.errors import ArgumentError, UsageError
from lr_lightning.lr_finder.snapshot import Snapshot, digest, has_state

__all__ = [
    "LOGGED_NAMES",
    "Batches",
    "DryRun",
    "Recorder",
    "Validation",
    "ValidationMetric",
    "carried_digest",
    "check_optimization",
    "is_watched",
    "training_loaders",
    "validation_loaders",
]

# Objects that a step cannot change, or that are kept out of a step; a snapshot ignores them.
_OPAQUE: tuple[type, ...] = (
    *(Trainer, Strategy, Accelerator, Callback, Logger, Profiler, CombinedLoader, _lightning.DataFetcher),
    *(logging.Logger, threading.Thread, multiprocessing.process.BaseProcess),
)
_EPOCHS_APART = 1000  # two runs set epochs this far apart in their samplers
_MOST_SKIPPED = 100  # updates, or batches, in a row without a loss


def check_optimization(trainer: Trainer, module: LightningModule, who: str) -> None:
    """Check that a finder can control this module's learning rate; ``who`` is the finder's name."""
    name, optimizers, problem = type(module).__name__, trainer.optimizers, ""
    if not module.automatic_optimization:
        problem = (
            f"works with automatic optimization, and {name} has automatic_optimization=False: its own training_step "
            f"controls the learning rate. Remove {who}, and compare a few learning rates in whole runs."
        )
    elif len(optimizers) != 1:
        problem = (
            f"works with one optimizer, and {name}.configure_optimizers gives {len(optimizers)}. Remove {who}, or "
            "return one optimizer with several param groups, whose ratios are kept."
        )
    elif missing := missing_lr(optimizers[0]):
        problem = f"works with an optimizer that has an lr, but {missing}. Remove {who}."
    elif any("d" in group for group in optimizers[0].param_groups):
        problem = (
            f"cannot test the lr of {type(optimizers[0]).__name__}, which multiplies it by its own estimate of the "
            f"right step size. Remove {who}, and use lr=1.0."
        )
    elif is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        problem = f"does not support {name}.training_step(dataloader_iter). Take a batch instead."
    if problem:
        raise ArgumentError(f"{who} {problem}")


def _carried_roots(trainer: Trainer, module: LightningModule) -> dict[str, object]:
    return {
        "module": module,
        "module parameters": [*module.parameters(), *module.buffers()],
        "optimizer": trainer.optimizers[0],
        "precision": trainer.precision_plugin,
    }


def carried_digest(trainer: Trainer, module: LightningModule, more: Mapping[str, object]) -> int:
    """Return a checksum, by value, of all that :meth:`DryRun.state` carries into a run, and of ``more``."""
    return digest({**_carried_roots(trainer, module), **more}, _lightning.of_both_packages(*_OPAQUE))


class Recorder(Protocol):
    """What is told everything that a step leaves apart from its update."""

    def log(self, hook: str, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take a value that the module logs in one of its hooks."""

    def write(self) -> None:
        """Note that the module uses a logger itself."""

    def add(self, arguments: Mapping[str, Any], output: Any, updated: bool) -> None:
        """Take what ``training_step`` received and returned; ``updated`` says whether the weights changed."""


class _SilentLogger(DummyLogger):
    """A logger that logs nothing, and has the paths of the logger that it replaces."""

    def __init__(self, real: Logger, used: Callable[[], None]) -> None:
        super().__init__()
        self.__dict__["_real"], self.__dict__["_used"] = real, used

    @property
    def experiment(self) -> Any:
        """An object whose methods do nothing."""
        self._used()
        return super().experiment

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Log nothing."""
        self._used()

    __class__ = property(lambda self: type(self._real))  # for isinstance()
    name = property(lambda self: self._real.name)
    version = property(lambda self: self._real.version)
    save_dir = property(lambda self: self._real.save_dir)
    root_dir = property(lambda self: getattr(self._real, "root_dir", self._real.save_dir))
    log_dir = property(lambda self: getattr(self._real, "log_dir", self._real.save_dir))


class DryRun:
    """Training steps of a Trainer in a fit, undone at the end.

    A context manager. On entry it saves everything that a step may change
    (:class:`~lr_lightning.lr_finder.snapshot.Snapshot`) and restores it on exit, also after an exception. Inside, every
    :meth:`run` starts from the same state. Loggers, callbacks and profiler are there for a module that reads them, but
    they get nothing.

    A step is Lightning's own: transfer hooks, ``training_step``, precision, accumulation, clipping and the optimizer's
    update, with the module's ``on_train_batch_start`` and ``_end``. Values that ``training_step`` logs are not stored.
    ``ratios`` are the lr of each param group divided by the lr that a step is given; ``accumulate`` is the number of
    batches per update; ``started`` says whether the module's ``on_fit_start`` and ``on_train_start`` have been called.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, ratios: list[float], accumulate: int = 1, started: bool = False
    ) -> None:
        self.trainer, self.module, self.started = trainer, module, started
        self.optimizer: Optimizer = trainer.optimizers[0]
        self.ratios, self.accumulate = ratios, accumulate
        own = zip(self.optimizer.param_groups, ratios, strict=True)
        self._reference = next((peak_lr(group) / ratio for group, ratio in own if ratio > 0), 1.0)
        self.log: Callable[[str, Any], None] | None = None  # receives what the module logs; None discards it
        self.recorder: Recorder | None = None
        self.lost: list[str] = []  # what the last steps have changed and could not be set back
        self._stack = ExitStack()
        self._snapshots: list[Snapshot] = []
        self._batches: Batches | None = None
        self._accumulating, self._micro_batches = False, 0  # micro-batches that have contributed to gradients
        self._loss: Tensor | None = None  # of the last batch
        self._set_lrs: list[float] = []

    def __enter__(self) -> Self:
        trainer, loop = self.trainer, self.trainer.fit_loop
        self._stack.enter_context(isolate_rng())
        self._stack.callback(self._finish)
        roots = {
            "module": self.module,
            "module parameters": [*self.module.parameters(), *self.module.buffers()],  # of scripted modules too
            "datamodule": getattr(trainer, "datamodule", None),
            "optimizer": self.optimizer,
            "lr_schedulers": [config.scheduler for config in trainer.lr_scheduler_configs],
            "precision": trainer.precision_plugin,
            "fit_loop": loop,
            "logger_connector": _lightning.logger_connector(trainer),
            "trainer.state": trainer.state,
        }
        try:
            self._snapshots.append(Snapshot(roots, shallow=[trainer], opaque=_lightning.of_both_packages(*_OPAQUE)))
            with isolate_rng():
                self._loaders = training_loaders(trainer)
            self.save({"train_dataloader": self._loaders.flattened})
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def save(self, roots: Mapping[str, object]) -> None:
        """Save further objects that a step may change and that could not be reached when the dry run was entered."""
        self._snapshots.append(Snapshot(roots, opaque=_lightning.of_both_packages(*_OPAQUE), before=self._snapshots))

    def _restore(self) -> list[str]:
        return [name for snapshot in reversed(self._snapshots) for name in snapshot.restore()]

    def _finish(self) -> None:
        changed = self._restore()
        self._snapshots = []
        if changed:
            rank_zero_warn(
                "The learning rate search changed objects that it cannot restore, so this run may differ from a run "
                f"without the search: {', '.join(dict.fromkeys(changed))}."
            )

    @contextmanager
    def run(self, number: int = 0) -> Iterator[None]:
        """Start a run of steps from the saved state, and undo all of them on exit.

        Run 0 sees the batches and random numbers that training is about to see; others draw their own.
        """
        with self.undo(), _lightning.without_callback_hooks(self.trainer):
            try:
                self._begin(number)
                yield
            finally:
                if self._batches is not None:
                    self._batches.close()
                    self._batches = None

    @contextmanager
    def with_loaders(self) -> Iterator[None]:
        """Let the Trainer know how long an epoch is, and undo every change on exit."""
        with self.undo():
            _lightning.use_train_loaders(self.trainer, self._loaders)
            yield

    @contextmanager
    def undo(self) -> Iterator[None]:
        """Undo every change on exit, without touching the global random state."""
        # Without anomaly detection: here a learning rate may be too high.
        with isolate_rng(), torch.enable_grad(), torch.autograd.set_detect_anomaly(False):
            try:
                yield
            finally:
                self.lost = self._restore()

    def _begin(self, number: int) -> None:
        trainer, loop = self.trainer, self.trainer.fit_loop
        trainer.loggers = [_SilentLogger(logger, self._note_write) for logger in trainer.loggers]
        trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
        trainer.accumulate_grad_batches = self.accumulate
        _lightning.use_train_loaders(trainer, self._loaders)
        _lightning.control_accumulation(trainer, lambda: self._accumulating)
        loop.epoch_loop.automatic_optimization.output_result_cls = SimpleNamespace(  # type: ignore[assignment]
            from_training_step_output=self._record_loss
        )
        self.module.log = self._receive  # type: ignore[method-assign]
        self.module.log_dict = self._receive_all  # type: ignore[method-assign]
        if number > 0:
            self._reseed(number)
        epoch = trainer.current_epoch
        self._batches = Batches(self._loaders, epoch + number * _EPOCHS_APART)
        self._micro_batches, self._set_lrs = 0, []
        for hook in ([] if self.started else ["on_fit_start", "on_train_start"]) + ["on_train_epoch_start"]:
            _lightning.call_module_hook(trainer, hook)
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()  # schedule-free optimizers: use the weights at which gradients are taken
        self.optimizer.register_step_pre_hook(self._check_lrs)

    def _reseed(self, number: int) -> None:
        """Seed the generators of a later run: differently for each number, the same for the same number."""
        seed = (torch.initial_seed() + number) % 2**32
        random.seed(seed)
        torch.manual_seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)
        for snapshot in self._snapshots:
            for generator in snapshot.instances(torch.Generator):
                generator.manual_seed((generator.initial_seed() + number) % 2**32)

    def state(self) -> Snapshot:
        """Return the present state of module and optimizer, to carry it into the run."""
        roots = _carried_roots(self.trainer, self.module)
        return Snapshot(roots, opaque=_lightning.of_both_packages(*_OPAQUE), before=self._snapshots, carried=True)

    def step(self, lr: float | None) -> float:
        """Make one update, with ``lr`` times its ratio for each param group; return the training loss before it.

        None: with the lr that each group has. The loss is the mean over the update's batches and over all processes.
        """
        groups = self.optimizer.param_groups
        if lr is None:
            self._set_lrs = [float(group["lr"]) for group in groups]
        else:
            # the module may have added groups in its hooks
            ratios = [*self.ratios, *(peak_lr(group) / self._reference for group in groups[len(self.ratios) :])]
            self._set_lrs = [lr * ratio for ratio in ratios]
            for group, group_lr in zip(groups, self._set_lrs, strict=True):
                group.setdefault("initial_lr", float(group["lr"]))
                set_value(group, "lr", group_lr)
        losses: list[Tensor] = []
        for _ in range(_MOST_SKIPPED):
            for number in range(self.accumulate):
                self._accumulating = number + 1 < self.accumulate
                self._train_batch()
                losses += [] if self._loss is None else [self._loss]
            if losses:
                break
        else:
            raise ArgumentError(
                f"The learning rate search got no loss from training_step for {_MOST_SKIPPED * self.accumulate} "
                "batches in a row."
            )
        mean = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        if self.trainer.world_size > 1:
            mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
        return float(mean)

    def _train_batch(self) -> None:
        """Run forward, backward and, unless the batch only accumulates, the update."""
        trainer, loop = self.trainer, self.trainer.fit_loop.epoch_loop
        batch, index = self._next_batch()
        self._loss = None
        kwargs = _lightning.training_step_arguments(trainer, batch, index)
        # Lightning zeroes gradients by the count of micro-batches.
        outputs = loop.automatic_optimization.run(self.optimizer, self._micro_batches, kwargs)
        self._micro_batches += 1
        if self.recorder is not None:
            self.recorder.add(kwargs, outputs, not self._accumulating)
        _lightning.call_module_hook(trainer, "on_train_batch_end", outputs, batch, index)

    def _next_batch(self) -> tuple[Any, int]:
        """Return the next batch to train on, and its index in its epoch."""
        trainer, batches = self.trainer, self._batches
        if batches is None:
            raise UsageError("DryRun.step() must be called inside of DryRun.run().")
        for _ in range(_MOST_SKIPPED):
            host, index = next(batches)
            if host is None:  # Lightning skips it as well
                continue
            batch = _lightning.to_device(trainer, host)
            trainer.fit_loop.epoch_loop.batch_progress.increment_ready()
            if _lightning.call_module_hook(trainer, "on_train_batch_start", batch, index) != -1:
                return batch, index
            batches.skip_rest()
        raise ArgumentError(f"The learning rate search found no batch: the module skipped {_MOST_SKIPPED} in a row.")

    def _record_loss(self, output: Any, normalize: int = 1) -> ClosureResult:
        """Record the loss of ``training_step``; only the first one, if the optimizer calls it several times."""
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if self._loss is None and isinstance(loss, Tensor):
            whole = loss.detach().clone().mean()
            self._loss = whole.float() if whole.dtype in (torch.float16, torch.bfloat16) else whole
        return ClosureResult.from_training_step_output(output, normalize)

    def _check_lrs(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        used = [float(group["lr"]) for group in optimizer.param_groups]
        if any(not math.isclose(a, b, rel_tol=1e-5) for a, b in zip(used, self._set_lrs, strict=True)):
            name = type(self.module).__name__
            raise ArgumentError(
                f"The learning rate search cannot control the lr: {name} sets it itself, in optimizer_step or another "
                f"hook, to {used} instead of {self._set_lrs}. Use LRSchedule(Warmup(...)) instead."
            )

    def _note_write(self) -> None:
        if self.recorder is not None and self.log is None:  # a validation is not repeated, but made again
            self.recorder.write()

    def _receive(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        if self.recorder is not None and self.log is None:
            self.recorder.log(_lightning.running_hook(self.module), name, value, args, kwargs)
        if self.log is not None:
            self.log(name, value)
        elif isinstance(value, Tensor | int | float):  # a later hook may read it from the Trainer
            _lightning.set_callback_metric(self.trainer, name, value)

    def _receive_all(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        for name, value in dictionary.items():
            self._receive(name, value, *args, **kwargs)


def is_watched(trainer: Trainer, count: int) -> tuple[bool, bool]:
    """Return whether the run validates after so many batches, and whether an epoch ends there."""
    length, every, given = (
        int(trainer.num_training_batches),
        trainer.check_val_every_n_epoch,
        trainer.val_check_interval,
    )
    interval = max(1, int(length * given)) if isinstance(given, float) else int(given)
    in_epoch = (count - 1) % length + 1
    is_due = (count if every is None else in_epoch) % interval == 0
    in_turn = every is None or ((count - 1) // length + 1) % every == 0
    return trainer.enable_validation and is_due and in_turn, in_epoch == length


# -- batches for a measurement -----------------------------------------------------------------------------------------


def training_loaders(trainer: Trainer) -> CombinedLoader:
    """Return the training loaders as Lightning prepares them: do not iterate them, and undo what this call changes."""
    return prepared_loaders(trainer, RunningStage.TRAINING, _refuse_iterator)


def validation_loaders(trainer: Trainer) -> CombinedLoader:
    """Return the validation loaders, in the same way."""
    return prepared_loaders(trainer, RunningStage.VALIDATING, _refuse_iterator)


def _refuse_iterator(loader: Any, hook: str) -> None:
    if isinstance(loader, Iterator) and not has_state(loader):  # an object's attributes can be restored
        raise ArgumentError(
            f"The learning rate search would use up the {hook}, which is an iterator ({type(loader).__name__}). "
            "Give a loader that can be iterated again, such as a DataLoader."
        )


class Batches:
    """An endless stream of batches from copies of loaders, epoch after epoch.

    The copies share samplers, generators and data sets with the loaders, so the caller must restore those.
    """

    def __init__(self, combined: CombinedLoader, first_epoch: int = 0) -> None:
        self.copy = copy_without_iterator(combined, [_restarted(loader) for loader in combined.flattened])
        self.epoch, self.index = first_epoch, 0
        self._most = max(combined.limits or [math.inf])  # batches of an epoch: limit_train_batches
        self._iterator: Iterator[Any] | None = None

    def __next__(self) -> tuple[Any, int]:
        """Return a batch, on the host, and its index in its epoch."""
        if self._iterator is not None and self.index >= self._most:
            self.skip_rest()
        for _ in range(2):
            if self._iterator is None:
                for loader in self.copy.flattened:
                    set_sampler_epoch(loader, self.epoch)
                self._iterator, self.index = iter(self.copy), 0
            try:
                batch = next(self._iterator)[0]
            except StopIteration:
                self.skip_rest()
                continue
            self.index += 1
            return batch, self.index - 1
        raise ArgumentError(
            "The learning rate search got no batch from the training loader. Check its data set, batch size and limits."
        )

    def skip_rest(self) -> None:
        """End this epoch."""
        self._iterator = None
        self.epoch += 1

    def close(self) -> None:
        """Stop the workers."""
        self._iterator = None
        self.copy.reset()


def _restarted(loader: Any) -> Any:
    """Return a copy of a loader that shares everything except the iterator and the workers."""
    other = copy.copy(loader)
    if isinstance(loader, DataLoader):
        vars(other)["_iterator"] = None  # in vars, as torch forbids setting some attributes
    return other


# -- the validation of a module in the middle of a dry run -------------------------------------------------------------


ValidationMetric = Literal["val_loss", "accuracy"]

LOGGED_NAMES = {
    "val_loss": ("val_loss", "val/loss", "valid_loss", "valid/loss", "validation_loss", "validation/loss", "loss"),
    "accuracy": ("val_acc", "val/acc", "val_accuracy", "val/accuracy", "valid_acc", "valid/acc", "acc", "accuracy"),
}
"""The usual names of a validation's metrics."""


class Validation:
    """The validation loss or accuracy over the first batches of the first validation loader, the same at each call.

    The value is what the module's own ``validation_step`` logs under ``monitor`` or, without ``monitor``, under one of
    the usual names; or, for a loss, what it returns. Batches are weighted by their size; a torchmetrics metric computes
    over all of them. BatchNorm layers in training use the statistics of the batch, since their running statistics
    belong to other weights, or to none in a fresh network. The dry run must have been entered.
    """

    def __init__(self, dry_run: DryRun, metric: ValidationMetric, *, batches: int, monitor: str | None = None) -> None:
        self.dry_run, self.metric, self.monitor = dry_run, metric, monitor
        trainer, module = dry_run.trainer, dry_run.module
        available = _lightning.has_validation_loader(trainer) and _lightning.overrides("validation_step", module)
        if not available or trainer.limit_val_batches == 0:
            raise ArgumentError(
                f"metric={metric!r} needs a validation loader and a validation_step, and there is none. "
                "Give them to the Trainer, or take metric='loss'."
            )
        with isolate_rng():
            combined = validation_loaders(trainer)
        dry_run.save({"val_dataloader": combined.flattened})
        self._several = _lightning.is_sequential(combined)
        loaders = Batches(combined)
        with dry_run.undo():
            try:
                count = min(batches, (combined.limits or [batches])[0])
                self._batches = [item[0] for item in islice(iter(loaders.copy), int(count))]
            finally:
                loaders.close()
        first = combined.flattened[0]
        self._sizes = [loaded_examples(first, batch, index) or 1 for index, batch in enumerate(self._batches)]

    def __call__(self) -> float:
        """Return the value for the present weights, as a mean over all processes, without a trace in the training."""
        dry_run, trainer, module = self.dry_run, self.dry_run.trainer, self.dry_run.module
        logged: dict[str, list[tuple[Any, float]]] = {}
        returned: list[tuple[Any, float]] = []
        weight = 1.0

        def take(name: str, value: Any) -> None:
            logged.setdefault(name, []).append((value, weight))

        with isolate_rng(), _evaluating(dry_run, take, 1 in self._sizes), torch.no_grad():
            for hook in ("on_validation_start", "on_validation_epoch_start"):
                _lightning.call_module_hook(trainer, hook)
            for index, (host, size) in enumerate(zip(self._batches, self._sizes, strict=True)):
                batch, weight = _lightning.to_device(trainer, host), float(size)
                output = _lightning.call_validation_step(trainer, batch, index, 0 if self._several else None)
                loss = output.get("loss") if isinstance(output, Mapping) else output
                if isinstance(loss, Tensor):
                    returned.append((loss, weight))
            weight = 1.0
            _lightning.call_module_hook(trainer, "on_validation_epoch_end")
            names = (self.monitor,) if self.monitor else LOGGED_NAMES[self.metric]
            fallback = returned if self.metric == "val_loss" and self.monitor is None else []
            found = next((logged[name] for name in names if name in logged), fallback)
            if not found:
                raise ArgumentError(
                    f"metric={self.metric!r}: the validation of {type(module).__name__} logs "
                    f"{', '.join(map(repr, sorted(logged))) or 'nothing'}, none of which is {' or '.join(names[:4])}. "
                    "Name it with monitor=..., or take metric='loss'."
                )
            value = _mean(found)
            _lightning.call_module_hook(trainer, "on_validation_end")
        if trainer.world_size > 1:
            value = trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="mean")
        return float(value)


@contextmanager
def _evaluating(dry_run: DryRun, take: Callable[[str, Any], None], single: bool) -> Iterator[None]:
    """Set the Trainer's stage and the module's mode for a validation."""
    modes = [(layer, layer.training) for layer in dry_run.module.modules()]
    try:
        dry_run.trainer.validating = True
        dry_run.log = take
        dry_run.module.eval()
        for layer, mode in modes:
            if mode and isinstance(layer, _BatchNorm) and not single:  # a single example has no variance
                layer.training = True  # running statistics lag behind weights that change this fast
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode
        dry_run.log = None
        dry_run.trainer.training = True


def _mean(found: list[tuple[Any, float]]) -> Tensor:
    metric = found[-1][0]
    if isinstance(metric, Metric):
        value: Tensor = metric.compute()
        metric.reset()
        return value.detach().double().mean()
    total = sum(weight for _, weight in found)
    parts = [torch.as_tensor(value).detach().double().mean() * (weight / total) for value, weight in found]
    return torch.stack(parts).sum()
