"""What the schemas' comments say of each key: for ``--help``, and for the page of every key."""

import ast
import inspect

__all__ = ["comments_of"]


def comments_of(schema: type) -> dict[str, str]:
    """The comment of each key that a schema adds, in their order; empty where there is none.

    Args:
        schema: The schema. Its source is read: comments stand nowhere else.
    """
    source = inspect.getsource(schema)
    (tree,) = ast.parse(source).body
    fields = [node for node in getattr(tree, "body", []) if isinstance(node, ast.AnnAssign)]
    lines = source.splitlines()
    return {node.target.id: _said(lines, node) for node in fields if isinstance(node.target, ast.Name)}


def _said(lines: list[str], node: ast.AnnAssign) -> str:
    """The comment on the field's last line, else those right above it."""
    beside = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset or 0 :].partition("#")[2].strip()
    if beside:
        return beside
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    return " ".join(above)
