"""What callbacks share, and the only file that touches what is private in Lightning or differs between its versions.

Lightning comes as two packages, ``lightning.pytorch`` and ``pytorch_lightning``, with the same code, but isinstance()
fails across them, and a project may use either or both. The rest of the plugin imports Lightning's names from here.
"""

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast
from weakref import WeakSet

import torch
from torch import Tensor

from lr_lightning.errors import UsageError

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_imported = (name for name in _PACKAGES if name in sys.modules)
_installed = (name for name in _PACKAGES if find_spec(name.partition(".")[0]) is not None)
_MAIN = next(chain(_imported, _installed), "lightning.pytorch")  # our classes extend those of this package
_version = import_module(_MAIN).__version__
if tuple(map(int, _version.split(".")[:2])) < (2, 5):
    raise UsageError(f"lr_lightning needs Lightning 2.5 or newer, and {_MAIN} is {_version}. Upgrade it with pip.")

if TYPE_CHECKING or _MAIN == "lightning.pytorch":
    from lightning.fabric.utilities import move_data_to_device
    from lightning.fabric.utilities.data import _set_sampler_epoch
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.accelerators import Accelerator
    from lightning.pytorch.callbacks import (
        BatchSizeFinder,
        EarlyStopping,
        GradientAccumulationScheduler,
        LearningRateFinder,
        ModelCheckpoint,
        Timer,
    )
    from lightning.pytorch.loggers.logger import DummyLogger, Logger
    from lightning.pytorch.loops.fetchers import _DataFetcher as DataFetcher
    from lightning.pytorch.loops.optimization.automatic import ClosureResult
    from lightning.pytorch.profilers import PassThroughProfiler, Profiler
    from lightning.pytorch.strategies import Strategy
    from lightning.pytorch.trainer.states import RunningStage, TrainerFn
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
    from lightning.pytorch.utilities.combined_loader import CombinedLoader
    from lightning.pytorch.utilities.seed import isolate_rng
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
    from lightning.pytorch.utilities.types import STEP_OUTPUT
else:
    from lightning_fabric.utilities import move_data_to_device
    from lightning_fabric.utilities.data import _set_sampler_epoch
    from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
    from pytorch_lightning.accelerators import Accelerator
    from pytorch_lightning.callbacks import (
        BatchSizeFinder,
        EarlyStopping,
        GradientAccumulationScheduler,
        LearningRateFinder,
        ModelCheckpoint,
        Timer,
    )
    from pytorch_lightning.loggers.logger import DummyLogger, Logger
    from pytorch_lightning.loops.fetchers import _DataFetcher as DataFetcher
    from pytorch_lightning.loops.optimization.automatic import ClosureResult
    from pytorch_lightning.profilers import PassThroughProfiler, Profiler
    from pytorch_lightning.strategies import Strategy
    from pytorch_lightning.trainer.states import RunningStage, TrainerFn
    from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
    from pytorch_lightning.utilities.combined_loader import CombinedLoader
    from pytorch_lightning.utilities.seed import isolate_rng
    from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
    from pytorch_lightning.utilities.types import STEP_OUTPUT

set_sampler_epoch = _set_sampler_epoch  # Lightning calls this before it iterates a loader

_T = TypeVar("_T")
LATE_PREFIXES = ("overfit/", "probe/", "train/", "cost/")  # of metrics that callbacks log in real validations only
_SAID: WeakSet[Trainer] = WeakSet()  # the Trainers whose user has been told that results are lost


# -- the two packages --------------------------------------------------------------------------------------------------


def of_both_packages(*kinds: type[_T]) -> tuple[type[_T], ...]:
    """Return classes, each with the class of its name in the other Lightning package if that is imported."""
    found = list(kinds)
    for kind in kinds:
        for own, other in (_PACKAGES, _PACKAGES[::-1]):
            module = sys.modules.get(other + kind.__module__.removeprefix(own))
            found += [getattr(module, kind.__name__)] if hasattr(module, kind.__name__) else []
    return tuple(found)


def own_module(thing: Trainer | LightningModule, path: str) -> Any:
    """Return a module, such as ``"trainer.call"``, of the package that a Trainer or LightningModule belongs to."""
    modules = [kind.__module__ for kind in type(thing).__mro__]
    package = next((name for name in _PACKAGES if any(module.startswith(name) for module in modules)), _MAIN)
    return import_module(f"{package}.{path}")


def make_trainer(module: LightningModule, **options: Any) -> Trainer:
    """Return a Trainer of the package that a module belongs to."""
    trainer: Trainer = own_module(module, "trainer").Trainer(**options)
    return trainer


class BaseCallback(Callback):
    """A callback for the Trainers of both packages.

    Some of Lightning's checks ask for the ``Callback`` of the Trainer's own package, so it becomes a base of this class
    as soon as that package is imported.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Join the packages that have been imported since."""
        join_packages()
        return super().__new__(cls)


class BaseEarlyStopping(BaseCallback, EarlyStopping):
    """Lightning's EarlyStopping for the Trainers of both packages."""

    stopping_reason_message: str | None = None  # before Lightning 2.6 the reason was printed and not kept

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        stop, reason = super()._evaluate_stopping_criteria(current)
        self.stopping_reason_message = reason if stop else self.stopping_reason_message
        return stop, reason


def join_packages() -> None:
    """Make this package's callbacks subclasses of those of every Lightning package that is imported by now."""
    for ours, theirs in ((BaseCallback, Callback), (BaseEarlyStopping, EarlyStopping)):
        for kind in of_both_packages(theirs):
            if not issubclass(ours, kind):
                last = type(f"_{kind.__name__}", (kind,), {"__init__": lambda self: None, "__module__": __name__})
                ours.__bases__ = (*ours.__bases__, last)  # it ends the chain of super().__init__


def callbacks_of(trainer: Trainer, kind: type[_T]) -> list[_T]:
    """Return the Trainer's callbacks of one class, of either package, in their order."""
    every: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set outside the class
    return [callback for callback in every if isinstance(callback, of_both_packages(kind))]


def overrides(method: str, module: LightningModule) -> bool:
    """Return whether a module defines a method that LightningModule has a default for."""
    own = getattr(module, method)
    plain = {getattr(kind, method) for kind in of_both_packages(LightningModule)}
    return getattr(own, "__func__", own) not in plain


def call_module_hook(trainer: Trainer, hook: str, *args: Any) -> Any:
    """Call a hook of the module so that ``self.log`` knows which hook it is in."""
    return own_module(trainer, "trainer.call")._call_lightning_module_hook(trainer, hook, *args)


def _call_strategy(trainer: Trainer, hook: str, *args: Any, **kwargs: Any) -> Any:
    return own_module(trainer, "trainer.call")._call_strategy_hook(trainer, hook, *args, **kwargs)


def averaging_callbacks(trainer: Trainer, name: str = "") -> list[Any]:
    """Return Lightning's callbacks that average the weights, or only those with this class name."""
    names = {name} if name else {"StochasticWeightAveraging", "WeightAveraging"}  # the second came with Lightning 2.6
    every = callbacks_of(trainer, Callback)
    return [each for each in every if names & {kind.__name__ for kind in type(each).__mro__}]


def planned_epochs(trainer: Trainer) -> int:
    """Return the number of epochs that train, -1 if there is no limit.

    For a module with BatchNorm, StochasticWeightAveraging adds an epoch to ``max_epochs`` that trains nothing.
    """
    for averaging in averaging_callbacks(trainer, "StochasticWeightAveraging"):
        if getattr(averaging, "_max_epochs", -1) > 0:
            return int(averaging.swa_end) + 1
    return -1 if trainer.max_epochs is None else trainer.max_epochs


def warn_if_results_are_lost(trainer: Trainer) -> None:
    """Say once that what this package's callbacks measure stays in the processes that ``ddp_spawn`` starts."""
    launchers = own_module(trainer, "strategies.launchers.multiprocessing")
    if isinstance(trainer.strategy.launcher, launchers._MultiProcessingLauncher) and trainer not in _SAID:
        _SAID.add(trainer)
        names = ", ".join(dict.fromkeys(type(each).__name__ for each in callbacks_of(trainer, BaseCallback)))
        rank_zero_warn(
            "This strategy trains in processes that it starts itself, and Lightning brings back only weights and "
            f"metrics. So what {names} find (results, verdicts, summaries, the module's lr) is missing in the script "
            "after fit(). Use strategy='ddp', or read it from the logger or a checkpoint."
        )


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


def is_missed_in_sanity_check(trainer: Trainer, name: str) -> bool:
    """Return whether the sanity check has logged metrics but not this one, so that no validation will log it either."""
    return bool(logged := trainer.callback_metrics) and name not in logged and not name.startswith(LATE_PREFIXES)


def names_to_loggers(trainer: Trainer) -> set[str]:
    """Return the names under which the module has logged to the loggers so far in the running loop."""
    results: Any = trainer._results
    every = [] if results is None else [result for result in results.values() if result.meta.logger]
    return {results._forked_name(r, step)[1] for r in every for step in (True, False) if _logs(r.meta, step)}


def _logs(meta: Any, on_step: bool) -> bool:
    return bool(meta.on_step if on_step else meta.on_epoch)


def logging_step(trainer: Trainer) -> int:
    """Return Lightning's own step for logging; with several optimizers ``global_step`` counts the steps of each."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def align_logging_step(trainer: Trainer) -> None:
    """Set Lightning's step for logging to the updates made; call this at the start of the first batch.

    A fit that resumes from a checkpoint of a validation within an epoch counts one too few.
    """
    if trainer.lightning_module.automatic_optimization:
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


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


def is_resuming(trainer: Trainer) -> bool:
    """Return whether this fit resumes from a checkpoint; ask in ``on_fit_start``.

    ``trainer.ckpt_path`` does not tell: BatchSizeFinder and LearningRateFinder leave their own path in it.
    """
    return bool(trainer._checkpoint_connector._loaded_checkpoint)


def can_stop_early(trainer: Trainer) -> bool:
    """Return whether ``trainer.should_stop`` ends the run now: ``min_epochs`` and ``min_steps`` have been reached."""
    return trainer.fit_loop._can_stop_early


@contextmanager
def without_callback_hooks(trainer: Trainer) -> Iterator[None]:
    """Call no hook of this Trainer's callbacks; ``trainer.callbacks`` does not change, since a module may read it."""
    call = own_module(trainer, "trainer.call")
    original = call._call_callback_hooks

    def called(its_trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if its_trainer is not trainer:
            original(its_trainer, *args, **kwargs)

    call._call_callback_hooks = called
    try:
        yield
    finally:
        call._call_callback_hooks = original


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
        loop._should_check_val_fx = lambda fetcher: due(fetcher) or (when() and trainer.enable_validation)


def end_fit_at(trainer: Trainer, steps: int) -> None:
    """Make the running fit end when ``trainer.global_step`` reaches this number, unless its epochs end before."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def stop_after_batch(trainer: Trainer) -> None:
    """Make Lightning raise its SIGTERMException at the end of this batch, as if SIGTERM had come."""
    trainer._signal_connector.received_sigterm = True


def control_accumulation(trainer: Trainer, accumulating: Callable[[], bool]) -> None:
    """Let ``accumulating`` decide whether a batch only accumulates; Lightning decides by the batch's number."""
    trainer.fit_loop.epoch_loop._should_accumulate = accumulating  # type: ignore[method-assign]


def replace_update(trainer: Trainer, update: Callable[..., Any] | None) -> Callable[..., Any]:
    """Let ``update`` take the place of what Lightning does between a batch's start and end hooks; None ends that.

    It gets the optimizer, the batch's index and the arguments of ``training_step``. Lightning's own is returned.
    """
    loop: Any = trainer.fit_loop.epoch_loop.automatic_optimization
    vars(loop).pop("run", None)
    own: Callable[..., Any] = loop.run
    if update is not None:
        loop.run = update
    return own


def count_update(trainer: Trainer, batch_idx: int) -> None:
    """Advance Lightning's counts as for a batch that it has trained on, and call ``on_before_optimizer_step``."""
    progress: Any = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer
    if batch_idx % trainer.accumulate_grad_batches == 0:
        for count in ("ready", "started", "completed"):
            getattr(progress.zero_grad, f"increment_{count}")()
    if is_step_complete(trainer):
        progress.step.increment_ready()
        call = own_module(trainer, "trainer.call")
        call._call_callback_hooks(trainer, "on_before_optimizer_step", trainer.optimizers[0])
        progress.step.increment_completed()


_NEVER = sys.maxsize  # steps


def hold_stops(trainer: Trainer, own_least: int | None, held: bool) -> None:
    """Let ``trainer.should_stop`` wait; ``own_least`` is the Trainer's own ``min_steps``, which counts again after."""
    trainer.fit_loop.epoch_loop.min_steps = _NEVER if held else own_least


def are_stops_held(trainer: Trainer) -> bool:
    """Return whether :func:`hold_stops` holds: the module has the weights of another step, so the run must not stop."""
    return trainer.fit_loop.epoch_loop.min_steps == _NEVER


def take_sigterm(trainer: Trainer) -> bool:
    """Return whether SIGTERM has come, and let Lightning forget it; :func:`stop_after_batch` reminds it."""
    connector = trainer._signal_connector
    came, connector.received_sigterm = connector.received_sigterm, False
    return came


def end_epoch_of_dry_run(trainer: Trainer) -> None:
    """Let ``trainer.current_epoch`` be the next epoch; the caller undoes it."""
    progress = trainer.fit_loop.epoch_progress
    for count in ("processed", "completed", "ready", "started"):
        getattr(progress, f"increment_{count}")()


def is_checkpoint_due(trainer: Trainer) -> bool:
    """Return whether a ModelCheckpoint saves after this update, because it saves after every n updates."""
    every = [callback._every_n_train_steps for callback in callbacks_of(trainer, ModelCheckpoint)]
    return any(count > 0 and trainer.global_step % count == 0 for count in every)


def saves_by_time(trainer: Trainer) -> bool:
    """Return whether a ModelCheckpoint saves whenever some time is over."""
    return any(callback._train_time_interval is not None for callback in callbacks_of(trainer, ModelCheckpoint))


def running_hook(module: LightningModule) -> str:
    """Return the name of the module's hook that Lightning is calling, "" for none."""
    return module._current_fx_name or ""


def log_in_hook(module: LightningModule, hook: str, name: str, value: Any, args: Any, kwargs: Any) -> None:
    """Call ``module.log`` as if from one of the module's hooks."""
    before, module._current_fx_name = module._current_fx_name, hook
    try:
        module.log(name, value, *args, **kwargs)
    finally:
        module._current_fx_name = before


def training_step_arguments(trainer: Trainer, batch: Any, index: int) -> OrderedDict[str, Any]:
    """Return the keyword arguments with which Lightning calls ``training_step``, whose signature varies."""
    return trainer.fit_loop.epoch_loop._build_kwargs(OrderedDict(), batch, index)


def call_validation_step(trainer: Trainer, batch: Any, index: int, loader: int | None) -> Any:
    """Call ``validation_step`` and the module's hooks around it, as Lightning does; ``loader`` is None for only one."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    kwargs = loop._build_kwargs(batch, index, loader)
    call_module_hook(trainer, "on_validation_batch_start", *kwargs.values())
    arguments = loop._build_step_args_from_hook_kwargs(kwargs, "validation_step")
    output = _call_strategy(trainer, "validation_step", *arguments)
    call_module_hook(trainer, "on_validation_batch_end", output, *kwargs.values())
    return output


def to_device(trainer: Trainer, batch: Any) -> Any:
    """Return a batch on the module's device, converted and transferred as Lightning's loops do."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return _call_strategy(trainer, "batch_to_device", batch, dataloader_idx=0)


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


def loaders_of_validation(trainer: Trainer) -> Any:
    """Return the fit's first validation loader, or all if each gives a part of a batch; None if there is none yet."""
    combined = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    if combined is None:
        return None
    return combined.flattened[0] if combined._mode == "sequential" and combined.flattened else combined.iterables


def is_compiled(module: LightningModule) -> bool:
    """Return whether torch.compile has compiled the module, which a hook would make it do again."""
    return getattr(module, "_compiler_ctx", None) is not None


def is_last_validation_batch(trainer: Trainer) -> bool:
    """Return whether Lightning knows that no validation batch follows the one that has just ended."""
    return bool(trainer.fit_loop.epoch_loop.val_loop.batch_progress.is_last_batch)


def inner_sampler(sampler: Any) -> Any:
    """Return the sampler that Lightning has wrapped to share its examples among the ranks."""
    return getattr(getattr(sampler, "dataset", None), "_sampler", sampler)


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
    connector, combining = (
        own_module(trainer, path) for path in ("trainer.connectors.data_connector", "utilities.combined_loader")
    )
    given = connector._request_dataloader(loop._data_source)
    hook = f"{stage.dataloader_prefix}_dataloader"
    trainer.strategy.barrier(f"LRFinder: {hook}()")
    is_combined = isinstance(given, of_both_packages(CombinedLoader))
    mode = "max_size_cycle" if training else "sequential"
    combined: CombinedLoader = copy.copy(given) if is_combined else combining.CombinedLoader(given, mode)
    if trainer.overfit_batches > 0:  # type: ignore[attr-defined]  # set outside the class
        connector._resolve_overfit_batches(combined, mode=stage)
    prepared = []
    for loader in combined.flattened:
        check(loader, hook)
        connector._check_dataloader_iterable(loader, loop._data_source, TrainerFn.FITTING)
        prepared.append(connector._process_dataloader(trainer, TrainerFn.FITTING, stage, loader))
    combined.flattened = prepared
    limit = getattr(trainer, f"limit_{stage.dataloader_prefix}_batches")
    known = own_module(trainer, "utilities.data").has_len_all_ranks
    lengths = [len(dl) if known(dl, trainer.strategy, True) else float("inf") for dl in prepared]
    combined.limits = [connector._parse_num_batches(stage, length, limit) for length in lengths]
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
