"""The families against transformers' and optax' formulas: stored values, made by make_reference_values.py."""

import json
from pathlib import Path

import pytest

from lr_lightning.schedules import (
    WSD,
    Clock,
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Join,
    Linear,
    MultiStep,
    OneMinusSqrt,
    Polynomial,
    Restarts,
    Schedule,
    Warmup,
)

STORED = json.loads(Path(__file__).with_name("reference_values.json").read_text())
TOTAL, WARMUP = STORED["total"], STORED["warmup"]
FALL = TOTAL - 30 - WARMUP


def wsd(fall: Schedule) -> Schedule:
    return Join((Linear(0.05, 1.0), WARMUP), (Constant(), None), (fall, FALL))


EQUAL: dict[str, Schedule] = {
    "transformers/linear": Warmup(WARMUP, Linear(), start=0.0),
    "transformers/polynomial": Warmup(WARMUP, Polynomial(1.0, 1e-7, power=2.5), start=0.0),
    "transformers/inverse_sqrt": Warmup(WARMUP, InverseSqrt(11), start=0.0),
}
CLOSE: dict[str, Schedule] = {
    "transformers/cosine": Warmup(WARMUP, Cosine(1.0, 0.1), start=0.0),
    "transformers/wsd_1-sqrt": wsd(OneMinusSqrt(1.0, 0.05)),
    "transformers/wsd_linear": wsd(Linear(1.0, 0.05)),
    "transformers/wsd_cosine": wsd(Cosine(1.0, 0.05)),
    "optax/linear": Linear(1.0, 0.25),
    "optax/polynomial": Polynomial(1.0, 0.1, power=3),
    "optax/cosine": Cosine(1.0, 0.1),
    "optax/exponential": Exponential(1.0, 0.02),
    "optax/warmup_cosine": Warmup(WARMUP, Cosine(1.0, 0.05), start=0.1),
    "optax/piecewise": MultiStep(at=(10, 30), gamma=0.3),
    "optax/join": Join((Linear(0.0, 1.0), 5), (Constant(), None), (Linear(), 8)),
    # after its last cycle the peer stays at the end
    "optax/sgdr": Join((Restarts(Cosine(1.0, 0.1), first=6, mult=2), 6 + 12 + 24), (Constant(0.1), None)),
}


def ours(schedule: Schedule) -> list[float]:
    clock = Clock(TOTAL)
    return [schedule(step, clock) for step in range(TOTAL + 1)]


@pytest.mark.parametrize("name", EQUAL)
def test_equal_to_the_last_bit(name: str) -> None:
    assert ours(EQUAL[name]) == STORED["values"][name]


@pytest.mark.parametrize("name", CLOSE)
def test_within_1e_12(name: str) -> None:
    for step, (value, expected) in enumerate(zip(ours(CLOSE[name]), STORED["values"][name], strict=True)):
        assert value == pytest.approx(expected, rel=1e-12, abs=0), step


@pytest.mark.parametrize("shape", ["1-sqrt", "linear", "cosine"])
def test_wsd_after_its_warmup_is_equal_to_transformers_wsd(shape: str) -> None:
    schedule = WSD(warmup=WARMUP, cooldown=FALL, shape=shape, end=0.05)
    assert ours(schedule)[WARMUP:] == STORED["values"][f"transformers/wsd_{shape}"][WARMUP:]


def test_hard_restarts_of_transformers() -> None:
    # near its zeros the peer's own `(cycles * progress) % 1` has lost its relative precision, hence `abs`
    schedule = Warmup(WARMUP, Restarts(Cosine(), first=14), start=0.0)
    assert ours(schedule) == pytest.approx(STORED["values"]["transformers/hard_restarts"], rel=1e-12, abs=1e-15)


def test_every_stored_case_is_used() -> None:
    used = {
        *EQUAL,
        *CLOSE,
        "transformers/hard_restarts",
        *(f"transformers/wsd_{shape}" for shape in ("1-sqrt", "linear", "cosine")),
    }
    assert used == set(STORED["values"])
