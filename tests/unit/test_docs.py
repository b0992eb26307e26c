"""What the documents name exists: links, headings, commands, settings, make targets, files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from sbp_services.cli import app
from streaming_sbp.config import Config, ConfigError, build, load
from streaming_sbp.experiment import arms

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = "|".join(Config.model_fields)
NO_SETTINGS = {"py", "toml", "json", "jsonl", "parquet", "md", "html"}  # endings of files that are called as a section
COMMANDS = typer.main.get_command(app)
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


# --- what a document names ---


def fences(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def code(text: str) -> list[str]:
    """Inline code, and the lines of fenced blocks that are not Python."""
    inline = re.findall(r"`([^`\n]+)`", prose(text))
    return inline + [line for language, block in fences(text) if language != "python" for line in block.splitlines()]


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def headings(text: str) -> set[str]:
    """Anchors, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def sbp_commands(text: str) -> Iterator[list[str]]:
    """The arguments of each `sbp ...` that is shown; what follows a comment, a pipe or a redirection is not its."""
    for span in code(text):
        if found := re.match(r"(?:\$ )?(?:\.venv/bin/)?sbp (?P<rest>.+)", span.strip()):
            words = shlex.split(found["rest"], comments=True)
            end = next((i for i, word in enumerate(words) if word in ("|", ">", "&&")), len(words))
            yield [word for word in words[:end] if word not in ("...", "…")]


def settings(text: str) -> set[tuple[str, str]]:
    names = (re.findall(rf"(?<![\w./-])({SECTIONS})\.(\w+|\*)", span) for span in code(text))
    return {(section, key) for found in names for section, key in found if key not in NO_SETTINGS}


def make_targets(text: str) -> set[str]:
    return {target for span in code(text) for target in re.findall(r"\bmake ([a-z-]+)", span)}


def map_of_folders(text: str) -> list[str]:
    """First column of the table under the heading `Folders`."""
    table = text.partition("\n## Folders\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


# --- what is wrong with it ---


def problem_with_link(path: Path, link: str) -> str:
    name, _, anchor = link.partition("#")
    target = (path.parent / name) if name else path
    if not target.exists():
        return f"{name} does not exist"
    if anchor and anchor not in headings(target.read_text()):
        return f"{target.name} has no heading #{anchor}"
    return ""


def problem_with_command(arguments: list[str]) -> str:
    """Parsed by the command line itself, without being run; then its overrides are read."""
    if arguments[0] in ("--version", "--help"):
        return ""
    command = COMMANDS.commands.get(arguments[0])  # type: ignore[attr-defined]
    if command is None:
        return f"no command {arguments[0]!r}"
    if len(arguments) == 1:
        return ""  # a sentence about the command
    try:
        parsed = command.make_context(arguments[0], list(arguments[1:])).params
        overrides = tuple(parsed.get("overrides") or ())
        if arguments[0] == "experiment" and parsed["name"] in arms.names():
            only = tuple(filter(None, parsed["arms"].split(",")))
            arms.load(parsed["name"], parsed["scale"], only=only, overrides=overrides).check(ROOT)
        else:
            load(preset=parsed.get("preset"), overrides=overrides)
    except Exception as error:  # typer may bring its own click, with its own exceptions
        return f"{type(error).__name__}: {getattr(error, 'message', error)}"
    return ""


def problem_with_setting(section: str, key: str) -> str:
    annotation = Config.model_fields[section].annotation
    known = key == "*" or key in annotation.model_fields  # type: ignore[union-attr]
    return "" if known else f"no setting {section}.{key}"


@each_document
def test_links_lead_somewhere(path):
    found = [link for link in links(path.read_text()) if not re.match(r"https?://", link)]
    assert [problem for link in found if (problem := problem_with_link(path, link))] == []


@each_document
def test_commands_parse(path):
    problems = [(" ".join(words), problem_with_command(words)) for words in sbp_commands(path.read_text())]
    assert [found for found in problems if found[1]] == []


@each_document
def test_settings_exist(path):
    if path.name == "status.md":
        pytest.skip("names keys of `sbp status --json`; tests/unit/test_telemetry_status.py compares those")
    assert [p for section, key in settings(path.read_text()) if (p := problem_with_setting(section, key))] == []


@each_document
def test_make_targets_exist(path):
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert make_targets(path.read_text()) - known == set()


@each_document
def test_source_files_exist(path):
    named = {word for span in code(path.read_text()) for word in re.findall(r"(?<![\w./])(?:\w+/)+\w+\.py\b", span)}
    assert [name for name in named if not ((ROOT / name).exists() or (ROOT / "streaming_sbp" / name).exists())] == []


def test_the_map_of_folders_is_the_repository():
    named = map_of_folders((ROOT / "README.md").read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
    folders = {path for package in ("streaming_sbp", "sbp_services") for path in (ROOT / package).glob("*/__init__.py")}
    parts = {f"{path.parent.relative_to(ROOT)}/" for path in folders}
    assert parts | {"sbp_services/", "docs/", "tests/", "benchmarks/"} <= set(named)


def test_every_page_of_docs_is_reached_from_the_readme():
    reached = {(ROOT / link.partition("#")[0]).resolve() for link in links((ROOT / "README.md").read_text())}
    assert set(DOCUMENTS) - {ROOT / "README.md"} <= reached


def test_the_image_starts_a_command_that_exists():
    text = (ROOT / "Dockerfile").read_text()
    entry, command = (re.search(rf"^{word} (\[.*\])$", text, re.MULTILINE) for word in ("ENTRYPOINT", "CMD"))
    assert entry
    assert command
    assert json.loads(entry[1]) == ["sbp"]
    assert problem_with_command(json.loads(command[1])) == ""
    copied = {name for line in re.findall(r"^COPY (?!--)(.+)$", text, re.MULTILINE) for name in line.split()[:-1]}
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_constraints_agree_with_pyproject_and_makefile():
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE))
    torch = re.search(r"torch==(\S+)", (ROOT / "Makefile").read_text())
    assert torch
    assert pinned["torch"] == torch[1]
    assert all("+" not in version for version in pinned.values())  # a local version is on no index
    project = (ROOT / "pyproject.toml").read_text().partition("\ndependencies = [")[2].partition("]")[0]
    needed = set(re.findall(r'"([\w-]+)>=', project))
    assert needed
    assert needed <= set(pinned)


# --- the checks themselves can fail ---


def test_wrong_names_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A *page*, it is\n[a](no.md) [b](#no) [c](#a-page-it-is)\n")
    assert [bool(problem_with_link(page, link)) for link in links(page.read_text())] == [True, True, False]
    shown = "`sbp run --no-such`, `sbp nothing RUN`, `sbp run mix.x=1`\n```\nsbp peek runs/demo -n 2  # two\n```\n"
    assert [bool(problem_with_command(words)) for words in sbp_commands(shown)] == [True, True, True, False]
    assert problem_with_setting("mix", "synthetic_shares")
    assert settings("`mix.synthetic_share=1`, `run.json` and mix.x") == {("mix", "synthetic_share")}
    assert make_targets("make it; `make demo FRESH=1`") == {"demo"}


def test_overrides_in_commands_are_read():
    with pytest.raises(ConfigError):
        build({"mix": {"synthetic_share": 2.0}})
    assert problem_with_command(["run", "--preset", "demo", "mix.synthetic_share=2"])
