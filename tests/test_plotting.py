from pathlib import Path

from lr_lightning._plotting import style, styles

ROOT = Path(__file__).resolve().parent.parent


def test_every_schedule_of_the_app_has_a_colour_and_line_of_its_own() -> None:
    names = [path.stem for path in (ROOT / "conf" / "schedule").glob("*.yaml")]
    looks = styles(names)
    assert len({look.colour for look in looks.values()}) == len(names)
    assert looks == {name: style(name) for name in names}


def test_other_names_get_what_is_free() -> None:
    names = [f"optimizer {i}" for i in range(21)]
    assert len({look.colour for look in styles(names).values()}) == 21
    assert len(styles([*names, *(f"more {i}" for i in range(300))])) == 321
    assert styles(["cosine", "zzz"])["cosine"] == style("cosine")
    assert styles(["\udcff"])


def test_a_few_other_names_get_full_hues_and_solid_lines() -> None:
    looks = styles([f"lr={0.01 * i:g}" for i in range(7)]).values()
    assert {look.dash for look in looks} == {"solid"}
    assert len({look.colour for look in looks}) == 7
