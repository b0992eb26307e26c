"""Which snapshot serves: random histories of publications, pins, rollbacks and quarantines, and racing writers."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming_sbp.synthesizer import pointer as rules
from streaming_sbp.synthesizer.pointer import Pointer, PointerError


@dataclass(frozen=True)
class Known:
    digest: str
    version: int


STORE = [Known(name, version) for version, name in enumerate("abcde", 1)]


def serving(digest, **facts):
    return Pointer(digest=digest, **facts)


def test_what_is_published_serves_unless_another_is_pinned_or_it_was_bad():
    assert rules.published(Pointer(), "a").digest == "a"
    assert rules.published(serving("a"), "b").digest == "b"
    assert rules.published(serving("a", pinned=True), "b") == serving("a", pinned=True)
    assert rules.published(serving("a", bad=("b",)), "b").digest == "a"


def test_unpinned_the_newest_good_one_serves():
    held = rules.pinned(serving("e"), "b")
    assert (held.digest, held.pinned) == ("b", True)
    assert rules.unpinned(held, STORE) == serving("e")
    assert rules.unpinned(rules.pinned(serving("e", bad=("e",)), "b"), STORE).digest == "d"


def test_a_rollback_goes_to_the_last_good_one_and_never_comes_back():
    first = rules.rolled_back(serving("d", bad=("c",)), STORE)
    assert first == serving("b", bad=("c", "d"))
    assert rules.published(first, "e").digest == "e"
    assert rules.rolled_back(serving("d"), STORE, "a") == serving("a", bad=("d",))
    for bad, to in ((("a",), None), ((), "d"), ((), "z"), (("a",), "a")):
        with pytest.raises(PointerError):
            rules.rolled_back(serving("b", bad=bad), STORE, to)
    with pytest.raises(PointerError, match="no snapshot serves"):
        rules.rolled_back(Pointer(), STORE)


def test_a_quarantined_one_never_serves():
    assert rules.quarantined(serving("c"), STORE, "d") == serving("c", bad=("d",))
    assert rules.quarantined(serving("c"), STORE, "c") == serving("b", bad=("c",))
    assert rules.quarantined(serving("a"), STORE, "a") == serving("e", bad=("a",))
    with pytest.raises(PointerError, match="no other is good"):
        rules.quarantined(serving("a", bad=tuple("bcde")), STORE, "a")


def apply(action, now, known, digest):
    match action:
        case "pin":
            return rules.pinned(now, digest)
        case "unpin":
            return rules.unpinned(now, known)
        case "roll back":
            return rules.rolled_back(now, known)
    return rules.quarantined(now, known, digest)


actions = st.lists(
    st.tuples(st.sampled_from(["publish", "pin", "unpin", "roll back", "quarantine"]), st.integers(0, 4))
)


@given(actions)
def test_under_any_history_a_bad_one_never_serves(history):
    now, known = Pointer(), []
    for action, number in history:
        digest = known[number % len(known)].digest if known else ""
        try:
            if action == "publish":
                known.append(Known(f"s{len(known)}", len(known) + 1))
                now = rules.published(now, known[-1].digest)
            elif known:
                now = apply(action, now, known, digest)
        except PointerError:
            pass
        assert now.digest not in now.bad
        assert (now.digest is None) == (not known)
        if action == "publish" and not now.pinned:
            assert now.digest == known[-1].digest
