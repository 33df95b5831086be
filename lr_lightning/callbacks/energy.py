"""The energy that this process's GPUs have used, where NVML tells it."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["EnergyMeter", "total_joules"]


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
