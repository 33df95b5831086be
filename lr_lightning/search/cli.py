"""The command line of `scripts/search.py`."""

import errno
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from lr_lightning.app.composition import choices_help, keys_help, prepare, readable, refuse_options, wants_tracebacks
from lr_lightning.app.error_messages import BAD_INPUT, FAILED, explain_path_of, print_error
from lr_lightning.app.run.signals import Interrupted
from lr_lightning.app.schemas.search import SearchConfig
from lr_lightning.errors import ConfigError
from lr_lightning.search.launch import PRELOAD, launch, preloaded
from lr_lightning.search.space import Value

HELP = """Search for the learning rate and what interacts with it; every trial is a training run, tracked in MLflow.

  python scripts/search.py search=grid                    seven learning rates on a log grid, and nothing else
  python scripts/search.py search=random n_trials=20 schedule=cosine,one_cycle,wsd
  python scripts/search.py 'search.start=[{{optimizer.lr: finder}}]' 'optimizer.momentum=interval(0.5,0.99)'
  python scripts/search.py search=hyperband workers=4 sweep=mine storage=postgresql://user@host/database

A key with several values is searched: key=a,b,c, key=interval(low,high), key=tag(log,interval(low,high)), or
'search.space.key={{log: [low, high], when: {{optimizer: sgd}}}}' (log, linear, int, log_int, choice). Every other
key=value goes to each trial. The same command with the same sweep=NAME resumes, on any number of machines.

Groups and their choices:
{choices}

Keys of the search:
{keys}
"""


def main(checkout: Path) -> int:
    """Return the exit status: 0; 1 if no trial is complete; 2 for bad input; 143 and 130 after SIGTERM and Ctrl-C."""
    words = sys.argv[1:]
    if any(word in ("-h", "--help") for word in words):
        print(HELP.format(choices=choices_help(checkout), keys=keys_help("search", SearchConfig)))
        return 0
    prepare(checkout)
    from lr_lightning.search.study import StorageGone

    try:
        refuse_options(checkout, words)
        sys.argv[1:] = words = readable(["-m", *words])[1:]  # of several values each is searched
        return _search(checkout, words)
    except (StorageGone, OSError) as e:
        text = f"{e}."
        if isinstance(e, OSError):
            if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            if (unreachable := explain_path_of(e, words)) is not None:
                print_error(unreachable)
                return BAD_INPUT
            text = f"output_root: {f'{e.filename} ' if e.filename else ''}cannot be written ({e.strerror})."
        print_error(f"{text} Nothing is lost: correct it, and start the same search again.")
        return FAILED
    except ConfigError as e:
        if wants_tracebacks():
            raise
        print_error(e)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130  # before a trial handles it


def _search(checkout: Path, words: list[str]) -> int:
    in_process = bool({"workers=0", "search.workers=0"} & set(words))
    fork_server = None if in_process else launch("fork_server", {PRELOAD: preloaded(words)})
    from lr_lightning.search.engine import Engine, Workers

    with Workers(fork_server, in_process=in_process) as workers:
        from lr_lightning.search.report import (
            Progress,
            conclude,
            format_count,
            format_seconds,
            resume_command,
            say,
            write_table,
        )
        from lr_lightning.search.settings import check_store, read_search
        from lr_lightning.search.smoke_test import smoke_test, start_points
        from lr_lightning.search.study import Study

        search = read_search(checkout, words)
        workers.share = max(1, search.node.workers)

        def prepared() -> list[Mapping[str, Value]]:
            if any(search.folder.glob("trial-*")):
                other = f"{search.folder} holds trials of another search"
                raise ConfigError(f"sweep: {other}. Give another sweep=NAME, or another output_root.")
            smoke_test(search, workers.call)
            return start_points(search, workers.call)

        check_store(search.config.tracking)
        study = Study(search, prepared)
        study.fill()
        summary = study.summary()
        done, left = len(summary.ended), summary.left
        state = "starts" if study.is_new else "resumes"
        limit = format_count(done + left, "trial") if left or done else "trials without a limit"
        console = Console()
        say(console, f"{search.name} {state}: {limit}, {done} of them done, over {', '.join(search.space.keys)}")
        engine = Engine(search, study, workers, Progress(console))
        began = time.monotonic()
        try:
            engine.run()
        except ConfigError:
            write_table(search, study.summary())
            raise
        except (Interrupted, KeyboardInterrupt) as e:
            write_table(search, study.summary())
            say(console, f"{e or 'interrupted'}; nothing is lost. Resume it:  {resume_command(search)}")
            return e.code if isinstance(e, Interrupted) and isinstance(e.code, int) else 130
        seconds = time.monotonic() - began
        compare = engine.ended_last or engine.limited or not left
        conclude(search, study, console, workers.call, compare=compare)
        if engine.trial_seconds > 0 and search.node.workers <= 1:
            others = format_seconds(max(0.0, seconds - engine.trial_seconds))
            say(console, f"{format_seconds(seconds)} in all: {others} besides the training of the trials")
        return 0 if study.summary().best is not None else FAILED
