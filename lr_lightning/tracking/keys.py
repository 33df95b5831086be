"""What the stores accept as a key or a text value. Pure functions, without MLflow."""

import re
from collections.abc import Mapping

MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000

JOB_TAG = "job"
"""Tag that says what a run did, such as ``train``, ``find_lr`` or ``compare``. A run without the tag trained."""

_FOREIGN = re.compile(r"[^/\w.\- ]")
_PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):[^/@\s]*(?=@)")
_IN_QUERY = re.compile(r"(?<=[?&])((?:password|sslpassword)=)[^&\s]+", re.IGNORECASE)


def clean_key(key: str) -> str:
    """Turn ``key`` into a name that MLflow accepts on every platform.

    MLflow takes letters, digits, ``_ - . / `` and spaces, at most 250 characters, and no name that a file system would
    resolve to another one (``a//b``, ``../a``). A single name that breaks this makes the store refuse its whole batch.

    Args:
        key: Any text.

    Returns:
        ``key`` itself when it is valid; else foreign characters become ``_`` and empty or dotted parts are dropped.

    Example:
        >>> clean_key("train/loss"), clean_key("/a//b=1%"), clean_key("..")
        ('train/loss', 'a/b_1_', '_')
    """
    parts = [part for part in _FOREIGN.sub("_", key).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:MAX_KEY].rstrip("/") or "_"


def clip(value: object, limit: int) -> str:
    """Give ``str(value)``, cut to ``limit`` characters with a visible mark that says how long it was.

    Example:
        >>> clip("x" * 99, 30)
        'xxxxxx... (99 characters, cut)'
    """
    text = str(value)
    if len(text) <= limit:
        return text
    mark = f"... ({len(text)} characters, cut)"
    return text[: limit - len(mark)] + mark


def flatten(params: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Flatten nested mappings to dotted keys.

    Example:
        >>> flatten({"optimizer": {"lr": 0.1}, "seed": 0})
        {'optimizer.lr': 0.1, 'seed': 0}
    """
    flat: dict[str, object] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def hide_password(text: str) -> str:
    """Mask the password of every URI in ``text``.

    Example:
        >>> hide_password("postgresql://me:secret@db/x")
        'postgresql://me:***@db/x'
    """
    return _IN_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***", text))
