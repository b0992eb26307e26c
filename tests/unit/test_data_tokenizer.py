import random

import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from streaming_sbp.config import ConfigError
from streaming_sbp.data import tokenizer
from streaming_sbp.data.tokenizer import BOS, EOS, PAD, SEP, SPECIAL_TOKENS, Tokenizer

CORPUS = ["def add(a, b):\n    return a + b  # the sum", "The quick brown fox jumps over the lazy dog. " * 20] * 3
TEXTS = [
    "",
    " ",
    "  leading, trailing  \t\n\n",
    "don't  clean , this up .\r\n",
    "Ünïcödé – 漢字 🦊🏽‍🚀 \u200b\u0000\x7f",
    "e\u0301 and \u00e9 are not the same",
    "".join(map(chr, range(1, 0x250))),
    "x" * 10000,
    *SPECIAL_TOKENS,
    f"before{SEP}after {BOS}{EOS} {PAD}",
]


def special_ids(tokens):
    return [tokens.pad_id, tokens.bos_id, tokens.eos_id, tokens.sep_id]


@pytest.fixture(scope="module")
def trained():
    return tokenizer.train(iter([CORPUS]), 300)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A tokenizer from elsewhere: a bos of its own that is its eos too, no pad, no separator."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.enable_truncation(5)
    folder = tmp_path_factory.mktemp("foreign")
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|end|>", eos_token="<|end|>").save_pretrained(folder)
    return folder


def test_every_text_decodes_to_the_same_bytes(trained):
    rng = random.Random(0)
    points = [chr(point) for point in range(0x10000) if not 0xD800 <= point < 0xE000]
    texts = TEXTS + ["".join(rng.choices(points, k=200)) for _ in range(20)]
    encoded = trained.encode_batch(texts)
    assert encoded == [trained.encode(text) for text in texts]
    assert [trained.decode(ids) for ids in encoded] == texts
    assert max(map(max, filter(None, encoded))) < trained.vocab_size


def test_special_tokens_in_text_are_ordinary_text(trained, foreign):
    for tokens in (trained, tokenizer.adopt(str(foreign))):
        for text in (*TEXTS, "<|end|> of the foreign one"):
            assert not set(tokens.encode(text)) & set(special_ids(tokens))


def test_even_text_full_of_special_tokens_merges_into_none():
    tokens = tokenizer.train(iter([[SEP * 50 + "<|name|>" * 50] * 50]), 400, ["<|name|>"])
    assert not set(tokens.encode(f"{SEP} <|name|>")) & {*special_ids(tokens), 4}


def test_decode_leaves_special_tokens_out(trained):
    ids = [trained.bos_id, *trained.encode("seed"), trained.sep_id, *trained.encode(" target"), trained.eos_id]
    assert trained.decode([*ids, trained.pad_id]) == "seed target"


def test_vocabulary(trained):
    assert trained.vocab_size == 300
    assert special_ids(trained) == [0, 1, 2, 3]
    poor = tokenizer.train(iter([["ab"]]), 300)
    assert poor.vocab_size == 256 + 4 + 1


def test_the_folder_loads_with_transformers(trained, tmp_path):
    trained.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    names = [loaded.pad_token, loaded.bos_token, loaded.eos_token, loaded.sep_token]
    assert names == [PAD, BOS, EOS, SEP]
    assert len(loaded) == trained.vocab_size
    text = "don't  clean , this up ."
    assert loaded(text).input_ids == [trained.bos_id, *trained.encode(text)]  # a prompt begins as training did
    assert loaded.decode(loaded(text).input_ids, skip_special_tokens=True) == text


def test_digest_survives_saving_and_tells_tokenizers_apart(trained, foreign, tmp_path):
    for i, tokens in enumerate((trained, tokenizer.adopt(str(foreign)))):
        tokens.save(tmp_path / f"{i}a")
        once = Tokenizer.load(tmp_path / f"{i}a")
        once.save(tmp_path / f"{i}b")
        assert once.digest == Tokenizer.load(tmp_path / f"{i}b").digest == tokens.digest
    assert tokenizer.train(iter([CORPUS]), 300).digest == trained.digest
    assert tokenizer.train(iter([CORPUS]), 299).digest != trained.digest
    assert tokenizer.train(iter([CORPUS]), 300, ["<|name|>"]).digest != trained.digest


def test_adopting_keeps_what_the_tokenizer_has_and_adds_what_it_lacks(foreign, tmp_path):
    tokens = tokenizer.adopt(str(foreign), ["<|name|>"])
    plain = tokenizers.Tokenizer.from_file(str(foreign / "tokenizer.json"))
    size = plain.get_vocab_size()
    assert tokens.bos_id == tokens.eos_id == plain.token_to_id("<|end|>")
    assert sorted([tokens.pad_id, tokens.sep_id]) == [size, size + 1]
    assert tokens.vocab_size == size + 3
    assert len(tokens.encode(CORPUS[1])) > 5  # its truncation is off
    tokens.save(tmp_path)
    assert special_ids(Tokenizer.load(tmp_path)) == special_ids(tokens)


@pytest.mark.parametrize(
    ("vocab_size", "extra", "message"),
    [
        (259, [], r"vocab_size = 259: expected at least 260"),
        (260, ["<|a|>"], r"expected at least 261"),
        (300, ["name"], r"'name': expected the form <\|name\|>"),
        (300, ["<|!|>"], r"expected the form"),
    ],
)
def test_settings_that_cannot_be_trained(vocab_size, extra, message):
    with pytest.raises(ConfigError, match=message):
        tokenizer.train(iter([CORPUS]), vocab_size, extra)


def test_loading_what_is_not_a_tokenizer(tmp_path, foreign):
    with pytest.raises(ConfigError, match=r"cannot be loaded"):
        tokenizer.adopt(str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot be loaded"):
        Tokenizer.load(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"pad_token is None"):
        Tokenizer.load(foreign)
