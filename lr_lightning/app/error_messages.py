"""Messages for the errors of Hydra, OmegaConf and the package; `composition` refuses a config's unknown keys."""

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

from lr_lightning import _commands
from lr_lightning.errors import ArgumentError, ConfigError, Diverged, DurationError, TotalStepsUnknown

FAILED, BAD_INPUT = 1, 2
"""Exit statuses of the commands: a run failed after its start; the input was bad, so nothing was started."""

_TYPES = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false", "String": "text"}
_UNKNOWN_KEY = "command line"
_UNREACHABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the device's or the host's memory is used up; torch has no one type for it."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def print_error(text: object) -> None:
    """Print an error to stderr, with ``error:`` before each of its lines."""
    print("\n".join(f"error: {line}" for line in str(text).splitlines()), file=sys.stderr)


def explain_path(error: OSError, given: Iterable[tuple[str, object]]) -> str | None:
    """Return the message about a path that this user cannot reach; None if no argument in ``given`` gave that path.

    >>> explain_path(PermissionError(13, "Permission denied", "/a/b/c"), [("data.root", "/a/b"), ("seed", 1)])
    'data.root: /a/b/c: Permission denied. Give another path, or the right to use this one.'
    """
    if error.filename is None or error.errno not in _UNREACHABLE:
        return None
    path = Path(os.path.abspath(os.fsdecode(error.filename)))
    words = [(key.lstrip("+"), str(value).strip("'\"")) for key, value in given if value]
    both = [(key, part) for key, word in words for part in {word, word.rpartition("@")[0]} - {""}]  # RUN@last
    places = {Path(os.path.abspath(os.path.expanduser(part))): key for key, part in both}
    around = [place for place in places if place.is_relative_to(path) or path.is_relative_to(place)]
    if not around:
        return None
    remedy = "Give another path, or the right to use this one."
    return f"{places[max(around, key=lambda place: len(place.parts))]}: {path}: {error.strerror}. {remedy}"


def explain_path_of(error: OSError, words: Iterable[str]) -> str | None:
    """Return what :func:`explain_path` says, for words ``key=value`` as on the command line."""
    given = (word.partition("=") for word in words)
    return explain_path(error, ((key, value) for key, _, value in given))


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return a hint at the closest of the choices, ``" Did you mean 'lr'?"``; empty if none is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def no_such_key(remedy: str = "") -> str:
    """Return the sentence about a key that does not exist, and what to do; by default, where all keys are shown."""
    return f"there is no such key. {remedy or '`--cfg job` shows every key.'}"


def config_error(error: Exception, key: str = "", keys: Mapping[str, str] | None = None) -> ConfigError:
    """Translate an error about an argument of the package into one about the config key that gave the argument.

    ``keys`` has the config key of each argument; ``key`` is named if the error names none of these arguments.
    """
    if isinstance(error, TotalStepsUnknown):
        return ConfigError(
            f"schedule.total_steps: {type(error.schedule).__name__} needs the number of steps, and nothing says it "
            "here. Give schedule.total_steps=..., trainer.max_epochs=... or trainer.max_steps=..."
        )
    if isinstance(error, ArgumentError) and keys and error.name in keys:
        return ConfigError(f"{keys[error.name]}: {error.problem}")
    key = "schedule" if isinstance(error, DurationError) else key
    return ConfigError(f"{key}: {error}" if key else str(error))


def causes(error: BaseException, *, contexts: bool = False) -> list[BaseException]:
    """Return an error and those that caused it, the first cause last; ``contexts`` counts as causes too."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or (current.__context__ if contexts else None)
    return chain


def explain_divergence(error: Diverged) -> str:
    """Return the message of a diverged run, with advice in the app's keys."""
    advice = "Try a tenth of optimizer.lr, a warmup, or trainer.gradient_clip_val=1."
    return f"{error.headline}. {advice}"


def explain(error: BaseException, override: str | None = None) -> str:
    """Return one clear message for an error of Hydra's or OmegaConf's, which ``override`` caused, if it is known.

    The message leaves out Hydra's advice, which is wrong here: ``+key=value`` is refused as well. Neither library has a
    type for each of its errors, so this reads the texts of the errors and of their causes.
    """
    from hydra.errors import OverrideParseException  # a command that composes no config does not import Hydra

    chain = causes(error, contexts=True)
    text = "\n".join(str(e) for e in chain)
    if message := _of_composition(text):
        return message
    if isinstance(error, OverrideParseException):
        name, equals, value = str(error.override).partition("=")
        typed = _commands.shell_quote(_commands.override(name, value))
        remedy = f"If the value is text, type {typed}" if equals else "Write key=value."
        return f"cannot read the override '{error.override}'. {remedy}"
    key = _key_in(text, override)
    if message := _of_conversion(text, key, chain):
        return message
    reason = str(chain[1] if "Error merging" in str(error) and len(chain) > 1 else error).splitlines()[0]
    return reason if key == _UNKNOWN_KEY else f"{key}: {reason}"


def _of_composition(text: str) -> str | None:
    """Explain unknown choices and groups, and overrides that Hydra does not understand."""
    if found := re.search(r"Could not find '([\w/.-]+)/([^/']*)'", text):
        group, choice = found.groups()
        choices = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        listed = f" Choices: {', '.join(choices)}." if choices else ""
        return f"{group}: unknown choice '{choice}'.{listed}{did_you_mean(choice, choices)}"
    if found := re.search(r"Could not override '([\w/.-]+)'.*No match in the defaults list", text, flags=re.DOTALL):
        return f"{found[1]}: there is no such config group. `--help` lists them."
    if "Config group override must be" in text:
        return "a config group was given something that is not a choice. Write group=choice, such as schedule=cosine."
    if found := re.search(r"Ambiguous value for argument '(.*?)'", text):
        return f"{found[1]}: several values need -m, which runs one after another. A list is written key=[a,b]."
    if "Unexpected type for root: NoneType" in text:  # OmegaConf's assertion does not name the key
        return (
            "a key belongs to something that is switched off (null), as callbacks.cost.target does with "
            "callbacks=none. Leave the key out."
        )
    return None


def _of_conversion(text: str, key: str, chain: Sequence[BaseException]) -> str | None:
    """Explain values of another type than their key's, and unknown keys."""
    if found := re.search(r"Value '(.*?)' of type '\w+' could not be converted to (\w+)", text, flags=re.DOTALL):
        return f"{key}: '{found[1]}' is not {_TYPES.get(found[2], found[2])}."
    if found := re.search(r"Value '(.*?)' of type '(\w+)' is incompatible with type hint '(.*?)'", text):
        if found[3] == "Union[int, str]" and key.startswith("schedule."):
            return f"{key}: {found[1]} has no unit: of what? Give steps (500), '5%' or '2 epochs'."
        return f"{key}: '{found[1]}' ({found[2]}) is not one of the allowed types: {found[3]}."
    if found := re.search(r"Value '(.*?)' is not a valid bool", text):
        return f"{key}: '{found[1]}' is not true or false."
    if found := re.search(r"Invalid type assigned: (\w+) is not a subclass of \w+\. value: (.*)", text):
        return f"{key}: '{found[2]}' is not a mapping of keys to values. `--cfg job` shows its keys."
    if "Interpolation" in text or "interpolation" in text:
        return f"{key}: {str(chain[-1]).splitlines()[0]}. Check the ${{...}} in its value."
    if "is not in struct" in text:
        return f"{key}: has no such entry yet. A new one is added with a plus sign: +{key}=..."
    if re.search(r"Key '(\w+)' (?:is )?not in", text):
        schemas = [schema for error in chain if is_dataclass(schema := getattr(error, "object_type", None))]
        beside = [f.name for f in fields(schemas[-1])] if schemas else []
        close = did_you_mean(key.rpartition(".")[2], beside)
        return f"{key}: {no_such_key(close.strip())}"
    return None


def _key_in(text: str, override: str | None) -> str:
    for pattern in (
        r"Could not (?:override|append).*?'([\w/.@-]+)'",
        r"full_key: (\S+)",
        r"Error merging override \+*([\w/.@-]+)=",
    ):
        if found := re.search(pattern, text):
            return found[1]
    return override.lstrip("+~").split("=", 1)[0] if override else _UNKNOWN_KEY
