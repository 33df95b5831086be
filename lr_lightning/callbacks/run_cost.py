"""What a run costs: time, memory, energy and money, until it reaches a target; and how calmly it learns."""

import hashlib
import math
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from lr_lightning._lightning import batch_loss, gather_numbers, mean_loss
from lr_lightning.callbacks.trainer_clock import updates_made
from lr_lightning.diagnosis.cost import Target, parse_target, percentiles, spikes

__all__ = ["EnergyMeter", "RunCost", "total_joules"]

# --- The energy that this process's GPUs have used, where NVML tells it.


class EnergyMeter:
    """Reads the energy counter of one CUDA device; it counts whatever runs on that device.

    Args:
        device: Where the run is.

    Attributes:
        gpu: A number that tells the device from others, from its UUID; 0 where that is not known.
    """

    def __init__(self, device: torch.device) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        self._first: float | None = None
        self.gpu = 0
        if device.type != "cuda":
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            # By its UUID: the numbers of torch and NVML differ under CUDA_VISIBLE_DEVICES.
            uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
            if uuid is not None:
                # 48 bits, so that a float holds it
                self.gpu = int.from_bytes(hashlib.blake2b(str(uuid).encode(), digest_size=6).digest())
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            else:
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
            self._nvml = pynvml
            self._first = self._read()
        except Exception:  # no package, no driver, no permission, an old card: the run has no energy, and goes on
            self._nvml = None

    def _read(self) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000.0

    def joules(self) -> float | None:
        """Energy since the meter was made, in joules; None where it is not known."""
        if self._nvml is None or self._first is None:
            return None
        try:
            return self._read() - self._first
        except Exception:
            return None


def total_joules(ranks: Sequence[Sequence[float]]) -> float | None:
    """The energy of all ranks' devices, each counted once.

    Args:
        ranks: Of each rank its joules, 1 if they are known and 0 if not, and :attr:`EnergyMeter.gpu`.

    Returns:
        The sum in joules; None where that of a device is not known, since a part is no total.

    Example:
        >>> total_joules([(5.0, 1, 7), (6.0, 1, 7), (2.0, 1, 8)])
        8.0
        >>> total_joules([(5.0, 1, 7), (0.0, 0, 8)]) is None
        True
    """
    devices: dict[float, list[float]] = {}
    for index, (joules, known, gpu) in enumerate(ranks):
        readings = devices.setdefault(gpu or -index - 1.0, [])
        if known:
            readings.append(joules)
    every = list(devices.values())
    return sum(map(max, every)) if every and all(every) else None


_MOST_PENDING = 1000  # steps whose values stay on the device


class RunCost(Callback):
    """Measure what a run costs and how stable it is.

    Logged at each validation: ``cost/seconds``, ``cost/examples_per_second``. At the end, once, in :attr:`summary`
    (``summary/*`` in this project's loggers):

    - ``train_seconds``, ``examples_per_second``, ``step_ms_p50``, ``_p95``, ``_p99``; seconds are wall time, and those
      of steps and examples leave out validations, range tests between epochs, and the wait for an epoch's first batch.
      A search for a rate before training is in none of them: the app records it as ``summary/search_seconds``;
    - ``device_seconds`` (seconds times processes), ``gpu_seconds`` where they are GPUs, ``price`` where
      ``price_per_gpu_hour`` is given: without a GPU, of the CPU in its place;
    - ``peak_memory_mb``: of the GPU, else of the process; ``energy_kj``, where NVML counts it for all
      GPUs of the run, each once;
    - ``target_reached``, and ``seconds_to_target`` and ``steps_to_target`` if it was, in a validation. If it was not,
      the run is censored: it took more than ``train_seconds``;
    - ``spikes``: how often the training loss jumped above its smoothed course; ``grad_norm_p50`` to ``_p99``, before
      clipping.

    Losses and norms stay on their device until a validation fetches them at once. Nothing of the run is changed.

    Args:
        target: Such as ``"val/acc>=0.97"``.
        price_per_gpu_hour: Of one device, in any currency.
        gradient_norms: Whether to take the norm of the gradient at every step.

    Raises:
        ValueError: The target cannot be read, or the price is negative.

    Example:
        >>> RunCost(target="val/acc>=0.97").target
        Target(metric='val/acc', sign='>=', value=0.97)
    """

    def __init__(
        self,
        target: str | Target | None = None,
        price_per_gpu_hour: float | None = None,
        gradient_norms: bool = True,
    ) -> None:
        self.target = parse_target(target) if isinstance(target, str) else target
        if price_per_gpu_hour is not None and not (math.isfinite(price_per_gpu_hour) and price_per_gpu_hour >= 0):
            raise ValueError(f"price_per_gpu_hour must be a finite number >= 0, got {price_per_gpu_hour}")
        self.price_per_gpu_hour, self.gradient_norms = price_per_gpu_hour, gradient_norms
        self._fitting = True
        self._reset()

    def _reset(self) -> None:
        self.summary: dict[str, float] = {}
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._step_seconds: list[float] = []
        self._pending: list[tuple[Tensor | None, Tensor | None]] = []
        self._micro: list[Tensor] = []
        self._norm: Tensor | None = None
        self._stepped = False
        self._mark: float | None = None  # since when the step that is under way counts
        self._examples = 0
        self._busy = 0.0  # seconds of steps
        self._seconds_before = 0.0  # of the parts before a resume
        self._joules_before = 0.0
        self._started: float | None = None
        self._meter: EnergyMeter | None = None
        self._reached: tuple[float, float] | None = None

    @property
    def seconds(self) -> float:
        """Wall time of the training so far, the parts before a resume included."""
        return self._seconds_before + (time.perf_counter() - self._started if self._started is not None else 0.0)

    # -- gathering ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; a checkpoint's state is loaded after this."""
        self._fitting = stage == "fit"
        if self._fitting:
            self._reset()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()
        self._meter = EnergyMeter(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What other callbacks do between two epochs, such as a range test, is no step."""
        self._mark = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step begins where the one before ended, so that waiting for data counts; the first after a pause, here."""
        if self._mark is None:
            self._mark = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the norm of the gradient, before it is clipped."""
        self._stepped = True
        if self.gradient_norms:
            norm = _gradient_norm(optimizer)
            if norm is not None:
                self._norm = norm if self._norm is None else (self._norm**2 + norm**2).sqrt()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss where it is; complete the step if the optimizer stepped."""
        self._examples += _size(batch) * trainer.world_size
        loss = batch_loss(outputs, trainer, pl_module)
        if loss is not None:
            self._micro.append(loss)
        if not self._stepped:
            return
        now = time.perf_counter()
        if self._mark is not None:
            self._step_seconds.append(now - self._mark)
            self._busy += now - self._mark
        self._mark = now
        self._pending.append((mean_loss(self._micro), self._norm))
        self._micro, self._norm, self._stepped = [], None, False
        if len(self._pending) >= _MOST_PENDING:
            self._fetch(trainer)

    def _fetch(self, trainer: Trainer, reduce: bool = True) -> None:
        """Bring what is on the device to the host: two transfers, however many steps."""
        pending, self._pending = self._pending, []
        device = trainer.strategy.root_device  # those of a checkpoint lie on the host
        losses = [loss.to(device) for loss, _ in pending if loss is not None]
        norms = [norm.to(device) for _, norm in pending if norm is not None]
        if losses:
            stacked = torch.stack(losses)
            if reduce and trainer.world_size > 1:
                stacked = trainer.strategy.reduce(stacked, reduce_op="mean")
            self._losses += stacked.tolist()
        if norms:
            self._norms += torch.stack(norms).tolist()

    # -- validations -------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation is no step."""
        self._mark = None
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._fetch(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the cost so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {"cost/seconds": self.seconds}
        if self._busy > 0:
            metrics["cost/examples_per_second"] = self._examples / self._busy
        # on all ranks, and equal, so that what monitors them decides alike
        pl_module.log_dict(metrics, sync_dist=trainer.world_size > 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether the target is reached."""
        if self.target is None or trainer.sanity_checking or trainer.state.fn != "fit" or self._reached is not None:
            return
        known = trainer.callback_metrics
        if self.target.metric not in known:
            raise ValueError(
                f"RunCost: no metric {self.target.metric!r} was logged, for the target {self.target}. "
                f"There are: {', '.join(sorted(map(str, known))) or 'none'}."
            )
        if self.target.reached({self.target.metric: float(known[self.target.metric])}):
            self._reached = (self.seconds, float(updates_made(trainer)))

    # -- the end -----------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum up."""
        self._fetch(trainer)
        joules = self._joules()
        gpu = 0 if self._meter is None else self._meter.gpu
        # every rank takes part: NVML may have failed on one of them alone
        own = [joules or 0.0, float(joules is not None), float(gpu)]
        self._sum_up(trainer, pl_module, total_joules(gather_numbers(trainer, own)))
        self._log(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A run that was stopped, or diverged, has cost as well; it is not logged, since it may be gone on with."""
        self._fetch(trainer, reduce=False)
        if self._started is not None:
            # the other ranks are not asked, since they may be gone, and one rank's energy is not the run's
            self._sum_up(trainer, pl_module, self._joules() if trainer.world_size == 1 else None)

    def _sum_up(self, trainer: Trainer, module: LightningModule, joules: float | None) -> None:
        seconds = self.seconds
        device_seconds = seconds * trainer.world_size
        values: dict[str, float | None] = {
            "train_seconds": seconds,
            "device_seconds": device_seconds,
            "gpu_seconds": device_seconds if module.device.type == "cuda" else None,
            "examples_per_second": self._examples / self._busy if self._busy > 0 else None,
            "peak_memory_mb": _peak_memory(module.device),
            "energy_kj": None if joules is None else joules / 1000.0,
            "spikes": float(len(spikes(self._losses))),
        }
        if self.price_per_gpu_hour is not None:
            values["price"] = device_seconds / 3600.0 * self.price_per_gpu_hour
        if self.target is not None:
            values["target_reached"] = float(self._reached is not None)
        if self._reached is not None:
            values["seconds_to_target"], values["steps_to_target"] = self._reached
        values |= {f"step_ms_{k}": v for k, v in percentiles(1000.0 * np.array(self._step_seconds)).items()}
        values |= {f"grad_norm_{k}": v for k, v in percentiles(self._norms).items()}
        self.summary = {key: value for key, value in values.items() if value is not None}

    def _log(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            log_summary = getattr(logger, "log_summary", None)
            try:
                if log_summary is not None:
                    log_summary(self.summary)
                else:
                    logger.log_metrics({f"summary/{k}": v for k, v in self.summary.items()})
            except Exception as e:  # the run is over: a logger that fails now must not take its result away
                rank_zero_warn(f"RunCost: {type(logger).__name__} could not take the summary: {e}")

    def _joules(self) -> float | None:
        now = self._meter.joules() if self._meter is not None else None
        return None if now is None else self._joules_before + now

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything measured so far, as tensors and plain values."""
        losses = [loss for loss, _ in self._pending if loss is not None]
        norms = [norm for _, norm in self._pending if norm is not None]
        return {
            "losses": torch.tensor(self._losses),
            "norms": torch.tensor(self._norms),
            "step_seconds": torch.tensor(self._step_seconds),
            # not yet averaged over the ranks
            "pending_losses": torch.stack(losses).cpu() if losses else None,
            "pending_norms": torch.stack(norms).cpu() if norms else None,
            "micro": [float(loss) for loss in self._micro],
            "examples": self._examples,
            "busy": self._busy,
            "seconds": self.seconds,
            "joules": self._joules() or self._joules_before,
            "reached": None if self._reached is None else list(self._reached),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; a test of a checkpoint leaves what the fit came to."""
        if not self._fitting:
            return
        for name in ("losses", "norms", "step_seconds"):
            setattr(self, f"_{name}", state_dict[name].tolist())
        losses, norms = state_dict["pending_losses"], state_dict["pending_norms"]
        self._pending = [(loss, None) for loss in (() if losses is None else losses)]
        self._pending += [(None, norm) for norm in (() if norms is None else norms)]
        self._micro = [torch.tensor(loss) for loss in state_dict["micro"]]
        self._examples, self._busy = state_dict["examples"], state_dict["busy"]
        self._seconds_before, self._joules_before = state_dict["seconds"], state_dict["joules"]
        self._reached = None if state_dict["reached"] is None else tuple(state_dict["reached"])


def _gradient_norm(optimizer: Optimizer) -> Tensor | None:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients or any(gradient.is_sparse for gradient in gradients):
        return None
    total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float())
    return total.detach()


def _size(batch: Any) -> int:
    """Examples in a batch, where it is plain to see."""
    values: Iterable[Any] = (
        batch.values() if isinstance(batch, dict) else batch if isinstance(batch, tuple | list) else [batch]
    )
    return next((len(value) for value in values if isinstance(value, Tensor) and value.ndim), 0)


def _peak_memory(device: torch.device) -> float | None:
    """In megabytes: the most that torch has held on a GPU, else the most that this process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    kilo = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilo
