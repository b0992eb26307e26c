"""What arrives against what the gate measured: the rules, and real synthesizers forced through the gate."""

import time

import msgspec
import numpy as np
import pytest

from streaming_sbp import config
from streaming_sbp.stream.journal import Journal
from streaming_sbp.stream.messages import DocumentHeader, SamplingSettings
from streaming_sbp.stream.shards import AcceptedDocument
from streaming_sbp.synthesizer.engines.base import Sampled, Sampling, generate
from streaming_sbp.synthesizer.filters import DocumentFilter
from streaming_sbp.synthesizer.monitor import BOUNDS, WINDOW, Windows, drifts, worsened
from streaming_sbp.synthesizer.pointer import pinned
from streaming_sbp.synthesizer.quality import SentMeasures, ValuedDocument
from streaming_sbp.synthesizer.snapshots import SnapshotStore
from streaming_sbp.synthesizer.watch import DOCUMENTS_A_LOOK, SyntheticWatch
from streaming_sbp.telemetry.catalogue import SENT_MEASURES, TRUTH_MEASURES
from tests.checks.sabotage import GENERATOR, Bench

EXPECTED = {
    "repetition": 0.05,
    "corpus_13gram_share": 0.1,
    "distinct_ngrams": 0.8,
    "mean_tokens": 100.0,
    "mean_log_prob": -3.0,
    "relatedness": 0.5,
}
GATE = {"sent_documents": 46.0} | {f"sent_{name}": value for name, value in EXPECTED.items()}


def sent(num_documents=64, deviations=None, **changes):
    return SentMeasures(num_documents, EXPECTED | changes, deviations or {}, {})


def test_there_is_a_bound_for_every_measure():
    assert set(BOUNDS) == set(SENT_MEASURES) == set(EXPECTED) | set(TRUTH_MEASURES)


@pytest.mark.parametrize(
    ("measure", "within", "beyond"),
    [
        ("repetition", 0.34, 0.36),
        ("corpus_13gram_share", 0.39, 0.41),
        ("distinct_ngrams", 0.57, 0.55),
        ("mean_tokens", 129.0, 131.0),
        ("mean_tokens", 71.0, 69.0),
        ("mean_log_prob", -3.8, -4.0),
        ("relatedness", 0.36, 0.34),
        ("relatedness", 1.0, float("nan")),
    ],
)
def test_a_measure_drifts_beyond_its_bound_in_its_bad_direction(measure, within, beyond):
    assert drifts(sent(), GATE, 0.3) == {}
    assert drifts(sent(**{measure: within}), GATE, 0.3) == {}
    assert list(drifts(sent(**{measure: beyond}), GATE, 0.3)) == [measure]
    assert drifts(sent(num_documents=31, **{measure: beyond}), GATE, 0.3) == {}
    assert drifts(sent(**{measure: beyond}), GATE | {"sent_documents": 7.0}, 0.3) == {}


def test_a_difference_that_chance_explains_is_no_drift():
    assert drifts(sent(mean_tokens=150.0), GATE, 0.3)
    assert drifts(sent(deviations={"mean_tokens": 60.0}, mean_tokens=150.0), GATE, 0.3) == {}


def test_the_same_text_does_not_drift_by_chance():
    """The same skewed distribution at the gate and in the stream: never beyond the bound, rarely beyond chance."""
    rng = np.random.default_rng(0)
    beyond_chance = 0
    for _ in range(2000):
        trial, window = rng.lognormal(4.0, 0.6, 40), rng.lognormal(4.0, 0.6, 64)
        measured = sent(deviations={"mean_tokens": window.std()}, mean_tokens=window.mean())
        gate = GATE | {"sent_mean_tokens": trial.mean()}
        assert drifts(measured, gate, config.Gate().max_drift) == {}
        beyond_chance += bool(drifts(measured, gate, 1e-9))
    assert beyond_chance / 2000 < 0.01


def test_windows_keep_the_last_documents_of_the_last_snapshots():
    windows = Windows(num_snapshots=2)
    for snapshot, length in (("a", 1), ("b", 5), ("c", 6)):
        for _ in range(WINDOW + 5):
            values = {name: float(length) for name in SENT_MEASURES if name != "distinct_ngrams"}
            windows.add(snapshot, ValuedDocument(np.arange(length), values))
    assert windows.newest == "c"
    assert windows.measure("a", 10).num_documents == 0
    assert windows.measure("b", 10).num_documents == WINDOW
    assert windows.measure("c", 10).means["mean_tokens"] == 6.0
    assert windows.measure("c", 1).means["distinct_ngrams"] == 1.0
    assert windows.measure("c", 10).means["distinct_ngrams"] == 0.1


def losses(rng, start, count, noise=0.02):
    return [5.0 - 0.3 * np.log(start + i) + rng.normal(0, noise) for i in range(count)]


def test_a_held_out_loss_that_falls_as_before_is_no_reason_and_a_jump_is_one():
    rng = np.random.default_rng(0)
    calm = [worsened(losses(rng, 10, 6), losses(rng, 16, 2)) for _ in range(2000)]
    assert sum(map(bool, calm)) / 2000 < 0.005
    jumps = [worsened(losses(rng, 10, 6), [loss + 0.3 for loss in losses(rng, 16, 2)]) for _ in range(200)]
    assert sum(map(bool, jumps)) > 190
    assert worsened([5.0, 4.9, 4.8], [9.0, 9.0]) == ""
    assert worsened([5.0, 4.9, 4.8, 4.7], [9.0]) == ""
    assert worsened([5.0, 4.9, 4.8, 4.7], [9.0, 4.7]) == ""
    assert "5.0000: 4.7500 before" in worsened([5.0, 4.9, 4.8, 4.7], [5.0, 5.0])


# --- with real synthesizers, a real store and a real journal ---


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("candidate"))
    bench.honest = bench.tuned()
    bench.measures = bench.measure(bench.honest)
    return bench


class World:
    """A store with two snapshots, both published with the honest one's measures: one may be forced through the gate."""

    def __init__(self, bench, folder, first, second, on_drift="rollback"):
        self.bench, self.folder = bench, folder
        self.store, self.journal = SnapshotStore(folder / "store"), Journal(folder / "journal", writable=True)
        self.first, self.second = self.publish(first, "first"), self.publish(second, "second")
        gate = config.Gate(on_drift=on_drift)
        self.watch = SyntheticWatch(gate, self.journal, self.store, lambda: bench.reference)

    def publish(self, model, name):
        model.save_pretrained(self.folder / name)
        facts = {"parent_checkpoint": name, "parent_tokens": 1, "num_pairs": 1}
        return self.store.publish(self.folder / name, measures=self.bench.measures, **facts)

    def stream(self, info, count=80):
        """What a generator with this snapshot sends, looked at as it comes; the first finding."""
        bench = self.bench
        self.store.fetch(info.digest, self.folder / "copy")
        bench.engine.load(self.folder / "copy")
        chosen = np.random.default_rng(count).integers(len(bench.corpus), size=count).tolist()
        seeds = [bench.corpus.tokens(i) for i in chosen]
        sampled = generate(bench.engine, [bench.prompter.prompt(s) for s in seeds], Sampling.of(GENERATOR), count)
        passes = DocumentFilter(GENERATOR)
        for i, seed, document in zip(chosen, seeds, sampled, strict=True):
            if not passes.reason(document, seed):
                self.journal.publish(self.journal.write([accepted(bench.corpus.ids[i], info, document, i)]))
                if len(self.journal) % DOCUMENTS_A_LOOK == 0 and (finding := self.watch.look()):
                    return finding
        return self.watch.look()


def accepted(seed_id, info, document, number):
    tokens = document.tokens.astype(np.uint16)
    log_likelihood = float(document.log_probs.mean())
    header = DocumentHeader(seed_id, info.digest, 1, SamplingSettings(1.0, 0.9, 0), log_likelihood, len(tokens), 9)
    return AcceptedDocument("generator-0", "session", number, header, tokens, np.zeros(len(tokens), np.uint8))


def test_an_honest_snapshot_is_left_alone_and_a_bad_one_forced_through_is_rolled_back(bench, tmp_path):
    world = World(bench, tmp_path, bench.honest, bench.random())
    assert world.stream(world.first) is None
    assert set(world.watch.measures) == set(EXPECTED)
    finding = world.stream(world.second, count=300)
    assert (finding.snapshot, finding.action) == (world.second.digest, "rolled_back")
    assert {"mean_log_prob", "relatedness"} <= set(finding.reasons)
    assert world.store.current() == world.first
    assert world.store.pointer().by == "trainer"
    assert "mean_log_prob" in world.store.pointer().reason
    assert world.watch.look() is None  # said once


def test_the_first_snapshot_a_pinned_one_and_the_policy_report_are_not_rolled_back(bench, tmp_path):
    reports = World(bench, tmp_path / "1", bench.honest, bench.random(), "report")
    assert reports.stream(reports.second, count=300).action == "reported"
    assert reports.store.current() == reports.second
    held = World(bench, tmp_path / "2", bench.honest, bench.random())
    held.store.change("person", "mine", lambda p, _: pinned(p, held.second.digest))
    assert held.stream(held.second, count=300).action == "not rolled back: it is pinned"
    replaced = World(bench, tmp_path / "3", bench.random(), bench.honest)
    assert replaced.stream(replaced.first, count=300).action == "not rolled back: another one serves"
    replaced.store.change("person", "back", lambda p, _: pinned(p, replaced.first.digest))
    alone = World(bench, tmp_path / "4", bench.random(), bench.random())
    assert alone.first == alone.second
    assert "none before it" in alone.stream(alone.first, count=300).action


def test_a_held_out_loss_that_worsens_after_a_swap_rolls_back_also_after_a_restart(bench, tmp_path):
    world = World(bench, tmp_path, bench.honest, bench.random())
    records = [{"event": "eval", "tokens": 100 * i, "heldout_loss": 5.0 - 0.1 * i} for i in range(6)]
    records.append({"event": "first_trained", "tokens": 550, "snapshot": world.second.digest})
    records += [{"event": "eval", "tokens": 100 * i, "heldout_loss": loss} for i, loss in ((6, 6.0), (7, 0.1))]
    world.watch.recall(records, tokens=600)
    finding = world.watch.evaluated(6.1)
    assert (finding.action, list(finding.reasons)) == ("rolled_back", ["heldout_loss"])
    assert world.store.current() == world.first
    assert world.watch.evaluated(6.2) is None


def test_documents_seeded_by_synthetic_ones_are_not_compared_with_the_gates(bench, tmp_path):
    world = World(bench, tmp_path, bench.honest, bench.random())
    assert world.stream(world.first) is None
    before, nonsense = world.watch.measures, Sampled(np.full(40, 7), np.full(40, -9.0), True)
    for number in range(1000, 1200):
        made = accepted(bench.corpus.ids[0], world.first, nonsense, number)
        deeper = msgspec.structs.replace(made.header, depth=2, seed_seq=0)
        world.journal.append([msgspec.structs.replace(made, header=deeper)])
    assert world.watch.look() is None
    assert world.watch.measures == before


def test_a_look_costs_little(bench, tmp_path):
    world = World(bench, tmp_path, bench.honest, bench.random())
    world.stream(world.first, count=200)
    world.watch._next = 0
    started = time.process_time()
    world.watch.look()
    assert time.process_time() - started < 0.1  # of every two seconds
