"""`scripts/cooldown.py`: tell a running training to leave its schedule for a cooldown, and to end with it."""

from pathlib import Path

from lr_lightning._commands import override, python_command
from lr_lightning.app.commands.predict import find_run
from lr_lightning.app.error_messages import BAD_INPUT, print_error
from lr_lightning.app.run.graceful_stop import CooldownRequest
from lr_lightning.errors import ArgumentError, ConfigError
from lr_lightning.schedules import parse_duration
from lr_lightning.tracking.local_log import LOCK_NAME
from lr_lightning.tracking.locks import is_held


def run(
    checkout: Path, name: str, over: str, *, output_root: Path | None, store_root: Path | None, uri: str | None
) -> int:
    """Ask the run for a cooldown, and return the exit status; every input error is one message."""
    try:
        folder = find_run(checkout, name, output_root, store_root, uri)
        request = CooldownRequest(str(parse_duration(over, "--over", positive=True)))
        _check(folder)
        request.write(folder)
    except (ConfigError, ArgumentError) as e:
        print_error(e)
        return BAD_INPUT
    except OSError as e:
        print_error(f"RUN: {e.filename} cannot be written ({e.strerror}).")
        return BAD_INPUT
    of = " of its steps so far" if "%" in request.over else ""
    print(f"{folder.name} will cool down over {request.over}{of}, validate, test, and end.")
    return 0


def _check(folder: Path) -> None:
    """Refuse a run that would not answer."""
    asked = CooldownRequest.read(folder)
    if asked is not None and asked.start is not None:
        raise ConfigError(
            f"RUN: {folder.name} is cooling down already, from step {asked.start} to {asked.start + asked.updates}."
        )
    if not is_held(folder / LOCK_NAME):
        fork = python_command("train.py", override("fork", f"{folder}@last"), "schedule=cooldown")
        raise ConfigError(f"RUN: {folder.name} is not running. Cool its last state down in a new run: {fork}")
