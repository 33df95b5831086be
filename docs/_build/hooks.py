"""Hooks of MkDocs: add the generated pages, and the files of the checkout that pages link to."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pages import api_page, keys_page  # MkDocs puts this folder on the path while it loads a hook

ROOT = Path(__file__).resolve().parents[2]
_OUTSIDE = re.compile(r"\]\(\.\./([\w/.-]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of keys and API, and a copy of each linked file outside docs/ (results, tests, examples)."""
    files.append(File.generated(config, "keys.md", content=keys_page()))
    files.append(File.generated(config, "api.md", content=api_page()))
    pages = [Path(str(file.abs_src_path)) for file in files.documentation_pages() if file.abs_src_path]
    linked = {path for page in pages for path in _OUTSIDE.findall(page.read_text(encoding="utf-8"))}
    for path in sorted(path for path in linked if (ROOT / path).is_file()):  # other links are broken, and MkDocs reports them
        files.append(File.generated(config, f"files/{path}", content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links that leave docs/ at the copies."""
    return _OUTSIDE.sub(r"](files/\1", markdown)
