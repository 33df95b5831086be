"""The plateau as a function of its history; test_torch.py compares it with torch."""

from lr_lightning.schedules import (
    Plateau,
)


def test_plateau_keeps_its_bounds() -> None:
    plateau = Plateau("val/acc", factor=0.5, patience=0, mode="max", min_factor=0.3)
    assert plateau([]) == 1.0
    assert plateau([0.1, 0.1]) == 0.5
    assert plateau([0.1, 0.1, 0.1, 0.1]) == 0.3
    assert plateau([0.1, float("nan"), float("nan")]) == 0.3  # nan is never better
