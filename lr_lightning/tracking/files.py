"""Safe file writes: append whole lines, cut a torn last line, replace a file in one step."""

import os
import threading
from pathlib import Path


def moved(path: Path, before: Path | str, now: Path) -> Path:
    """Return where ``path`` is now if it moved together with the folder ``before``, which is now ``now``; else itself.

    >>> moved(Path("/none/mlruns"), "/none/outputs/run", Path("/new/outputs/run"))
    PosixPath('/none/mlruns')
    """
    there = Path(os.path.normpath(now / os.path.relpath(path, before)))
    return there if os.path.exists(there) else path


def cut_torn_line(path: Path) -> int:
    """Cut a last line without a newline, as a kill during a write leaves it; return the size, 0 if there is no file."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        end = keep = file.seek(0, os.SEEK_END)
        while keep > 0:
            start = max(0, keep - 65536)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < end:
            file.truncate(keep)
        return keep


def append_bytes(path: Path, data: bytes) -> None:
    """Append ``data`` in as few writes as the system allows. If one fails, the file is restored."""
    if not data:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        start = os.fstat(descriptor).st_size
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:
            os.ftruncate(descriptor, start)
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace the content of ``path`` by ``text`` in one step: readers see either the old or the new content."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")  # two writers, two files
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
