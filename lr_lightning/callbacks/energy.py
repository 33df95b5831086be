"""The energy that this process's GPUs have used, where NVML tells it."""

from typing import Any

import torch

__all__ = ["EnergyMeter"]


class EnergyMeter:
    """Reads the energy counter of one CUDA device; it counts whatever runs on that device.

    Args:
        device: Where the run is.
    """

    def __init__(self, device: torch.device) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        self._first: float | None = None
        if device.type != "cuda":
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            # By its UUID: the numbers of torch and NVML differ under CUDA_VISIBLE_DEVICES.
            uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
            if uuid is not None:
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
