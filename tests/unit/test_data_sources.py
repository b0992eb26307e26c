import gzip
import importlib.util
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import zstandard

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data import sources
from streaming_sbp.data.sources import docstrings, pydocs
from streaming_sbp.data.sources.reading import InputError, Reading

TEXTS = ["first document", "zweites Dokument: äöü €", "third\nwith lines\n"]


def jsonl(texts):
    return "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()


def write_tar(path, texts, part="text"):
    with open(path, "wb") as file, webdataset.TarWriter(file, encoder=False) as tar:
        for i, text in enumerate(texts):
            tar.write({"__key__": f"sample{i}", part: text.encode(), "cls": b"1"})


def write_parquet(path, texts):
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "n": list(range(len(texts)))}), path)


def reading(source, *inputs, **settings):
    return Reading(config.Data(source=source, inputs=tuple(map(str, inputs)), **settings))


def read(source, *inputs, **settings):
    """(documents, skipped)"""
    opened = reading(source, *inputs, **settings)
    return list(sources.read(opened)), dict(opened.skipped)


GOOD = {
    "jsonl": ("a.jsonl", lambda path: path.write_bytes(jsonl(TEXTS))),
    "jsonl, byte order mark and blank lines": (
        "a.ndjson",
        lambda path: path.write_bytes(b"\xef\xbb\xbf\n" + jsonl(TEXTS).replace(b"\n", b"\n\n")),
    ),
    "jsonl, no newline at the end": ("a.jsonl", lambda path: path.write_bytes(jsonl(TEXTS)[:-1])),
    "jsonl.gz": ("a.jsonl.gz", lambda path: path.write_bytes(gzip.compress(jsonl(TEXTS)))),
    "jsonl.gz, two members": (
        "a.jsonl.gz",
        lambda path: path.write_bytes(gzip.compress(jsonl(TEXTS[:1])) + gzip.compress(jsonl(TEXTS[1:]))),
    ),
    "jsonl.zst": ("a.jsonl.zst", lambda path: path.write_bytes(zstandard.compress(jsonl(TEXTS)))),
    "jsonl.zst, two frames": (
        "a.jsonl.zst",
        lambda path: path.write_bytes(zstandard.compress(jsonl(TEXTS[:1])) + zstandard.compress(jsonl(TEXTS[1:]))),
    ),
    "parquet": ("a.parquet", lambda path: write_parquet(path, TEXTS)),
    "parquet, dictionary": (
        "a.parquet",
        lambda path: pq.write_table(pa.table({"text": pa.array(TEXTS).dictionary_encode()}), path),
    ),
    "webdataset": ("a.tar", lambda path: write_tar(path, TEXTS)),
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("by_folder", [False, True])
def test_good_input_is_read_in_order_with_origins(tmp_path, kind, by_folder):
    name, write = GOOD[kind]
    write(tmp_path / name)
    found, skipped = read(kind.split(".")[0].split(",")[0], tmp_path if by_folder else tmp_path / name)
    assert [document.text for document in found] == TEXTS
    assert len({document.origin for document in found}) == len(TEXTS)
    assert all(str(tmp_path / name) in document.origin for document in found)
    assert skipped == {}


def test_text_folders_are_read_recursively_and_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name, text in zip(("a.md", "b/x.txt", "c.rst"), TEXTS, strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found, _ = read("text", tmp_path)
    assert [(document.text, document.origin) for document in found] == [
        (text, str(tmp_path / name)) for name, text in zip(("a.md", "b/x.txt", "c.rst"), TEXTS, strict=True)
    ]


def test_patterns_find_files_and_folders(tmp_path):
    for name in ("x/a.jsonl", "x/b.jsonl", "x/c.txt", "y/deep/d.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([name]))
    for pattern, expected in [
        ("x/*.jsonl", ["x/a.jsonl", "x/b.jsonl"]),
        ("**/[bd].jsonl", ["x/b.jsonl", "y/deep/d.jsonl"]),
        ("?", ["x/a.jsonl", "x/b.jsonl", "y/deep/d.jsonl"]),
    ]:
        assert [document.text for document in read("jsonl", tmp_path / pattern)[0]] == expected
    with pytest.raises(InputError, match="nothing matches this pattern"):
        read("jsonl", tmp_path / "*.gz")
    assert read("jsonl", tmp_path / "*.gz", tmp_path / "x", on_error="skip")[1] == {"missing": 1}


def test_a_name_with_signs_of_a_pattern_is_that_file(tmp_path):
    (tmp_path / "[a].jsonl").write_bytes(jsonl(["brackets"]))
    (tmp_path / "a.jsonl").write_bytes(jsonl(["plain"]))
    assert [document.text for document in read("jsonl", tmp_path / "[a].jsonl")[0]] == ["brackets"]


def test_progress_counts_every_byte(tmp_path):
    for name in ("a.jsonl", "b.jsonl.gz"):
        content = jsonl(TEXTS * 100)
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    total, done = [], []
    data = config.Data(source="jsonl", inputs=(str(tmp_path),))
    list(sources.read(Reading(data, lambda *start: total.append(start), done.append)))
    assert total == [(sum(done), "bytes")]


def invalid_utf8_parquet(path):
    pq.write_table(pa.table({"text": pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())}), path)


def cut(path, content, length):
    path.write_bytes(content[:length])


def cut_tar(path):
    write_tar(path, ["good", "x" * 5000])
    cut(path, path.read_bytes(), 6000)


# kind, file, how to write it, reason, words of the error, texts that "skip" still finds
BAD = {
    "not UTF-8 in a line": (
        "jsonl",
        "a.jsonl",
        lambda path: path.write_bytes(jsonl(["good"]) + b'{"text": "caf\xe9"}\n' + jsonl(["fine"])),
        "not_utf8",
        ["a.jsonl:2", "0xe9 at position 13", "iconv"],
        ["good", "fine"],
    ),
    "broken line": (
        "jsonl",
        "a.jsonl",
        lambda path: path.write_bytes(jsonl(["good"]) + b'{"text": \n' + jsonl(["fine"])),
        "broken_json",
        ["a.jsonl:2", "one JSON object a line"],
        ["good", "fine"],
    ),
    "absurdly nested line": (
        "jsonl",
        "a.jsonl",
        lambda path: path.write_bytes(b"[" * 10**6 + b"\n" + jsonl(["fine"])),
        "broken_json",
        ["a.jsonl:1"],
        ["fine"],
    ),
    "a list instead of an object": (
        "jsonl",
        "a.jsonl",
        lambda path: path.write_bytes(b"[1]\n" + jsonl(["fine"])),
        "broken_json",
        ["a.jsonl:1", "got list"],
        ["fine"],
    ),
    "missing key": (
        "jsonl",
        "a.jsonl",
        lambda path: path.write_bytes(b'{"body": "x", "id": 1}\n' + jsonl(["fine"])),
        "missing_column",
        ["a.jsonl:1", "'text'", "body, id", "data.text_column"],
        ["fine"],
    ),
    "a number instead of text": (
        "jsonl",
        "a.jsonl",
        lambda path: path.write_bytes(b'{"text": 7}\n' + jsonl(["fine"])),
        "not_text",
        ["a.jsonl:1", "int"],
        ["fine"],
    ),
    "cut gzip": (
        "jsonl",
        "a.jsonl.gz",
        lambda path: cut(path, gzip.compress(jsonl(["lost"] * 3)), -8),
        "unreadable",
        ["a.jsonl.gz"],
        [],
    ),
    "cut zstd": (
        "jsonl",
        "a.jsonl.zst",
        lambda path: cut(path, zstandard.compress(os.urandom(10**5).hex().encode()), 50000),
        "unreadable",
        ["a.jsonl.zst"],
        [],
    ),
    "not gzip": ("jsonl", "a.jsonl.gz", lambda path: path.write_bytes(b"plain"), "unreadable", ["a.jsonl.gz"], []),
    "empty file": ("jsonl", "a.jsonl", lambda path: path.touch(), "empty_file", ["a.jsonl", "is empty"], []),
    "missing file": ("jsonl", "a.jsonl", lambda path: None, "missing", ["a.jsonl", "data.inputs"], []),
    "missing column": (
        "parquet",
        "a.parquet",
        lambda path: pq.write_table(pa.table({"body": ["x"]}), path),
        "missing_column",
        ["a.parquet", "'text'", "body"],
        [],
    ),
    "a column of numbers": (
        "parquet",
        "a.parquet",
        lambda path: pq.write_table(pa.table({"text": [1, 2]}), path),
        "not_text",
        ["a.parquet", "int64"],
        [],
    ),
    "null": (
        "parquet",
        "a.parquet",
        lambda path: write_parquet(path, ["good", None, "fine"]),
        "not_text",
        ["a.parquet: row 2", "null"],
        ["good", "fine"],
    ),
    "not UTF-8 in a row": (
        "parquet",
        "a.parquet",
        invalid_utf8_parquet,
        "not_utf8",
        ["a.parquet: row 2"],
        ["good", "fine"],
    ),
    "not Parquet": ("parquet", "a.parquet", lambda path: path.write_bytes(b"no" * 50), "unreadable", ["a.parquet"], []),
    "not UTF-8 in a file": (
        "text",
        "a.txt",
        lambda path: path.write_bytes(b"caf\xe9"),
        "not_utf8",
        ["a.txt", "0xe9 at position 3"],
        [],
    ),
    "empty text file": ("text", "a.txt", lambda path: path.touch(), "empty_file", ["a.txt"], []),
    "missing part": (
        "webdataset",
        "a.tar",
        lambda path: write_tar(path, ["good"], part="txt"),
        "missing_column",
        ["a.tar: sample0", "'text'", "cls, txt"],
        [],
    ),
    "cut tar": ("webdataset", "a.tar", cut_tar, "unreadable", ["a.tar", "unexpected end"], ["good"]),
    "not a tar": ("webdataset", "a.tar", lambda path: path.write_bytes(b"no" * 999), "unreadable", ["a.tar"], []),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_or_skipped_and_counted(tmp_path, name):
    kind, file, write, reason, words, left = BAD[name]
    write(tmp_path / file)
    with pytest.raises(InputError) as error:
        read(kind, tmp_path / file)
    for word in [*words, "--on-error skip"]:
        assert word in str(error.value)
    found, skipped = read(kind, tmp_path / file, on_error="skip")
    assert [document.text for document in found] == left
    assert skipped == {reason: 1}


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_a_cut_compressed_file_is_read_as_far_as_it_can_be(tmp_path, suffix, compress):
    texts = [os.urandom(100).hex() for _ in range(20000)]
    content = compress(jsonl(texts))
    cut(tmp_path / f"a.jsonl.{suffix}", content, len(content) // 2)
    found, skipped = read("jsonl", tmp_path, on_error="skip")
    assert len(texts) // 4 < len(found) < len(texts)
    assert [document.text for document in found] == texts[: len(found)]
    assert skipped == {"unreadable": 1}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "text", "webdataset", "datasets"])
def test_no_inputs(kind):
    with pytest.raises(ConfigError, match=r"data\.inputs is empty"):
        read(kind)


def test_a_folder_without_input(tmp_path):
    with pytest.raises(InputError, match=r"no file ending in \.parquet"):
        read("parquet", tmp_path)


def test_a_growing_file_is_read_up_to_the_size_it_had(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(TEXTS))
    for on_error in ("stop", "skip"):
        opened = reading("jsonl", path, on_error=on_error)
        documents = sources.read(opened)
        found = [next(documents).text]
        with open(path, "ab") as file:
            file.write(jsonl(["more"]))
        if on_error == "stop":
            with pytest.raises(InputError, match="was written while it was read"):
                list(documents)
            path.write_bytes(jsonl(TEXTS))
        else:
            assert found + [document.text for document in documents] == TEXTS
            assert opened.skipped == {"changed": 1}


def test_nothing_is_taken_of_a_text_file_that_grows(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    opened = reading("text", tmp_path, on_error="skip")
    documents = sources.read(opened)
    next(documents)
    (tmp_path / "b.txt").write_text("b.txt and more")
    assert [document.text for document in documents] == ["c.txt"]
    assert opened.skipped == {"changed": 1}


def test_webdataset_reads_the_part_named_and_compressed_tars(tmp_path):
    write_tar(tmp_path / "a.tar", TEXTS, part="txt")
    (tmp_path / "b.tgz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert tarfile.is_tarfile(tmp_path / "b.tgz")
    found, _ = read("webdataset", tmp_path, text_column="TXT")
    assert [document.text for document in found] == TEXTS * 2


MODULE = '''"""Module
    docstring."""

if True:
    class Outer:
        """Outer's."""

        class Inner:
            async def method(self):
                r"""Method's \\d."""
                def local():
                    "local's"

try:
    def one(): "no triple quote"
except ValueError:
    def two():
        """two's"""
else:
    match 1:
        case 1:
            def three():
                """three's"""

NOT = """not a docstring"""
'''


def test_pydocs_names_and_cleans_docstrings_without_importing(tmp_path):
    package = tmp_path / "package"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text('"""Of the package."""\nraise SystemExit("imported")\n')
    (package / "sub" / "module.py").write_text(MODULE)
    (package / "sub" / "none.py").write_text("def f():\n    'only single quotes'\n")
    (package / "sub" / "latin.py").write_bytes('# coding: latin-1\n"""Café."""\n'.encode("latin-1"))
    (package / "sub" / "broken.py").write_text('"""Never closed')
    (package / "sub" / "text.txt").write_text('"""Not Python."""')
    for root in (package, tmp_path):
        found, skipped = read("pydocs", root)
        assert [(document.origin, document.text) for document in found] == [
            ("package", "Of the package."),
            ("package.sub.latin", "Café."),
            ("package.sub.module", "Module\ndocstring."),
            ("package.sub.module.Outer", "Outer's."),
            ("package.sub.module.Outer.Inner.method", "Method's \\d."),
            ("package.sub.module.Outer.Inner.method.local", "local's"),
            ("package.sub.module.one", "no triple quote"),
            ("package.sub.module.two", "two's"),
            ("package.sub.module.three", "three's"),
        ]
        assert skipped == {"unparsable": 1}


def test_pydocs_workers_answer_as_one_process_does(monkeypatch):
    folder = os.path.dirname(json.__file__)
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".py")]
    paths.append("/nowhere/at/all.py")
    expected = list(map(docstrings.docstrings, paths))
    monkeypatch.setattr(pydocs, "_FILES_WORTH_WORKERS", 0)
    monkeypatch.setattr(pydocs, "NUM_WORKERS", 2)
    found = [answer and [tuple(item) for item in answer] for answer in pydocs._parse(paths)]
    assert found == expected
    assert expected[-1] is None
    assert len(expected[0]) > 4


def test_pydocs_covers_the_standard_library_and_installed_packages():
    roots = pydocs.environment_roots()
    files = {path for root in roots for path in pydocs._python_files(root)}
    for module in (json, pytest):
        assert os.path.realpath(module.__file__) in files
    assert not any("__pycache__" in path for path in files)
    assert len(files) == sum(len(list(pydocs._python_files(root))) for root in roots)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="the extra is installed")
def test_datasets_without_the_extra():
    with pytest.raises(ConfigError, match=r"streaming-sbp\[datasets\]"):
        read("datasets", "some/name")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the extra `datasets`")
def test_datasets_from_a_saved_folder_and_a_folder_of_files(tmp_path):
    import datasets

    saved = datasets.Dataset.from_dict({"text": TEXTS})
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"validation": saved}).save_to_disk(tmp_path / "many")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jsonl").write_bytes(jsonl(TEXTS))
    for name in ("one", "many:validation", "files"):
        found, _ = read("datasets", tmp_path / name)
        assert [document.text for document in found] == TEXTS
    with pytest.raises(InputError, match="missing"):
        read("datasets", tmp_path / "missing")
