"""A command in a process forked from one that has imported torch, Lightning and MLflow already.

It is what `python script.py ...` is: a process of its own, with its arguments, folder, environment, output and signals,
but without the seconds that these imports take. The server is the standard library's; nothing but imports has happened
in it, so no open store is copied, and no thread, which every child checks.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path

_CHILD = "forked child"
_PRELOADED = [
    *(
        "lr_lightning.app.run.train",
        "lr_lightning.app.commands.find_lr",
        "lr_lightning.app.run.resume",
        "lr_lightning.app.commands.lr_effects",
    ),
    *(
        "lr_lightning.app.commands.compare",
        "lr_lightning.app.commands.hydra_main",
        "lr_lightning.training.sources",
        "sklearn.datasets",
    ),
    *("lr_lightning.training.classifier", "lr_lightning.training.models", "lr_lightning.callbacks.overfitting"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_workspace_store", "alembic.command", "alembic.autogenerate"),
    *("sqlalchemy.dialects.sqlite", "matplotlib.backends.backend_agg", "rich.table", "hydra._internal.core_plugins"),
]
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(_PRELOADED)


class Forked:
    """As much of `subprocess.Popen`, with text pipes, as tests use.

    Args:
        script: The script.
        arguments: Its arguments.
        cwd: Its working directory.
        env: Its environment.
    """

    def __init__(self, script: Path | str, *arguments: str, cwd: Path, env: dict[str, str]) -> None:
        self._output = tempfile.TemporaryDirectory()
        self._files = [Path(self._output.name) / name for name in ("out", "err")]
        files = [str(file) for file in self._files]
        job = {"arguments": [str(script), *arguments], "cwd": str(cwd), "env": env, "files": files}
        self._process = _server.Process(target=runpy.run_path, args=(__file__, {"JOB": job}, _CHILD), daemon=True)
        self._process.start()
        weakref.finalize(self, self._process.kill)  # whatever fails, it ends with its test
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, -n after signal n, None while it runs."""
        return self._process.exitcode

    def out(self) -> str:
        """What it has written to stdout so far."""
        return self._files[0].read_text() if self._files[0].exists() else ""

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end; what it wrote to stdout and stderr.

        Raises:
            subprocess.TimeoutExpired: If it takes longer; it is killed.
        """
        self._process.join(timeout)
        late = self.returncode is None
        if late:
            self.kill()
            self._process.join()
        out, err = self.out(), self._files[1].read_text() if self._files[1].exists() else ""
        if late:
            raise subprocess.TimeoutExpired(str(self.pid), timeout, out, err)
        return out, err

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()


def run(
    script: Path | str, *arguments: str, cwd: Path, env: dict[str, str], timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    process = Forked(script, *arguments, cwd=cwd, env=env)
    out, err = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess([str(script), *arguments], process.returncode, out, err)


def _check_threads(tasks: Path) -> None:
    """Refuse to be the child of a server with threads: a lock that one of them held would be held for ever here."""
    names = [(task / "comm").read_text().strip() for task in tasks.glob("*")]
    if len([name for name in names if name != "jemalloc_bg_thd"]) > 1:  # jemalloc (pyarrow's) looks after itself
        raise RuntimeError(f"threads before the fork: {names}")


def _become(arguments: list[str], cwd: str, env: dict[str, str], files: list[str]) -> None:
    """In the child: run the script as the interpreter does, to the end of its atexit functions."""
    _check_threads(Path(f"/proc/{os.getppid()}/task"))
    for number, name in enumerate(files, 1):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # it may have workers
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    status: object = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as e:
        status = e.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # multiprocessing leaves atexit functions out
    atexit._run_exitfuncs()
    sys.exit(status)  # type: ignore[arg-type]


if __name__ == _CHILD:
    _become(**JOB)  # type: ignore[name-defined]  # noqa: F821
