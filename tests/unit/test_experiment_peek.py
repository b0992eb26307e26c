import io
import shutil

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sbp_services.cli import app
from streaming_sbp.config import ConfigError
from streaming_sbp.data.dataset import Dataset
from streaming_sbp.experiment import peek
from streaming_sbp.stream.journal import Journal
from tests.unit.run_records import DIGESTS, FakeRun, add_documents, make_run

EVIL = "\x1b[31mred\x1b]0;title\x07 [bold]markup[/bold] [/] \u202etxet <script>"
PAIRS = [(f"Seed {i}: the owl sees the {i} moons.", f"Document {i}: the {i} moons shine.") for i in range(20)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("peeked") / "run")
    FakeRun(run, seconds=250).write()
    add_documents(run, PAIRS)
    return run


def drawn(documents, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(peek.render(documents))
    return console.file.getvalue()


def test_all_documents_with_their_seeds_in_order_of_arrival(run):
    found = peek.sample(run, len(PAIRS), seed=0)
    assert [(document.seed_text, document.text) for document in found] == PAIRS
    assert [document.index for document in found] == list(range(len(PAIRS)))
    published = [(DIGESTS[0], 1), (DIGESTS[2], 2), (DIGESTS[3], 3)]
    for i, document in enumerate(found):
        assert (document.snapshot, document.version) == published[i % 3]
        assert (document.generator, document.session, document.seq) == ("generator-0", "s0", i)
        assert document.log_likelihood == -1.0 - i
        assert document.sampling == {"temperature": 0.9, "top_p": 0.95, "top_k": 0}
        # "document" 1 "the" 1 "moons" "shine" / "seed" 1 "the" "owl" "sees" "moons": 3 in both, 8 in either
        assert document.shared_words == pytest.approx(3 / 8)
        assert document.length_ratio == document.num_tokens / document.num_seed_tokens


@pytest.mark.parametrize(("num_documents", "count"), [(0, 5), (3, 5), (5, 5), (1000, 10), (1001, 7)])
@pytest.mark.parametrize("seed", range(5))
def test_spread_draws_one_of_each_stretch(num_documents, count, seed):
    positions = peek.spread(num_documents, count, seed)
    assert len(positions) == min(count, num_documents)
    assert positions == peek.spread(num_documents, count, seed)
    for k, position in enumerate(positions):
        low, high = (int(num_documents * j / len(positions)) for j in (k, k + 1))
        assert low <= position < high


def test_another_seed_shows_others(run):
    first, second = ([d.index for d in peek.sample(run, 5, seed)] for seed in (0, 1))
    assert first != second


def test_the_seed_is_cut_as_the_generator_saw_it(tmp_path):
    run = make_run(tmp_path / "run", ("synthesizer.max_seed_tokens=4",))
    add_documents(run, PAIRS)
    for document, (seed, _) in zip(peek.sample(run, 20, 0), PAIRS, strict=True):
        assert document.num_seed_tokens == 4
        assert seed.startswith(document.seed_text)
        assert len(document.seed_text) < len(seed)


def test_a_document_of_the_second_round_is_shown_beside_the_synthetic_one_it_came_from(tmp_path):
    run = make_run(tmp_path / "run")
    add_documents(run, PAIRS, seed_seqs={8: 2, 13: 8})
    found = peek.sample(run, len(PAIRS), 0)
    real = Dataset.open(run.config().data.dataset).split("train").ids
    assert {document.depth for i, document in enumerate(found) if i not in (8, 13)} == {1}
    assert [(found[i].depth, found[i].seed_index) for i in (8, 13)] == [(2, 2), (3, 8)]
    assert [found[i].seed_text for i in (8, 13)] == [PAIRS[2][1], PAIRS[8][1]]
    assert {document.seed_id for document in found} <= set(real)
    assert peek.lineage(found[2]) == f"depth 1, from real document {found[2].seed_id[:12]}"
    assert peek.lineage(found[13]).startswith("depth 3, from document 8 of the same snapshot;")
    assert found[13].seed_id[:12] in peek.lineage(found[13])
    text = drawn(found)
    assert text.count("seed document, synthetic") == 2


def test_a_synthetic_seed_document_that_was_pruned(tmp_path):
    run = make_run(tmp_path / "run")
    add_documents(run, PAIRS, seed_seqs={13: 2})
    Journal(run.journal, writable=True).prune(8)
    document = next(document for document in peek.sample(run, len(PAIRS), 0) if document.index == 13)
    assert (document.depth, document.seed_index, document.seed_text) == (2, None, None)
    assert "not there any more" in peek.lineage(document)


def test_a_snapshot_that_the_records_do_not_know(tmp_path):
    run = make_run(tmp_path / "run")
    add_documents(run, PAIRS[:3])
    document = peek.sample(run, 1, 0)[0]
    assert document.version is None
    assert peek.provenance(document).startswith(f"snapshot {document.snapshot[:8]} (")


def test_damaged_documents_are_passed_over(tmp_path):
    run = make_run(tmp_path / "run")
    add_documents(run, PAIRS)
    shard = sorted(run.journal.glob("*.tar"))[1]  # documents 4..7
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    intact = [position for position in range(20) if Journal(run.journal).is_intact(position)]
    assert 16 <= len(intact) < 20
    assert [document.index for document in peek.sample(run, 20, 0)] == intact


def test_no_documents_yet(tmp_path):
    run = make_run(tmp_path / "run")
    assert peek.sample(run, 5, 0) == []
    assert "no synthetic documents yet" in drawn([])


def test_a_data_set_that_is_gone(tmp_path):
    run = make_run(tmp_path / "run")
    add_documents(run, PAIRS)
    shutil.rmtree(run.config().data.dataset)
    with pytest.raises(ConfigError, match="not there"):
        peek.sample(run, 5, 0)


def test_longest_shared_span():
    assert peek.longest_shared_span([1, 2, 3, 4], [9, 2, 3, 8]) == 0.5
    assert peek.longest_shared_span([1, 2], [3]) == 0.0
    assert peek.longest_shared_span([5] * 300, [5] * 300) == 1.0
    assert peek.longest_shared_span([], [1]) is None
    assert peek.longest_shared_span([1], []) is None


def test_word_overlap():
    assert peek.word_overlap("The owl, the OWL", "an owl") == pytest.approx(1 / 3)
    assert peek.word_overlap("...", "!") is None


def test_texts_steer_nothing_and_fit_80_columns(tmp_path):
    run = make_run(tmp_path / "run")
    add_documents(run, [("Seed. " + EVIL, EVIL + " " + "unbreakable" * 30)])
    text = drawn(peek.sample(run, 1, 0))
    assert not set(text) & set("\x1b\x07\u202e")
    assert max(map(len, text.splitlines())) <= 80
    assert "[bold]markup[/bold]" in " ".join(text.split())


def test_the_command(run):
    result = CliRunner().invoke(app, ["peek", str(run.path), "-n", "3"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert result.stdout.count("seed document") == 3
    assert "snapshot v" in result.stdout
