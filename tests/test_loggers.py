"""What the callbacks give to a Trainer's loggers arrives where each of them can hold it."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

import lr_lightning
from lr_lightning import (
    BatchSizeSchedule,
    CooldownPreview,
    LRFinder,
    LRRace,
    LRSchedule,
    OverfittingMonitor,
    RandomState,
    RunCost,
    ScheduleAwareStopping,
    ScheduleFreeMode,
    StepRecorder,
)
from lr_lightning._loggers import log_note, log_tags
from lr_lightning.schedules import Cosine
from tests.callbacks.tiny import Memory, Tiny, loader, trainer

FILES = {"range_test/curve.csv", "range_test/curve.png", "verdict.txt", "verdict.png"}
METRICS = {"lr/head", "lr/body", "train/loss", "train/loss_epoch", "val/loss", "probe/loss", "overfit/gap_loss"}
METRICS |= {"val/loss_if_cooled", "batch/size"}


class Kept(NamedTuple):
    """What a logger holds after a run."""

    lrs: list[float]  # of the group called "head", at each step
    metrics: set[str]
    files: set[str]
    verdict: str | None
    note: str | None


class Grouped(Tiny):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        body, head = self.net[0].parameters(), self.net[3].parameters()
        groups: list[Any] = [{"params": head, "name": "head"}, {"params": body, "name": "body", "lr": 0.02}]
        return torch.optim.SGD(groups, lr=self.lr)


def csv_run(folder: Path, run: Callable[[Any], None], request: pytest.FixtureRequest) -> Kept:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(folder)
    run(logger)
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").open()))
    lrs = [float(row["lr/head"]) for row in rows if row["lr/head"]]
    return Kept(lrs, set(rows[0]), files_in(Path(logger.log_dir)), None, None)


def tensorboard_run(folder: Path, run: Callable[[Any], None], request: pytest.FixtureRequest) -> Kept:
    accumulation = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(folder)
    run(logger)
    logger.finalize("success")
    events = accumulation.EventAccumulator(logger.log_dir, {"scalars": 0, "images": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    lrs = [event.value for event in events.Scalars("lr/head")]
    images = {f"{tag}.png" for tag in tags["images"]}
    texts = {tag.removesuffix("/text_summary") for tag in tags["tensors"]}
    assert texts in ({"verdict", "range_test/curve"}, {"verdict", "lr_race/race"})
    return Kept(lrs, set(tags["scalars"]), images | files_in(Path(logger.log_dir)), None, None)


def mlflow_run(folder: Path, run: Callable[[Any], None], request: pytest.FixtureRequest) -> Kept:
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    shutil.copy(request.getfixturevalue("empty_store"), folder / "m.db")
    logger = MLFlowLogger("run", tracking_uri=f"sqlite:///{folder}/m.db", artifact_location=str(folder / "files"))
    run(logger)
    client, identity = logger.experiment, str(logger.run_id)
    data = client.get_run(identity).data
    lrs = [metric.value for metric in sorted(client.get_metric_history(identity, "lr/head"), key=lambda m: m.step)]
    files = files_in(folder / "files" / identity / "artifacts")
    return Kept(lrs, set(data.metrics), files, data.tags["verdict"], data.tags["mlflow.note.content"])


def wandb_run(folder: Path, run: Callable[[Any], None], request: pytest.FixtureRequest) -> Kept:
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(save_dir=folder, offline=True)
    seen: list[dict[str, Any]] = []
    log = logger.experiment.log
    logger.experiment.log = lambda values, **options: (seen.append(values), log(values, **options))  # type: ignore[assignment]
    try:
        run(logger)
        files = files_in(Path(logger.experiment.dir))
        note, verdict = logger.experiment.notes, logger.experiment.summary["verdict"]
    finally:
        wandb.finish()
        wandb.teardown()
    lrs = [values["lr/head"] for values in seen if "lr/head" in values]
    images = {f"{key}.png".removeprefix("figures/") for values in seen for key in values if key.startswith("figures/")}
    metrics = {key for values in seen for key in values}
    return Kept(lrs, metrics, images | {name for name in files if not name.startswith("media/")}, verdict, note)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


every_logger = pytest.mark.parametrize(
    "kind",
    [
        csv_run,
        tensorboard_run,
        pytest.param(mlflow_run, marks=pytest.mark.slow),
        pytest.param(wandb_run, marks=pytest.mark.slow),
    ],
)


@every_logger
def test_every_callback_with_every_logger(
    kind: Callable[..., Kept], tmp_path: Path, request: pytest.FixtureRequest, recwarn: pytest.WarningsRecorder
) -> None:
    monitor, schedule = OverfittingMonitor(), LRSchedule(Cosine())
    callbacks = [LRFinder(num_steps=12, apply=False, progress=False), schedule, monitor, StepRecorder(), RunCost()]
    callbacks += [CooldownPreview(), BatchSizeSchedule(["1 epoch"]), RandomState()]
    callbacks.append(ScheduleAwareStopping("val/loss_if_cooled", patience=9))

    def run(logger: Any) -> None:
        trainer(tmp_path, callbacks, logger, log_every_n_steps=1).fit(Grouped(), loader(), loader(60))

    kept = kind(tmp_path, run, request)
    assert kept.lrs == pytest.approx([0.1 * factor for factor in Cosine().factors(6 + 2)])
    assert kept.metrics >= METRICS
    assert any(name.startswith("summary/") for name in kept.metrics)
    assert kept.files >= FILES
    assert kept.verdict in (None, monitor.verdict.label)
    assert kept.note in (None, monitor.verdict.text())
    assert not [str(w.message) for w in recwarn if "did not take" in str(w.message)]


@every_logger
def test_a_race_with_every_logger(
    kind: Callable[..., Kept], tmp_path: Path, request: pytest.FixtureRequest, recwarn: pytest.WarningsRecorder
) -> None:
    race, sparse = LRRace(50, apply=False, progress=False), {"log_every_n_steps": 20, "check_val_every_n_epoch": 17}
    callbacks = [race, LRSchedule(Cosine()), OverfittingMonitor(), StepRecorder()]

    def run(logger: Any) -> None:
        trainer(tmp_path, callbacks, logger, max_epochs=17, **sparse).fit(Grouped(), loader(), loader(60))

    kept = kind(tmp_path, run, request)
    assert race.result is not None
    assert kept.files >= {"lr_race/race.csv", "lr_race/race.png"}
    assert len(kept.lrs) >= 5
    assert not [str(w.message) for w in recwarn if "did not take" in str(w.message)]


def _trainer(*loggers: Any) -> Any:
    return SimpleNamespace(is_global_zero=True, loggers=loggers, global_step=0)


@pytest.mark.slow
def test_a_note_is_the_description_in_lightnings_mlflow_logger(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger("exp", tracking_uri=f"sqlite:///{tmp_path}/m.db", artifact_location=str(tmp_path / "a"))
    log_note(_trainer(logger), "verdict: healthy")
    log_tags(_trainer(logger), {"verdict": "healthy"})
    tags = logger.experiment.get_run(logger.run_id).data.tags
    assert (tags["mlflow.note.content"], tags["verdict"]) == ("verdict: healthy", "healthy")


def test_a_logger_of_ours_gets_the_note_itself_and_one_without_notes_nothing() -> None:
    kept: list[str] = []
    logger = Memory()
    logger.log_note = kept.append  # type: ignore[attr-defined]
    log_note(_trainer(logger, Memory()), "verdict: healthy")
    assert kept == ["verdict: healthy"]


def test_no_callback_names_a_tag_of_mlflow() -> None:
    root = Path(lr_lightning.__file__).parent
    assert not [str(path) for path in (root / "callbacks").glob("*.py") if "mlflow." in path.read_text()]


def test_a_mode_of_the_optimizer_logs_nothing_and_a_development_run_gives_no_text_away(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    schedulefree = pytest.importorskip("schedulefree")
    logger, module = Memory(), Tiny()
    module.configure_optimizers = lambda: schedulefree.SGDScheduleFree(module.parameters(), lr=0.1)  # type: ignore[method-assign]
    trainer(tmp_path, [ScheduleFreeMode()], logger, max_epochs=1).fit(module, loader(), loader(60))
    assert {name for name, _, _ in logger.rows} == {"epoch", "val/loss", "val/acc"}
    trainer(tmp_path, [OverfittingMonitor(), RunCost()], True, fast_dev_run=True).fit(Tiny(), loader(), loader(60))
    assert not [str(w.message) for w in recwarn if "did not take" in str(w.message)]
