"""What every test shares: the checkout, and the app's commands run as a user runs them."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tests import forked

if TYPE_CHECKING:
    from lr_lightning.tracking import Store

ROOT = Path(__file__).resolve().parent.parent

SCRIPTS = ROOT / "scripts"
NOBODY = 65534
Command = Callable[..., "subprocess.CompletedProcess[str]"]


WHOLE = ("tests/reports/test_browser.py",)  # one sweep, one server, one browser
"""Files whose tests share what is slow to make: one worker of pytest-xdist runs them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests go to whichever worker is free, but for those files (its loadgroup sees no groups with pytest 9.2)."""
    from xdist.scheduler import LoadScopeScheduling

    class ByTest(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in WHOLE else nodeid

    return ByTest(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first: at the end no worker waits for another."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(autouse=True)
def no_seed_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning keeps the seed in the environment and acts on it: it would change the loaders of every later test."""
    mlflows = [
        f"MLFLOW_{name}" for name in ("TRACKING_URI", "EXPERIMENT_NAME", "EXPERIMENT_ID", "RUN_ID", "RUN_CONTEXT")
    ]
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", *mlflows):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def activated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an activated environment: `python`, in the commands that are printed, is this one."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)


@pytest.fixture(autouse=True)
def no_command_line_of_another_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What composing a config changes in its process: where modules are looked for, and the overrides Hydra knows."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    if (hydra := sys.modules.get("hydra.core.hydra_config")) is not None:
        hydra.HydraConfig.instance().cfg = None


@pytest.fixture
def train_command(tmp_path: Path) -> Command:
    """`scripts/train.py` in a process of its own, from a foreign folder, its store and outputs below `tmp_path`.

    It is forked from one with the imports; with ``from_scratch=True`` it is `python scripts/train.py`, seconds later.
    """

    def run(
        *overrides: str, check: bool = True, timeout: float = 300, from_scratch: bool = False, **env: str
    ) -> "subprocess.CompletedProcess[str]":
        command = [str(SCRIPTS / "train.py"), f"output_root={tmp_path}/outputs", f"tracking.root={tmp_path}/mlruns"]
        command += overrides
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **env}
        if from_scratch:
            command.insert(0, sys.executable)
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout
            )
        else:
            done = forked.run(*command, cwd=tmp_path, env=environment, timeout=timeout)
        if check:
            assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def foreign() -> Iterator[Callable[..., AbstractContextManager[Path]]]:
    """Acts, in a block, as a user who may read a copy of a folder, but for some files, and not write to it."""
    # Not below tmp_path, which nobody but this user may enter.
    place = Path(tempfile.mkdtemp(prefix="lr_lightning-"))
    place.chmod(0o755)
    is_root = os.getuid() == 0  # whom no mode stops

    @contextmanager
    def acting(folder: Path, *hidden: str) -> Iterator[Path]:
        copy = shutil.copytree(folder, place / folder.name)
        for path in (copy, *copy.rglob("*")):
            path.chmod(0 if path.name in hidden else 0o555)
        if is_root:
            os.setresuid(NOBODY, NOBODY, 0)
        try:
            yield copy
        finally:
            if is_root:
                os.setresuid(0, 0, 0)
            for path in (copy, *copy.rglob("*")):
                path.chmod(0o755)

    yield acting
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making them takes seconds, copying them does not."""
    from lr_lightning.tracking import open_store

    root = tmp_path_factory.mktemp("template")
    (root / "mlflow.db").touch()  # as a poll by sqlite3.connect leaves it
    open_store(root).client()
    return root / "mlflow.db"


@pytest.fixture
def make_store(empty_store: Path, tmp_path: Path) -> Iterator[Callable[[str], "Store"]]:
    """Makes real stores on copies of the database."""
    from lr_lightning.tracking import open_store
    from lr_lightning.tracking.store import _clients

    made: list[str] = []

    def make(name: str = "mlruns") -> "Store":
        root = tmp_path / name
        root.mkdir(parents=True)
        shutil.copyfile(empty_store, root / "mlflow.db")
        store = open_store(root)
        made.append(store.uri)
        return store

    yield make
    for uri in made:
        _clients.pop(uri, None)


@pytest.fixture
def store(make_store: Callable[[], "Store"]) -> "Store":
    """A real, empty SQLite store."""
    return make_store()


def docs_module(name: str) -> ModuleType:
    """`docs/_build/NAME.py`, which MkDocs imports from its own folder."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_build" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a database on a PostgreSQL server of this session's own, which also has a database `runs`."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (str(binaries[-1]) if binaries else None)
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed (the [postgres] extra)")
    folder = Path(found).resolve().parent
    # The server refuses to run as root; below pytest's folder another user could not even pass.
    user = "postgres" if os.geteuid() == 0 else None
    home = Path(f"/tmp/lr_lightning-postgres-{os.getpid()}")
    home.mkdir()
    if user:
        shutil.chown(home, user)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    call = {"user": user, "cwd": home, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    data = ["-D", str(home / "data")]
    subprocess.run([folder / "initdb", *data, "-A", "trust", "-U", "lr", "-N"], check=True, **call)
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
    server = subprocess.Popen([folder / "postgres", *data, *options], **call)
    try:
        create = [folder / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "lr", "search"]
        until = time.monotonic() + 30
        while subprocess.run(create, **call).returncode:
            if time.monotonic() > until:
                pytest.fail("PostgreSQL did not start within 30 s")
            time.sleep(0.2)
        subprocess.run([*create[:-1], "runs"], check=True, **call)
        yield f"postgresql://lr@127.0.0.1:{port}/search"
    finally:
        server.send_signal(signal.SIGINT)  # at once: on SIGTERM it would wait for open connections
        server.wait()
        shutil.rmtree(home, ignore_errors=True)
