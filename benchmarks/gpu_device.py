"""What the parts of ``benchmarks.gpu`` share: the size of the run, and what a device tells about itself."""

import contextlib
import os
import statistics
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # set by a Trainer with deterministic kernels
_SYNCHRONIZING = "called a synchronizing CUDA operation"  # torch's words in the "warn" mode


@dataclass(frozen=True)
class Setting:
    """How much is measured, and on what.

    Attributes:
        data: Overrides that choose the data.
        recipe: Those that choose network, schedule and precision of the race.
        target: Accuracy of the race, 0..1.
        epochs: Of the race.
        seeds: Of the race.
        rounds: Alternating rounds of the parts that compare steps.
        warmup: Steps of an arm before the clock.
        block: Steps between two looks at the clock, each of which waits for the device.
        blocks: Blocks of an arm in a round.
        models: Networks whose callbacks' cost is measured.
        scale: Of smith_table.
        smith_seeds: Of smith_table.
        quick: Whether nothing is stored.
    """

    data: tuple[str, ...]
    recipe: tuple[str, ...]
    target: float
    epochs: int
    seeds: int
    rounds: int
    warmup: int
    block: int
    blocks: int
    models: tuple[str, ...]
    scale: float
    smith_seeds: int
    quick: bool


def device() -> torch.device:
    """The GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def allocated() -> int | None:
    """Bytes of tensors on the GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    return int(torch.cuda.memory_allocated())


def lost() -> str | None:
    """Why the GPU is of no more use to this process, as after an illegal access; None if it is, or there is none."""
    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextlib.contextmanager
def global_settings_kept() -> Iterator[None]:
    """Put back what a Trainer sets for the whole process, so that no arm runs under another's."""
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, fixed = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    workspace = os.environ.get(_CUBLAS)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, fixed
        os.environ.pop(_CUBLAS, None)
        if workspace is not None:
            os.environ[_CUBLAS] = workspace


class Utilisation:
    """Samples from a thread how much of the time the GPU is at work, as NVML tells it.

    It is the share of time with at least one kernel on the GPU: low where the GPU waits for the host, say for data.

    Args:
        seconds: Between two samples.

    Attributes:
        percent: Median of the samples, 0..100; None without a GPU, pynvml or samples.
    """

    def __init__(self, seconds: float = 0.1) -> None:
        self.percent: float | None = None
        self._seconds, self._samples = seconds, list[float]()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        found = _nvml()
        if found is not None:
            self._thread = threading.Thread(target=self._sample, args=found, daemon=True)
            self._thread.start()
        return self

    def _sample(self, nvml: Any, handle: Any) -> None:
        while not self._done.wait(self._seconds):
            try:
                self._samples.append(float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu))
            except Exception:  # NVML went away: what was sampled stays
                return

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        self.percent = statistics.median(self._samples) if self._samples else None


def _nvml() -> tuple[Any, Any] | None:
    """NVML and the handle of torch's current device, by its UUID: under CUDA_VISIBLE_DEVICES the numbers differ."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
        if uuid is None:
            return pynvml, pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except Exception:  # no package, no driver, no permission
        return None


class Synchronizations:
    """Counts where the host waits for the GPU, between :meth:`start` and :meth:`stop`, within its ``with`` block.

    Attributes:
        count: Of the waits; None without a GPU.
    """

    def __init__(self) -> None:
        self.count: int | None = None
        self._caught: list[warnings.WarningMessage] = []
        self._recorder = warnings.catch_warnings(record=True)

    def __enter__(self) -> Self:
        caught = self._recorder.__enter__()
        self._caught = [] if caught is None else caught  # the list itself, which is still empty
        warnings.simplefilter("always")
        return self

    def start(self) -> None:
        """From here on."""
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> None:
        """Up to here."""
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")

    def __exit__(self, *error: Any) -> None:
        self.stop()
        self._recorder.__exit__(*error)
        if torch.cuda.is_available():
            self.count = synchronizing([str(each.message) for each in self._caught])


def synchronizing(messages: list[str]) -> int:
    """How many of the warnings are torch's of a wait.

    >>> synchronizing(["called a synchronizing CUDA operation (Triggered internally at x.cpp:1.)", "other"])
    1
    """
    return sum(_SYNCHRONIZING in message for message in messages)
