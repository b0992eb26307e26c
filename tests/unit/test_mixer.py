import itertools
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming_sbp import config
from streaming_sbp.training.mixer import REAL, SYNTHETIC, Mixer
from streaming_sbp.training.schedule import Schedule

BOTH = {REAL: True, SYNTHETIC: True}
NO_SYNTHETIC = {REAL: True, SYNTHETIC: False}
ROUNDING_TOKENS = 1e-5
lengths = st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 4000)), min_size=1, max_size=300)
heavy_tailed = st.floats(0, 1, exclude_max=True).map(lambda u: min(4000, int((1 - u) ** -2)))
any_length = st.one_of(heavy_tailed, st.integers(1, 4000), st.just(1), st.just(4000))


def run(mixer, lengths_by_source, has_document=BOTH):
    """Mix with the given document lengths; yields the mixer after each document."""
    for real, synthetic in lengths_by_source:
        choice = mixer.choose(has_document)
        mixer.add(choice, real if choice.source == REAL else synthetic)
        yield choice


@st.composite
def mixes(draw, max_sources=5, **settings):
    """(configuration, extra shares, tokens of an epoch, and of the run) of 2, 3 or up to 5 sources and any schedule."""
    num_sources = draw(st.sampled_from([n for n in (2, 3, 4, 5) if n <= max_sources]))
    weights = [draw(st.floats(0.01, 1)) for _ in range(num_sources)]
    shares = [weight / sum(weights) for weight in weights]
    schedule = draw(st.sampled_from(["constant", "ramp", "steps", "epochs"]))
    starts = [0, *sorted(draw(st.sets(st.integers(1, 100_000), max_size=3)))]
    mix = config.Mix(
        schedule=schedule,
        synthetic_share=shares[1],
        initial_share=draw(st.floats(0, shares[1])),
        ramp_tokens=draw(st.integers(0, 200_000)),
        ramp_epochs=draw(st.floats(0.1, 10)),
        steps=tuple(config.ShareStep(tokens=start, share=draw(st.floats(0, shares[1]))) for start in starts),
        final_real_tokens=draw(st.sampled_from([0, 2000])),
        **settings,
    )
    extra_shares = {f"extra{i}": share for i, share in enumerate(shares[2:])}
    return mix, extra_shares, draw(st.integers(1000, 200_000)), draw(st.integers(2000, 100_000))


def schedule_of(mix):
    settings, extra_shares, epoch_tokens, total_tokens = mix
    end = total_tokens - settings.final_real_tokens if settings.final_real_tokens else math.inf
    return Schedule(settings, sum(extra_shares.values()), epoch_tokens, end_tokens=end)


def integral(mix, tokens):
    """`Schedule.tokens` from the start on, by adding up the share of every single token."""
    return sum(schedule_of(mix).share(token + 0.5) for token in range(tokens))


@given(mix=mixes(), begin=st.integers(0, 3000), size=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_scheduled_tokens_are_the_sum_of_the_shares(mix, begin, size):
    expected = integral(mix, begin + size) - integral(mix, begin)
    assert schedule_of(mix).tokens(begin, begin + size) == pytest.approx(expected, abs=0.5)


@given(mix=mixes(), documents=st.lists(any_length, min_size=1, max_size=250))
@settings(max_examples=300, deadline=None)
def test_every_prefix_is_within_one_document_of_the_schedule_for_any_number_of_sources(mix, documents):
    _, extra_shares, *_ = mix
    mixer = Mixer(*mix)
    mixer.start()
    has_document = dict.fromkeys(mixer.mixed_tokens, True)
    for i, length in enumerate(documents):
        mixer.add(mixer.choose(has_document), length)
        total, bound = sum(documents[: i + 1]), max(documents[: i + 1]) + ROUNDING_TOKENS
        synthetic = schedule_of(mix).tokens(0, total)
        expected = {name: share * total for name, share in extra_shares.items()} | {SYNTHETIC: synthetic}
        expected[REAL] = total - sum(expected.values())
        for name, tokens in mixer.mixed_tokens.items():
            assert abs(tokens - expected[name]) <= bound
        assert abs(sum(mixer.deficit_tokens.values())) <= ROUNDING_TOKENS


class LargestDeficitFirst(Mixer):
    def _next_in_turn(self, repaying):
        return max(self.deficit_tokens, key=lambda name: self.deficit_tokens[name])


@pytest.mark.parametrize("schedule", ["constant", "ramp", "steps"])
@pytest.mark.parametrize("num_sources", [3, 5])
def test_the_bound_holds_where_the_largest_deficit_first_breaks_it(num_sources, schedule):
    def worst(kind):
        rng = random.Random(0)
        found = 0.0
        for _ in range(100):
            weights = [rng.expovariate(1) for _ in range(num_sources)]
            shares = [weight / sum(weights) for weight in weights]
            steps = tuple(config.ShareStep(tokens=t, share=rng.random() * shares[1]) for t in (0, 20, 40, 60))
            mix = config.Mix(schedule=schedule, synthetic_share=shares[1], ramp_tokens=60, steps=steps)
            mixer = kind(mix, {f"extra{i}": share for i, share in enumerate(shares[2:])})
            mixer.start()
            has_document = dict.fromkeys(mixer.mixed_tokens, True)
            for _ in range(100):
                mixer.add(mixer.choose(has_document), 1)
                found = max(found, *map(abs, mixer.deficit_tokens.values()))
        return found

    assert worst(LargestDeficitFirst) > 1.1
    assert worst(Mixer) <= 1.0 + ROUNDING_TOKENS


def test_catching_up_takes_from_real_text_only():
    mixer = Mixer(config.Mix(synthetic_share=0.3, catch_up_share=1.0, forgive_tokens=10**9), {"pairs": 0.5})
    mixer.start()
    for _ in range(1000):
        mixer.add(mixer.choose({REAL: True, SYNTHETIC: False, "pairs": True}), 100)
    before = dict(mixer.mixed_tokens)
    for _ in range(400):
        mixer.add(mixer.choose({REAL: True, SYNTHETIC: True, "pairs": True}), 100)
    taken = {name: mixer.mixed_tokens[name] - tokens for name, tokens in before.items()}
    assert taken == pytest.approx({REAL: 0, SYNTHETIC: 20_000, "pairs": 20_000}, abs=200)


@given(
    mix=mixes(max_sources=3, catch_up_share=0.7, forgive_tokens=20_000),
    documents=st.lists(st.tuples(any_length, st.booleans()), min_size=1, max_size=250),
)
@settings(max_examples=300, deadline=None)
def test_books_balance_whenever_synthetic_documents_come_and_go(mix, documents):
    settings, *_ = mix
    mixer = Mixer(*mix)
    mixer.start()
    has_document = dict.fromkeys(mixer.mixed_tokens, True)
    for length, available in documents:
        choice = mixer.choose(has_document | {SYNTHETIC: available})
        assert available or choice.source != SYNTHETIC
        mixer.add(choice, length)
        assert 0 <= mixer.debt_tokens <= settings.forgive_tokens
        repaid_or_open = mixer.repaid_tokens + mixer.forgiven_tokens + mixer.debt_tokens
        assert mixer.owed_tokens == pytest.approx(repaid_or_open, abs=ROUNDING_TOKENS)
        accounted = mixer.mixed_tokens[SYNTHETIC] + mixer.debt_tokens + mixer.forgiven_tokens
        scheduled = schedule_of(mix).tokens(0, mixer.tokens_since_start)
        assert accounted + mixer.deficit_tokens[SYNTHETIC] == pytest.approx(scheduled, abs=ROUNDING_TOKENS)
        assert abs(sum(mixer.deficit_tokens.values())) <= ROUNDING_TOKENS
        # Stand-ins and repayment leave the bound alone, for up to three sources.
        assert max(map(abs, mixer.deficit_tokens.values())) <= mixer.longest_tokens + ROUNDING_TOKENS


@given(mix=mixes(starvation_policy="wait"), documents=st.lists(st.tuples(any_length, st.booleans()), max_size=200))
@settings(max_examples=100, deadline=None)
def test_wait_takes_what_it_would_have_taken_or_nothing(mix, documents):
    waiting, supplied = Mixer(*mix), Mixer(*mix)
    waiting.start(), supplied.start()
    everything = dict.fromkeys(waiting.mixed_tokens, True)
    for length, available in documents:
        expected = supplied.choose(everything)
        found = waiting.choose(everything | {SYNTHETIC: available})
        if expected.source == SYNTHETIC and not available:
            assert found is None
            continue
        assert found == expected
        waiting.add(found, length)
        supplied.add(expected, length)
    assert waiting.state_dict() == supplied.state_dict()
    assert waiting.debt_tokens == waiting.starved_documents == 0


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


def test_pairs_have_their_share_before_the_first_snapshot_and_while_synthetic_text_is_late():
    mixer = Mixer(config.Mix(synthetic_share=0.4), {"pairs": 0.25})
    late = {REAL: True, SYNTHETIC: False, "pairs": True}
    for started in (False, True):
        if started:
            mixer.start()
        for _ in range(1000):
            mixer.add(mixer.choose(late), 100)
        assert mixer.mixed_tokens["pairs"] == pytest.approx(0.25 * sum(mixer.mixed_tokens.values()), abs=100)
    assert mixer.mixed_tokens[SYNTHETIC] == 0
    assert mixer.owed_tokens == pytest.approx(0.4 * mixer.tokens_since_start, abs=100)


@given(
    documents=lengths,
    supply=st.lists(st.booleans(), min_size=1, max_size=20),
    catch_up_share=st.floats(0.0, 1.0),
    pairs_share=st.floats(0.0, 0.6),
)
@settings(max_examples=100, deadline=None)
def test_synthetic_text_is_never_caught_up_faster_than_allowed(documents, supply, catch_up_share, pairs_share):
    mix = config.Mix(synthetic_share=0.3, catch_up_share=catch_up_share, forgive_tokens=10**9)
    mixer = Mixer(mix, {"pairs": pairs_share})
    mixer.start()
    limit = max(0.3, min(catch_up_share, 1 - pairs_share))
    ahead, lowest, longest = 0.0, 0.0, 0  # synthetic tokens above the limit since the start; the lowest that this was
    for (real, synthetic), available in zip(documents, itertools.cycle(supply), strict=False):
        choice = mixer.choose({REAL: True, SYNTHETIC: available, "pairs": True})
        length = synthetic if choice.source == SYNTHETIC else real
        mixer.add(choice, length)
        longest = max(longest, length)
        ahead += (length if choice.source == SYNTHETIC else 0) - limit * length
        assert ahead - lowest <= 2 * longest + ROUNDING_TOKENS  # in any window: a deficit of one to a surplus of one
        lowest = min(lowest, ahead)


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
    assert abs(paid - owed) <= 2 * longest + 1000
    if window > 50_000:
        assert (mixer.mixed_tokens[SYNTHETIC] - synthetic_before) / window >= 0.6 - (longest + 1000) / window


def test_debt_above_the_bound_is_forgiven_and_counted():
    mixer = Mixer(config.Mix(synthetic_share=0.5, forgive_tokens=1000))
    mixer.start()
    list(run(mixer, [(100, 100)] * 100, NO_SYNTHETIC))
    assert mixer.debt_tokens == 1000
    # every second document was real by right, not in place of a synthetic one
    assert mixer.starved_documents == 50
    assert mixer.forgiven_tokens == pytest.approx(50 * 100 - 1000)


def test_wait_takes_nothing_when_synthetic_is_late():
    mixer = Mixer(config.Mix(synthetic_share=1.0, starvation_policy="wait"))
    mixer.start()
    assert mixer.choose(NO_SYNTHETIC) is None


@pytest.mark.parametrize("gone", [REAL, "pairs"])
def test_a_source_that_may_not_run_out_is_named(gone):
    mixer = Mixer(config.Mix(), {"pairs": 0.3})
    with pytest.raises(ValueError, match=f"the {gone} source"):
        mix_without(mixer, gone)


def mix_without(mixer, gone):
    for _ in range(10):
        mixer.add(mixer.choose({REAL: True, SYNTHETIC: True, "pairs": True} | {gone: False}), 100)


@pytest.mark.parametrize("extra_shares", [{"pairs": 0.8}, {"pairs": -0.1}, {REAL: 0.1}])
def test_shares_that_do_not_add_up_are_refused(extra_shares):
    with pytest.raises(ValueError, match="shares"):
        Mixer(config.Mix(synthetic_share=0.3), extra_shares)


def test_state_round_trip_continues_identically():
    def documents(seed):
        rng = random.Random(seed)
        return [(rng.randint(1, 900), rng.randint(1, 900)) for _ in range(300)]

    def mixer():
        ramp = config.Mix(schedule="ramp", ramp_tokens=200_000, synthetic_share=0.4, forgive_tokens=5000)
        return Mixer(ramp, {"pairs": 0.2})

    late, all_there = NO_SYNTHETIC | {"pairs": True}, BOTH | {"pairs": True}
    one, two = mixer(), mixer()
    one.start()
    list(run(one, documents(1), late))
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert [c.source for c in run(one, documents(2), all_there)] == [
        c.source for c in run(two, documents(2), all_there)
    ]
    assert one.state_dict() == two.state_dict()
    with pytest.raises(ValueError, match="pairs"):
        Mixer(config.Mix()).load_state_dict(one.state_dict())


def test_schedules():
    ramp = Schedule(config.Mix(schedule="ramp", synthetic_share=0.5, ramp_tokens=1000))
    assert [ramp.share(tokens) for tokens in (0, 500, 1000, 5000)] == [0.0, 0.25, 0.5, 0.5]
    assert math.isclose(ramp.tokens(0, 2000), 750)
    higher = Schedule(config.Mix(schedule="ramp", initial_share=0.1, synthetic_share=0.5, ramp_tokens=1000))
    assert [higher.share(tokens) for tokens in (0, 500, 1000)] == [0.1, pytest.approx(0.3), 0.5]
    assert math.isclose(higher.tokens(0, 2000), 800)
    steps = Schedule(
        config.Mix(
            schedule="steps",
            steps=(config.ShareStep(tokens=0, share=0.1), config.ShareStep(tokens=100, share=0.6)),
        )
    )
    assert [steps.share(tokens) for tokens in (0, 99, 100, 1000)] == [0.1, 0.1, 0.6, 0.6]
    assert math.isclose(steps.tokens(50, 150), 35)


def test_the_run_ends_with_real_text():
    """The last tokens of the run, not of those since the start; a mixer that resumes in between knows them, too."""
    mix = config.Mix(synthetic_share=0.5, final_real_tokens=2000)

    def mixer():
        return Mixer(mix, {"pairs": 0.2}, total_tokens=10_000)

    one, everything = mixer(), BOTH | {"pairs": True}
    shares = []
    while sum(one.mixed_tokens.values()) < 10_000:
        if sum(one.mixed_tokens.values()) == 3000:
            one.start()
        if sum(one.mixed_tokens.values()) == 5000:
            one, before = mixer(), json.loads(json.dumps(one.state_dict()))
            one.load_state_dict(before)
        one.add(one.choose(everything), 100)
        shares.append(one.current_share)
    assert shares == [0.0] * 30 + [0.5] * 49 + [0.0] * 21
    assert one.mixed_tokens == pytest.approx({REAL: 8000 - 2500, SYNTHETIC: 2500, "pairs": 2000}, abs=100)


@pytest.mark.parametrize("extra_shares", [{}, {"pairs": 0.2}])
def test_the_share_follows_the_real_epochs(extra_shares):
    """However long a document is, the share asked for is the one that belongs to the real epochs read by then."""
    mix = config.Mix(schedule="epochs", initial_share=0.1, synthetic_share=0.7, ramp_epochs=4)
    mixer, everything = Mixer(mix, extra_shares, epoch_tokens=50_000), BOTH | dict.fromkeys(extra_shares, True)
    for _ in range(100):
        mixer.add(mixer.choose(everything), 300)
    assert mixer.current_share == 0
    mixer.start()
    seen = []
    while mixer.mixed_tokens[REAL] < 300_000:
        mixer.add(mixer.choose(everything), 300)
        epochs = mixer.mixed_tokens[REAL] / 50_000
        seen.append((epochs, mixer.current_share))
        expected = 0.1 + (0.7 - 0.1) * min(epochs / 4, 1.0)
        assert mixer.current_share == pytest.approx(expected, abs=0.002)
    assert seen[0][1] < 0.2
    assert seen[-1][1] == 0.7
    again = Mixer(mix, extra_shares, epoch_tokens=50_000)
    again.load_state_dict(mixer.state_dict())
    assert again.scheduled_share == mixer.scheduled_share
    assert again.choose(everything) == mixer.choose(everything)
