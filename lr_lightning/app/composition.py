"""From a command line's overrides to a checked config, and the texts of `--help`."""

import ast
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lr_lightning.app.checks import validate
from lr_lightning.app.config import Config, register
from lr_lightning.app.error_messages import explain
from lr_lightning.errors import ConfigError

__all__ = [
    "choices_help",
    "choices_of",
    "comments_of",
    "compose_config",
    "first_sentence",
    "keys_help",
    "load_config",
    "prepare",
    "wants_tracebacks",
]

_HYDRAS, _OURS = "HYDRA_FULL_ERROR", "LR_LIGHTNING_SET_HYDRA_FULL_ERROR"


def wants_tracebacks() -> bool:
    """Tell whether the user has set HYDRA_FULL_ERROR."""
    return _HYDRAS in os.environ and _OURS not in os.environ


def prepare(root: Path, purpose: str = "", usage: Callable[[], str] = str) -> None:
    """Register the checkout's config with Hydra, and make the user's modules importable. Repeated calls are harmless.

    Args:
        root: The checkout.
        purpose: The first line of `--help`.
        usage: Returns the end of `--help`.
    """
    if not wants_tracebacks():
        # Without the first variable Hydra would print its errors and exit; here they are translated. The second one
        # tells child processes that the first was not set by the user.
        os.environ |= {_HYDRAS: "1", _OURS: "1"}
    OmegaConf.register_new_resolver("checkout", lambda: str(root), replace=True)
    OmegaConf.register_new_resolver("choices", lambda: choices_help(root), replace=True)
    OmegaConf.register_new_resolver("purpose", lambda: purpose, replace=True)
    OmegaConf.register_new_resolver("usage", lambda: usage(), replace=True)
    register()
    # A user's module=... lies in the working directory. Python has put the scripts' folder first, where a script of the
    # same name would hide it.
    here = os.getcwd()
    sys.path[:] = [path for path in sys.path if path not in (str(root / "scripts"), here)] + [here]


def compose_config(root: Path, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """Compose a config without Hydra's command line.

    Args:
        root: The checkout, whose `conf/` is read.
        overrides: As on the command line.

    Returns:
        The config, not yet checked, and the choice of each group.

    Raises:
        ConfigError: The overrides cannot be composed.
    """
    outer = GlobalHydra.instance().hydra  # of a caller that is a Hydra app itself
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(root / "conf"), version_base="1.3"):
            cfg = compose("config", list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as e:
        raise ConfigError(explain(e)) from e
    finally:
        GlobalHydra.instance().hydra = outer
    HydraConfig.instance().set_config(cfg)  # `validate` looks for optimizer.lr among the overrides
    choices = {str(k): str(v) for k, v in cfg.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def load_config(root: Path, overrides: Sequence[str]) -> Config:
    """Compose and check a config without Hydra's command line.

    Args:
        root: The checkout, whose `conf/` is read.
        overrides: As on the command line.

    Raises:
        ConfigError: The overrides cannot be composed, or a key or a value is bad.
    """
    try:
        return validate(compose_config(root, overrides)[0])
    except OmegaConfBaseException as e:
        raise ConfigError(explain(e)) from e


def choices_of(root: Path) -> dict[str, list[str]]:
    """Return the choices of each config group in `conf/`."""
    folders = sorted(folder for folder in (root / "conf").iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def choices_help(root: Path) -> str:
    """Return the part of `--help` that lists the choices of each group, a line and a sentence for each."""
    groups = choices_of(root)
    width = max(len(choice) for choices in groups.values() for choice in choices)
    lines: list[str] = []
    for group, choices in groups.items():
        lines.append(f"{group}=")
        files = {choice: root / "conf" / group / f"{choice}.yaml" for choice in choices}
        lines += [f"  {choice:<{width}}  {first_sentence(file)}".rstrip() for choice, file in files.items()]
    return "\n".join(lines)


def keys_help(group: str, schema: type, *, without: Sequence[str] = ()) -> str:
    """Return a part of `--help` that lists the keys of a group, a line and a comment for each.

    Args:
        group: The group.
        schema: Its schema. Inherited keys and keys without a comment are not listed.
        without: Keys to leave out.
    """
    found = {key: text for key, text in comments_of(schema).items() if text and key not in without}
    width = max(map(len, found))
    return "\n".join(f"  {group}.{name:<{width}}  {text}" for name, text in found.items())


def first_sentence(choice: Path) -> str:
    """Return the first sentence of a choice's first comment; empty without a comment."""
    comments = (line for line in choice.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    first = next((line[2:] for line in comments if not line.startswith("# @")), "")
    return re.split(r"(?<=[a-z\d)])\. ", first)[0].rstrip(".:")


def comments_of(schema: type) -> dict[str, str]:
    """Return the comment of each key that a schema adds, in their order; empty for a key without a comment.

    Args:
        schema: The schema. Its source is read, since Python keeps no comments.
    """
    source = inspect.getsource(schema)
    (tree,) = ast.parse(source).body
    fields = [node for node in getattr(tree, "body", []) if isinstance(node, ast.AnnAssign)]
    lines = source.splitlines()
    return {node.target.id: _comment_of(lines, node) for node in fields if isinstance(node.target, ast.Name)}


def _comment_of(lines: list[str], node: ast.AnnAssign) -> str:
    """Return the comment on the field's last line, or else the lines of comment right above it."""
    beside = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset or 0 :].partition("#")[2].strip()
    if beside:
        return beside
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    return " ".join(above)
