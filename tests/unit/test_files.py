"""Files that a crash or a full disk must not damage."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from streaming_sbp import files
from streaming_sbp.files import AppendLog, read_json, write_json


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs privileges")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_lines_that_a_full_disk_refuses_are_written_when_there_is_room(small_disk):
    (small_disk / "ballast").write_bytes(bytes(48 * 1024))
    log, lines = AppendLog(small_disk / "log"), [f"line {k:060d}\n".encode() for k in range(600)]
    for line in lines[:500]:
        log.append(line)
    content = (small_disk / "log").read_bytes()
    assert len(content) < 500 * len(lines[0])
    assert content.endswith(b"\n")
    os.remove(small_disk / "ballast")
    for line in lines[500:]:
        log.append(line)
    assert (small_disk / "log").read_bytes() == b"".join(lines)


def test_more_than_memory_should_hold_is_an_error(small_disk, monkeypatch):
    monkeypatch.setattr(files, "MAX_WAITING_BYTES", 10_000)
    (small_disk / "ballast").write_bytes(bytes(64 * 1024 - 4096))
    log = AppendLog(small_disk / "log")

    def fill() -> None:
        for _ in range(1000):
            log.append(b"x" * 100 + b"\n")

    with pytest.raises(OSError, match="No space"):
        fill()


@pytest.mark.parametrize("size", [0, 10, 2**16, 2**17 + 5])
def test_a_line_that_was_cut_short_is_dropped_on_opening(tmp_path, size):
    path = tmp_path / "log"
    path.write_bytes(b"whole\n" + b"cut" * size)
    AppendLog(path).append(b"next\n")
    assert path.read_bytes() == b"whole\nnext\n"


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def crash(*arguments: object) -> None:
        raise OSError("crash")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="crash"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_json(path)
    assert read_json(tmp_path / "missing") is None
