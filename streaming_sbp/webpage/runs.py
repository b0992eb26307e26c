"""Which runs there are under some folders, numbered as they are found: a page asks for a number, never for a path."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from streaming_sbp.config import ConfigError
from streaming_sbp.webpage.watch import WatchedRun

DEFAULT_FOLDER = Path("runs")
DEEPEST = 4  # folders below the one that was given: an experiment has runs/ARM/seed-0


class RunList:
    """``look`` finds what is new. A run that vanished stays in the list, so that numbers keep their meaning."""

    def __init__(self, folders: Sequence[Path]):
        """``folders`` are runs, or hold runs; none: the runs under ``runs/``. Raises ConfigError for anything else."""
        for folder in folders or (DEFAULT_FOLDER,):
            if not folder.is_dir():
                expected = "a run directory, or a folder that holds runs; `sbp run` makes one"
                raise ConfigError(f"{folder}: {'no folder' if folder.exists() else 'not there'}; expected {expected}")
        self._folders = list(folders) or [DEFAULT_FOLDER]
        self._by_path: dict[Path, WatchedRun] = {}
        self.look()

    def __iter__(self) -> Iterator[WatchedRun]:
        return iter(list(self._by_path.values()))

    def __len__(self) -> int:
        return len(self._by_path)

    def __getitem__(self, number: int) -> WatchedRun:
        """Raises IndexError when there is none of this number."""
        return list(self._by_path.values())[number]

    def look(self) -> None:
        for folder in self._folders:
            for path in sorted(_runs_under(folder, DEEPEST)):
                if path not in self._by_path:
                    self._by_path[path] = WatchedRun(path, self._name(folder, path), chosen=path == folder)

    def _name(self, folder: Path, path: Path) -> str:
        name = path.absolute().name if path == folder else str(path.relative_to(folder))
        return str(path) if name in {run.name for run in self} else name


def _runs_under(folder: Path, depth: int) -> Iterator[Path]:
    """What is in a run is not looked at, nor hidden folders, nor what links lead to."""
    if (folder / "run.json").is_file():
        yield folder
        return
    try:
        inside = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:  # gone, or not ours to read
        return
    for path in inside if depth else ():
        if not path.name.startswith("."):
            yield from _runs_under(path, depth - 1)
