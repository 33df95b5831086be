"""What callbacks share, and the only file that touches what is private in Lightning or differs between its versions."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors import data_connector
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.data import has_len_all_ranks
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lr_lightning.errors import UsageError

DataFetcher = _DataFetcher
set_sampler_epoch = _set_sampler_epoch  # Lightning calls this before it iterates a loader
call_module_hook = call._call_lightning_module_hook  # calls it so that self.log knows which hook it is in

_T = TypeVar("_T", bound=Callback)


def callbacks_of(trainer: Trainer, kind: type[_T]) -> list[_T]:
    """Return the Trainer's callbacks of one class, in their order."""
    every: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set outside the class
    return [callback for callback in every if isinstance(callback, kind)]


# -- ranks: every rank must call these functions, even one that has no value to give ---------------------------------


def gather_numbers(trainer: Trainer, values: Sequence[float]) -> list[list[float]]:
    """Return the values of every rank, rank by rank, in float64; each rank gives equally many."""
    if trainer.world_size == 1:
        return [list(map(float, values))]
    mine = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    return cast(list[list[float]], trainer.strategy.all_gather(mine).cpu().tolist())


def mean_over_ranks(trainer: Trainer, value: float | Tensor | None) -> float | None:
    """Return the mean over the ranks that have a value, or None if none has."""
    rows = gather_numbers(trainer, [0.0, 0.0] if value is None else [float(value), 1.0])
    known = sum(have for _, have in rows)
    return sum(own for own, _ in rows) / known if known else None


def gather_rows(trainer: Trainer, rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in rank order; ranks may have different numbers of rows, or none."""
    if trainer.world_size == 1:
        return rows
    counts: Any = trainer.strategy.all_gather(torch.tensor(len(rows), device=rows.device)).flatten().tolist()
    if not max(counts):
        return rows
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    every = zip(trainer.strategy.all_gather(padded), counts, strict=True)
    return torch.cat([part[:count] for part, count in every])


def batch_loss(outputs: STEP_OUTPUT, trainer: Trainer, module: LightningModule) -> Tensor | None:
    """Return the loss that ``training_step`` returned, from the ``outputs`` that ``on_train_batch_end`` receives.

    It is a detached float32 (or float64) scalar on the loss's device, before Lightning divides it by the number of
    accumulated batches; None if the step returned no loss. Few operations are used, and nothing is transferred.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, Tensor):
        return None
    # under manual optimization the module may return a buffer that it overwrites in its next step
    loss = loss.detach() if module.automatic_optimization else loss.detach().clone()
    loss = loss if loss.dtype in (torch.float32, torch.float64) else loss.float()
    loss = loss.mean() if loss.ndim else loss
    if trainer.accumulate_grad_batches > 1 and module.automatic_optimization:
        loss = loss * trainer.accumulate_grad_batches
    return loss


def mean_loss(losses: Sequence[Tensor]) -> Tensor | None:
    """Return the mean over a step's micro-batches, on the device of the last one; a checkpoint's are on the CPU."""
    if len(losses) > 1:
        return torch.stack([loss.to(losses[-1].device) for loss in losses]).mean()
    return losses[0] if losses else None


# -- private: logging and the training loop ---------------------------------------------------------------------------


class FreshMetric:
    """Tells whether a metric was logged since the last call, or is left over from an earlier validation.

    Lightning keeps the last value of every metric, even if a monitor measures at every second validation only. The
    running validation's results tell whether it has logged a metric; a metric logged elsewhere is fresh if its tensor
    is a new one.
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None  # kept alive, so that no other tensor gets its identity

    def __call__(self, trainer: Trainer, name: str) -> bool:
        """Return whether ``name`` is among the Trainer's metrics with a new value. Call this once a validation."""
        now, results = trainer.callback_metrics.get(name), trainer._results
        before, self._last = self._last, now
        if now is None:
            return False
        own = [] if results is None else [r for r in results.values() if name in results._forked_name(r, False)]
        return any(not result.has_reset for result in own) if own else now is not before


def names_to_loggers(trainer: Trainer) -> set[str]:
    """Return the names under which the module logs to the loggers in the running loop, as far as it has."""
    results: Any = trainer._results
    every = [] if results is None else [result for result in results.values() if result.meta.logger]
    return {results._forked_name(r, step)[1] for r in every for step in (True, False) if _logs(r.meta, step)}


def _logs(meta: Any, on_step: bool) -> bool:
    return bool(meta.on_step if on_step else meta.on_epoch)


def logging_step(trainer: Trainer) -> int:
    """Return Lightning's own step for logging; with several optimizers ``global_step`` counts the steps of each."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def logger_connector(trainer: Trainer) -> object:
    """Return the object that holds the Trainer's metrics; a measurement that leaves no trace must restore it."""
    return trainer._logger_connector


def set_callback_metric(trainer: Trainer, name: str, value: Tensor | float) -> None:
    """Add a metric to ``trainer.callback_metrics``, which is a copy, without logging it."""
    trainer._logger_connector._callback_metrics[name] = torch.as_tensor(value).detach()


def hyperparameter_dicts(module: LightningModule) -> list[Any]:
    """Return the module's hparams and the copy that Lightning logs when the fit starts; None for those it lacks."""
    return [getattr(module, "_hparams", None), getattr(module, "_hparams_initial", None)]


def is_dev_run(trainer: Trainer) -> bool:
    """Return whether this is a development run (``fast_dev_run``)."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set outside the class


def is_step_complete(trainer: Trainer) -> bool:
    """Return whether the batch that has just ended completed an optimizer step, rather than only accumulated."""
    return not trainer.fit_loop._should_accumulate()


def is_validation_due(trainer: Trainer) -> bool:
    """Return whether Lightning validates after the batch that has just ended."""
    loop = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))  # type: ignore[arg-type]


def validate_also(trainer: Trainer, when: Callable[[], bool] | None) -> None:
    """Make Lightning validate after a batch for which ``when`` is true as well; None ends that."""
    loop: Any = trainer.fit_loop.epoch_loop
    vars(loop).pop("_should_check_val_fx", None)
    if when is not None:
        due = loop._should_check_val_fx
        loop._should_check_val_fx = lambda fetcher: due(fetcher) or (trainer.enable_validation and when())


def stop_after_batch(trainer: Trainer) -> None:
    """Make Lightning raise its SIGTERMException at the end of this batch, as if SIGTERM had come."""
    trainer._signal_connector.received_sigterm = True


def control_accumulation(trainer: Trainer, accumulating: Callable[[], bool]) -> None:
    """Let ``accumulating`` decide whether a batch only accumulates; Lightning decides by the batch's number."""
    trainer.fit_loop.epoch_loop._should_accumulate = accumulating  # type: ignore[method-assign]


def training_step_arguments(trainer: Trainer, batch: Any, index: int) -> OrderedDict[str, Any]:
    """Return the keyword arguments with which Lightning calls ``training_step``, whose signature varies."""
    return trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), batch, index)


def call_validation_step(trainer: Trainer, batch: Any, index: int, loader: int | None) -> Any:
    """Call ``validation_step`` and the module's hooks around it, as Lightning does; ``loader`` is None for only one."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    kwargs = loop._build_kwargs(batch, index, loader)
    call_module_hook(trainer, "on_validation_batch_start", *kwargs.values())
    arguments = loop._build_step_args_from_hook_kwargs(kwargs, "validation_step")
    output = call._call_strategy_hook(trainer, "validation_step", *arguments)
    call_module_hook(trainer, "on_validation_batch_end", output, *kwargs.values())
    return output


def to_device(trainer: Trainer, batch: Any) -> Any:
    """Return a batch on the module's device, converted and transferred as Lightning's loops do."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)


class CheckpointCallback(ModelCheckpoint):
    """Lightning's ModelCheckpoint with public names for the two private parts that a subclass needs."""

    @property
    def every_n_train_steps(self) -> int:
        """The number of steps between two checkpoints; below 1 if none is saved after a step."""
        return self._every_n_train_steps

    def should_skip(self, trainer: Trainer) -> bool:
        """Return whether to save nothing now; a subclass may have more reasons than Lightning."""
        return super()._should_skip_saving_checkpoint(trainer)

    def _should_skip_saving_checkpoint(self, trainer: Trainer) -> bool:
        return self.should_skip(trainer)


# -- private: loaders --------------------------------------------------------------------------------------------------


def has_validation_loader(trainer: Trainer) -> bool:
    """Return whether the fit has a source of validation batches; Lightning builds the loader later."""
    return trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined()


def is_sequential(combined: CombinedLoader) -> bool:
    """Return whether several loaders are iterated one after the other."""
    return len(combined.flattened) > 1 and combined._mode == "sequential"


def sole_train_loader(trainer: Trainer) -> Any:
    """Return the training loader; None if there are several, or none yet."""
    combined = trainer.fit_loop._combined_loader
    return combined.flattened[0] if combined is not None and len(combined.flattened) == 1 else None


def prepared_loaders(
    trainer: Trainer, stage: RunningStage, check: Callable[[Any, str], None] = lambda loader, name: None
) -> CombinedLoader:
    """Return the loaders of the fit's training or validation, prepared by Lightning; do not iterate them.

    If the fit has not built them yet, they are requested as Lightning will request them, and the caller must undo what
    that changes. ``check`` gets each requested loader and its hook's name; it raises an error if it cannot be used.
    """
    training = stage == RunningStage.TRAINING
    loop = trainer.fit_loop if training else trainer.fit_loop.epoch_loop.val_loop
    if loop._combined_loader is not None:
        return loop._combined_loader
    given = data_connector._request_dataloader(loop._data_source)
    hook = f"{stage.dataloader_prefix}_dataloader"
    trainer.strategy.barrier(f"LRFinder: {hook}()")
    mode: Any = "max_size_cycle" if training else "sequential"
    combined = copy.copy(given) if isinstance(given, CombinedLoader) else CombinedLoader(given, mode)
    if trainer.overfit_batches > 0:  # type: ignore[attr-defined]  # set outside the class
        data_connector._resolve_overfit_batches(combined, mode=stage)
    prepared = []
    for loader in combined.flattened:
        check(loader, hook)
        data_connector._check_dataloader_iterable(loader, loop._data_source, TrainerFn.FITTING)
        prepared.append(data_connector._process_dataloader(trainer, TrainerFn.FITTING, stage, loader))
    combined.flattened = prepared
    limit = getattr(trainer, f"limit_{stage.dataloader_prefix}_batches")
    lengths = [len(dl) if has_len_all_ranks(dl, trainer.strategy, True) else float("inf") for dl in prepared]
    combined.limits = [data_connector._parse_num_batches(stage, length, limit) for length in lengths]
    return combined


def use_train_loaders(trainer: Trainer, combined: CombinedLoader) -> None:
    """Make the fit loop believe that it has built these training loaders, so that it does not build its own."""
    loop = trainer.fit_loop
    loop._combined_loader = combined
    loop.max_batches = max(combined.limits or [float("inf")])
    loop._last_train_dl_reload_epoch = trainer.current_epoch  # else a module that asks for the length reloads it


def replace_train_loader(trainer: Trainer, loader: Any, batches: int) -> None:
    """Replace the training loader before an epoch's first batch, and its length wherever the fit loop keeps it."""
    loop = trainer.fit_loop
    combined, fetcher = loop._combined_loader, loop._data_fetcher
    if combined is None or fetcher is None:
        raise UsageError("the Trainer has no training loader yet: it is built before on_train_start")
    combined.reset()  # ends the workers of the old one
    combined.flattened, combined.limits, loop.max_batches = [loader], [batches], batches
    interval = trainer.val_check_interval
    if trainer.val_check_batch is not None:
        if not isinstance(interval, int):
            trainer.val_check_batch = max(1, int(batches * interval))
        elif trainer.check_val_every_n_epoch is not None:
            trainer.val_check_batch = min(interval, batches)
    # Lightning makes a new iterator for every epoch but these
    if trainer.current_epoch == 0 or loop.is_resuming or loop.restarting:
        iter(fetcher)


def restart_train_iterator(trainer: Trainer) -> None:
    """Make a new iterator of the training loader; this draws a random number."""
    iter(trainer.fit_loop._data_fetcher or ())


def copy_without_iterator(combined: CombinedLoader, loaders: Sequence[Any]) -> CombinedLoader:
    """Return a copy that iterates ``loaders``, independently of the original's position."""
    other = copy.copy(combined)
    other._iterator, other.flattened = None, list(loaders)
    return other
