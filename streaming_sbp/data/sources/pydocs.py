"""The docstrings of the standard library and of every package in this environment: English prose on every machine.

With ``data.inputs``, the docstrings of the packages in those folders instead. Documents are named as in
``package.module.Class.method``. Files that cannot be parsed are counted as ``unparsable``, whatever ``on_error`` says:
packages ship such files on purpose, to test parsers.
"""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from streaming_sbp.data.sources import docstrings
from streaming_sbp.data.sources.reading import RawDocument, Reading

NUM_WORKERS = 2
_FILES_WORTH_WORKERS = 200  # fewer are parsed before two interpreters have started
_PIPE_BYTES = 2**20  # lets a worker run ahead of the other
_SITE_FOLDERS = ("site-packages", "dist-packages")


def read(reading: Reading) -> Iterator[RawDocument]:
    roots = _named_roots(reading) if reading.data.inputs else environment_roots()
    files = [(root, path) for root in roots for path in _python_files(root)]
    reading.start(len(files), "files")
    for (root, path), found in zip(files, _parse([path for _, path in files]), strict=True):
        reading.advance(1)
        if found is None:
            reading.leave_out("unparsable")
            continue
        module = _module_name(root, path)
        for name, text in found:
            yield RawDocument(text, f"{module}.{name}" if name else module)


def environment_roots() -> list[Path]:
    """The standard library, then the folders of installed packages."""
    paths = sysconfig.get_paths()
    named = [paths["stdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages()]
    resolved = dict.fromkeys(Path(name).resolve() for name in named)
    return [path for path in resolved if path.is_dir()]


def _named_roots(reading: Reading) -> list[Path]:
    """The folders to which module names are relative: a package's own folder is named by its parent."""
    roots = []
    for name in reading.data.inputs:
        if Path(name).is_dir():
            roots.append(Path(name))
        else:
            reading.bad("missing", name, "is not a folder of Python files", "correct data.inputs")
    return roots


def _python_files(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and name not in _SITE_FOLDERS)
        yield from (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py"))


def _module_name(root: Path, path: str) -> str:
    base = root.parent if (root / "__init__.py").exists() else root
    parts = Path(path).relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _parse(paths: Sequence[str]) -> Iterator[list[tuple[str, str]] | None]:
    """The docstrings of each file, in the order of ``paths``."""
    num_workers = min(NUM_WORKERS, os.cpu_count() or 1)
    if len(paths) < _FILES_WORTH_WORKERS or num_workers == 1:
        yield from map(docstrings.docstrings, paths)
        return
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(paths[k::num_workers])) for k in range(num_workers)]
        for i in range(len(paths)):
            yield workers[i % num_workers].next()


class _Worker:
    """An interpreter that runs docstrings.py over ``paths``."""

    def __init__(self, paths: Sequence[str]):
        # A file and not a pipe: whoever fills a pipe while nobody empties the other one waits for ever.
        with tempfile.TemporaryFile("w+", encoding="utf-8") as requests:
            requests.writelines(json.dumps(path) + "\n" for path in paths)
            requests.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-I", docstrings.__file__],
                stdin=requests,
                stdout=subprocess.PIPE,
                text=True,
                pipesize=_PIPE_BYTES,
                start_new_session=True,  # Ctrl-C is for the caller, who then ends its workers
            )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._answers.close()

    def next(self) -> list[tuple[str, str]] | None:
        """The answer for the next path. Raises RuntimeError when the interpreter has died."""
        answer = self._answers.readline()
        if not answer.endswith("\n"):
            raise RuntimeError(f"the parser of docstrings ended with status {self._process.wait()}; run it again")
        return json.loads(answer)

    @property
    def _answers(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout
