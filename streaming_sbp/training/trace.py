"""`sbp trace`: which documents a step was trained on. The loader makes the step's batch again, without the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from streaming_sbp.config import ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.rundir import RunDir
from streaming_sbp.stream.journal import Journal
from streaming_sbp.telemetry.text import printable
from streaming_sbp.training.batches import BatchStream, CannotRepeat
from streaming_sbp.training.build import build_batches
from streaming_sbp.training.checkpoint import newest_before
from streaming_sbp.training.history import PastStep, read_steps
from streaming_sbp.training.mixer import PAIRS, REAL, SYNTHETIC
from streaming_sbp.training.packing import Bin, Piece
from streaming_sbp.training.sources import PairSource, RealSource


@dataclass(frozen=True)
class TracedPiece:
    """Tokens ``start : start + length`` of a document, as they stand in a sequence of the batch.

    Those of one ``segment`` of a sequence see each other.
    """

    sequence: int  # row of the batch
    segment: int  # of the row; several pieces only in a megadocument (`packing.group_by_seed`)
    at: int  # first token in the row
    source: str
    start: int
    length: int
    document: dict[str, Any]  # real: id, shard, origin; synthetic: journal position, seeds, snapshot, generator, seq


def trace(run: RunDir, step: int) -> tuple[PastStep, list[TracedPiece]]:
    """The step as it was logged, and what it was made of. Raises ConfigError when the step was not trained."""
    settings = run.config()
    dataset, journal = Dataset.open(settings.data.dataset), Journal(run.journal)
    batches = build_batches(settings, dataset, journal, run.pairs)
    done = 0
    if checkpoint := newest_before(run.checkpoints, step):
        info, state = checkpoint
        batches.load_state_dict(state["trainer"]["batches"])
        done = info.step
    past, rows = _repeat(batches, read_steps(run.steps, done), step, done)
    train = dataset.split("train")
    real = batches.sources[REAL]
    assert isinstance(real, RealSource)
    pairs = batches.sources.get(PAIRS)

    def described(piece: Piece) -> dict[str, Any]:
        if piece.source == SYNTHETIC:
            entry = journal.entry(piece.position)
            return {
                "journal_position": piece.position,
                "seed_id": entry.header.seed_id,
                "depth": entry.header.depth,
                "seed_seq": entry.header.seed_seq,
                "snapshot": entry.header.snapshot,
                "generator": entry.generator,
                "session": entry.session,
                "seq": entry.seq,
            }
        if piece.source == PAIRS:
            assert isinstance(pairs, PairSource)
            pair = pairs.pair(piece.position)
            return {"seed_id": train.ids[pair.seed], "target_id": train.ids[pair.target]}
        index = real.document(piece.position)
        epoch = piece.position // len(train)
        return {"id": train.ids[index], "shard": train.shard(index), "origin": train.origins[index], "epoch": epoch}

    return past, list(_pieces(rows, described))


def as_json(past: PastStep, pieces: list[TracedPiece]) -> dict[str, Any]:
    return {"step": past.step, "digest": past.digest, "loss": past.loss, "pieces": [asdict(piece) for piece in pieces]}


def render(past: PastStep, pieces: list[TracedPiece]) -> Table:
    """For a terminal: one line a piece."""
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in past.loss.items() if loss is not None)
    table = Table(title=f"step {past.step} · batch {past.digest} · loss {losses}", box=SIMPLE, title_justify="left")
    for column in ("row", "segment", "tokens", "source", "of the document", "where it came from"):
        table.add_column(column)
    for piece in pieces:
        origin = ", ".join(f"{key} {value}" for key, value in piece.document.items())
        span = f"{piece.at}..{piece.at + piece.length - 1}"
        part = f"{piece.start}..{piece.start + piece.length - 1}"
        table.add_row(str(piece.sequence), str(piece.segment), span, piece.source, part, Text(printable(origin)))
    return table


def _repeat(batches: BatchStream, steps: Iterator[PastStep], wanted: int, last: int) -> tuple[PastStep, list[Bin]]:
    """``last``: the step after which ``batches`` go on."""
    for past in steps:
        try:
            found = batches.next_rows(past.decisions)
        except CannotRepeat as error:
            raise ConfigError(
                f"step {past.step} cannot be made again, the journal was pruned or damaged: {error}"
            ) from None
        last = past.step
        if past.step == wanted:
            assert found is not None
            return past, found[0]
    raise ConfigError(f"step {wanted}: not in the log of steps, which ends at {last}")


def _pieces(rows: list[Bin], described: Any) -> Iterator[TracedPiece]:
    for sequence, row in enumerate(rows):
        at = 0
        for segment, pieces in enumerate(row.segments()):
            for piece in pieces:
                yield TracedPiece(sequence, segment, at, piece.source, piece.start, piece.length, described(piece))
                at += piece.length
