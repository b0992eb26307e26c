"""Rules of the repository that no type checker sees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import streaming_sbp
from streaming_sbp import config
from streaming_sbp.telemetry.catalogue import OWN

LIBRARY = Path(streaming_sbp.__file__).parent
FILES = sorted(LIBRARY.rglob("*.py")) + sorted((LIBRARY.parent / "sbp_services").rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_never_imports_the_services(path):
    assert not any(name.split(".")[0] == "sbp_services" for name in imported_modules(path))


def test_nothing_is_unpickled():
    for path in FILES:
        assert not imported_modules(path) & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert ast.unparse(node.func) not in ("torch.load", "zmq.Socket.recv_pyobj"), path
                assert node.func.attr not in ("recv_pyobj", "send_pyobj"), path


def test_every_metric_is_set_somewhere_and_every_metric_set_is_in_the_catalogue():
    mentioned = set()
    for path in FILES:
        if path.name not in ("metrics.py", "catalogue.py"):
            tree = ast.parse(path.read_text())
            values = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
            mentioned |= {value for value in values if isinstance(value, str) and value.startswith("sbp_")}
    metrics = {name for name in mentioned if not name.startswith("sbp_services")}
    assert metrics == {metric.name for metric in OWN}


def test_every_setting_says_why():
    """Each field of the configuration has a comment on its line."""
    source = (LIBRARY / "config.py").read_text()
    for section in config.Config.model_fields.values():
        body = source.split(f"class {section.annotation.__name__}(Section):")[1].split("\nclass ")[0]
        for field in section.annotation.model_fields:
            line = next(line for line in body.splitlines() if line.strip().startswith(f"{field}:"))
            assert "  # " in line, line


@pytest.mark.parametrize(
    "module",
    [
        *(f"sbp_services.{name}" for name in ("run", "experiment", "pairer", "exporter", "supervisor", "cli")),
        "streaming_sbp.webpage.server",
    ],
)
def test_processes_without_a_model_do_without_torch(module):
    """It takes seconds to load and 200 MiB, and `sbp run` stays for weeks."""
    code = f"import sys, {module}; print(*{{'torch', 'transformers'}} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []
