"""Which documents seed others, and how many; with a real generator process: tests/processes/test_second_round.py."""

import numpy as np
import pytest

from streaming_sbp import config
from streaming_sbp.config import ConfigError
from streaming_sbp.synthesizer.second_round import SecondRound, Seed

SNAPSHOT = "a" * 64


def real_seed(number=0):
    return Seed(number, np.arange(5), position=number)


def second_round(share=0.5, capacity=1000, **settings):
    generator = config.Generator(second_round_share=share, **settings)
    return SecondRound(generator, np.random.default_rng(0), capacity)


def filled(num_documents, **settings):
    """With so many documents of SNAPSHOT, numbers 0, 1, ..., all of them acknowledged."""
    made = second_round(**settings)
    made.draw(1, SNAPSHOT, always)
    for seq in range(num_documents):
        made.sent(seq, SNAPSHOT, real_seed(seq), np.array([seq]))
    return made


def always(seq):
    return True


@pytest.mark.parametrize("share", [0.0, 0.07, 0.3, 0.5, 0.9, 0.99])
def test_the_share_of_synthetic_seeds_is_what_was_asked_for(share):
    made, num_real, num_synthetic = filled(500, share=share), 0, 0
    for _ in range(200):
        real = made.num_real(128)
        num_real += real
        num_synthetic += len(made.draw(real, SNAPSHOT, always))
    assert num_synthetic == pytest.approx(share / (1 - share) * num_real, abs=1)
    rounding = 0.5 / (1 - share)  # half a real document, and those that go with it
    assert (num_real + num_synthetic) / 200 == pytest.approx(128, abs=1 + rounding)


def test_off_by_default_draws_nothing_and_no_random_number():
    rng = np.random.default_rng(3)
    made = SecondRound(config.Generator(), rng)
    assert config.Generator().second_round_share == 0.0
    for seq in range(50):
        assert made.num_real(128) == 128
        assert made.draw(128, SNAPSHOT, always) == []
        made.sent(seq, SNAPSHOT, real_seed(), np.arange(9))
    assert len(made) == 0
    assert rng.integers(2**63) == np.random.default_rng(3).integers(2**63)


def test_a_round_draws_none_twice_and_the_whole_pool_when_that_is_small():
    made = filled(10)
    drawn = made.draw(100, SNAPSHOT, always)
    assert sorted(seed.seq for seed in drawn) == list(range(10))
    assert {(seed.depth, seed.position) for seed in drawn} == {(1, None)}
    assert all(seed.document == seed.seq and seed.tokens.tolist() == [seed.seq] for seed in drawn)


def test_the_same_rng_draws_the_same():
    drawn = [[seed.seq for seed in filled(100).draw(20, SNAPSHOT, always)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 20


def test_only_what_the_trainer_has_acknowledged_is_drawn():
    made = filled(6)
    assert {seed.seq for seed in made.draw(100, SNAPSHOT, lambda seq: seq in (1, 4))} == {1, 4}
    assert {seed.seq for seed in made.draw(100, SNAPSHOT, lambda seq: seq == 5)} == {1, 4, 5}


def test_the_oldest_leave_a_pool_that_is_full():
    assert sorted(seed.seq for seed in filled(10, capacity=4).draw(100, SNAPSHOT, always)) == [6, 7, 8, 9]


def test_another_snapshot_begins_without_documents_and_takes_none_of_the_old_one():
    made = filled(10)
    assert made.draw(100, "b" * 64, always) == []
    made.sent(10, SNAPSHOT, real_seed(), np.arange(3))  # it had waited for credit since before the swap
    made.sent(11, "b" * 64, real_seed(), np.arange(3))
    assert [seed.seq for seed in made.draw(100, "b" * 64, always)] == [11]
    assert made.draw(100, SNAPSHOT, always) == []  # gone back: what it had said before is no seed any more


@pytest.mark.parametrize("max_depth", [2, 3, 4])
def test_no_document_becomes_deeper_than_max_depth(max_depth):
    made, depths = filled(20, max_depth=max_depth), set()
    for seq in range(100, 2100, 20):
        for offset, seed in enumerate(made.draw(20, SNAPSHOT, always)):
            depths.add(seed.depth + 1)
            made.sent(seq + offset, SNAPSHOT, seed, np.arange(4))
    assert depths == set(range(2, max_depth + 1))


def test_an_unconditional_synthesizer_has_no_second_round():
    with pytest.raises(ConfigError, match="second_round_share"):
        config.load(overrides=["generator.second_round_share=0.2", 'synthesizer.mode="unconditional"'])
