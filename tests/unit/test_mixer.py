import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_sbp import config
from streaming_sbp.training.mixer import REAL, SYNTHETIC, Mixer, scheduled_share

BOTH = {REAL: True, SYNTHETIC: True}
NO_SYNTHETIC = {REAL: True, SYNTHETIC: False}
lengths = st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=300)


def run(mixer, lengths_by_source, has_document=BOTH):
    """Mix with the given document lengths; yields the mixer after each document."""
    for real, synthetic in lengths_by_source:
        choice = mixer.choose(has_document)
        mixer.add(choice, real if choice.source == REAL else synthetic)
        yield choice


@given(share=st.floats(0, 1), documents=lengths)
@settings(max_examples=200, deadline=None)
def test_every_prefix_is_within_one_document_of_the_schedule(share, documents):
    mixer = Mixer(config.Mix(synthetic_share=share))
    mixer.start()
    longest = max(max(pair) for pair in documents)
    for _ in run(mixer, documents):
        assert abs(mixer.mixed_tokens[SYNTHETIC] - share * mixer.tokens_since_start) <= longest + 1e-6


def test_share_is_within_a_fifth_of_a_point_at_a_million_tokens():
    rng = random.Random(0)
    mixer = Mixer(config.Mix(synthetic_share=0.375))
    mixer.start()
    while mixer.tokens_since_start < 1_000_000:
        list(run(mixer, [(rng.randint(10, 1400), rng.randint(10, 700))]))
    assert abs(mixer.realised_share - 0.375) <= 0.002


def test_only_real_before_the_first_snapshot():
    mixer = Mixer(config.Mix(synthetic_share=0.9))
    assert {choice.source for choice in run(mixer, [(100, 100)] * 50)} == {REAL}
    assert mixer.debt_tokens == 0


@given(documents=lengths)
@settings(max_examples=50, deadline=None)
def test_a_fallback_is_owed_then_paid_back_at_the_catch_up_share(documents):
    mix = config.Mix(synthetic_share=0.3, catch_up_share=0.6, forgive_tokens=10**9)
    mixer = Mixer(mix)
    mixer.start()
    assert {c.source for c in run(mixer, documents, NO_SYNTHETIC)} == {REAL}
    owed = mixer.debt_tokens
    total = mixer.mixed_tokens[REAL]
    longest = max(max(pair) for pair in documents)
    assert abs(owed - 0.3 * total) <= longest  # up to the document by which synthetic may lag anyway
    synthetic_before, start = mixer.mixed_tokens[SYNTHETIC], mixer.tokens_since_start
    for _ in range(100_000):
        if mixer.debt_tokens == 0:
            break
        list(run(mixer, [(500, 500)]))
    window = mixer.tokens_since_start - start
    paid = mixer.mixed_tokens[SYNTHETIC] - synthetic_before - 0.3 * window
    assert mixer.debt_tokens == 0
    assert abs(paid - owed) <= longest + 1000
    if window > 50_000:
        assert (mixer.mixed_tokens[SYNTHETIC] - synthetic_before) / window <= 0.6 + (longest + 500) / window


def test_debt_above_the_bound_is_forgiven_and_counted():
    mixer = Mixer(config.Mix(synthetic_share=0.5, forgive_tokens=1000))
    mixer.start()
    list(run(mixer, [(100, 100)] * 100, NO_SYNTHETIC))
    assert mixer.debt_tokens == 1000
    # the first document was real by right, not in place of a synthetic one
    assert mixer.forgiven_tokens == pytest.approx(0.5 * 99 * 100 - 1000)
    assert mixer.starved_documents == 99


def test_wait_takes_nothing_when_synthetic_is_late():
    mixer = Mixer(config.Mix(synthetic_share=1.0, starvation_policy="wait"))
    mixer.start()
    assert mixer.choose(NO_SYNTHETIC) is None


def test_state_round_trip_continues_identically():
    def documents(seed):
        rng = random.Random(seed)
        return [(rng.randint(1, 900), rng.randint(1, 900)) for _ in range(300)]

    one = Mixer(config.Mix(synthetic_share=0.4))
    one.start()
    list(run(one, documents(1), NO_SYNTHETIC))
    two = Mixer(config.Mix(synthetic_share=0.4))
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert [c.source for c in run(one, documents(2))] == [c.source for c in run(two, documents(2))]
    assert one.state_dict() == two.state_dict()


def test_schedules():
    ramp = config.Mix(schedule="ramp", synthetic_share=0.5, ramp_tokens=1000)
    assert [scheduled_share(ramp, tokens) for tokens in (0, 500, 1000, 5000)] == [0.0, 0.25, 0.5, 0.5]
    steps = config.Mix(
        schedule="steps",
        steps=(config.ShareStep(tokens=0, share=0.1), config.ShareStep(tokens=100, share=0.6)),
    )
    assert [scheduled_share(steps, tokens) for tokens in (0, 99, 100, 1000)] == [0.1, 0.1, 0.6, 0.6]
