"""The tokenizer: a Hugging Face fast tokenizer whose folder `transformers.AutoTokenizer.from_pretrained` loads."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from streaming_sbp.config import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, SEP = SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|sep|>")
NUM_BYTE_SYMBOLS = 256
# Byte-level pre-tokenisation never joins punctuation with letters, so no merge can spell a token of this form, and
# ordinary text can never become a special token's id.
_SPECIAL_FORM = re.compile(r"<\|\w*[^\W\d_]\w*\|>")


class Tokenizer:
    """Text to ids and back. Special tokens are never added, and never recognised in text: they are for the caller.

    Attributes: ``pad_id``, ``bos_id``, ``eos_id``, ``sep_id``; ``vocab_size`` is the largest id plus one.
    """

    def __init__(self, hugging_face: PreTrainedTokenizerFast):
        self.hugging_face = hugging_face
        self._backend: tokenizers.Tokenizer = hugging_face.backend_tokenizer
        self._backend.encode_special_tokens = True  # "<|sep|>" in a document is seven ordinary characters
        self._backend.no_truncation()
        self._backend.no_padding()
        self.pad_id, self.bos_id, self.eos_id = (
            self._id(name, getattr(hugging_face, name)) for name in ("pad_token", "bos_token", "eos_token")
        )
        self.sep_id = self._id("sep_token", SEP)
        self.vocab_size: int = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Special tokens are left out. Bytes that are not UTF-8, as after a cut, become U+FFFD."""
        return self._backend.decode([int(id) for id in ids], skip_special_tokens=True)

    @cached_property
    def digest(self) -> str:
        """sha256 of tokenizer.json, its keys sorted, and the special ids: equal digests encode every text alike."""
        content = json.loads(self._backend.to_str())
        special_ids = [self.pad_id, self.bos_id, self.eos_id, self.sep_id]
        return hashlib.sha256(json.dumps([content, special_ids], sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Raises ConfigError when the folder holds no fast tokenizer with the special tokens."""
        return cls(_from_pretrained(str(folder), local_files_only=True))

    def save(self, folder: str | Path) -> None:
        self.hugging_face.save_pretrained(os.fspath(folder))

    def _id(self, name: str, token: str | None) -> int:
        id = None if token is None else self._backend.token_to_id(token)
        if id is None:
            raise ConfigError(
                f"tokenizer {self.hugging_face.name_or_path}: {name} is {token!r}, not in its vocabulary; expected a "
                "tokenizer that `sbp ingest` saved"
            )
        return id


def check_training_settings(vocab_size: int, extra_special_tokens: Sequence[str] = ()) -> None:
    """Raises ConfigError when no tokenizer can be trained with them."""
    smallest = NUM_BYTE_SYMBOLS + len(SPECIAL_TOKENS) + len(extra_special_tokens)
    if vocab_size < smallest:
        raise ConfigError(
            f"data.vocab_size = {vocab_size}: expected at least {smallest}: one for each byte and special token"
        )
    for token in extra_special_tokens:
        if not _SPECIAL_FORM.fullmatch(token):
            raise ConfigError(f"special token {token!r}: expected the form <|name|>, which no text can be merged into")


def train(batches: Iterator[list[str]], vocab_size: int, extra_special_tokens: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE: every text encodes, and decodes to the same bytes.

    The special tokens have the first ids. The vocabulary is smaller than ``vocab_size`` when the text has no more
    pairs to merge.
    """
    from transformers import PreTrainedTokenizerFast  # see `_from_pretrained`

    check_training_settings(vocab_size, extra_special_tokens)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *extra_special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(batches, trainer)
    # For users of the trained model: tokenizer(prompt) begins with <|bos|>, as every training sequence does.
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BOS} $A",
        pair=f"{BOS} $A {SEP} $B",
        special_tokens=[(token, backend.token_to_id(token)) for token in (BOS, SEP)],
    )
    extra: dict[str, Any] = {"extra_special_tokens": list(extra_special_tokens)} if extra_special_tokens else {}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        sep_token=SEP,
        clean_up_tokenization_spaces=False,
        **extra,
    )
    return Tokenizer(wrapped)


def adopt(name: str, extra_special_tokens: Sequence[str] = ()) -> Tokenizer:
    """A Hugging Face tokenizer by path or name, with its own pad, bos and eos, and those it lacks added.

    ``<|sep|>`` is always its own token: a tokenizer's own separator may mean something else.
    Raises ConfigError when it cannot be loaded or is not a fast one.
    """
    found = _from_pretrained(name)
    lacking = {key: token for key, token in _wanted().items() if getattr(found, key) is None}
    found.add_special_tokens({**lacking, "sep_token": SEP})
    if extra_special_tokens:
        found.add_special_tokens({"extra_special_tokens": list(extra_special_tokens)})
    return Tokenizer(found)


def _wanted() -> dict[str, str]:
    return {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS}


def _from_pretrained(name: str, **options: Any) -> PreTrainedTokenizerFast:
    # They bring torch: only for whoever encodes or decodes.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        found = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            f"tokenizer {name}: cannot be loaded: {error}; expected a folder with tokenizer.json, or a name on the hub"
        ) from None
    if not isinstance(found, PreTrainedTokenizerFast):
        raise ConfigError(
            f"tokenizer {name}: got a {type(found).__name__}, which has no tokenizer.json; expected a fast tokenizer"
        )
    return found
