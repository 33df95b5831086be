"""A forked command is what the interpreter would have made of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import Forked, run

START = """
import atexit, os, sys, threading
atexit.register(print, "bye")
threading.Timer(0.1, print, ["late"]).start()
print(sys.argv, os.getcwd(), sorted(os.environ.items()), __name__, __file__, sys.path[0], sys.stdin.read())
"""

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(3)",
        "sys.exit('words')",
        "1 / 0",
        "os.kill(os.getpid(), 9)",
        "os.kill(os.getpid(), 15)",
        "os._exit(5)",
    ],
)
def test_it_is_what_the_interpreter_makes_of_it(tmp_path: Path, end: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(START + end)
    env = {**os.environ, "MINE": "1"}
    ours = run(script, "a", "b c", cwd=tmp_path, env=env)
    theirs = subprocess.run(
        [sys.executable, str(script), "a", "b c"],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert ours.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]


def test_one_that_takes_too_long_is_killed_and_what_it_said_is_kept(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(600)\n")
    process = Forked(tmp_path / "script.py", cwd=tmp_path, env=dict(os.environ))
    while not process.out():
        assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        process.communicate(timeout=0.01)
    assert caught.value.stdout == "here\n"
    assert process.returncode == -9
