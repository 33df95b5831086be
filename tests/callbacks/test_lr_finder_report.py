"""What LRFinder shows: its points and figure in every logger that takes them, and never a run that fails over it."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger

from lr_lightning import LRFinder
from lr_lightning._loggers import log_figure, log_text
from lr_lightning.lr_finder.results import RangeTest
from tests.callbacks.tiny import Memory, Tiny, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

GRID = tuple(float(lr) for lr in np.geomspace(1e-4, 1.0, 40))
RUN = tuple(2.0 - 1.5 / (1 + np.exp(-(np.log10(GRID) + 2) * 3)) + 3 * (np.asarray(GRID) > 0.5))
RESULTS = {
    "one": RangeTest(GRID, (RUN,)),
    "repeats": RangeTest(GRID, (RUN, RUN[:-5]), epoch=3),
    "accuracy": RangeTest(GRID, (tuple(1 - value / 5 for value in RUN),), metric="accuracy", mode="linear"),
    "flat": RangeTest(GRID, ((1.0,) * 40,), metric="val_loss"),
    "short": RangeTest(GRID, ((1.0,),)),
    "nothing": RangeTest(GRID, ((),)),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_can_be_shown_and_kept(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = RESULTS[name]
    figure = result.plot()
    figure.savefig(tmp_path / "a.png")
    from matplotlib.figure import Figure

    own = Figure().add_subplot()
    assert result.plot(own) is own.figure
    rows = result.to_csv().splitlines()
    assert len(rows) == 1 + len(result.values)
    assert RangeTest.from_state(result.state()) == result
    assert result.describe()
    assert "\n" not in result.describe()


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)


@pytest.mark.usefixtures("no_matplotlib")
def test_without_matplotlib(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"matplotlib.*is not installed: pip install 'lr-lightning\[plot\]'"):
        RESULTS["one"].plot()
    finder = LRFinder(num_steps=10)
    trainer(tmp_path, [finder], CSVLogger(tmp_path, name="n", version="v"), max_epochs=1).fit(Tiny(), loader())
    assert sorted(path.name for path in (tmp_path / "n/v/range_test").iterdir()) == ["curve.csv"]


def run(tmp_path: Path, logger: Any, **arguments: Any) -> LRFinder:
    finder = LRFinder(num_steps=10, **arguments)
    trainer(tmp_path, [finder], logger, max_epochs=2, log_every_n_steps=1).fit(Tiny(), loader())
    return finder


def test_csv_logger(tmp_path: Path) -> None:
    finder = run(tmp_path, CSVLogger(tmp_path, name="n", version="v"))
    folder = tmp_path / "n/v/range_test"
    assert (folder / "curve.csv").read_text() == finder.result.to_csv()
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_tests_in_the_middle_have_names_of_their_own(tmp_path: Path) -> None:
    finder = run(tmp_path, CSVLogger(tmp_path, name="n", version="v"), at_epochs=[0, 1])
    names = sorted(path.name for path in (tmp_path / "n/v/range_test").iterdir())
    assert names == ["epoch_0.csv", "epoch_0.png", "epoch_1.csv", "epoch_1.png"]
    assert (tmp_path / "n/v/range_test/epoch_0.csv").read_text() == finder.results[0].to_csv()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    run(tmp_path, TensorBoardLogger(tmp_path, name="n", version="v"))
    assert (tmp_path / "n/v/range_test/curve.csv").exists()


@pytest.mark.slow
def test_mlflow_logger(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/a.db"
    artifacts = (tmp_path / "artifacts").as_uri()
    logger = MLFlowLogger("n", tracking_uri=uri, artifact_location=artifacts)
    finder = run(tmp_path, logger)
    client = MlflowClient(uri)
    assert {item.path for item in client.list_artifacts(logger.run_id, "range_test")} == {
        "range_test/curve.csv",
        "range_test/curve.png",
    }
    text = Path(client.download_artifacts(logger.run_id, "range_test/curve.csv")).read_text()
    assert text == finder.result.to_csv()


def test_a_logger_of_ours(tmp_path: Path) -> None:
    pytest.importorskip("lightning")  # the app is made for that package alone
    from lr_lightning.tracking import RunLogger

    finder = run(tmp_path, RunLogger(tmp_path / "run", csv=True))
    (points,) = tmp_path.rglob("curve.csv")
    assert points.read_text() == finder.result.to_csv()
    assert len(list(tmp_path.rglob("curve.png"))) == 1


def test_a_logger_without_a_place_for_files(tmp_path: Path) -> None:
    memory = Memory()
    run(tmp_path, memory)
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".csv", ".png")] == []


class Raising(Memory):
    """Takes metrics of training only."""

    log_dir = None

    def log_figure(self, *args: Any) -> None:
        raise OSError("disk full")

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any(name.startswith("lr_finder") for name in metrics):
            raise OSError("no finder here")

    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        if any(str(name).startswith("lr_finder") for name in params or {}):
            raise OSError("no finder here")

    @property
    def experiment(self) -> Any:
        return None


@pytest.mark.parametrize("where", [{}, {"at_epochs": [1]}], ids=str)
def test_a_logger_that_raises_does_not_end_the_run(
    tmp_path: Path, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RangeTest, "suggestion", property(lambda self: 0.2))
    with pytest.warns(UserWarning, match=r"Raising did not take range_test/.*png .OSError: disk full"):
        finder = run(tmp_path, [Raising(), CSVLogger(tmp_path, name="n", version="v")], **where)
    assert finder.results
    assert list(tmp_path.rglob("*.png"))  # the other one got it


def test_no_logger_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RangeTest, "plot", lambda self: pytest.fail("drawn for nobody"))
    run(tmp_path, False)


def test_only_the_first_process_shows(tmp_path: Path) -> None:
    class Second:
        is_global_zero, loggers, global_step = False, [Raising()], 0

    log_figure(Second(), object(), "a.png")  # type: ignore[arg-type]
    log_text(Second(), "a", "a.csv")  # type: ignore[arg-type]
