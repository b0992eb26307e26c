"""The docstrings of Python files, found by parsing, never by importing.

Also a worker: run as a script, it reads file names from standard input, one JSON string a line, and answers each with
a line: a JSON list of ``[qualified name within the module, docstring]``, or null for a file that cannot be parsed. A
worker of this kind starts fast, needs no import of the caller's main module, and exchanges nothing but JSON.
"""

from __future__ import annotations

import ast
import gc
import json
import sys
import warnings
from collections.abc import Iterator

_TRIPLE_QUOTES = (b'"""', b"'''")
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
# Whatever else can hold definitions: the walk passes over all simple statements.
_COMPOUND = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.With,
    ast.AsyncWith,
    ast.Try,
    ast.TryStar,
    ast.ExceptHandler,
    ast.Match,
    ast.match_case,
)
_BODIES = ("body", "handlers", "orelse", "finalbody", "cases")  # in the order of the source


def docstrings(path: str) -> list[tuple[str, str]] | None:
    """(qualified name, cleaned docstring) of the module, classes and functions in a file, in their order.

    The module's own name is "". None for a file that cannot be read or parsed. A file without a triple quote is not
    parsed at all: parsing takes nearly all the time, and a docstring of some length is hardly ever written otherwise.
    """
    try:
        with open(path, "rb") as file:
            source = file.read()
        if not any(quotes in source for quotes in _TRIPLE_QUOTES):
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning: the file's business
            return list(_walk(ast.parse(source), ""))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | _Definition):
        text = ast.get_docstring(node, clean=True)
        if text:
            yield name, text
    for field in _BODIES:
        for child in getattr(node, field, ()):
            if isinstance(child, _Definition):
                yield from _walk(child, f"{name}.{child.name}" if name else child.name)
            elif isinstance(child, _COMPOUND):
                yield from _walk(child, name)


def serve() -> None:
    gc.disable()  # syntax trees hold no cycles, and collecting them takes a third of the time
    for line in sys.stdin:
        print(json.dumps(docstrings(json.loads(line))), flush=False)


if __name__ == "__main__":
    serve()
