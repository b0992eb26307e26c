import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from sbp_services.cli import app
from streaming_sbp.experiment import plots, report
from streaming_sbp.telemetry.status import collect
from tests.unit.run_records import DIGESTS, FakeRun, RecordWriter, add_documents, make_run

EVIL = "<script>alert(1)</script> \x1b[31mred \"quoted\" 'single' & <img src=x onerror=alert(2)> \u202etxet"
SHOWN = "<script>alert(1)</script> red \"quoted\" 'single' & <img src=x onerror=alert(2)> txet"


class Page(HTMLParser):
    """Tags with their attributes, text, and the tables as rows of cells."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.tables, self.texts = [], [], []
        self._cell = None
        self.feed(self.source)
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data):
        self.texts.append(data)
        if self._cell is not None:
            self._cell.append(data)

    def table(self, first_heading, *containing):
        """Rows of the table whose first heading this is, and whose headings contain the others."""
        return next(t for t in self.tables if t[0][0] == first_heading and set(containing) <= set(t[0]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("reported") / "run")
    FakeRun(run).write()
    add_documents(run, [(f"Seed {i}. {EVIL}", f"Document {i}. {EVIL}") for i in range(25)])
    return run


@pytest.fixture(scope="module")
def page(run):
    return Page(report.build(run))


def test_one_page_that_loads_and_runs_nothing(run, page):
    assert {tag for tag, _ in page.tags} & {"script", "iframe", "object", "link", "form"} == set()
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"style-src 'sha256-{digest}'" in policy
    assert not set(page.source) & set("\x1b\x07\u202e")


def test_ten_documents_beside_their_seeds(page):
    assert page.source.count('<article class="sample">') == 10
    found = re.findall(r"(Seed|Document) (\d+)\. (.*?) (?=synthetic document|snapshot v)", page.text)
    assert len(found) == 20
    assert {text for _, _, text in found} == {SHOWN}
    assert [number for kind, number, _ in found if kind == "Seed"] == [
        number for kind, number, _ in found if kind == "Document"
    ]
    assert "<img src=x" not in page.source


def test_figures_are_in_the_page_and_beside_it(run, page):
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    files = sorted((run.path / "report").glob("*.png"))
    if not plots.AVAILABLE:
        assert images == files == []
        return
    assert [path.stem for path in files] == ["deviation", "loss", "mix", "throughput"]
    inside = {base64.b64decode(source.partition(",")[2]) for source in images}
    assert inside == {path.read_bytes() for path in files}


def test_the_tables_tell_the_figures(run, page):
    status = collect(run)
    timeline = page.table("snapshot", "verdict")
    assert [row[:3] for row in timeline[1:]] == [
        ["v1 aaaaaaaa", "published", "500k"],
        ["bbbbbbbb", "quarantined", "1.50M"],
        ["v2 cccccccc", "published", "2.50M"],
        ["v3 dddddddd", "published", "4.00M"],
    ]
    measured = page.table("snapshot", "pair loss")
    assert dict(zip(measured[0], measured[2], strict=True)) == {
        "snapshot": "bbbbbbbb",
        "pair loss": "2.812",
        "repetitive": "41.0 %",
        "copied": "2.0 %",
        "duplicates": "0.0 %",
        "too short": "3.0 %",
        "mean length": "118.5",
    }
    ledger = status["ledger"]
    terms = ("sent", "trained", "buffered", "in_flight", "dropped", "imbalance")
    assert page.table("generator", "imbalance")[-1] == ["all", *(f"{ledger[term]:,}" for term in terms)]
    assert ["lost with generator", "3"] in page.table("dropped by the trainer, reason")
    phases = page.table("phase")
    assert [row[0] for row in phases[1:3]] == ["forward backward", "optimizer"]
    assert sum(float(row[2].removesuffix(" %")) for row in phases[1:]) == pytest.approx(100, abs=0.3)
    assert [row[0] for row in page.table("process")[1:]] == list(status["roles"])


def test_the_headline(page):
    assert (
        "This run is done: it trained 6.00M of 6.00M tokens in 5 min 1 s. Held-out loss on real text fell from"
    ) in page.text
    assert "3 synthesizer snapshots were swapped in while it trained, and 1 candidate was quarantined." in page.text
    assert "30.0 % of the trained tokens were synthetic, as scheduled. The ledger balances" in page.text


def test_reasons_that_only_one_generator_has_are_columns(tmp_path):
    run = make_run(tmp_path / "run")
    for name, filtered in (("generator-0", {}), ("generator-1", {"copied": 3}), ("generator-2", {"too_short": 1})):
        RecordWriter(run, name)(5.0, "throughput", documents=10, filtered=filtered, blocked_s=0.0)
    table = Page(report.build(run)).table("generator", "sampled")
    assert table == [
        ["generator", "sampled", "copied", "too short", "filtered", "time without credit"],
        ["generator-0", "10", "0", "0", "0.0 %", "0 s"],
        ["generator-1", "10", "3", "0", "30.0 %", "0 s"],
        ["generator-2", "10", "0", "1", "10.0 %", "0 s"],
    ]


def test_measures_nobody_named_and_not_finite_ones(tmp_path):
    run = make_run(tmp_path / "run")
    measures = {"new_share": 0.5, "pair_loss": float("nan"), "real_mean_tokens": 12.34}
    RecordWriter(run, "tuner")(5.0, "snapshot", verdict="quarantined", digest="a" * 64, measures=measures, reasons=[])
    assert Page(report.build(run)).table("snapshot", "pair loss") == [
        ["snapshot", "pair loss", "of real text", "new share"],
        ["aaaaaaaa", "–", "12.3", "50.0 %"],
    ]


# --- parts that are missing ---


def test_a_run_that_never_ran(tmp_path):
    page = Page(report.build(make_run(tmp_path / "run")))
    for words in (
        "has not trained anything yet",
        "There are no records to draw yet" if plots.AVAILABLE else "pip install",
        "The tuner has recorded no snapshot",
        "nothing to account for",
        "No synthetic document has arrived",
        "No process has run yet",
        "Nothing is recorded",
        "Start it.",
    ):
        assert words in page.text


def test_real_text_only(tmp_path):
    run = make_run(tmp_path / "run")
    FakeRun(run, synthetic=False, seconds=60).write()
    page = Page(report.build(run))
    assert "No snapshot of the synthesizer was published, so all text was real." in page.text
    assert "No synthetic document has arrived." in page.text


def test_without_its_data_set_the_page_says_why_there_are_no_documents(tmp_path):
    run = make_run(tmp_path / "run")
    FakeRun(run, seconds=250).write()
    add_documents(run, [("Seed.", "Document.")])
    shutil.rmtree(run.config().data.dataset)
    page = Page(report.build(run))
    assert "The synthetic documents cannot be shown: data set" in page.text


def test_without_matplotlib_the_page_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "AVAILABLE", False)
    run = make_run(tmp_path / "run")
    FakeRun(run, seconds=60).write()
    page = Page(report.build(run))
    assert 'pip install "streaming-sbp[plots]"' in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_an_imbalance_cannot_be_overlooked(tmp_path):
    run = make_run(tmp_path / "run")
    fake = FakeRun(run, seconds=250)
    fake.write()
    ledger = {"sent": 10, "trained": 8, "buffered": 0, "in_flight": 0, "dropped": 0, "imbalance": 2}
    fake.role_file("trainer", "done", facts={"ledger": ledger})
    page = Page(report.build(run))
    assert "THE LEDGER DOES NOT BALANCE: +2 of 10 synthetic documents unaccounted for." in page.text
    assert ("b", {"class": "bad"}) in page.tags
    assert "The ledger does not balance: a defect." in page.text


def test_untrusted_names_and_reasons(tmp_path):
    run = make_run(tmp_path / "run")
    fake = FakeRun(run, seconds=250)
    fake.write()
    fake.role_file("tuner", "failed", detail=EVIL)
    trainer = {"ledger": {"sent": 1, "imbalance": 0, "by_generator": {EVIL: {"sent": 1}}}}
    fake.role_file("trainer", "done", facts=trainer)
    RecordWriter(run, "tuner")(5.0, "snapshot", verdict="quarantined", digest=EVIL, measures={EVIL: 1}, reasons=[EVIL])
    page = Page(report.build(run))
    assert SHOWN in page.text
    assert {tag for tag, _ in page.tags} & {"script"} == set()
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
    assert not set(page.source) & set("\x1b\u202e")


def test_the_command_writes_where_it_is_told(run, tmp_path):
    result = CliRunner().invoke(app, ["report", str(run.path), "--out", str(tmp_path / "deep" / "er")])
    assert result.exit_code == 0
    assert result.stdout == f"report: {tmp_path / 'deep' / 'er' / 'index.html'}\n"
    assert (tmp_path / "deep" / "er" / "index.html").stat().st_size > 10_000


def test_digests_are_shortened(page):
    assert all(digest[:8] in page.text for digest in DIGESTS)
    assert not any(digest[:9] in page.text for digest in DIGESTS)
