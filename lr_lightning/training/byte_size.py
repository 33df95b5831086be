"""Sizes as a person writes them."""

import re

from lr_lightning.training.images import DataError

__all__ = ["parse_size"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(size: str | int) -> int:
    """Bytes of a size such as ``"2 GB"``, ``"500MB"`` or ``1000``; units are decimal.

    Raises:
        DataError: If it is no such size.

    >>> parse_size("1.5 GB")
    1500000000
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:[eE]\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS:
        raise DataError(f"data.in_memory_limit must be a size such as '2 GB' or '500 MB', got {size!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])
