"""Names, tags, params and metrics from anybody: text stays text, in the page, the CSV and the terminal."""

import csv
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from lr_lightning.reports.comparison import Report
from lr_lightning.reports.tables import print_comparison

from .conftest import Runs

SCRIPT, IMAGE = "<script>alert(1)</script>", "<img src=x onerror=alert(1)>"
BREAKOUT = "</script><script>alert(2)</script><!-- \"'`${alert(3)}{{7*7}} &lt;b&gt;"


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


@pytest.fixture
def hostile(runs: Runs) -> Runs:
    """Runs whose every text is an attack."""
    for seed in range(2):
        runs.train("cosine", seed, 0.9)
        tags = {"verdict": IMAGE, "diverged_step": IMAGE}
        runs.train(SCRIPT, seed, 0.8, name=SCRIPT, tags=tags, params={"note": BREAKOUT, "p/x": IMAGE})
    runs.train(BREAKOUT, 0, 0.7, name=IMAGE, status="FAILED", tags={"diverged": "true", "diverged_step": IMAGE})
    runs.train("=HYPERLINK(1)", 0, 0.7, name="=cmd|' /C calc'!A0")
    runs.train("[red]x[/red]", 0, 0.6, name="\x1b[2J\x1b]0;owned\x07[bold]y")
    runs.add(f"other {SCRIPT}", {"val/acc": [(0, 0.5)]}, tags={"job": IMAGE})
    return runs


def test_the_page_has_no_element_of_theirs(hostile: Runs, comparison: Callable[..., Report]) -> None:
    done = comparison(log_run=False)
    text = done.files[0].read_text(encoding="utf-8")
    parser = Elements()
    parser.feed(text)
    assert [attributes for tag, attributes in parser.found if tag == "script"] == [
        {"type": "application/json", "id": "data"}, {}, {},
    ]  # fmt: skip
    assert not [tag for tag, _ in parser.found if tag in ("img", "b", "iframe", "base", "form")]
    assert not [a for _, attributes in parser.found for a in attributes if a.startswith("on")]
    links = [attributes["href"] or "" for tag, attributes in parser.found if tag == "a"]
    assert links
    assert all(re.fullmatch(r"http://127\.0\.0\.1:5000/#/experiments/\d+/runs/[0-9a-f]{32}", link) for link in links)
    for name in (SCRIPT, IMAGE, BREAKOUT, f"other {SCRIPT}"):
        assert name in parser.text
    assert "49" not in re.findall(r"\$\{alert\(3\)\}(.{0,6})", parser.text)


def test_only_the_pages_own_scripts_may_run(hostile: Runs, comparison: Callable[..., Report]) -> None:
    text = comparison(log_run=False).files[0].read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ")
    assert re.search(r"script-src 'sha256-[\w+/=]{44}' 'sha256-[\w+/=]{44}'$", policy)


def test_a_spreadsheet_gets_no_formula(hostile: Runs, comparison: Callable[..., Report]) -> None:
    with comparison(log_run=False).files[1].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {row["name"] for row in rows}
    assert {"'=cmd|' /C calc'!A0", SCRIPT, IMAGE} <= names
    assert {"'=HYPERLINK(1)"} <= {row["group"] for row in rows}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "@"))]


def test_the_terminal_gets_no_escape_sequence_and_no_markup(
    hostile: Runs, comparison: Callable[..., Report], capsys: pytest.CaptureFixture[str]
) -> None:
    done = comparison(log_run=False)
    print_comparison(done.compared, None, done.title)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[red]x[/red]" in out.replace("\n", "")


def test_a_name_of_an_experiment_leads_nowhere_else(runs: Runs, comparison: Callable[..., Report]) -> None:
    evil = Runs(runs.store, "../../evil <b>")
    evil.train("cosine", 0, 0.9)
    done = comparison(experiments=["../../evil <b>"], log_run=False)
    assert done.folder.parent.name == "compare"
    assert re.fullmatch(r"\d{8}-\d{6}-[\w.]+-[0-9a-f]{4}", done.folder.name)
