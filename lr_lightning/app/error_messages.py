"""The one error a user of the app meets, and the translation of Hydra's and OmegaConf's into it."""

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass

from hydra.errors import OverrideParseException

from lr_lightning.errors import Diverged

FAILED, BAD_INPUT = 1, 2
"""Exit statuses of the commands: of what failed once it had begun, and of bad input, where nothing was started."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, the device's or the host's: torch says it in words of its own."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def print_error(text: object) -> None:
    """Print an error to stderr, each of its lines marked as one."""
    print("\n".join(f"error: {line}" for line in str(text).splitlines()), file=sys.stderr)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Say which of ``choices`` is closest to ``word``: ``" Did you mean 'lr'?"``, or nothing."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


_TYPES = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false", "String": "text"}

_UNKNOWN = "command line"


def explain_divergence(error: Diverged) -> str:
    """Return the message of a diverged run, with advice in the app's keys."""
    return (
        f"{error.headline}. Try a lower optimizer.lr (a third is a good first step), a warm-up, or "
        "trainer.gradient_clip_val=1."
    )


def explain(error: BaseException, override: str | None = None) -> str:
    """One clear message for an exception of Hydra's composition or OmegaConf's conversion.

    Args:
        error: What was raised; its causes are looked through as well.
        override: The command-line override that caused it, if that is known.

    Returns:
        The message, without Hydra's advice, which does not hold here (``+key=value`` is refused too).
    """
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    text = "\n".join(str(e) for e in chain)
    if said := _of_composition(text):
        return said
    if isinstance(error, OverrideParseException):
        return f"cannot read the override '{error.override}'. Write key=value, in quotes if it has spaces."
    key = _key_of(text, override)
    if said := _of_conversion(text, key, chain):
        return said
    reason = str(chain[1] if "Error merging" in str(error) and len(chain) > 1 else error).splitlines()[0]
    return reason if key == _UNKNOWN else f"{key}: {reason}"


def _of_composition(text: str) -> str | None:
    """Choices and groups that are not there, and overrides that Hydra does not understand."""
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
    if "Unexpected type for root: NoneType" in text:  # OmegaConf asserts it, and does not say where
        return (
            "a key was given of something that is off (null) here, such as callbacks.cost.target with callbacks=none."
        )
    return None


def _of_conversion(text: str, key: str, chain: Sequence[BaseException]) -> str | None:
    """Values that are not of their key's type, and keys that are not there."""
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
        close = did_you_mean(key.rpartition(".")[2], _beside(chain))
        return f"{key}: there is no such key.{close} `--cfg job` shows every key."
    return None


def _beside(chain: Sequence[BaseException]) -> list[str]:
    """The keys that there are where one was not found."""
    kinds = [kind for error in chain if is_dataclass(kind := getattr(error, "object_type", None))]
    return [f.name for f in fields(kinds[-1])] if kinds else []


def _key_of(text: str, override: str | None) -> str:
    for pattern in (
        r"Could not (?:override|append).*?'([\w/.@-]+)'",
        r"full_key: (\S+)",
        r"Error merging override \+*([\w/.@-]+)=",
    ):
        if found := re.search(pattern, text):
            return found[1]
    return override.lstrip("+~").split("=", 1)[0] if override else _UNKNOWN
