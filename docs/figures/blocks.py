"""Fills the code blocks of a Markdown page from the source: what stands between `<!-- code: dotted.name -->` and `<!-- end -->`."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"(<!-- code: (?P<name>[\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def find(name: str) -> tuple[Any, str]:
    """The object of a dotted name and the name of the module that holds it. Raises ImportError or AttributeError where there is none."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):  # something the module needs is missing
                raise
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found, module
    raise ImportError(f"{name}: no module of that name")


def block(name: str) -> str:
    """Where the object lives, and its source, as Markdown."""
    found, module = find(name)
    source = textwrap.dedent(inspect.getsource(found)).rstrip()
    path = f"src/{module.replace('.', '/')}.py"
    short = name.removeprefix(f"{module}.")
    return f"`{short}`, from [{path}](../{path}):\n\n```python\n{source}\n```\n"


def filled(text: str) -> str:
    """The page with every block renewed."""
    return BLOCK.sub(lambda match: match[1] + block(match["name"]) + match[3], text)


def stale(page: Path) -> list[str]:
    """Names of the blocks that differ from the source; also those whose end mark is missing."""
    text = page.read_text(encoding="utf-8")
    names = [match["name"] for match in BLOCK.finditer(text)]
    opened = re.findall(r"<!-- code: ([\w.]+) -->", text)
    lost = [name for name in opened if name not in names]
    return lost + [match["name"] for match in BLOCK.finditer(text) if match[0] != match[1] + block(match["name"]) + match[3]]


def refresh(page: Path) -> bool:
    """Renew the page's blocks in place; whether anything changed."""
    before = page.read_text(encoding="utf-8")
    after = filled(before)
    if after != before:
        page.write_text(after, encoding="utf-8")
    return after != before
