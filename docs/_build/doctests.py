"""Doctests of the API page as code: Griffe takes them as such below `Examples:`, the docstrings write `Example:`."""

import re
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Renames the section."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of each object as it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
