import numpy as np
import pytest

from streaming_sbp import config
from streaming_sbp.synthesizer.engines.base import Sampled
from streaming_sbp.synthesizer.filters import DocumentFilter, copied_span, repetition
from streaming_sbp.telemetry.catalogue import FILTER_REASONS

SEED = np.arange(1000, 1100, dtype=np.uint16)
WORDS = np.random.default_rng(0).permutation(900)[:60]


def document(tokens, finished=True):
    tokens = np.asarray(tokens)
    return Sampled(tokens, np.zeros(len(tokens), dtype=np.float32), finished)


def longest_common_run(a, b):
    """By the definition: every run of ``a`` looked up among the runs of ``b``."""
    for size in range(min(len(a), len(b)), 0, -1):
        runs = {tuple(b[i : i + size]) for i in range(len(b) - size + 1)}
        if any(tuple(a[i : i + size]) in runs for i in range(len(a) - size + 1)):
            return size
    return 0


def test_repetition():
    assert repetition([1, 2, 3]) == 0.0
    assert repetition(range(50)) == 0.0
    assert repetition([7] * 13) == pytest.approx(0.9)  # 10 four-grams, one distinct
    assert repetition([1, 2, 3, 4] * 2) == pytest.approx(1 / 5)


def test_copied_span_equals_its_definition_on_random_documents():
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = rng.integers(0, 3, rng.integers(1, 30)), rng.integers(0, 3, rng.integers(1, 30))
        assert copied_span(a, b) == pytest.approx(longest_common_run(a.tolist(), b.tolist()) / len(a))
    assert copied_span([], SEED) == 0.0


def test_a_popular_token_still_counts_as_copied():
    """difflib's autojunk would pass over tokens that are frequent in a document of 200 and more."""
    seed = np.tile([5, 6], 150)
    assert copied_span(seed[:100], seed) == 1.0


@pytest.mark.parametrize(
    ("tokens", "finished", "expected"),
    [
        (WORDS, True, ""),
        (WORDS, False, "unfinished"),
        (WORDS[:15], True, "too_short"),
        (np.tile(WORDS[:10], 6), True, "repetitive"),
        ([*WORDS[:25], *SEED[10:45]], True, "copied"),
        ([*WORDS[:35], *SEED[10:35]], True, ""),
    ],
)
def test_reasons(tokens, finished, expected):
    found = DocumentFilter(config.Generator()).reason(document(tokens, finished), SEED)
    assert found == expected
    assert not found or found in FILTER_REASONS


def test_neither_the_seed_document_nor_the_real_one_behind_it_may_be_copied():
    other = np.arange(2000, 2100)
    copy = document([*WORDS[:25], *SEED[10:45]])
    for seeds, expected in (((other,), ""), ((SEED,), "copied"), ((other, SEED), "copied"), ((SEED, other), "copied")):
        assert DocumentFilter(config.Generator()).reason(copy, *seeds) == expected


def test_duplicates_are_recognised_within_a_bounded_memory():
    documents = [document(np.random.default_rng(i).integers(0, 900, 40)) for i in range(5)]
    judge = DocumentFilter(config.Generator(), num_remembered=3)
    assert [judge.reason(d, SEED) for d in documents[:3]] == ["", "", ""]
    assert judge.reason(document(documents[0].tokens.astype(np.uint16)), SEED) == "duplicate"
    assert [judge.reason(d, SEED) for d in documents[3:]] == ["", ""]
    assert judge.reason(documents[0], SEED) == "duplicate"  # seen again lately: remembered longer than 1 and 2
    assert judge.reason(documents[1], SEED) == ""
    assert len(judge._passed) == 3
