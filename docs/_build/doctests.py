"""Show doctests on the API page as code: Griffe looks for them below `Examples:`, the docstrings write `Example:`."""

import re
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Rename the section."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of each object when it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
