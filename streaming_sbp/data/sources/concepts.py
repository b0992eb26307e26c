"""Documents about people, written from known facts (data/concepts): `difficulty`, `concept_seed`, `views_per_concept`.

Each person has exactly `views_per_concept` training documents. The held-out documents are fresh views of the same
people: among the first `HELDOUT_AMONG` views, those that the digest puts there, so they are the same however many
training documents there are. People that are held out as a whole have `views_per_concept` documents, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from streaming_sbp.config import ConfigError
from streaming_sbp.data.concepts.world import Concept, World
from streaming_sbp.data.documents import document_id, split_of
from streaming_sbp.data.sources.reading import RawDocument, Reading

HELDOUT_AMONG = 20
_FUTILE_VIEWS = 1000  # in a row that were there already: there are no others


def read(reading: Reading) -> Iterator[RawDocument]:
    data = reading.data
    world = World(data.difficulty, data.concept_seed)
    reading.start(len(world.concepts), "concepts")
    for concept in world.concepts.values():
        yield from _views(world, concept, reading)
        reading.advance(1)


def _views(world: World, concept: Concept, reading: Reading) -> Iterator[RawDocument]:
    data, seen, futile = reading.data, set[str](), 0
    left = data.views_per_concept
    for number in count():
        if not left and number >= HELDOUT_AMONG:
            return
        text = world.view(concept, number)
        futile = futile + 1 if text in seen else 0
        if futile > _FUTILE_VIEWS:
            raise ConfigError(
                f"data.views_per_concept = {data.views_per_concept}: expected fewer, {concept.name} has only "
                f"{len(seen)} distinct documents; or choose another data.difficulty"
            )
        if futile:
            continue
        seen.add(text)
        split = split_of(document_id(text), data.heldout_share, concept.name, data.heldout_groups_share)
        fits = number < HELDOUT_AMONG if split == "heldout" else left > 0
        if fits:
            left -= split != "heldout"
            yield RawDocument(text, f"{concept.name}/{number}", concept.name)
