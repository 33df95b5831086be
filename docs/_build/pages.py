"""The generated pages: every config key from the schemas, and the API from the package's lists of public names."""

import ast
import inspect
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import lr_lightning
from lr_lightning import schedules
from lr_lightning.app import config as app_config
from lr_lightning.app.composition import choices_of, comments_of, first_sentence

ROOT = Path(__file__).resolve().parents[2]
_KEYS = """# Every config key

Which keys does the app have, and what does each mean?

`group=choice` takes a choice, and `group.key=value` sets one key. `python scripts/train.py --cfg job` shows every value of
a run before it starts. A key without a default must be given. This page is generated from the schemas.
"""
_API = """# The API

What can I import, and what does it do?

This page lists the public names of `lr_lightning` and `lr_lightning.schedules`. Everything else may change without
notice.
"""


def api_page() -> str:
    """Return the API page, with one mkdocstrings entry for each public name."""
    names = [getattr(lr_lightning, name) for name in lr_lightning.__all__ if not name.startswith("_")]
    pieces = [getattr(schedules, name) for name in schedules.__all__]
    documented = [obj for obj in [*names, *pieces] if inspect.isclass(obj) or inspect.isfunction(obj)]
    return _API + "".join(f"\n::: {obj.__module__}.{obj.__qualname__}\n" for obj in documented)


def keys_page() -> str:
    """Return the page of keys. Each config group is a section with its choices, the common keys, and the keys of some."""
    parts = [_KEYS, "\n## At the top\n\n", _table(app_config.Config)]
    choices = choices_of(ROOT)
    for group, schemas in app_config.SCHEMAS.items():
        parts.append(f"\n## {group}\n\n")
        lines = ((name, first_sentence(ROOT / "conf" / group / f"{name}.yaml")) for name in choices.get(group, []))
        parts.append("".join(f"- `{group}={name}`: {text}\n" for name, text in lines))
        for schema in dict.fromkeys(_with_parents(list(schemas.values()))):
            if table := _table(schema):
                parts.append(f"\n### {group}: {_whose(schema, schemas)}\n\n{_first_line(schema)}\n\n{table}")
    return "".join(parts)


def _whose(schema: type, schemas: dict[str, type]) -> str:
    """Name the choices that have a schema's keys."""
    heirs = [name for name, own in schemas.items() if issubclass(own, schema)]
    if not heirs:
        return schema.__name__  # the schema of a key that has keys itself
    return "every choice" if len(heirs) == len(schemas) else ", ".join(heirs)


def _with_parents(schemas: list[type]) -> list[type]:
    """Return the schemas, each after its parents, and then the schemas nested in their keys."""
    ordered = [cls for schema in schemas for cls in reversed(schema.__mro__) if cls is not object]
    hints = [hint for schema in schemas for hint in get_type_hints(schema).values()]
    nested = [part for hint in hints for part in (hint, *get_args(hint)) if is_dataclass(part)]
    return [*ordered, *(part for part in nested if isinstance(part, type))]


def _first_line(schema: type) -> str:
    return (schema.__doc__ or "").split("\n")[0]


def _table(schema: type) -> str:
    """Return a table of the keys that a schema adds, with type, default and comment; "" if it adds none."""
    (tree,) = ast.parse(inspect.getsource(schema)).body
    comments, hints = comments_of(schema), get_type_hints(schema)
    rows: list[str] = []
    for node in getattr(tree, "body", []):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        if name == "name":
            continue
        default = "" if node.value is None else _default(node.value)
        kind = re.sub(r"[\w.]+\.", "", inspect.formatannotation(hints[name])).replace(" | ", " or ")
        cells = [f"`{name}`", f"`{kind}`", f"`{default}`" if default else "", comments[name] or _group(name)]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n" if rows else ""


def _group(name: str) -> str:
    return f"the group below: `{name}=CHOICE`" if name in app_config.SCHEMAS else ""


def _default(value: ast.expr) -> str:
    """Return a default as a user types it, without the wrapping of a factory."""
    text = ast.unparse(value)
    if text == "MISSING":
        return ""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        factory = next((k.value for k in value.keywords if k.arg == "default_factory"), None)
        if isinstance(factory, ast.Lambda):
            return ast.unparse(factory.body)
        return {"dict": "{}", "list": "[]"}.get(ast.unparse(factory) if factory else "", "")
    return text
