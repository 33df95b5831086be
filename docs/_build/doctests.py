"""Make docstrings fit for the API page: doctests become code blocks, and roles of Sphinx become plain code.

Griffe looks for doctests below `Examples:`, but the docstrings write `Example:`.
"""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`(~?)([^`]+)`")


def without_roles(text: str) -> str:
    """Replace each role by its name in code; `~` keeps the last part of the name, as in Sphinx."""
    return _ROLE.sub(lambda role: f"`{role[2].rpartition('.')[2] if role[1] else role[2]}`", text)


class Doctests(griffe.Extension):
    """Rename the section and replace the roles."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of each object when it is loaded."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = without_roles(text)
