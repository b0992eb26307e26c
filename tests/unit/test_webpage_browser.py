"""The page in a real browser: Debian's `chromium` and `chromium-driver`, driven by selenium."""

from __future__ import annotations

import json
import os
import shutil
import time

import numpy as np
import pytest

from streaming_sbp.experiment import history
from streaming_sbp.webpage.app import App
from streaming_sbp.webpage.runs import RunList
from streaming_sbp.webpage.server import PageServer
from tests.unit.run_records import FakeRun, RecordWriter, add_documents, make_run

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("no chromium: on Debian, apt-get install chromium chromium-driver", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")

EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><b>bold</b>"
PATIENCE_S = 90.0  # a busy machine


class Page:
    """One tab. ``now`` evaluates JavaScript, ``until`` waits for it to be true."""

    def __init__(self):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self._driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))

    def open(self, url):
        self._driver.get("about:blank")
        self._driver.get(url)

    def now(self, expression):
        return self._driver.execute_script(f"return {expression}")

    def until(self, expression):
        end = time.monotonic() + PATIENCE_S
        while not (value := self.now(expression)):
            assert time.monotonic() < end, f"never became true: {expression}; the page:\n{self.text()}"
            time.sleep(0.2)
        return value

    def text(self, selector="body"):
        return self.now(f"document.querySelector({selector!r}).innerText")

    def click(self, selector):
        self.now(f"document.querySelector({selector!r}).click()")

    def resize(self, width, height):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def complaints(self):
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def quit(self):
        self._driver.quit()


@pytest.fixture(scope="module")
def page():
    found = Page()
    yield found
    found.quit()


@pytest.fixture
def serve():
    servers = []

    def start(*folders, **options):
        servers.append(PageServer(RunList(folders), "127.0.0.1", 0, **options))
        return servers[-1].url

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("ended") / "run")
    FakeRun(run, seconds=250, resume_at_s=150).write()
    add_documents(run, [(f"Seed {i}: {EVIL}", f"Document {i}: {EVIL}") for i in range(9)])
    return run


def canvas(chart):
    return f"document.querySelector('#chart-{chart} canvas')"


def num_colours(chart):
    data = "getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer"
    return f"(canvas => new Set(new Uint32Array(canvas.{data})).size)({canvas(chart)})"


def test_a_run_is_shown_and_hostile_text_is_text(page, serve, ended):
    page.open(serve(ended.path))
    page.until("document.querySelector('#chart-documents canvas')")
    assert page.text("#word") == "stopped"
    assert "4.40M of 6.00M tokens" in page.text("#sentence")
    assert page.now("[...document.querySelectorAll('figcaption')].length") == 4
    for chart in ("loss", "share", "rate", "documents"):
        assert page.now(num_colours(chart)) > 10
    for words in ("tuner", "published", "quarantined", "restart in 1.0 s", "accounted for"):
        assert words in page.text()
    page.now("document.querySelector('#documents').scrollIntoView()")
    page.until("document.querySelectorAll('#documents article').length === 6")
    assert page.text("#documents .synthetic p") == f"Document 8: {EVIL}"
    assert page.text("#documents .seed p") == f"Seed 8: {EVIL}"
    assert page.now("document.querySelectorAll('#documents img, #documents script, #documents b').length") == 0
    assert page.now("document.title") == "run: stopped"
    assert page.complaints() == []


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(page, serve, ended, width):
    page.resize(width, 900)
    page.open(serve(ended.path))
    page.until("document.querySelector('#chart-documents canvas')")
    assert page.now("document.documentElement.scrollWidth") <= width
    assert page.now("document.querySelector('#chart-loss canvas').getBoundingClientRect().right") <= width


def test_it_goes_on_while_the_run_does(page, serve, tmp_path):
    run = make_run(tmp_path / "run")
    fake = FakeRun(run, seconds=100, finished=False, pid=os.getpid())
    fake.write()
    page.open(serve(run.path))
    page.until("document.querySelector('#tiles b')?.textContent === '2.00M'")
    before = page.now(canvas("loss") + ".toDataURL()")
    fields = {"loss": {"real": 9.0}, "ledger": {"sent": 77}, "trained_tokens": {}, "tokens_per_second": 1.0}
    RecordWriter(run, "trainer")(fake.started + 150, "train", tokens=3_000_000, **fields)
    page.until("document.querySelector('#tiles b').textContent === '3.00M'")
    assert page.now(canvas("loss") + ".toDataURL()") != before
    fake.role_file("generator-0", "failed", detail=EVIL)
    page.until("document.querySelector('#problems li')?.textContent.includes('generator-0 ended: <script>')")
    assert page.now("document.querySelectorAll('#problems script, #problems img').length") == 0
    shutil.rmtree(run.path)
    page.until("document.querySelector('#word').textContent === 'cannot be read'")
    complaints = [words for words in page.complaints() if "503" not in words]  # of the run that is gone
    assert complaints == []


def test_several_runs_beside_each_other(page, serve, tmp_path):
    reached, evaluations = [], []
    for name, seconds in (("online/seed-0", 200), ("repetition/seed-0", 120)):
        run = make_run(tmp_path / "runs" / name)
        FakeRun(run, seconds=seconds, synthetic=name.startswith("online")).write()
        evaluations.append([(e["tokens"], e["heldout_loss"]) for e in history.load(run).evaluations])
        reached.append(evaluations[-1][-1][0])
    page.open(serve(tmp_path / "runs"))
    page.until("document.querySelector('#chart-loss canvas')")
    assert page.now("document.querySelectorAll('#list input:checked').length") == 1
    page.click("#list input:not(:checked)")
    page.until("document.querySelectorAll('#comparison tbody tr').length === 2")
    assert f"Equal tokens: {min(reached):,}" in page.text("#equal")
    expected = [f"{np.interp(min(reached), *zip(*found, strict=True)):.3f}" for found in evaluations]
    shown = page.now("[...document.querySelectorAll('#comparison tbody tr')].map((row) => row.lastChild.textContent)")
    assert shown == expected
    page.until("document.querySelector('#chart-loss .u-legend').innerText.includes('repetition/seed-0: held-out real')")
    page.click("#axis input[value=time]")
    page.until("location.hash.includes('axis=time') && location.hash.includes('run=online%2Fseed-0')")
    page.now("location.reload()")
    page.until("document.querySelectorAll('#comparison tbody tr').length === 2")
    assert page.now("document.querySelector('#axis input[value=time]').checked")
    assert page.complaints() == []


def test_without_the_list_of_runs_nothing_is_called_live(page, serve, ended, monkeypatch):
    whole = App._list
    monkeypatch.setattr(App, "_list", lambda self: 1 // 0)
    page.open(serve(ended.path))
    page.until("document.querySelector('#connection').className === 'bad'")
    end = time.monotonic() + 7  # three polls
    while time.monotonic() < end:
        assert "no answer from sbp dashboard" in page.text("#connection")
        assert page.now("document.querySelector('#nothing').hidden")
        time.sleep(0.1)
    monkeypatch.setattr(App, "_list", whole)
    page.until("document.querySelector('#connection').className === 'good'")
    assert page.text("#word") == "stopped"
    page.complaints()


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (
            "time",
            [
                [0, 4, 41.5, 50, 81, 83],
                [5, 4, "gap", "gap", 3, 2],
                [6, "gap", "gap", 5, "unknown", "unknown"],
            ],
        ),
        ("tokens", [[0, 2, 3, 4, 5], [5, 4, "unknown", 3, 2], [6, "unknown", 5, "unknown", "unknown"]]),
    ],
)
def test_a_line_over_time_ends_where_the_trainer_was_not_there(page, serve, ended, axis, expected):
    """uPlot draws nothing across a null, and goes on across what is undefined: not known, or of another line."""
    page.open(serve(ended.path))
    page.until("document.querySelector('#chart-loss canvas')")
    columns = {"time": [0, 2, 4, 79, 81, 83], "tokens": [0, 1, 2, 3, 4, 5], "loss_real": [5, None, 4, None, 3, 2]}
    evaluations = {"time": [0, 50], "tokens": [0, 3], "heldout_loss": [6, 5]}
    run = {"name": "a", "curves": {"train": {"columns": columns}, "evaluations": {"columns": evaluations}}}
    lines = "[{run, column: 'loss_real'}, {run, column: 'heldout_loss', from: 'evaluations'}]"
    told = f"((run) => m.aligned({lines}, '{axis}', false))({json.dumps(run)})"
    kinds = "columns.map((column) => column.map((y) => y === null ? 'gap' : y ?? 'unknown'))"
    found = page.now(f"import('/static/charts.js').then((m) => {told}).then((columns) => {kinds})")
    assert found == expected


def test_a_run_that_has_not_begun(page, serve, tmp_path):
    page.open(serve(make_run(tmp_path / "run").path))
    page.until("document.querySelector('#word').textContent === 'not started'")
    assert "What to do next" not in page.text()
    assert page.now("document.querySelector('#problems li').className") == "plain"


def test_a_broken_run_leaves_the_list_in_shape(page, serve, tmp_path):
    for name in ("a-broken", "b-good", "c-good"):
        FakeRun(make_run(tmp_path / "runs" / name), seconds=20).write()
    (tmp_path / "runs/a-broken/run.json").write_text("{}")
    page.resize(1280, 900)
    page.open(serve(tmp_path / "runs"))
    page.until("document.querySelectorAll('#list label').length === 3")
    page.click("#chooser summary")
    heights = page.now("[...document.querySelectorAll('#list label')].map((each) => each.offsetHeight)")
    assert max(heights[1:]) < 30  # one line
    assert "run_id, created, versions missing" in page.text("#list label")
    assert page.now("document.querySelector('#list .bad').textContent") == "cannot be read"
    page.click("#list input")
    page.until("document.querySelectorAll('#list input:checked').length === 2")
    page.until("document.querySelector('#unreadable').textContent.includes('run_id, created, versions missing')")
    assert page.text("#name") == "c-good"  # its details, though the other one comes first
    page.complaints()  # of the broken one


def test_with_a_token_the_address_opens_it_and_does_not_keep_it(page, serve, ended):
    url = serve(ended.path, with_token=True)
    page.open(url.partition("?")[0])
    assert "?token=" in page.text()
    page.complaints()
    page.open(url)
    page.until("document.querySelector('#chart-loss canvas')")
    assert page.now("location.search") == ""
    assert page.now("document.cookie") == ""  # HttpOnly
    assert page.complaints() == []
