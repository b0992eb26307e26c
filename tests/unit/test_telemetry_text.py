import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_sbp.telemetry.text import (
    clock_time,
    decimal,
    duration,
    one_line,
    percent,
    printable,
    quantity,
    size,
    whole,
)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("plain\n\ttext é 漢 🦊", "plain\n\ttext é 漢 🦊"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[Hhome", "home"),
        ("\x1b]0;title\x07shown", "shown"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;never closed", ""),
        ("\x1bPq sixel\x1b\\after", "after"),
        ("\x9b31mred", "red"),
        ("a\rb\r\nc\x08\x7f\x00d", "ab\ncd"),
        ("user\u202egpj.exe\u2066", "usergpj.exe"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("ends in \x1b", "ends in "),
    ],
)
def test_printable(raw, clean):
    assert printable(raw) == clean


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=60))
def test_nothing_printable_steers_a_terminal(text):
    found = printable(text)
    found.encode("utf-8")
    assert all(char in "\n\t" or unicodedata.category(char) != "Cc" for char in found)
    assert printable(found) == found


@given(st.text(st.sampled_from("\x1b[]0;31mAB\x07\\P\x9b\n \x9d"), max_size=40))
def test_no_escape_survives_being_taken_apart(text):
    assert not set(printable(text)) & set("\x1b\x9b\x9d\x07")


def test_one_line():
    assert one_line(" a\n\n\tb \x1b[31m c ") == "a b c"
    assert one_line(None) == "None"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (950, "950"),
        (999.6, "1.00k"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (999_600, "1.00M"),
        (4_560_000, "4.56M"),
        (1.2e9, "1.20G"),
        (-1500, "-1.50k"),
        (3e15, "3.00e+15"),
    ],
)
def test_quantity(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0, "0 s"),
        (0.04, "0.0 s"),
        (8.04, "8.0 s"),
        (12.4, "12 s"),
        (59.4, "59 s"),
        (59.7, "1 min 0 s"),
        (161, "2 min 41 s"),
        (3599.8, "1 h 0 min"),
        (11_520, "3 h 12 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(None, "–"), (512, "512 B"), (1536, "1.5 KiB"), (700 * 2**20, "700 MiB"), (3 * 2**40, "3.0 TiB")],
)
def test_size(num_bytes, text):
    assert size(num_bytes) == text


def test_other_numbers():
    assert (whole(12345), whole(None), decimal(1.23456), decimal(None), percent(0.1234), percent(None)) == (
        "12,345",
        "–",
        "1.235",
        "–",
        "12.3 %",
        "–",
    )
    assert len(clock_time(1.0)) == 8
    assert clock_time(None) == "–"
