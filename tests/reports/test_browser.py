"""What a person sees, in a real browser: the report without a network, and MLflow's page of a real sweep."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lr_lightning.reports.comparison_report import ComparisonReport
from lr_lightning.tracking import RunLogger, open_store
from lr_lightning.tracking.query import read_runs
from lr_lightning.tracking.ui import REPORT_NAME
from tests import forked

from .conftest import IMAGE, SCRIPT, Runs

sync_api = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Opened:
    """A page, with what it complained of and what it asked the network for."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_context(**context).new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("dialog", lambda dialog: (self.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, path: Path) -> Any:
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("body[data-drawn=step]", timeout=60_000)
        return self.page


def xs(page: Any, figure: str = "curves") -> list[list[float]]:
    """The x values of every trace that is drawn."""
    return list(page.evaluate(f"document.getElementById('figure-{figure}').data.map(t => Array.from(t.x))"))


def names(page: Any, figure: str = "curves") -> set[str]:
    return set(page.evaluate(f"document.getElementById('figure-{figure}').data.map(t => t.name)"))


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    """Poll from here: the page's policy lets no wait_for_function in."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def report(runs: Runs, comparison: Callable[..., ComparisonReport]) -> Path:
    for seed in range(3):
        runs.train("cosine", seed, 0.95)
        runs.train("constant", seed, 0.9)
        runs.train(SCRIPT, seed, 0.8, name=SCRIPT, params={"note": IMAGE})
    runs.train("cosine", 3, 0.9, name=IMAGE, status="FAILED")
    return comparison(log_run=False, target="val/acc>=0.9").files[0]


def test_the_report_opens_without_a_network_and_answers_clicks(browser: Any, report: Path) -> None:
    opened = Opened(browser, offline=True, viewport={"width": 1280, "height": 900})
    page = opened.open(report)
    assert max(max(x) for x in xs(page)) == 39
    values = "['curves', 'means'].map(f => document.getElementById(`figure-${f}`).data.map(t => Array.from(t.y)))"
    on_steps = page.evaluate(values)
    assert all(0.0 < y < 10.0 for trace in on_steps[0] for y in trace)
    for axis, last in (("epochs", 4.0), ("examples", 2560.0), ("seconds", 0.78), ("fraction", 1.0)):
        page.check(f"input[name=axis][value={axis}]")
        page.wait_for_selector(f"body[data-drawn={axis}]")
        for figure in ("curves", "means"):
            assert max(max(x) for x in xs(page, figure)) == pytest.approx(last, rel=1e-5)
        assert page.evaluate(values) == on_steps
    label = page.locator("label:has(input[data-group])").filter(has_text="constant")
    before = names(page)
    assert "constant seed=0" in before
    label.locator("input").uncheck()
    wait_until(lambda: names(page) == {name for name in before if not name.startswith("constant")})
    label.locator("input").check()
    wait_until(lambda: names(page) == before)
    assert not opened.errors
    assert opened.asked == [report.as_uri()]


def test_a_script_in_a_name_is_shown_and_does_nothing(browser: Any, report: Path) -> None:
    opened = Opened(browser, offline=True)
    page = opened.open(report)
    page.hover("#figure-curves .nsewdrag >> nth=0")
    page.wait_for_timeout(300)
    assert page.locator("#groups th", has_text=SCRIPT).count() == 1
    assert page.locator("#runs th", has_text=IMAGE).count() == 1
    assert page.locator("img[src=x]").count() == 0
    assert not opened.errors
    # Even a script that got into the page would not run.
    page.evaluate("() => { const s = document.createElement('script'); s.textContent = 'window.owned = 1'; "
                  "document.body.append(s); }")  # fmt: skip
    assert page.evaluate("window.owned === undefined")


def test_a_logarithmic_axis_has_whole_powers_of_ten_until_it_is_zoomed(
    browser: Any, runs: Runs, comparison: Callable[..., ComparisonReport]
) -> None:
    for lr in (1e-4, 1e-3, 1e-2, 0.1):
        runs.train("cosine", 0, 0.9, lr=lr, rows={"val/loss": [(9, 0.5), (39, 0.05)]})
    opened = Opened(browser, offline=True)
    page = opened.open(comparison(log_run=False).files[0])

    def labels(figure: str, axis: str) -> list[str]:
        found = page.locator(f"#figure-{figure} .{axis}tick text").all_text_contents()
        return [text.replace("\u2212", "-") for text in found]

    assert labels("sensitivity", "x") == ["1e-4", "1e-3", "0.01", "0.1"]
    assert labels("means", "y2") == ["0.05", "0.1", "0.2", "0.5"]
    page.evaluate("Plotly.relayout('figure-sensitivity', {'xaxis.range': [-2.7, -2.4]})")
    wait_until(lambda: len(labels("sensitivity", "x")) > 1 and "0.003" in labels("sensitivity", "x"))
    page.evaluate("Plotly.relayout('figure-sensitivity', {'xaxis.autorange': true})")
    wait_until(lambda: labels("sensitivity", "x") == ["1e-4", "1e-3", "0.01", "0.1"])
    assert not opened.errors


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_it_fits_the_screen_and_nothing_lies_over_the_data(
    browser: Any, report: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    opened = Opened(browser, viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
    page = opened.open(report)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".plot .legend").count() == 0
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 18, 18)"
    assert dark == (scheme == "dark")
    colours = page.evaluate(
        "[getComputedStyle(document.querySelector('#figure-curves .xtick text')).fill, "
        "getComputedStyle(document.body).color]"
    )
    assert colours[0] == colours[1]
    if width > 600:
        groups = page.locator(".wide:has(#groups)")
        assert groups.evaluate("e => e.scrollWidth <= e.clientWidth")
        bar = page.locator("#figure-means .modebar")
        assert bar.evaluate("e => getComputedStyle(e).opacity") == "0"
        page.locator("#figure-means .nsewdrag").last.hover()
        wait_until(lambda: bar.evaluate("e => getComputedStyle(e).opacity") == "1")
        group = page.locator("#figure-means .modebar-group").first
        assert group.evaluate("e => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"
        top = page.locator("#figure-means .nsewdrag").first.bounding_box()
        assert bar.bounding_box()["y"] + bar.bounding_box()["height"] <= top["y"]
    page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert not opened.errors


def test_in_a_narrow_window_each_pair_is_a_block_that_fits(browser: Any, report: Path) -> None:
    page = Opened(browser, offline=True, viewport={"width": 360, "height": 800}).open(report)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    cells = page.locator("#comparisons tbody tr").first.locator("td")
    boxes = [cells.nth(i).bounding_box() for i in range(cells.count())]
    assert len({round(box["x"]) for box in boxes}) == 1  # one below the other
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 360 for box in boxes)
    assert cells.first.evaluate("e => getComputedStyle(e, '::before').content") == '"better"'


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A real sweep of two schedules and two seeds, and what the command said."""
    root = tmp_path_factory.mktemp("sweep")
    command = [str(ROOT / "scripts" / "train.py"), "-m", f"output_root={root}/outputs"]
    command += [f"tracking.root={root}/mlruns", "schedule=constant,cosine", "seed=0,1"]
    command += ["model.kwargs.width=4", "trainer.max_epochs=2"]
    done = forked.run(*command, cwd=root, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done.stdout


def test_a_multirun_ends_with_its_comparison(sweep: tuple[Path, str]) -> None:
    root, out = sweep
    assert "2 settings, 2 seeds each: 1 pair to compare, for which 6 seeds are needed." in out
    assert "unproven: 2 seeds, 6 can prove it" in out
    assert re.search(
        r"^charts of lr_lightning \(while `make ui` is running\), .*workflowType=", out, flags=re.MULTILINE
    )
    (path,) = re.findall(r"^report:\s+(\S.*)$", out, flags=re.MULTILINE)
    assert Path(path).parent.parent == root / "outputs" / "compare"
    assert "4 runs by schedule" in Path(path).read_text(encoding="utf-8")
    store = open_store(root / "mlruns")
    trained = [run for run in read_runs(store, ["1"]) if run.job == "train"]
    assert len({run.tags["sweep"] for run in trained}) == 1
    assert sorted(run.tags["trial"] for run in trained) == ["0", "1", "2", "3"]
    assert len({(run.tags["schedule"], run.tags["mlflow.runColor"]) for run in trained}) == 2


@pytest.fixture(scope="module")
def server(sweep: tuple[Path, str]) -> Iterator[str]:
    """`scripts/ui.py` on that sweep, with runs of other kinds beside it; what it prints."""
    _add_other_runs(sweep[0])
    with socket.socket() as free:  # a port of its own: the server of another worker may be about to end
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(ROOT / "scripts" / "ui.py"), "--root", str(sweep[0] / "mlruns"), "--port", port]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=sweep[0])
    try:
        assert process.stdout is not None
        said = ""
        while "charts of" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        _wait_until_up(re.findall(r"http://127\.0\.0\.1:\d+", said)[0])
        yield said
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


OTHERS = {"find_lr": "a search for a rate", "lr_effects": "table of a study", "search": "table of a search"}


def _add_other_runs(root: Path) -> None:
    """A run of every job with the curves of a training, and a training of the plugin that says nothing of its job."""
    store = open_store(root / "mlruns")
    for job, name in {"": "by the plugin", **OTHERS}.items():
        tags = {"job": job} if job else None
        logger = RunLogger(root / f"other-{name}", store, run_name=name, tags=tags)
        logger.log_rows([(key, 1.0 / s, s, 1000 + s) for s in range(1, 41) for key in ("lr/group0", "train/loss")])
        logger.end("FINISHED")


def _wait_until_up(address: str) -> None:
    until = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.3)
        else:
            return


def test_mlflows_page_shows_the_charts_of_the_sweep(browser: Any, server: str) -> None:
    (link,) = re.findall(r"charts of 'lr_lightning': (\S+)", server)
    opened = Opened(browser, viewport={"width": 1600, "height": 1400})
    answers: list[Any] = []

    def keep(response: Any) -> None:
        if "get-history-bulk-interval" in response.url and "lr%2Fgroup0" in response.url and response.ok:
            answers.append(response)

    opened.page.on("response", keep)
    opened.page.goto(link)
    page = opened.page
    for section in ("Learning rate and loss", "By peak learning rate", "Accuracy and gap"):
        page.get_by_text(section).first.wait_for(timeout=90_000)
    for run in ("cosine s0", "constant s1", "by the plugin"):
        page.get_by_text(run).first.wait_for(timeout=30_000)
    page.wait_for_function(
        "[...document.querySelectorAll('.js-plotly-plot')]"
        ".some(p => p.data && p.data.filter(t => t.y && t.y.length > 30).length >= 5)",
        timeout=60_000,
    )
    drawn = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].flatMap(p => p.data.map(t => [t.name || '', "
        "(t.y || []).length, t.line && t.line.color]))"
    )
    curves = {name: colour for name, length, colour in drawn if length > 30}
    assert {"cosine s0", "constant s1", "by the plugin"} <= set(curves), json.dumps(drawn)
    for name in (REPORT_NAME, *OTHERS.values()):
        assert page.get_by_text(name).count() == 0
        assert name not in {shown for shown, _, _ in drawn}
    assert answers
    assert answers[0].json()["metrics"]
    assert len({colour for name, colour in curves.items() if name.startswith("cosine")}) == 1
    assert page.url.count("workflowType=machine_learning") == 1


def test_the_report_opens_in_mlflows_sandboxed_viewer(browser: Any, server: str, sweep: tuple[Path, str]) -> None:
    (path,) = re.findall(r"^in MLflow .*?(/#/experiments\S+)$", sweep[1], flags=re.MULTILINE)
    address = re.findall(r"http://127\.0\.0\.1:\d+", server)[0]
    opened = Opened(browser, viewport={"width": 1600, "height": 1200})
    opened.page.goto(address + path)
    frame = opened.page.frame_locator("iframe")
    frame.locator("body[data-drawn=step]").wait_for(timeout=90_000)
    assert (
        "cannot prove" in frame.locator("#headline").inner_text()
        or "No winner" in frame.locator("#headline").inner_text()
    )
    frame.locator("input[name=axis][value=epochs]").check()
    frame.locator("body[data-drawn=epochs]").wait_for(timeout=30_000)


def test_the_server_listens_on_the_loopback_interface_alone(server: str) -> None:
    port = int(re.findall(r"http://127\.0\.0\.1:(\d+)", server)[0])
    socket.create_connection(("127.0.0.1", port), timeout=30).close()
    for other in ("127.0.0.2", "::1"):  # one that listens everywhere answers there as well
        with pytest.raises(OSError, match=r"refused|assign|unreachable|not supported"):
            socket.create_connection((other, port), timeout=30).close()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", b"{}")
    request.add_header("Host", "evil.example")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 403
