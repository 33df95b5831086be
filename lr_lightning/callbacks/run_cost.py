"""The cost of a run in time, memory, energy and money, until it reaches a target, and its stability."""

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from lr_lightning._batches import Scalars, batch_loss, loaded_examples, mean_loss
from lr_lightning._checks import check_number
from lr_lightning._lightning import (
    STEP_OUTPUT,
    BaseCallback,
    LightningModule,
    Trainer,
    gather_numbers,
    is_missed_in_sanity_check,
    rank_zero_warn,
    warn_if_results_are_lost,
)
from lr_lightning._loggers import for_each_logger
from lr_lightning.callbacks.trainer_clock import updates_made
from lr_lightning.diagnosis.cost import Target, parse_target, percentiles, spikes

_MOST_PENDING = 1000  # steps whose values stay on the device
_EVERY = 5  # steps from one norm to the next; odd, since optimizers often take turns by twos
_FETCHED, _PENDING = ("losses", "norms", "step_seconds"), ("pending_losses", "pending_norms")  # the lists in the state


class RunCost(BaseCallback):
    """Measure the cost and the stability of a run.

    Logged at each validation: ``cost/seconds``, ``cost/examples_per_second``. Logged once at the end, as
    :attr:`summary` (``summary/*`` in the loggers of this package):

    - ``train_seconds``, ``examples_per_second``, ``step_ms_p50``, ``_p95``, ``_p99``. Seconds are wall time. The
      times of steps and examples exclude validations, range tests between epochs, and the wait for an epoch's first
      batch. No time includes a search for a learning rate before the training;
    - ``device_seconds`` (seconds times processes), ``gpu_seconds`` if the devices are GPUs, and ``price`` if
      ``price_per_gpu_hour`` is given; without a GPU, it is the price of the CPU;
    - ``peak_memory_mb`` of the GPU, else of the process; ``energy_kj`` if NVML measures all GPUs of the run; each GPU
      counts once;
    - ``target_reached``; and ``seconds_to_target`` and ``steps_to_target`` if a validation reached the target. If none
      did, the run is censored: the target needs more than ``train_seconds``;
    - ``spikes``, the number of jumps of the training loss above its smoothed course; ``grad_norm_p50`` to ``_p99``,
      of one step in five, before clipping.

    Losses and norms stay on their device until a validation fetches them all at once. The run does not change. The
    examples of a batch are counted by its loader, or by all loaders if there are several. If neither loader nor batch
    tells their number, one warning says so, and ``examples_per_second`` is left out.

    Args:
        target: The target, such as ``"val/acc>=0.97"``.
        price_per_gpu_hour: Price of one device for an hour, in any currency.
        gradient_norms: Whether to compute the norm of the gradient. One step in five is measured: for a small network
            on a CPU, the norm is the largest part of what this callback costs.

    Raises:
        ArgumentError: The target cannot be parsed, or the price is negative.

    Example:
        >>> RunCost(target="val/acc>=0.97").target
        Target(metric='val/acc', sign='>=', value=0.97)
    """

    def __init__(
        self, target: str | Target | None = None, price_per_gpu_hour: float | None = None, gradient_norms: bool = True
    ) -> None:
        self.target = parse_target(target) if isinstance(target, str) else target
        if price_per_gpu_hour is not None:
            check_number("price_per_gpu_hour", price_per_gpu_hour)
        self.price_per_gpu_hour, self.gradient_norms = price_per_gpu_hour, gradient_norms
        self._fitting = True
        self._reset()

    def _reset(self) -> None:
        self.summary: dict[str, float] = {}
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._step_seconds: list[float] = []
        self._pending_losses, self._pending_norms = Scalars(), Scalars()  # on the device, not averaged over ranks yet
        self._micro: list[Tensor] = []  # losses of the current step's micro-batches
        self._norm: Tensor | None = None
        self._stepped, self._measures_norm = False, False  # whether the current batch completes a step, and its norm
        self._step_start: float | None = None  # of the current step
        self._examples: int | None = 0  # None if a batch does not tell
        self._step_seconds_sum = 0.0
        self._seconds_before, self._joules_before = 0.0, 0.0  # before a resume
        self._started: float | None = None
        self._meter: EnergyMeter | None = None
        self._reached: tuple[float, float] | None = None  # seconds and steps to the target
        self._missed = False  # whether a validation did not log the target's metric

    @property
    def seconds(self) -> float:
        """Wall time of the training so far, including the parts before a resume."""
        return self._seconds_before + (time.perf_counter() - self._started if self._started is not None else 0.0)

    @property
    def _examples_per_second(self) -> float | None:
        return self._examples / self._step_seconds_sum if self._examples and self._step_seconds_sum > 0 else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; Lightning loads a checkpoint's state after this."""
        self._fitting = stage == "fit"
        if self._fitting:
            self._reset()
            warn_if_results_are_lost(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()
        self._meter = EnergyMeter(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop timing steps: other callbacks may run a range test between two epochs."""
        self._step_start = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Time a step after a pause from here; other steps start where the previous one ended, to include the data."""
        if self._step_start is None:
            self._step_start = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Compute the norm of the gradient of some steps, before it is clipped."""
        if not self._stepped:  # several optimizers may step in one batch
            self._measures_norm = self.gradient_norms and len(self._step_seconds) % _EVERY == 0
        self._stepped = True
        if self._measures_norm and (norm := _gradient_norm(optimizer)) is not None:
            self._norm = norm if self._norm is None else (self._norm**2 + norm**2).sqrt()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss on its device; complete the step if the optimizer stepped."""
        self._count(trainer, batch, batch_idx)
        if (loss := batch_loss(outputs, trainer, pl_module)) is not None:
            self._micro.append(loss)
        if not self._stepped:
            return
        now = time.perf_counter()
        if self._step_start is not None:
            self._step_seconds.append(now - self._step_start)
            self._step_seconds_sum += now - self._step_start
        self._step_start = now
        if (loss := mean_loss(self._micro)) is not None:
            self._pending_losses.append(loss)
            self._micro.clear()
        if self._norm is not None:
            self._pending_norms.append(self._norm)
        self._norm, self._stepped = None, False
        if max(len(self._pending_losses), len(self._pending_norms)) >= _MOST_PENDING:
            self._fetch(trainer)

    def _count(self, trainer: Trainer, batch: Any, batch_idx: int) -> None:
        if self._examples is None:
            return
        size = loaded_examples(trainer.train_dataloader, batch, batch_idx)
        self._examples = None if size is None else self._examples + size * trainer.world_size
        if size is None:
            rank_zero_warn(
                f"RunCost does not know the number of examples in a batch of type {type(batch).__name__}, so "
                "examples_per_second is left out. Give the batch or the loader an attribute batch_size."
            )

    def _fetch(self, trainer: Trainer, reduce: bool = True) -> None:
        """Fetch the pending values from the device, in two transfers for any number of steps."""
        device = trainer.strategy.root_device  # those of a checkpoint are on the CPU
        losses, norms = self._pending_losses.stacked(device), self._pending_norms.stacked(device)
        self._pending_losses.clear()
        self._pending_norms.clear()
        if losses is not None:
            average = reduce and trainer.world_size > 1
            self._losses += (trainer.strategy.reduce(losses, reduce_op="mean") if average else losses).tolist()
        if norms is not None:
            self._norms += norms.tolist()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop timing steps, and fetch the pending values."""
        self._step_start = None
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._fetch(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the cost so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {"cost/seconds": self.seconds}
        if self._examples_per_second is not None:
            metrics["cost/examples_per_second"] = self._examples_per_second
        # equal on all ranks, so that callbacks that monitor them decide alike
        pl_module.log_dict(metrics, sync_dist=trainer.world_size > 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether the target is reached."""
        if self.target is None or trainer.sanity_checking or trainer.state.fn != "fit" or self._reached is not None:
            return
        value = trainer.callback_metrics.get(self.target.metric)
        if value is None and not self._missed:
            self._missed = True
            rank_zero_warn(self._missing(trainer))
        if value is not None and self.target.reached({self.target.metric: float(value)}):
            self._reached = (self.seconds, float(updates_made(trainer)))

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of a target that the validation does not log, before the first update."""
        if self.target is not None and is_missed_in_sanity_check(trainer, self.target.metric):
            self._missed = True
            rank_zero_warn(self._missing(trainer))

    def _missing(self, trainer: Trainer) -> str:
        known = ", ".join(sorted(map(str, trainer.callback_metrics))) or "none"
        wanted = "" if self.target is None else repr(self.target.metric)
        return f"RunCost: no metric {wanted} was logged, for the target {self.target}. There are: {known}."

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute and log the summary."""
        self._fetch(trainer)
        joules, gpu = self._joules(), 0 if self._meter is None else self._meter.gpu
        # every rank takes part, since NVML may have failed on one of them alone
        own = [joules or 0.0, float(joules is not None), float(gpu)]
        self._summarize(trainer, pl_module, total_joules(gather_numbers(trainer, own)))
        for_each_logger(trainer, "RunCost's summary", self._log)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Compute the summary of a run that was stopped or diverged, without logging it: the run may be resumed."""
        self._fetch(trainer, reduce=False)
        if self._started is not None:
            # the other ranks may be gone, and one rank's energy is not the run's
            self._summarize(trainer, pl_module, self._joules() if trainer.world_size == 1 else None)

    def _summarize(self, trainer: Trainer, module: LightningModule, joules: float | None) -> None:
        seconds, price = self.seconds, self.price_per_gpu_hour
        device_seconds = seconds * trainer.world_size
        seconds_to_target, steps_to_target = self._reached or (None, None)
        values: dict[str, float | None] = {
            "train_seconds": seconds,
            "device_seconds": device_seconds,
            "gpu_seconds": device_seconds if module.device.type == "cuda" else None,
            "price": None if price is None else device_seconds / 3600.0 * price,
            "examples_per_second": self._examples_per_second,
            "peak_memory_mb": _peak_memory(module.device),
            "energy_kj": None if joules is None else joules / 1000.0,
            "target_reached": None if self.target is None else float(self._reached is not None),
            "seconds_to_target": seconds_to_target,
            "steps_to_target": steps_to_target,
            "spikes": float(len(spikes(self._losses))),
        }
        values |= {f"step_ms_{k}": v for k, v in percentiles(1000.0 * np.array(self._step_seconds)).items()}
        values |= {f"grad_norm_{k}": v for k, v in percentiles(self._norms).items()}
        self.summary = {key: value for key, value in values.items() if value is not None}

    def _log(self, logger: Any) -> None:
        if hasattr(logger, "log_summary"):
            logger.log_summary(self.summary)
        else:
            logger.log_metrics({f"summary/{k}": v for k, v in self.summary.items()})

    def _joules(self) -> float | None:
        now = self._meter.joules() if self._meter is not None else None
        return None if now is None else self._joules_before + now

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements as tensors and plain values."""
        return {
            **{name: torch.tensor(getattr(self, f"_{name}")) for name in _FETCHED},
            **{name: getattr(self, f"_{name}").stacked(torch.device("cpu")) for name in _PENDING},
            "micro": [float(loss) for loss in self._micro],
            "examples": self._examples,
            "busy": self._step_seconds_sum,
            "seconds": self.seconds,
            "joules": self._joules() or self._joules_before,
            "reached": None if self._reached is None else list(self._reached),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the measurements, unless a checkpoint is only tested: then the fit's measurements stay."""
        if not self._fitting:
            return
        for name in _FETCHED:
            setattr(self, f"_{name}", state_dict[name].tolist())
        for name in _PENDING:
            pending = Scalars()
            for value in () if state_dict[name] is None else state_dict[name]:
                pending.append(value)
            setattr(self, f"_{name}", pending)
        self._micro = [torch.tensor(loss) for loss in state_dict["micro"]]
        self._examples, self._step_seconds_sum = state_dict["examples"], state_dict["busy"]
        self._seconds_before, self._joules_before = state_dict["seconds"], state_dict["joules"]
        self._reached = None if state_dict["reached"] is None else tuple(state_dict["reached"])


def _gradient_norm(optimizer: Optimizer) -> Tensor | None:
    gradients = [g for group in optimizer.param_groups for p in group["params"] if (g := p.grad) is not None]
    if not gradients or True in [gradient.is_sparse for gradient in gradients]:
        return None
    total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float())
    return total.detach()


def _peak_memory(device: torch.device) -> float | None:
    """Return the peak memory in megabytes: what torch held on the GPU, else what this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    kilo = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilo


# -- energy ----------------------------------------------------------------------------------------------------------


class EnergyMeter:
    """Reads the energy counter of one CUDA device through NVML. It counts everything that runs on that device.

    Attributes:
        gpu: A number that identifies the device, computed from its UUID; 0 if unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._counter: Callable[[], int] | None = None  # of millijoules
        self._first, self.gpu = 0.0, 0
        if device.type != "cuda":
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            # CUDA_VISIBLE_DEVICES changes torch's numbers of devices but not NVML's, so the UUID identifies one.
            uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
            if uuid is not None:
                # 48 bits, so that a float holds it exactly
                self.gpu = int.from_bytes(hashlib.blake2b(str(uuid).encode(), digest_size=6).digest())
                handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            else:
                handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
            counter = partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
            self._first, self._counter = counter() / 1000.0, counter
        except Exception:  # no package, no driver, no permission or an old card: the energy stays unknown
            return

    def joules(self) -> float | None:
        """Return the energy since the meter was made, in joules; None if unknown."""
        try:
            return None if self._counter is None else self._counter() / 1000.0 - self._first
        except Exception:
            return None


def total_joules(ranks: Sequence[Sequence[float]]) -> float | None:
    """Add up the joules of all ranks' devices, each counted once; None if any is unknown: a part is not the total.

    Args:
        ranks: For each rank its joules, 1 if they are known and 0 if not, and :attr:`EnergyMeter.gpu`.

    Example:
        >>> total_joules([(5.0, 1, 7), (6.0, 1, 7), (2.0, 1, 8)])
        8.0
        >>> total_joules([(5.0, 1, 7), (0.0, 0, 8)]) is None
        True
    """
    devices: dict[float, list[float]] = {}
    for index, (joules, known, gpu) in enumerate(ranks):
        devices.setdefault(gpu or -index - 1.0, []).extend([joules] if known else [])
    every = list(devices.values())
    return sum(map(max, every)) if every and all(every) else None
