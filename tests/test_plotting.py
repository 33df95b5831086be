from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np

from lr_lightning._plotting import Style, colour_ramp, style, styles

ROOT = Path(__file__).resolve().parent.parent


def lab(colour: str) -> np.ndarray:
    """A colour in CIELAB (CIE 1976, white point D65), where distances are those that people see."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    f = np.cbrt(to_xyz @ linear / np.array([0.9505, 1.0, 1.0888]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def closest(looks: Iterable[Style]) -> float:
    colours = [lab(look.colour) for look in looks]
    return min(float(np.linalg.norm(a - b)) for a, b in combinations(colours, 2))


def test_up_to_twelve_names_have_colours_that_nobody_confuses() -> None:
    assert closest(styles(f"optimizer {i}" for i in range(12)).values()) > 25
    assert closest(styles(["cosine", "wsd", "triangular", "plateau", "polynomial", "one_cycle"]).values()) > 25


def test_every_schedule_of_the_app_has_a_look_of_its_own() -> None:
    names = [path.stem for path in (ROOT / "conf" / "schedule").glob("*.yaml")]
    looks = styles(names)
    assert len({(look.colour, look.dash) for look in looks.values()}) == len(names)
    assert all(styles([name])[name] == style(name) for name in names)
    assert looks["cosine"] == style("cosine")


def test_other_names_get_what_is_free() -> None:
    looks = styles([f"optimizer {i}" for i in range(36)]).values()
    assert len({(look.colour, look.dash) for look in looks}) == 36
    assert len(styles([*(f"optimizer {i}" for i in range(36)), *(f"more {i}" for i in range(300))])) == 336
    assert styles(["cosine", "zzz"])["cosine"] == style("cosine")
    assert styles(["\udcff"])
    assert styles([]) == {}


def test_learning_rates_have_colours_in_their_order() -> None:
    names = ["lr=0.1", "lr=1e-05", "lr=0.01", "lr=0.001"]
    looks = styles(names)
    order = sorted(names, key=lambda name: float(name.removeprefix("lr=")))
    assert [looks[name].colour for name in order] == [colour_ramp(i / 3) for i in range(4)]
    lightness = [lab(colour_ramp(i / 20))[0] for i in range(21)]
    assert lightness == sorted(lightness)
    assert {look.dash for look in looks.values()} == {"solid"}


def test_each_schedule_of_a_sweep_of_learning_rates_has_its_own_line() -> None:
    names = [f"{schedule}, lr={lr}" for schedule in ("cosine", "constant") for lr in (0.01, 0.03, 0.1, 0.3)]
    looks = styles(names)
    assert looks["cosine, lr=0.1"].colour == looks["constant, lr=0.1"].colour == colour_ramp(2 / 3)
    assert looks["cosine, lr=0.1"].dash != looks["constant, lr=0.1"].dash
    assert closest(styles(name for name in names if "0.3" in name or "0.1" in name).values()) > 25
