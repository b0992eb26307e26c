import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import webdataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from sbp_services.cli import app
from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data import corpus as corpus_module
from streaming_sbp.data import ingest as ingest_module
from streaming_sbp.data.claim import claimed
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.data.documents import SPLITS, document_id, in_share, split_of
from streaming_sbp.data.ingest import ingest
from streaming_sbp.data.sources.reading import InputError

WORDS = ["the", "of", "café", "naïve", "漢字", "🦊", "<|sep|>", "<|bos|>", "return\n\n", "", "self", ".", "3.14", "'a'"]
REPOSITORY = Path(__file__).parents[2]


def make_texts(count, seed=0, num_words=40):
    rng = random.Random(seed)
    return [f"{i}: " + " ".join(rng.choices(WORDS, k=rng.randint(1, 2 * num_words))) for i in range(count)]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def settings(tmp_path, texts=None, name="set", **changes):
    path = tmp_path / "corpus.jsonl"
    if texts is not None:
        write_jsonl(path, texts)
    values = {"source": "jsonl", "inputs": (str(path),), "vocab_size": 300, "heldout_share": 0.2, "shard_bytes": 2**17}
    return config.Data(dataset=str(tmp_path / name), **{**values, **changes})


def everything(dataset):
    """{split: [(id, tokens)]}"""
    splits = {name: dataset.split(name) for name in SPLITS}
    return {
        name: [(split.ids[i], split.tokens(i).tolist()) for i in range(len(split))] for name, split in splits.items()
    }


@pytest.fixture(scope="module")
def texts():
    return make_texts(300)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("ingested")
    ingest(settings(folder, [*texts, texts[0], texts[7], " \n"]))
    return Dataset.open(folder / "set")


def test_every_document_comes_back_to_the_byte(ingested, texts):
    tokenizer = ingested.tokenizer()
    found = {}
    for name in SPLITS:
        split = ingested.split(name)
        for i in range(len(split)):
            found[split.ids[i]] = text = tokenizer.decode(split.tokens(i))
            assert len(text.encode()) == split.num_bytes[i]
            assert len(split.tokens(i)) == split.num_tokens[i]
            assert split.ids[i] == document_id(text)
            assert split_of(split.ids[i], 0.2) == name
    assert sorted(found.values()) == sorted(texts)


def test_documents_keep_the_order_of_the_input_and_their_origins(ingested, texts):
    lines = {document_id(text): number for number, text in reversed(list(enumerate(texts, start=1)))}
    for name in SPLITS:
        split = ingested.split(name)
        numbers = [lines[id] for id in split.ids]
        assert numbers == sorted(numbers)
        assert [origin.rpartition(":")[2] for origin in split.origins] == [str(number) for number in numbers]


def test_held_out_documents_are_apart(ingested):
    train, heldout = (set(ingested.split(name).ids) for name in SPLITS)
    assert not train & heldout
    assert 30 < len(heldout) < 90


def test_duplicates_and_short_documents_are_left_out_and_counted(ingested):
    assert ingested.manifest.skipped == {"duplicate": 2, "too_short": 1}


def test_manifest_counts(ingested):
    manifest = ingested.manifest
    for name in SPLITS:
        split = ingested.split(name)
        assert manifest.num_documents[name] == len(split)
        assert manifest.num_tokens[name] == split.num_tokens.sum()
        assert manifest.num_bytes[name] == split.num_bytes.sum()
    assert manifest.tokenizer_digest == ingested.tokenizer().digest
    assert manifest.vocab_size == ingested.tokenizer().vocab_size == 300
    assert manifest.tokenizer_training_bytes == manifest.num_bytes["train"]
    assert manifest.source == "jsonl"
    assert AutoTokenizer.from_pretrained(ingested.path / "tokenizer").sep_token == "<|sep|>"


@pytest.mark.parametrize("name", SPLITS)
def test_plain_webdataset_reads_the_same_tokens(ingested, name):
    shards = sorted(map(str, ingested.path.glob(f"{name}-*.tar")))
    assert len(shards) > 1 or name == "heldout"
    split = ingested.split(name)
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == split.ids
    for i, sample in enumerate(samples):
        assert sample["tokens.npy"].dtype == split.tokens(i).dtype == np.uint16
        assert np.array_equal(sample["tokens.npy"], split.tokens(i))
        about = {"origin": split.origins[i], "num_bytes": split.num_bytes[i], "num_tokens": split.num_tokens[i]}
        assert sample["json"] == about


def test_index_has_the_offset_of_the_tokens(ingested):
    rows = pq.read_table(ingested.path / "documents.parquet").to_pylist()
    assert [row["id"] for row in rows] == ingested.split("train").ids + ingested.split("heldout").ids
    for row in rows[::17]:
        split = ingested.split(row["split"])
        raw = (ingested.path / row["shard"]).read_bytes()[row["offset"] :][: 2 * row["num_tokens"]]
        assert raw == split.tokens(split.ids.index(row["id"])).tobytes()


def test_tokens_cannot_be_written_to(ingested):
    with pytest.raises(ValueError, match="read-only"):
        ingested.split("train").tokens(0)[0] = 1


def test_the_same_input_gives_the_same_files(ingested, tmp_path, texts):
    again = ingest(settings(tmp_path, [*texts, texts[0], texts[7], " \n"])).manifest
    assert again.digest == ingested.manifest.digest
    assert [shard.num_bytes for shard in again.shards] == [shard.num_bytes for shard in ingested.manifest.shards]
    assert everything(Dataset.open(tmp_path / "set")) == everything(ingested)
    fewer = ingest(settings(tmp_path, texts[:-1], name="fewer")).manifest
    assert fewer.digest != again.digest


def test_the_tokenizer_never_sees_a_held_out_document(tmp_path, texts):
    train = [text for text in texts if split_of(document_id(text), 0.2) == "train"]
    others = [f"{i} " + "zebra " * 20 for i in range(300)]
    heldout = [text for text in others if split_of(document_id(text), 0.2) == "heldout"]
    whole = ingest(settings(tmp_path, train + heldout, name="whole")).manifest
    alone = ingest(settings(tmp_path, train, name="alone", heldout_share=0.0)).manifest
    everyone = ingest(settings(tmp_path, train + heldout, name="everyone", heldout_share=0.0)).manifest
    assert whole.num_documents == {"train": len(train), "heldout": len(heldout)}
    assert whole.tokenizer_digest == alone.tokenizer_digest
    assert whole.tokenizer_digest != everyone.tokenizer_digest


def test_an_even_sample_is_exact_and_does_not_depend_on_the_order(tmp_path, texts):
    ids = []
    for name, order in (("a", texts), ("b", texts[::-1])):
        manifest = ingest(settings(tmp_path, order, name=name, max_documents=120)).manifest
        assert sum(manifest.num_documents.values()) == 120
        assert manifest.skipped == {"not_sampled": 180}
        assert 8 <= manifest.num_documents["heldout"] <= 40
        dataset = Dataset.open(tmp_path / name)
        ids.append({split: set(dataset.split(split).ids) for split in SPLITS})
        assert {split: len(ids[-1][split]) for split in SPLITS} == manifest.num_documents
    assert ids[0] == ids[1]
    more = ingest(settings(tmp_path, texts, name="c", max_documents=121))
    assert ids[0]["train"] <= set(Dataset.open(more.path).split("train").ids)


def test_a_sample_of_training_documents_leaves_the_heldout_ones_alone(tmp_path, texts):
    whole = ingest(settings(tmp_path, texts, name="whole"))
    part = ingest(
        settings(tmp_path, texts, name="part", max_train_documents=100, tokenizer=str(whole.path / "tokenizer"))
    )
    of_whole, of_part = Dataset.open(whole.path), Dataset.open(part.path)
    assert of_part.split("heldout").ids == of_whole.split("heldout").ids
    assert len(of_part.split("train")) == 100
    assert set(of_part.split("train").ids) < set(of_whole.split("train").ids)
    assert part.manifest.skipped == {"not_sampled": len(of_whole.split("train")) - 100}


def test_shares_by_digest_are_even_and_independent():
    ids = [document_id(str(i)) for i in range(20000)]
    heldout = {id for id in ids if in_share(id, 0.1, "heldout")}
    sample = {id for id in ids if in_share(id, 0.3, "sample")}
    assert abs(len(heldout) / len(ids) - 0.1) < 0.01
    assert abs(len(sample & heldout) / len(heldout) - 0.3) < 0.05
    assert {id for id in ids if in_share(id, 0.05, "heldout")} < heldout
    assert not any(in_share(id, 0.0, "heldout") for id in ids)
    assert all(in_share(id, 1.0, "heldout") for id in ids)


def test_document_id_is_blake2b_of_utf8():
    assert document_id("") == "cae66941d9efbd404e4d88758ea67670"  # b2sum -l 128 /dev/null


def test_large_vocabularies_are_stored_in_uint32(tmp_path, texts):
    words = {"[UNK]": 0, **{f"w{i}": i for i in range(1, 66000)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "words")
    ingest(settings(tmp_path, ["w65999 w1 <|sep|>", "w2 w65000"], tokenizer=str(tmp_path / "words"), heldout_share=0.0))
    dataset = Dataset.open(tmp_path / "set")
    assert dataset.manifest.token_dtype == "<u4"
    assert dataset.manifest.vocab_size == 66004
    assert dataset.split("train").tokens(0).dtype == np.uint32
    assert [dataset.split("train").tokens(i).tolist() for i in range(2)] == [[65999, 1, 0], [2, 65000]]
    shard = next(iter(webdataset.WebDataset(str(dataset.path / "train-000000.tar"), shardshuffle=False).decode()))
    assert shard["tokens.npy"].tolist() == [65999, 1, 0]


def test_extra_special_tokens(tmp_path, texts):
    ingest(settings(tmp_path, texts), extra_special_tokens=["<|concept|>"])
    loaded = AutoTokenizer.from_pretrained(tmp_path / "set" / "tokenizer")
    assert loaded.convert_tokens_to_ids("<|concept|>") == 4
    assert "<|concept|>" in loaded.all_special_tokens
    with pytest.raises(ConfigError, match="extra_special_tokens"):
        ingest(settings(tmp_path))


# --- an existing data set ---


def test_an_existing_data_set_is_returned_only_for_equal_settings(tmp_path, texts):
    first = ingest(settings(tmp_path, texts))
    reports = []
    again = ingest(settings(tmp_path), reports.append)
    assert (again.existed, again.manifest) == (True, first.manifest)
    assert reports == []
    with pytest.raises(ConfigError) as error:
        ingest(settings(tmp_path, vocab_size=310, min_characters=5))
    assert "data.min_characters: 1 -> 5\n  data.vocab_size: 300 -> 310" in str(error.value)
    assert Dataset.open(tmp_path / "set").manifest == first.manifest


def test_a_tokenizer_is_the_same_wherever_it_lies(tmp_path, texts):
    ingest(settings(tmp_path, texts))
    ingest(settings(tmp_path, name="second", tokenizer=str(tmp_path / "set" / "tokenizer")))
    shutil.copytree(tmp_path / "set" / "tokenizer", tmp_path / "elsewhere")
    assert ingest(settings(tmp_path, name="second", tokenizer=str(tmp_path / "elsewhere"))).existed
    ingest(settings(tmp_path, name="third", vocab_size=290))
    with pytest.raises(ConfigError, match=r"data\.tokenizer"):
        ingest(settings(tmp_path, name="second", tokenizer=str(tmp_path / "third" / "tokenizer")))


def test_a_data_set_from_before_neighbourhoods_is_one_without(tmp_path, texts):
    """It stays usable with the default, and says so when somebody asks for some."""
    ingest(settings(tmp_path, texts, heldout_neighbourhoods_share=0.0))
    path = tmp_path / "set" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["heldout_neighbourhoods_share"]
    path.write_text(json.dumps(manifest))
    for usable in ({}, {"heldout_neighbourhoods_share": 0.0}):
        assert ingest(settings(tmp_path, **usable)).existed
    with pytest.raises(ConfigError, match=r"data\.heldout_neighbourhoods_share: 0\.0 -> 0\.1"):
        ingest(settings(tmp_path, heldout_neighbourhoods_share=0.1))


def test_a_folder_of_something_else_is_left_alone(tmp_path, texts):
    (tmp_path / "set").mkdir()
    ingest(settings(tmp_path, texts))  # an empty folder is fine
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"no manifest\.json"):
        ingest(settings(tmp_path, name="other"))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


# --- interruptions ---


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("phase", ["read", "divide", "tokenizer", "encode"])
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_ingest_leaves_nothing_and_can_be_repeated(tmp_path, texts, phase, at_end):
    def interrupt(progress):
        if progress.phase == phase and at_end == (progress.done == progress.total):
            raise Interrupted

    with pytest.raises(Interrupted):
        ingest(settings(tmp_path, texts), interrupt)
    gc.collect()  # nothing complains
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]
    assert not Dataset.exists(tmp_path / "set")
    assert not ingest(settings(tmp_path)).existed


KILL = """
import os, signal, sys
from streaming_sbp import config
from streaming_sbp.data.ingest import ingest
def kill(progress):
    if progress.phase == "encode" and progress.done == progress.total:
        os.kill(os.getpid(), signal.SIGKILL)
ingest(config.Data.model_validate_json(sys.argv[1]), kill)
"""


def test_a_killed_ingest_never_looks_complete(tmp_path, texts):
    data = settings(tmp_path, texts)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", KILL, data.model_dump_json()]
    killed = subprocess.run(command, env=environment, timeout=120)
    assert killed.returncode == -9
    assert not Dataset.exists(tmp_path / "set")
    with pytest.raises(ConfigError, match="not there"):
        Dataset.open(tmp_path / "set")
    partial = tmp_path / ".set.partial"
    assert list(partial.glob("train-*.tar"))
    with pytest.raises(ConfigError, match="half-written"):
        Dataset.open(partial)
    ingest(data)
    assert not partial.exists()
    assert len(Dataset.open(tmp_path / "set").split("train")) > 0


def test_two_ingests_at_once(tmp_path, texts):
    with claimed(tmp_path / "set") as folder:
        (folder / "work").touch()
        with pytest.raises(ConfigError, match="another process"):
            ingest(settings(tmp_path, texts))
        assert (folder / "work").exists()


def test_a_place_that_cannot_be_written(tmp_path, texts):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        ingest(settings(tmp_path, texts, name="file/set"))


# --- bad input ---


def test_bad_input_stops_or_is_counted(tmp_path, texts):
    bad = ['{"text": "\\ud800"}', '{"text": 1}', "{", '{"body": ""}']
    path = write_jsonl(tmp_path / "corpus.jsonl", texts)
    path.write_text(path.read_text() + "\n".join(bad) + "\n")
    with pytest.raises(InputError, match=r"corpus\.jsonl:301: .*lone surrogate"):
        ingest(settings(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]
    summary = ingest(settings(tmp_path, on_error="skip"))
    assert summary.manifest.skipped == {"broken_json": 1, "missing_column": 1, "not_text": 1, "not_utf8": 1}
    assert "1 broken_json" in str(summary)


@pytest.mark.parametrize(
    ("in_file", "override", "option", "expected"),
    [
        ("skip", None, None, "skip"),
        ("stop", "skip", None, "skip"),
        ("stop", None, "skip", "skip"),
        ("skip", "skip", "stop", "stop"),
        (None, None, None, "stop"),
    ],
)
def test_the_option_on_error_comes_before_override_and_file(tmp_path, in_file, override, option, expected):
    path = write_jsonl(tmp_path / "corpus.jsonl", ["a text", "another text"])
    path.write_text(path.read_text() + "broken\n")
    toml = f'[data]\ndataset = "{tmp_path / "set"}"\nsource = "jsonl"\ninputs = ["{path}"]\nvocab_size = 300\n'
    toml += "heldout_share = 0.0\n" + (f'on_error = "{in_file}"\n' if in_file else "")
    (tmp_path / "config.toml").write_text(toml)
    arguments = ["ingest", "--config", str(tmp_path / "config.toml")]
    arguments += [f"data.on_error={override}"] if override else []
    arguments += ["--on-error", option] if option else []
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    if expected == "skip":
        assert result.exit_code == 0
        assert "train: 2 documents" in result.stdout
        assert "left out: 1 broken_json" in result.stdout
    else:
        assert isinstance(result.exception, InputError)
        assert "corpus.jsonl:3: not JSON" in str(result.exception)
        assert not Dataset.exists(tmp_path / "set")


def test_an_option_on_error_that_is_neither():
    result = CliRunner().invoke(app, ["ingest", "--on-error", "ignore"])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "data.on_error = 'ignore': Input should be 'stop' or 'skip'"


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (["short"], {"min_characters": 10}, r"no document is left .*1 too_short.*lower data\.min_characters = 10"),
        (["a text"], {"heldout_share": 1.0}, r"only held-out documents are left .*lower data\.heldout_share = 1\.0"),
        (["a text"], {"vocab_size": 100}, r"data\.vocab_size = 100: expected at least 260"),
        (["a text"], {"tokenizer": "./missing"}, r"tokenizer \./missing: cannot be loaded"),
        (["a text"], {"inputs": ()}, r"data\.inputs is empty"),
    ],
)
def test_what_cannot_be_ingested(tmp_path, texts, changes, message):
    with pytest.raises(ConfigError, match=message):
        ingest(settings(tmp_path, texts, **changes))
    assert not (tmp_path / "set").exists()


def test_documents_outside_the_lengths_are_left_out_and_counted(tmp_path):
    data = settings(tmp_path, ["x" * n for n in range(1, 11)], min_characters=3, max_characters=8, heldout_share=0.0)
    manifest = ingest(data).manifest
    assert manifest.num_documents["train"] == 6
    assert manifest.skipped == {"too_long": 2, "too_short": 2}


def test_one_document_is_enough(tmp_path):
    ingest(settings(tmp_path, ["the only one"], heldout_share=0.0))
    dataset = Dataset.open(tmp_path / "set")
    assert (len(dataset.split("train")), len(dataset.split("heldout"))) == (1, 0)
    assert dataset.split("heldout").ids == []


# --- damage ---


@pytest.fixture
def small(tmp_path, texts):
    ingest(settings(tmp_path, texts[:20], heldout_share=0.5))
    return tmp_path / "set"


def test_truncated_and_missing_shards_are_found_on_opening(small):
    shard = small / "heldout-000000.tar"
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(ConfigError, match=r"heldout-000000\.tar: \d+ bytes, expected \d+"):
        Dataset.open(small)
    shard.unlink()
    with pytest.raises(ConfigError, match=r"heldout-000000\.tar: no file"):
        Dataset.open(small)


def test_a_flipped_bit_is_found_by_verify(small):
    Dataset.open(small).verify()
    with open(small / "train-000000.tar", "r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ConfigError, match=r"train-000000\.tar: sha256"):
        Dataset.open(small).verify()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format_version": 99}', "format 99, expected 2"),
        ('{"format_version": 2}', "missing required field"),
        ("{", "not valid JSON"),
        ("[]", "format None"),
    ],
)
def test_a_manifest_that_cannot_be_used(small, content, message):
    (small / "manifest.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        Dataset.open(small)


def test_an_unknown_split(ingested):
    with pytest.raises(ConfigError, match="expected one of train, heldout"):
        ingested.split("test")


# --- progress and memory ---


def test_progress_reaches_the_total_of_every_phase(tmp_path, texts):
    reports = []
    ingest(settings(tmp_path, texts, max_documents=100), reports.append)
    size = (tmp_path / "corpus.jsonl").stat().st_size
    phases = list(dict.fromkeys(report.phase for report in reports))
    assert phases == ["read", "divide", "tokenizer", "encode"]
    last = {report.phase: (report.done, report.total, report.unit) for report in reports}
    train = ingest(settings(tmp_path, max_documents=100)).manifest.num_documents["train"]
    assert last == {
        "read": (size, size, "bytes"),
        "divide": (train, train, "documents"),
        "tokenizer": (train, train, "documents"),
        "encode": (100, 100, "documents"),
    }


def test_memory_does_not_grow_with_the_text(tmp_path):
    sentence = "streaming synthetic bootstrapped pretraining " * 400
    with open(tmp_path / "corpus.jsonl", "w") as file:
        file.writelines(json.dumps({"text": f"{i} {sentence}"}) + "\n" for i in range(1000))
    num_bytes = (tmp_path / "corpus.jsonl").stat().st_size
    assert num_bytes > 18e6
    arrow_before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    try:
        ingest(settings(tmp_path, shard_bytes=2**20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < num_bytes / 4
    assert pa.default_memory_pool().max_memory() - arrow_before < num_bytes / 4


def test_tokenizer_training_reads_a_bounded_even_sample(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(ingest_module, "TOKENIZER_TRAINING_BYTES", 20000)
    manifest = ingest(settings(tmp_path, texts)).manifest
    assert 10000 < manifest.tokenizer_training_bytes < 30000
    assert manifest.num_bytes["train"] > 40000


def test_batches_are_bounded_by_documents_and_bytes(tmp_path, monkeypatch):
    spool = corpus_module.Spool(tmp_path / "spool.arrow")
    texts = ["x" * 100_000] * 5 + ["y"] * 1000
    for i, text in enumerate(texts):
        spool.append(str(i), text, len(text), f"origin {i}")
    spool.close()
    for _ in range(2):
        batches = list(spool.batches())
        assert [text for batch in batches for text in batch.texts] == texts
        assert [id for batch in batches for id in batch.ids] == [str(i) for i in range(len(texts))]
        assert [origin for batch in batches for origin in batch.origins][-1] == "origin 1004"
        assert max(sum(map(len, batch.texts)) for batch in batches) <= 3 * 100_000
        assert max(len(batch.ids) for batch in batches) <= 512


def test_a_flipped_bit_in_a_shard_is_an_error_that_names_the_document(small):
    split = Dataset.open(small).split("train")
    whole = [split.tokens(i).copy() for i in range(len(split))]
    path = small / split.shard(3)
    data = bytearray(path.read_bytes())
    where = data.index(whole[3].tobytes())
    data[where] ^= 4
    path.write_bytes(data)
    damaged = Dataset.open(small).split("train")
    with pytest.raises(ConfigError, match=f"document {damaged.ids[3]} is damaged"):
        damaged.tokens(3)
    assert all(np.array_equal(damaged.tokens(i), whole[i]) for i in range(len(whole)) if i != 3)
