"""The page's server, asked over real sockets about real run directories."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import resources

import pytest

from streaming_sbp.config import ConfigError
from streaming_sbp.rundir import set_aside
from streaming_sbp.telemetry.text import NOTHING
from streaming_sbp.webpage import server as webpage_server
from streaming_sbp.webpage.app import POLICY
from streaming_sbp.webpage.curves import LIMIT
from streaming_sbp.webpage.runs import RunList
from streaming_sbp.webpage.server import PageServer
from streaming_sbp.webpage.watch import MOST_MARKS
from tests.unit.run_records import FakeRun, RecordWriter, add_documents, make_run

EVIL = "<script>alert(1)</script> \x1b[31mred\x07 \u202etxet"
NOWHERE = (
    "/static/../app.py",
    "/static/%2e%2e/app.py",
    "/static/uplot/../../app.py",
    "/static/..%2fapp.py",
    "//etc/passwd",
    "/static//etc/passwd",
    "/static/",
    "/static/index",
    "/app.py",
    "/api/runs/-1",
    "/api/runs/7",
    "/api/runs/0/",
    "/api/runs/0/../1",
    "/api/runs/..",
    "/api/runs/%C2%B2",
    "/api/runs/00000000000000000000000000000000",
    "/api/runs//etc",
    "/api/runs/0/journal",
    "/api",
)


@contextmanager
def served(*folders, host="127.0.0.1", with_token=False):
    server = PageServer(RunList(folders), host, 0, with_token)
    try:
        yield server
    finally:
        server.close()


def ask(server, path, method="GET", **headers):
    """(status, headers, body); the path goes out as it is, dots and all."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def ask_json(server, path):
    status, _, body = ask(server, path)
    return status, json.loads(body, parse_constant=pytest.fail)  # NaN is no JSON


def look(server, number=0, after=""):
    status, content = ask_json(server, f"/api/runs/{number}?after={after}")
    assert status == 200, content
    return content


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("ended") / "run")
    FakeRun(run, seconds=250, resume_at_s=150).write()
    return run


# --- what is served ---


def test_the_page_and_what_it_loads(ended):
    with served(ended.path) as server:
        status, headers, body = ask(server, "/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        loaded = [part.split(b'"')[0].decode() for part in body.replace(b'href="', b'src="').split(b'src="')[1:]]
        assert len(loaded) == 5
        for path in (*loaded, "/static/charts.js", "/static/elements.js", "/static/uplot/LICENSE"):
            assert ask(server, path)[0] == 200, path
        assert ask(server, "/", method="HEAD")[2] == b""
        assert ask(server, "/", method="POST")[0] == 405


def test_the_page_has_nothing_inline_and_loads_nothing_from_elsewhere():
    """So that the policy can forbid both."""
    static = resources.files("streaming_sbp.webpage") / "static"
    page = (static / "index.html").read_text()
    assert "style=" not in page
    assert " on" not in page.replace(" online", "").replace(" one", "")
    assert page.count("<script") == page.count("<script src=") == 2
    ours = [static / name for name in ("index.html", "page.css", "page.js", "charts.js", "elements.js")]
    texts = {path.name: path.read_text() for path in ours}
    assert [name for name, text in texts.items() if "://" in text] == []
    unsafe = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function")
    assert [(name, word) for name, text in texts.items() for word in unsafe if word in text] == []


def test_uplot_is_what_was_published():
    folder = resources.files("streaming_sbp.webpage") / "static/uplot"
    said = [line.split() for line in (folder / "VERSION").read_text().splitlines()[2:]]
    assert {name for _, name in said} | {"VERSION"} == {entry.name for entry in folder.iterdir()}
    for digest, name in said:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/api/runs", "/api/runs/0", "/api/runs/99", "/nowhere"])
def test_every_answer_forbids_the_browser_what_the_page_does_not_need(ended, path):
    with served(ended.path) as server:
        headers = ask(server, path)[1]
    assert headers["Content-Security-Policy"] == POLICY
    assert POLICY.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("path", NOWHERE)
def test_no_address_leads_out_of_what_is_served(ended, path):
    with served(ended.path) as server:
        status, _, body = ask(server, path)
    assert status == 404
    assert json.loads(body) == {"error": "no such page"}


# --- who may ask ---


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "127.0.0.1:1", "[::1]:8600", "[::1]", "LOCALHOST"])
def test_names_of_this_machine_may_ask(ended, host):
    with served(ended.path) as server:
        assert ask(server, "/api/runs", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8600", "", "localhost.evil.example", "127.0.0.1.nip.io"]
)
def test_a_name_that_was_made_to_lead_here_is_refused(ended, host):
    """DNS rebinding: a page of evil.example that reads this one."""
    with served(ended.path) as server:
        for path in ("/", "/api/runs", "/api/runs/0", "/static/page.js"):
            status, _, body = ask(server, path, Host=host)
            assert status == 403
            assert b"tokens" not in body


def test_a_token_is_asked_for_off_loopback(ended):
    with served(ended.path, host="0.0.0.0") as server:
        token = server.url.partition("?token=")[2]
        assert len(token) >= 32
        for path in ("/", "/api/runs", "/static/page.js", "/?token=", "/?token=wrong", f"/api/runs?token={token}"):
            assert ask(server, path)[0] == 403, path
        status, headers, body = ask(server, f"/?token={token}")
        assert (status, headers["Location"], body.strip()) == (303, "/", b"")
        cookie, *attributes = headers["Set-Cookie"].split("; ")
        assert set(attributes) == {"Path=/", "HttpOnly", "SameSite=Strict"}
        assert ask(server, "/api/runs", Cookie=f"other=1; {cookie}", Host="any.name")[0] == 200
        for wrong in (cookie[:-1], cookie + "x", cookie.replace("sbp", "SBP"), "sbp-token=" + token, "☃", "a=\x01;;="):
            assert ask(server, "/api/runs", Cookie=wrong.encode().decode("latin-1"))[0] == 403, wrong


def test_a_token_on_loopback_when_asked_for(ended):
    with served(ended.path, with_token=True) as first, served(ended.path, with_token=True) as second:
        assert first.url.partition("?")[2] != second.url.partition("?")[2]
        cookies = [ask(server, "/?" + server.url.partition("?")[2])[1]["Set-Cookie"] for server in (first, second)]
        assert cookies[0].split("=")[0] != cookies[1].split("=")[0]  # a browser keeps both
        assert ask(first, "/api/runs", Cookie=cookies[0].split(";")[0])[0] == 200
        assert ask(first, "/api/runs", Cookie=cookies[1].split(";")[0])[0] == 403


def test_a_connection_that_is_never_used_is_closed_without_a_word(ended, monkeypatch, capfd):
    """Browsers open some ahead."""
    monkeypatch.setattr(webpage_server.QuietHandler, "timeout", 0.2)
    with served(ended.path) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as idle:
            assert idle.recv(1) == b""
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as rude:
            rude.sendall(b"GET /api/runs/0 HTTP/1.0\r\nHost: localhost\r\n\r\n")
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
        assert ask(server, "/api/runs")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken(ended):
    with served(ended.path) as server, pytest.raises(ConfigError, match=r"cannot listen: .* choose another --port"):
        PageServer(RunList([ended.path]), "127.0.0.1", server.port)


# --- which runs ---


def test_folders_of_runs_and_runs_of_their_own(tmp_path):
    for name in ("exp/runs/online/seed-0", "exp/runs/online/seed-1", "other"):
        make_run(tmp_path / name)
    (tmp_path / "exp/runs/.hidden").mkdir()
    make_run(tmp_path / "exp/runs/.hidden/run")
    (tmp_path / "exp/runs/link").symlink_to(tmp_path / "other")
    with served(tmp_path / "exp", tmp_path / "other") as server:
        found = ask_json(server, "/api/runs")[1]["runs"]
        names = [(run["name"], run["chosen"]) for run in found]
        assert names == [("runs/online/seed-0", False), ("runs/online/seed-1", False), ("other", True)]
        make_run(tmp_path / "exp/runs/late")
        assert ask_json(server, "/api/runs")[1]["runs"][3]["name"] == "runs/late"
        assert look(server, 3)["state"]["word"] == "not started"


def test_what_is_no_folder_of_runs(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="not there; expected a run directory, or a folder that holds runs"):
        RunList([tmp_path / "nothing"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="runs: not there"):
        RunList([])
    (tmp_path / "runs").mkdir()
    assert len(RunList([])) == 0
    make_run(tmp_path / "runs" / "demo")
    assert [run.name for run in RunList([])] == ["demo"]


# --- what it says of them ---


def silent(seconds):
    """Of a role: a process that lives, and has not said anything for so long. Process 1 is older than that."""
    return {"pid": 1, "updated": time.time() - seconds}


def word_of(run):
    with served(run.path) as server:
        return look(server)["state"]


def test_the_state_in_words(tmp_path, ended):
    assert word_of(ended)["word"] == "stopped"
    assert word_of(ended)["sentence"].startswith("4.40M of 6.00M tokens trained; ended ")
    run = make_run(tmp_path / "run")
    fake = FakeRun(run, seconds=200, finished=False, pid=os.getpid())
    fake.write()
    assert word_of(run)["word"] == "training"
    assert word_of(run)["sentence"].startswith("4.00M of 6.00M tokens trained, 20,000 tokens/s, ")
    fake.role_file("trainer", "waiting", detail="for the pair table")
    assert (word_of(run)["word"], word_of(run)["tone"]) == ("waiting", "warn")
    assert word_of(run)["sentence"].endswith("for the pair table")
    fake.role_file("trainer", "running", **silent(40))
    assert word_of(run)["word"].startswith("no heartbeat for 4")
    fake.role_file("trainer", "running", pid=2**22 + 1)
    assert word_of(run)["word"] == "trainer is down"
    for name in run.read_roles():
        fake.role_file(name, "stopped", pid=2**22 + 1)
    fake.role_file("supervisor", "failed", pid=2**22 + 1, detail=f"trainer cannot start: {EVIL}")
    failed = word_of(run)
    assert (failed["word"], failed["tone"]) == ("failed", "bad")
    assert failed["sentence"].endswith("trainer cannot start: <script>alert(1)</script> red txet")


def test_a_run_that_has_ended_has_no_rate_and_ended_when_its_own_processes_did(tmp_path):
    run = make_run(tmp_path / "run")
    fake = FakeRun(run, seconds=100)
    fake.write()
    for name in run.read_roles():
        fake.role_file(name, "done", updated=time.time() - 360)
    fake.role_file("tensorboard", "done", role="exporter")  # `sbp export` of an old run
    with served(run.path) as server:
        content = look(server)
    assert content["state"]["sentence"].endswith("; ended 6 min 0 s ago.")
    assert "tokens per second" not in {tile["label"] for tile in content["tiles"]}
    assert content["comparison"]["tokens/s"] == NOTHING


def test_all_is_well_only_where_something_is_known(tmp_path):
    run = make_run(tmp_path / "run")
    with served(run.path) as server:
        assert (look(server)["problems"], look(server)["all_well"]["tone"]) == ([], "plain")
    FakeRun(run, seconds=50).write()
    with served(run.path) as server:
        assert (look(server)["problems"], look(server)["all_well"]["tone"]) == ([], "good")


def test_what_is_wrong_is_said_with_what_to_do(tmp_path):
    run = make_run(tmp_path / "run")
    fake = FakeRun(run, seconds=200, finished=False, pid=os.getpid())
    fake.write()
    with served(run.path) as server:
        assert look(server)["problems"] == []
    fake.role_file("generator-1", "running", pid=2**22 + 1)
    fake.role_file("tuner", "running", **silent(20))
    fake.role_file("trainer", "running", facts=fake.run.read_roles()["trainer"]["facts"] | {"ledger": {"imbalance": 2}})
    with served(run.path) as server:
        content = look(server)
    reasons = [problem["reason"] for problem in content["problems"]]
    assert reasons == [
        "generator-1: killed.",
        "tuner: silent for over 15 s: hangs, or was stopped by somebody.",
        "The ledger does not balance: a defect.",
    ]
    assert all(problem["command"] for problem in content["problems"])
    lost = next(tile for tile in content["tiles"] if tile["label"] == "documents lost")
    assert (lost["figure"], lost["tone"]) == ("+2", "bad")


def test_figures_curves_and_tables(ended):
    with served(ended.path) as server:
        content = look(server)
    tiles = {tile["label"]: tile["figure"] for tile in content["tiles"]}
    assert tiles["tokens trained"] == "4.40M"
    assert tiles["documents lost"] == "0"
    assert tiles["snapshots"] == "3"
    assert [mark["version"] for mark in content["marks"] if mark["kind"] == "swap"] == [1, 2, 3]
    assert [mark["kind"] for mark in content["marks"] if mark["version"] is None] == ["resume"]
    rows = content["snapshots"]["rows"]
    assert [row[0] for row in rows] == ["v3", "v2", "bbbbbbbb", "v1", "real text"]
    assert all(len(row) == len(content["snapshots"]["columns"]) for row in rows)
    assert rows[2][-1] == "repetitive_share 0.41 is above gate.max_repetitive_share 0.25"
    assert {row[0] for row in content["roles"]["rows"]} >= {"trainer", "tuner", "generator-1"}
    equation = content["equation"].replace(",", "").replace("=", "+").split("+")
    sent, *parts = (int(part.split()[0]) for part in equation)
    assert sent == sum(parts) > 0
    assert content["equation"].split()[1] == content["ledger"]["columns"][1]["title"] == "sent"
    assert content["events"]["rows"][0][0]["time"] >= content["events"]["rows"][-1][0]["time"]


def test_a_new_run_and_a_damaged_one(tmp_path):
    run = make_run(tmp_path / "run")
    with served(run.path) as server:
        content = look(server)
        assert content["curves"]["train"]["columns"]["tokens"] == []
        assert (content["snapshots"]["rows"], content["marks"]) == ([], [])
        assert ask_json(server, "/api/runs/0/documents") == (200, {"documents": []})
        (run.records / "trainer.jsonl").write_bytes(
            b'{"time": 1, "event": "train", "tokens": 5}\n\xff\x00{"a\n[]\n{"time":'
        )
        (run.roles / "trainer.json").write_bytes(b"{")
    with served(run.path) as server:
        assert look(server)["curves"]["train"]["columns"]["tokens"] == [5]
        (run.path / "config.toml").write_text("[run\n")
        status, content = ask_json(server, "/api/runs/0")
        assert status == 503
        assert "config.toml" in content["error"]


# --- while it goes on ---


def test_only_what_is_new_is_sent(tmp_path):
    run = make_run(tmp_path / "run")
    fake = FakeRun(run, seconds=100, finished=False)
    fake.write()
    with served(run.path) as server:
        first = look(server)
        assert len(first["curves"]["train"]["columns"]["tokens"]) == 50
        RecordWriter(run, "trainer")(fake.started + 101, "train", tokens=2_020_000, loss={"real": 4.0})
        again = look(server, after=first["cursor"])
        while again["curves"]["train"]["start"] == 50 and not again["curves"]["train"]["columns"]["tokens"]:
            again = look(server, after=first["cursor"])  # a status is kept for half a second
        assert again["curves"]["train"]["start"] == 50
        assert again["curves"]["train"]["columns"]["tokens"] == [2_020_000]
        assert again["curves"]["evaluations"]["columns"]["tokens"] == []
        assert look(server, after="nonsense")["curves"]["train"]["start"] == 0


def test_a_long_run_is_a_small_answer(tmp_path):
    run = make_run(tmp_path / "run")
    line = '{"time": %d, "event": "train", "tokens": %d, "loss": {"real": 3.5}, "tokens_per_second": 100.0}\n'
    with open(run.records / "trainer.jsonl", "w") as file:
        file.writelines(line % (k, 100 * k) for k in range(1, 50_001))
    with served(run.path) as server:
        content = look(server)
    tokens = content["curves"]["train"]["columns"]["tokens"]
    assert LIMIT <= len(tokens) <= 2 * LIMIT
    assert tokens[-1] == 5_000_000
    assert len(json.dumps(content)) < 300_000


def test_marks_are_bounded_and_sent_when_they_change(tmp_path):
    run = make_run(tmp_path / "run")
    fake = FakeRun(run, seconds=100, finished=False)
    fake.write()
    tuner, generator = RecordWriter(run, "tuner"), RecordWriter(run, "generator-0")

    def swap(versions):
        for k in versions:
            tuner(fake.started + 0.01 * k, "snapshot", digest=f"{k}", version=k, verdict="published")
            generator(fake.started + 0.01 * k, "swap", digest=f"{k}", version=k)

    swap(range(100, 1100))
    with served(run.path) as server:
        first = look(server)
        swaps = [mark["version"] for mark in first["marks"] if mark["kind"] == "swap" and mark["version"] >= 100]
        assert MOST_MARKS / 2 <= len(swaps) <= MOST_MARKS
        assert swaps == sorted(set(swaps))
        assert (swaps[0] < 120, swaps[-1]) == (True, 1099)
        assert look(server, after=first["cursor"])["marks"] is None
        swap([1100])
        deadline = time.monotonic() + 60
        while (marks := look(server, after=first["cursor"])["marks"]) is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert marks[-1]["version"] == 1100
        assert set(swaps[:-1]) <= {mark["version"] for mark in marks}


def test_a_run_that_starts_over_in_its_place(tmp_path):
    """`sbp run --fresh` moves the old one aside."""
    run = make_run(tmp_path / "runs" / "demo")
    FakeRun(run, seconds=100).write()
    with served(tmp_path / "runs") as server:
        before = look(server)
        set_aside(run.path)
        FakeRun(make_run(tmp_path / "runs" / "demo"), seconds=20, synthetic=False).write()
        after = look(server, after=before["cursor"])
        assert after["curves"]["train"]["start"] == 0
        assert len(after["curves"]["train"]["columns"]["tokens"]) == 10
        assert after["marks"] == []
        names = [found["name"] for found in ask_json(server, "/api/runs")[1]["runs"]]
        assert names[0] == "demo"
        assert names[1].startswith("demo-")
        assert look(server, 1)["curves"]["train"]["columns"] == before["curves"]["train"]["columns"]


def test_a_run_that_vanishes_takes_nothing_with_it(tmp_path, ended):
    run = make_run(tmp_path / "run")
    with served(run.path, ended.path) as server:
        look(server)
        shutil.rmtree(run.path)
        for path in ("/api/runs/0", "/api/runs/0/documents"):
            status, content = ask_json(server, path)
            assert (status, "not a run directory" in content["error"]) == (503, True)
        assert look(server, 1)["state"]["word"] == "stopped"
        assert ask_json(server, "/api/runs")[0] == 200


# --- runs that cannot be read ---

BROKEN = {  # file, what is in it, words that say so
    "no run": ("run.json", "{}", "run_id, created, versions missing"),
    "made never": ("run.json", '{"run_id": "x", "created": NaN, "versions": {}}', "created missing or of another kind"),
    "a list": ("run.json", "[]", "run_id, created, versions missing"),
    "deep": ("run.json", "[" * 100_000, "not valid JSON"),
    "text for a process": ("roles/trainer.json", '{"pid": "x", "updated": 1}', 'pid is "x", expected a number'),
    "no settings": ("config.toml", "[run\n", "config.toml"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_run_is_named_and_takes_nothing_with_it(tmp_path, case):
    file, content, words = BROKEN[case]
    broken, good = (make_run(tmp_path / "runs" / name) for name in ("a-broken", "b-good"))
    FakeRun(good, seconds=20).write()
    (broken.path / file).write_text(content)
    with served(tmp_path / "runs") as server:
        for _ in range(3):
            status, found = ask_json(server, "/api/runs")
            assert (status, [run["name"] for run in found["runs"]]) == (200, ["a-broken", "b-good"])
            assert found["runs"][0]["brief"] is None
            assert str(broken.path) in found["runs"][0]["problem"]
            assert words in found["runs"][0]["problem"]
            assert (found["runs"][1]["brief"]["state"]["word"], found["runs"][1]["problem"]) == ("stopped", "")
            status, answer = ask_json(server, "/api/runs/0")
            assert (status, answer) == (503, {"error": found["runs"][0]["problem"]})
            assert look(server, 1)["state"]["word"] == "stopped"


def test_lines_that_are_no_records_are_passed_over(tmp_path):
    broken, good = (make_run(tmp_path / "runs" / name) for name in ("a-broken", "b-good"))
    FakeRun(good, seconds=20).write()
    good_line = '{"event": "train", "time": 1795739600, "tokens": 5}\n'
    wrong_line = '{"event": "train", "time": 1795739601, "tokens": "abc"}\n'
    (broken.records / "trainer.jsonl").write_text("[" * 100_000 + "\n" + good_line + wrong_line)
    with served(tmp_path / "runs") as server:
        for _ in range(3):
            status, found = ask_json(server, "/api/runs")
            assert status == 200
            assert found["runs"][1]["brief"]["state"]["word"] == "stopped"
            assert found["runs"][0]["brief"]["line"].startswith("5 tokens")


def test_a_mark_at_no_time_is_no_defect(tmp_path):
    run = make_run(tmp_path / "run")
    FakeRun(run, seconds=20).write()
    RecordWriter(run, "trainer")(float("nan"), "start", tokens=float("inf"))
    RecordWriter(run, "trainer")(float("nan"), "start", tokens=10)
    with served(run.path) as server:
        assert {mark["time"] for mark in look(server)["marks"] if mark["kind"] == "resume"} == set()


def test_a_run_that_was_mended_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("streaming_sbp.webpage.app.LIST_AGE_S", 0.0)
    run = make_run(tmp_path / "run")
    FakeRun(run, seconds=20).write()
    whole = (run.roles / "trainer.json").read_text()
    (run.roles / "trainer.json").write_text('{"pid": "x", "updated": 1}')
    with served(run.path) as server:
        assert ask_json(server, "/api/runs")[1]["runs"][0]["problem"]
        (run.roles / "trainer.json").write_text(whole)
        (line,) = ask_json(server, "/api/runs")[1]["runs"]
        assert (line["problem"], line["brief"]["state"]["word"]) == ("", "stopped")
        assert len(look(server)["curves"]["train"]["columns"]["tokens"]) == 10


# --- documents ---


def test_the_newest_documents_beside_their_seeds(tmp_path):
    run = make_run(tmp_path / "run")
    FakeRun(run, seconds=250).write()
    add_documents(run, [(f"Seed {i}: the owl.", f"Document {i}: {EVIL}") for i in range(9)])
    with served(run.path) as server:
        documents = ask_json(server, "/api/runs/0/documents")[1]["documents"]
    assert [document["number"] for document in documents] == [8, 7, 6, 5, 4, 3]
    assert documents[0]["seed"] == "Seed 8: the owl."
    assert documents[0]["text"] == "Document 8: <script>alert(1)</script> red txet"
    assert documents[0]["notes"][0].startswith("snapshot v3 (dddddddd, from 500k tokens) · generator-0 #8")


# --- the command ---


def test_the_command_serves_until_it_is_interrupted(ended):
    command = [sys.executable, "-m", "sbp_services", "dashboard", str(ended.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("1 run; open http://127.0.0.1:")
        connection = http.client.HTTPConnection("127.0.0.1", int(line.partition("127.0.0.1:")[2].partition("/")[0]))
        connection.request("GET", "/api/runs")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
