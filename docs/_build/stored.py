"""The tables of docs/benchmarks.md and docs/papers.md, made from the stored results.

Run ``python docs/_build/stored.py`` after a benchmark has stored a result: it writes the tables into the pages.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lr_lightning.diagnosis.statistics import mean_ci

ROOT = Path(__file__).resolve().parents[2]
_OVER_LIGHTNING = "ratio_to_lightning"
_HEAD = "| measured | newest stored | machine |\n|---|---|---|\n"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: Name of the benchmark's module.
        what: What it measures.
        say: Returns the newest number as text, given the stored result.
        options: Options of the command that stores the result.
        result: Name of the result, if it is not the module's.
    """

    name: str
    what: str
    say: Callable[[dict[str, Any]], str]
    options: str = ""
    result: str | None = None

    @property
    def command(self) -> str:
        """The command that stores the result."""
        return f"python -m benchmarks.{self.name} {self.options}".rstrip()

    @property
    def file(self) -> str:
        """Name of the result's file."""
        return f"{self.result or self.name}.json"


def spread(found: dict[str, float], form: str = "{:.3g}") -> str:
    """Format a median with the smallest and the largest value, and n."""
    low, middle, high = (form.format(found[key]) for key in ("min", "median", "max"))
    return f"{middle} ({low} to {high}), n = {found['n']}"


def of_values(values: Sequence[float], form: str = "{:.3g}") -> str:
    """Format the spread of plain values."""
    return spread({"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}, form)


def _schedule_cost(found: dict[str, Any]) -> str:
    each = [cost["cpu"] for cost in found["microseconds"].values()]
    medians = [cost["median"] for cost in each]
    return f"{min(medians):.1f} to {max(medians):.1f} µs, medians of {len(each)} schedules, n = {each[0]['n']} each"


def _logging(found: dict[str, Any]) -> str:
    def said(steps: int, arm: str) -> str:
        return f"{spread(found['steps'][str(steps)][arm]['foreground_ms_a_step'])}, {steps:,} steps"

    return f"ms a step: {said(10_000, 'lr_lightning')}; Lightning's logger {said(1_000, 'Lightning')}"


def _regret(found: dict[str, Any]) -> str:
    rule = found["sets"]["held out"]["rules"]["lr_lightning"]
    parts = (("where it answers", "where_answered"), ("in all", "all"))
    return "; ".join(
        f"mean {rule[key]['mean']:.3f} ({rule[key]['low']:.3f} to {rule[key]['high']:.3f}) {text}, n = {rule[key]['n']}"
        for text, key in parts
    )


def _retry(found: dict[str, Any]) -> str:
    each = found["1e-06..10"]
    sweeps = len(found["problems"]) * found["seeds"]
    return f"mean {each['regret_once']:.3f} without, {each['regret_with_retry']:.3f} with, n = {sweeps} sweeps each"


def _pruning(found: dict[str, Any]) -> str:
    saved = (
        f"{arm} {of_values([run['epochs_saved'] for run in runs], '{:.0%}')}"
        for arm, runs in found["arms"].items()
        if arm != "none"
    )
    return "; ".join(saved)


def _pruning_replay(found: dict[str, Any]) -> str:
    arms = {arm: of_arm["figures"] for arm, of_arm in found["loss"].items()}
    arms = {"cooled, its constants chosen on other problems": found["held_out"]["figures"], "median": arms["median"]}
    said = (f"{arm}: {row['epochs_saved']:.0%} saved, {row['good_lost']:.1%} lost" for arm, row in arms.items())
    return f"{'; '.join(said)}; n = {found['held_out']['figures']['n']} problems"


def _search_methods(found: dict[str, Any]) -> str:
    methods = ((name, runs) for name, runs in found.items() if name != "machine")
    return "; ".join(f"{name} {of_values([run['best'] for run in runs], '{:.2g}')}" for name, runs in methods)


def _schedules(found: dict[str, Any]) -> str:
    longest = max(row["epochs"] for row in found["rows"])
    rows = [row for row in found["rows"] if row["epochs"] == longest]
    best = max(rows, key=lambda row: statistics.fmean(row["held_out"]))
    return f"{longest} epochs, the best: {best['schedule']} {of_values(best['held_out'], '{:.1%}')}"


def _difference(claim: dict[str, float]) -> str:
    return f"mean {claim['mean']:+.2f} ({claim['low']:+.2f} to {claim['high']:+.2f}) points, n = {claim['n']}"


def _smith(found: dict[str, Any]) -> str:
    claims = "; ".join(f"{text.split(' (')[0]}: {_difference(claim)}" for text, claim in found["claims"].items())
    return f"{claims}; scale {found['scale']:g}"


def _gpu(found: dict[str, Any]) -> str:
    parts = found["parts"]
    said = [text for name, part in parts.items() for text in _gpu_part(name, part)]
    return "; ".join([*said, ", ".join(f"{name} {part['status']}" for name, part in parts.items())])


def _gpu_part(name: str, part: dict[str, Any]) -> Iterator[str]:
    """Yield the results of a part; nothing if it failed before its first round."""
    if name == "resnet9" and "app_to_loop" in part:
        yield f"app to loop, seconds: {spread(part['app_to_loop']['seconds'])}"
    if name == "precision" and "ratio_to_32 contiguous" in part:
        yield f"a step in bf16 channels_last, over 32: {spread(part['ratio_to_32 contiguous']['bf16 channels_last'])}"
    if name == "callbacks":
        models = {key: value for key, value in part.items() if isinstance(value, dict) and _OVER_LIGHTNING in value}
        for model, of_model in models.items():
            yield f"{model} with all callbacks, over Lightning: {spread(of_model[_OVER_LIGHTNING]['all four, MLflow'])}"
    if name == "finder" and "seconds" in part:
        yield f"range test, seconds: {spread(part['seconds'])}"
    if name == "smith_table" and "claims" in part:
        yield _smith(part)


def _store_scale(found: dict[str, Any]) -> str:
    runs, cost = max(found["runs"].items(), key=lambda item: int(item[0]))
    compared, by_way = max(found["compare"].items(), key=lambda item: int(item[0]))
    cpu = spread(by_way["logged"]["cpu_seconds"])
    read = spread(cost["read_all_runs_seconds"])
    return f"seconds to read {int(runs):,} runs: {read}; CPU seconds to compare {int(compared):,} long ones: {cpu}"


def _many_ranks(found: dict[str, Any]) -> str:
    ranks, cost = max(found["ranks"].items(), key=lambda item: int(item[0]))
    return f"ms a step with {ranks} ranks: {spread(cost['ms_a_step'])}"


def _growth(found: dict[str, Any]) -> str:
    name, worst = max(found["curves"].items(), key=lambda item: float(item[1]["exponent"]))
    return f"the steepest of {len(found['curves'])} curves: {name}, exponent {worst['exponent']:.2f}, n = {found['repeats']}"


def _peers(found: dict[str, Any]) -> str:
    return "; ".join(f"{name} {spread(ratio)}" for name, ratio in list(found["ratio_to_no_callback"].items())[1:])


def _threads(found: dict[str, Any]) -> str:
    return "; ".join(f"{net} {spread(row['faster'])}" for net, row in list(found["nets"].items())[:2])


def _throughput(found: dict[str, Any]) -> str:
    problems = (item for item in found.items() if item[0] != "machine")
    ratios = {name: each["ratio_to_lightning"]["app"] for name, each in problems}
    form = "{} {median:.3f}, 95 % interval {low:.3f} to {high:.3f}, n = {n}"
    return "; ".join(form.format(name, **ratio) for name, ratio in ratios.items())


def _lr_effects(found: dict[str, Any]) -> str:
    outcomes = [claim["outcome"] for claim in found["claims"]]
    kinds = ("held", "the opposite held", "not shown")
    counts = ", ".join(f"{kind} {outcomes.count(kind)}" for kind in kinds)
    return f"of {len(outcomes)} claims: {counts}; n = {len(found['trials'])} runs"


def _whole_run(found: dict[str, Any]) -> str:
    loss = {name: rule["loss"] for name, rule in found["rules"].items()}
    said = (f"{name} {loss[name]['mean']:.3f} ({loss[name]['low']:.3f} to {loss[name]['high']:.3f})" for name in loss)
    return f"mean regret: {'; '.join(list(said)[:2])}, n = {len(found['cells'])} cells"


def _cooldown_preview(found: dict[str, Any]) -> str:
    average, raw = found["average 0.06"], found["raw"]
    return f"rank correlation {average['overall']:.3f}, of the raw weights {raw['overall']:.3f}, n = {average['n']}"


def _forecast(found: dict[str, Any]) -> str:
    rows = found["validation"].values()
    means = {way: statistics.fmean(row[way]["mean"] for row in rows) for way in ("law", "preview", "noise")}
    said = f"law {means['law']:.0%}, preview {means['preview']:.0%}, two seeds {means['noise']:.0%}"
    return f"{said}, n = {len(rows)} problems"


def _advice(found: dict[str, Any]) -> str:
    rows = [row for name, row in found["advice"].items() if not name.endswith("(either)")]  # those count once
    helped = sum(row["better"] * row["followed"] for row in rows)
    worse = sum(row["worse"] * row["followed"] for row in rows)
    count = sum(row["followed"] for row in rows)
    return f"better {helped / count:.0%}, worse {worse / count:.0%}, n = {count}"


def _soak(found: dict[str, Any]) -> str:
    changed = found["rows_missing_or_changed"] + found["rows_added_or_changed"]
    return f"{found['kills']} kills, {changed} of {found['metric_rows']} rows changed, n = 1"


ROWS = (
    Row("throughput", "the app's training step, over Lightning's alone", _throughput, "--cifar10 FOLDER"),
    Row("lr_schedule_cost", "`LRSchedule` a step", _schedule_cost),
    Row(
        "monitor_cost",
        "a fit with `OverfittingMonitor`, over the fit without, CPU time",
        lambda found: spread(found["ratios"]["OverfittingMonitor"]),
    ),
    Row("logging", "what training waits for when every step is logged to SQLite", _logging),
    Row(
        "finder_cost",
        "a range test, over a bare loop of the same steps, CPU time",
        lambda found: spread(found["ratio_to_loop"]["LRFinder"]),
    ),
    Row("finder_regret", "regret of the finder's learning rates, held-out problems, 95 % interval", _regret),
    Row("finder_retry", "regret without and with a second, wider range", _retry),
    Row("schedules", "test accuracy of schedules on digits with wrong labels", _schedules),
    Row(
        "batch_growth",
        "test accuracy on digits, growing the batch minus decaying the learning rate",
        lambda found: _difference(found["difference"]),
    ),
    Row(
        "batch_growth",
        "the same on CIFAR-10",
        lambda found: _difference(found["difference"]),
        "--cifar10 FOLDER",
        result="batch_growth_cifar10",
    ),
    Row(
        "batch_growth",
        "the same on digits with AdamW, the learning rate divided by the square root of the growth",
        lambda found: _difference(found["difference"]),
        "--optimizer adamw",
        result="batch_growth_adamw",
    ),
    Row(
        "super_convergence",
        "test accuracy on CIFAR-10, 1cycle minus a step schedule of ten times the epochs",
        lambda found: _difference(found["differences"]["1cycle, 4 epochs − step, 40 epochs"]),
        "--cifar10 FOLDER",
    ),
    Row("smith_table", "Smith's table on CIFAR-10: paired differences", _smith, "--cifar10 FOLDER"),
    Row(
        "whole_run",
        "regret of finders' learning rates over whole planned runs",
        _whole_run,
        "--cifar10 FOLDER",
        result="whole_run_open",
    ),
    Row(
        "whole_run",
        "the same, on cells that were sealed until the rules were done",
        _whole_run,
        "--cifar10 FOLDER --unseal",
        result="whole_run_sealed",
    ),
    Row(
        "whole_run",
        "the same, on twenty harder cells that were drawn and sealed later",
        _whole_run,
        "--cifar10 FOLDER --set second --unseal",
        result="whole_run_second",
    ),
    Row(
        "whole_run",
        "the same, on eighteen cells that were drawn and sealed after the rules were changed",
        _whole_run,
        "--cifar10 FOLDER --set third --unseal",
        result="whole_run_third",
    ),
    Row(
        "advice",
        "a verdict's advice, followed: the validation loss at the end; trainings on which rules were chosen",
        _advice,
        "--cifar10 FOLDER",
        result="advice_open",
    ),
    Row(
        "advice",
        "the same; trainings that were sealed when they were made",
        _advice,
        "--cifar10 FOLDER --unseal",
        result="advice_all",
    ),
    Row(
        "advice",
        "the same; the last set of these, after which one rule was changed",
        _advice,
        "--cifar10 FOLDER --set fifth --unseal",
        result="advice_fifth",
    ),
    Row(
        "cooldown_preview",
        "the preview of a cooldown against real cooldowns",
        _cooldown_preview,
        "--cifar10 FOLDER",
    ),
    Row("forecast", "a forecast of the validation loss of runs not made: its error, beside that of two seeds", _forecast),
    Row("lr_effects", "which of the textbook's claims about a high and a low learning rate hold", _lr_effects),
    Row("lr_effects", "the same on CIFAR-10", _lr_effects, "--cifar10 FOLDER", result="lr_effects_cifar10"),
    Row(
        "lr_effects",
        "the same on CIFAR-10, with a cosine decay",
        _lr_effects,
        "--cifar10 FOLDER --schedule cosine",
        result="lr_effects_cifar10_cosine",
    ),
    Row("pruning", "epochs that pruning a search saves", _pruning),
    Row(
        "pruning_replay",
        "the same, and the good trials that pruning loses, in replayed searches",
        _pruning_replay,
        "--cifar10 FOLDER",
    ),
    Row("search_methods", "best validation loss of each way of searching", _search_methods),
    Row(
        "search_methods",
        "a search of seven trials, from the first trial's start to the last one's end, beyond the trials' own time",
        lambda found: of_values([row["beyond_trials"] for row in found["trials"]["7"]], "{:.1%}"),
        "--overhead",
        result="search_overhead",
    ),
    Row("many_ranks", "the loader, for one of many ranks", _many_ranks),
    Row("store_scale", "a store of many runs", _store_scale),
    Row("growth", "how time grows with rows, callbacks, groups, examples, ranks and runs", _growth),
    Row("peers", "a fit that logs every step, over one without callbacks, here and elsewhere", _peers),
    Row(
        "start",
        "from the command to the first step, over the import of Lightning",
        lambda found: spread(found["first_step_to_import"]),
    ),
    Row("threads", "how many times faster all cores are than one thread", _threads),
    Row("soak", "one run killed a hundred times, beside one that was not", _soak),
    Row(
        "gpu",
        "ResNet-9 to 94 % on CIFAR-10, precision, callbacks, finder, on a GPU",
        _gpu,
        "--cifar10 FOLDER",
    ),
)


def table(results: Path = ROOT / "benchmarks" / "results") -> str:
    """Return the table: for each benchmark what it measures, its command, the newest number and the machine."""
    return _HEAD + "".join(f"{_line(row, results / row.file)}\n" for row in ROWS)


def _line(row: Row, path: Path) -> str:
    cells = [f"{row.what}<br>`{row.command}`", "none", ""]
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        cells[1:] = [row.say(found), _where(found["machine"])]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _where(machine: dict[str, Any]) -> str:
    cores = f"{machine['cores']} cores" if machine["cores"] > 1 else "1 core"
    return f"{machine['device']}, {cores}, torch {machine['versions']['torch']}, {machine['date']}"


# -- the papers' numbers beside ours ---------------------------------------------------------------------------------

_SMITH = {"fixed": "81.4", "triangular2": "81.4", "decay": "78.5", "exp": "79.1", "exp_range": "82.2"}
_PAPER_STEPS = {"fixed": 70, "triangular2": 25, "decay": 25, "exp": 70, "exp_range": 42, "staged_triangular": 25}


def papers(results: Path = ROOT / "benchmarks" / "results") -> str:
    """Return the tables of docs/papers.md: each number of a paper that was measured again, and ours."""

    def read(name: str) -> dict[str, Any] | None:
        path = results / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    smith = read("smith_table")
    growth = {name: read(f"batch_growth{name}") for name in ("", "_cifar10", "_adamw")}
    textbook = {name: read(f"lr_effects{name}") for name in ("", "_cifar10", "_cifar10_cosine")}
    return "\n\n".join(
        [
            "## Cyclical learning rates\n\n" + (_smith_rows(smith) if smith else _MISSING),
            "## Growing the batch\n\n" + _growth_rows({name: found for name, found in growth.items() if found}),
            "## Super-convergence\n\n" + (_super_rows(found) if (found := read("super_convergence")) else _MISSING),
            "## What the textbooks say of a high and a low learning rate\n\n"
            + _textbook_rows({name: found for name, found in textbook.items() if found}),
        ]
    )


_MISSING = "Not measured to the end yet."


def _accuracy(values: Sequence[float]) -> str:
    mean = mean_ci([100 * value for value in values])
    half = f" ± {mean.half:.1f}" if mean.n > 1 else ""
    return f"{mean.mean:.1f}{half} (n = {mean.n})"


def _points(claim: dict[str, float]) -> str:
    return f"{_difference(claim)}, p = {claim['p']:.2g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _smith_rows(found: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{_SMITH.get(name, '–')} at {_PAPER_STEPS[name]},000" if name in _SMITH else "–",
            f"{_accuracy(values)} at {found['steps'][name]:,}",
        ]
        for name, values in found["test_accuracy"].items()
    ]
    claims = [[text.replace("(claim", "(the paper"), _points(claim)] for text, claim in found["claims"].items()]
    where = _where(found["machine"])
    bfloat16 = " in bfloat16" if found.get("precision", "").startswith("bf16") else ""
    whole = [
        f"{name} {_accuracy([run['test_accuracy'] for run in runs])} at {runs[0]['steps']:,}"
        for name, runs in found.get("whole", {}).items()
    ]
    return (
        f"Smith 2017, table 1, at {found['scale']:g} of the paper's lengths{bfloat16}: test accuracy in percent, mean ± "
        f"95 % t interval over seeds, and updates. {where}.\n\n"
        + _table(("schedule", "the paper", "here"), rows)
        + (f"\n\nAt the paper's own lengths, so far: {'; '.join(whole)} updates." if whole else "")
        + "\n\n"
        + _table(("claim", "difference here, paired by seed, 95 % bootstrap interval"), claims)
    )


def _growth_rows(each: dict[str, dict[str, Any]]) -> str:
    rows = [
        ["the paper: CIFAR-10, WRN-16-4, sgd, 200 epochs", "78,125 updates", "28,875 updates", "equal accuracy", "–"]
    ]
    for found in each.values():
        images = f"{found['images']:,} images of " if found.get("images") else ""
        arms = [f"{_accuracy(found['test_accuracy'][arm])} in {found['updates'][arm]:,}" for arm in ("decay", "growth")]
        what = f"{images}{found['data']}, {found.get('optimizer', 'sgd')}, {found['epochs']} epochs"
        rows.append([what, *arms, _points(found["difference"]), _time_ratio(found["seconds"])])
    head = ("", "decay: accuracy, updates", "growth: accuracy, updates", "growth − decay", "time, growth / decay")
    return _table(head, rows)


def _time_ratio(seconds: dict[str, list[float | None]]) -> str:
    pairs = zip(seconds["growth"], seconds["decay"], strict=True)
    ratios = [growth / decay for growth, decay in pairs if growth is not None and decay is not None]
    return of_values(ratios, "{:.2f}") if ratios else "–"


def _super_rows(found: dict[str, Any]) -> str:
    arms = [[name, _accuracy(v), f"{found['best_lr'][name]:g}"] for name, v in found["test_accuracy"].items()]
    differences = [[name, _points(claim)] for name, claim in found["differences"].items()]
    return (
        "The authors' own log, with a ResNet-56 on all images: 92.4 % after 10,000 updates of a cycle, 90.3 % after "
        "80,000 of a step schedule.\n\n"
        f"{_table(('here', 'test accuracy', 'best peak'), arms)}\n\n"
        f"{_table(('', 'difference, paired by seed'), differences)}\n\n{_where(found['machine'])}."
    )


def _textbook_rows(each: dict[str, dict[str, Any]]) -> str:
    heads = [f"{found.get('data', 'digits')}, {found.get('schedule', 'constant')}" for found in each.values()]
    rows = [
        [claims[0]["text"], *(f"{_share(claim)}, p {claim['adjusted']:.2g}: {claim['outcome']}" for claim in claims)]
        for claims in zip(*(found["claims"] for found in each.values()), strict=True)
    ]
    runs = "; ".join(
        f"{head}: n = {len(found['trials'])} runs of {found['epochs']} epochs, {_where(found['machine'])}"
        for head, found in zip(heads, each.values(), strict=True)
    )
    return (
        "`small_cnn` at a log grid of peak learning rates, three seeds each. In a pair, one run has a higher or lower "
        "learning rate, and one has the middle one of the grid. The table has the share of pairs in which the claim is "
        f"true, and p after Holm's correction over the nine claims.\n\n{_table(('', *heads), rows)}\n\n{runs}."
    )


def _share(claim: dict[str, Any]) -> str:
    return "–" if claim["share"] is None else f"{claim['share']:.0%}"


# -- into the pages ----------------------------------------------------------------------------------------------------

_PAGES = {"benchmarks.md": table, "papers.md": papers}
_BEGIN, _END = "<!-- made from benchmarks/results by docs/_build/stored.py -->\n", "<!-- end -->"


def filled(page: str, text: str) -> str:
    """Return a page with its tables made anew.

    Args:
        page: Its file name in docs/.
        text: The page as it is.
    """
    if page not in _PAGES:
        return text
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"docs/{page}: the lines {_BEGIN.strip()!r} and {_END!r} enclose the tables; add them again.")
    return f"{before}{begin}\n{_PAGES[page]().strip()}\n\n{end}{after}"


if __name__ == "__main__":
    for name in _PAGES:
        path = ROOT / "docs" / name
        path.write_text(filled(name, path.read_text(encoding="utf-8")), encoding="utf-8")
