"""From text to an ingested data set, streaming: memory holds a digest per document, never the corpus.

1. read      the sources: each distinct text once, short ones left out, held-out ones apart, spooled to disk; then
             evenly sampled, when `data.max_documents` is below what is there
2. divide    where the source knows no groups, neighbourhoods of documents are held out (data/neighbourhoods.py)
3. tokenizer trained on the training documents
4. encode    the splits into shards and index
5. manifest  last; then the folder is renamed into place

An ingest that is interrupted leaves nothing, or a hidden folder that the next one clears.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.data import tokenizer
from streaming_sbp.data.claim import claimed
from streaming_sbp.data.corpus import Corpus
from streaming_sbp.data.dataset import FORMAT_VERSION, MANIFEST_NAME, TOKENIZER_NAME, Dataset, Manifest
from streaming_sbp.data.documents import in_share
from streaming_sbp.data.progress import IngestProgress, Progress
from streaming_sbp.data.shards import IndexRow, IndexWriter, Shard, ShardWriter, token_dtype
from streaming_sbp.data.sources.reading import Reading
from streaming_sbp.data.tokenizer import Tokenizer
from streaming_sbp.files import write_json

TRAIN_TOKENIZER = "train"  # data.tokenizer: train one
# The counts of words that BPE starts from grow with the text; long before this much text its merges are settled.
TOKENIZER_TRAINING_BYTES = 2**30
_BEFORE_IT_WAS_KNOWN = {"heldout_neighbourhoods_share": 0.0}  # what a data set has that was made before the setting
_PACKAGES = ("streaming-sbp", "tokenizers", "transformers", "webdataset", "pyarrow")


@dataclass(frozen=True)
class IngestSummary:
    path: Path
    manifest: Manifest  # counts by split, what was left out by reason, digests
    existed: bool  # the data set was there already, made with the same settings
    seconds: float

    def __str__(self) -> str:
        manifest = self.manifest
        counts = ", ".join(
            f"{split}: {manifest.num_documents[split]:,} documents, {manifest.num_tokens[split]:,} tokens"
            for split in manifest.num_documents
        )
        skipped = ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items()) or "nothing"
        made = "was there already" if self.existed else f"made in {self.seconds:.1f} s"
        return f"{self.path} ({made}); {counts}; vocabulary {manifest.vocab_size:,}; left out: {skipped}"


def ingest(
    data: config.Data,
    progress: Callable[[IngestProgress], None] | None = None,
    extra_special_tokens: Sequence[str] = (),
) -> IngestSummary:
    """Make the data set ``data.dataset``, or find it made with the same settings.

    Raises InputError (a ConfigError) for bad input; ConfigError when a data set with other settings is there, when
    another process is making it, and when no document is left for training.
    """
    path = Path(data.dataset)
    settings = _settings(data, extra_special_tokens)
    if _occupied(path):
        return _existing(path, settings, data, extra_special_tokens)
    started = time.monotonic()
    with claimed(path) as folder:
        manifest = _ingest_into(folder, data, Progress(progress), extra_special_tokens, settings)
    return IngestSummary(path, manifest, existed=False, seconds=time.monotonic() - started)


def _ingest_into(
    folder: Path, data: config.Data, progress: Progress, extra: Sequence[str], settings: dict[str, Any]
) -> Manifest:
    adopted = _adopted_tokenizer(data, extra)  # before reading, which may take hours
    reading = Reading(data, lambda total, unit: progress.start("read", total, unit), progress.advance)
    corpus = Corpus(reading, folder)
    progress.finish()
    progress.start("divide", corpus.num_documents["train"], "documents")
    corpus.divide(progress.advance)
    progress.finish()
    training_bytes = 0
    if adopted is None:
        adopted, training_bytes = _trained_tokenizer(corpus, data, progress, extra)
    adopted.save(folder / TOKENIZER_NAME)
    tokens = Tokenizer.load(folder / TOKENIZER_NAME)  # what every reader of the data set will have
    written = _write_documents(folder, corpus, tokens, data, progress)
    corpus.delete()
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        digest=written.digest,
        tokenizer_digest=tokens.digest,
        vocab_size=tokens.vocab_size,
        token_dtype=token_dtype(tokens.vocab_size).str,
        source=data.source,
        num_documents=corpus.num_documents,
        num_tokens=written.num_tokens,
        num_bytes=written.num_bytes,
        skipped=dict(sorted(reading.skipped.items())),
        tokenizer_training_bytes=training_bytes,
        settings=settings,
        shards=written.shards,
        versions={name: _version(name) for name in _PACKAGES},
        created=time.time(),
    )
    write_json(folder / MANIFEST_NAME, asdict(manifest))
    return manifest


def _adopted_tokenizer(data: config.Data, extra: Sequence[str]) -> Tokenizer | None:
    """The tokenizer named by the configuration, or None for one to train."""
    if data.tokenizer != TRAIN_TOKENIZER:
        return tokenizer.adopt(data.tokenizer, extra)
    tokenizer.check_training_settings(data.vocab_size, extra)
    return None


def _trained_tokenizer(
    corpus: Corpus, data: config.Data, progress: Progress, extra: Sequence[str]
) -> tuple[Tokenizer, int]:
    """The tokenizer and how many bytes of text trained it."""
    share = TOKENIZER_TRAINING_BYTES / corpus.num_bytes["train"]
    num_bytes = 0

    def texts() -> Iterator[list[str]]:
        nonlocal num_bytes
        for batch in corpus.batches("train"):
            chosen = [text for id, text in zip(batch.ids, batch.texts, strict=True) if in_share(id, share, "tokenizer")]
            num_bytes += sum(len(text.encode()) for text in chosen)
            yield chosen
            progress.advance(len(batch.ids))

    progress.start("tokenizer", corpus.num_documents["train"], "documents")
    trained = tokenizer.train(texts(), data.vocab_size, extra)
    progress.finish()
    return trained, num_bytes


@dataclass
class _Written:
    shards: list[Shard]
    num_tokens: dict[str, int]
    num_bytes: dict[str, int]
    digest: str = ""


def _write_documents(
    folder: Path, corpus: Corpus, tokens: Tokenizer, data: config.Data, progress: Progress
) -> _Written:
    """Shards and index of all splits; the digest covers the ids in order, their splits and the tokenizer."""
    written = _Written([], dict.fromkeys(corpus.splits, 0), dict.fromkeys(corpus.splits, 0))
    digest = hashlib.sha256(tokens.digest.encode())
    progress.start("encode", sum(corpus.num_documents.values()), "documents")
    with IndexWriter(folder) as index:
        for split in corpus.splits:
            digest.update(split.encode())
            with ShardWriter(folder, split, token_dtype(tokens.vocab_size), data.shard_bytes) as writer:
                for row in _rows(corpus, split, tokens, writer, progress):
                    index.add(row)
                    digest.update(bytes.fromhex(row.id))
                    written.num_tokens[split] += row.num_tokens
                    written.num_bytes[split] += row.num_bytes
            written.shards += writer.shards
    progress.finish()
    written.digest = digest.hexdigest()
    return written


def _rows(corpus: Corpus, split: str, tokens: Tokenizer, writer: ShardWriter, progress: Progress) -> Iterator[IndexRow]:
    """Encode and write the documents of a split, a batch at a time."""
    for batch in corpus.batches(split):
        encoded = tokens.encode_batch(batch.texts)
        for id, text, origin, ids in zip(batch.ids, batch.texts, batch.origins, encoded, strict=True):
            yield writer.write(id, ids, origin, len(text.encode()))
        progress.advance(len(batch.ids))


def _occupied(path: Path) -> bool:
    """Whether something is there; an empty folder is not."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def _existing(path: Path, settings: dict[str, Any], data: config.Data, extra: Sequence[str]) -> IngestSummary:
    manifest = Dataset.open(path).manifest
    default = _settings(config.Data(), ())
    made_with = {**default, **_BEFORE_IT_WAS_KNOWN, **manifest.settings}  # a setting it does not know had no effect
    absent = "not set"
    changes = [
        f"data.{key}: {made_with.get(key, absent)!r} -> {settings.get(key, absent)!r}"
        for key in sorted({*settings, *made_with})
        if made_with.get(key, absent) != settings.get(key, absent)
        and not (key not in manifest.settings and settings.get(key) == default.get(key))  # not asked for by anybody
        and not (key == "tokenizer" and _is_its_tokenizer(manifest, data, extra))
    ]
    if changes:
        raise ConfigError(
            f"data set {path} was made with other settings:\n  " + "\n  ".join(changes) + "\n"
            "choose another data.dataset, or remove that folder to ingest again"
        )
    return IngestSummary(path, manifest, existed=True, seconds=0.0)


def _is_its_tokenizer(manifest: Manifest, data: config.Data, extra: Sequence[str]) -> bool:
    """Whether the one that is asked for is that of the data set, though it lies elsewhere now."""
    adopted = _adopted_tokenizer(data, extra)
    return adopted is not None and adopted.digest == manifest.tokenizer_digest


def _settings(data: config.Data, extra_special_tokens: Sequence[str]) -> dict[str, Any]:
    """What the content of the data set depends on, as JSON has it."""
    settings = data.model_dump(mode="json", exclude={"dataset"})
    return {**settings, **({"extra_special_tokens": list(extra_special_tokens)} if extra_special_tokens else {})}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
