"""`make dashboards`: writes everything that is made from the sources here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dashboards.documents import metrics_page, runbook_page
from dashboards.grafana import board_json
from dashboards.panels import BOARDS
from dashboards.rules import rule_tests, rules

ROOT = Path(__file__).parents[1]
HEADER = "# made by `make dashboards` from dashboards/rules.py\n"


def made() -> dict[str, str]:
    """Path from the root of the repository -> content."""
    return {
        **{f"dashboards/grafana/{board.name}.json": board_json(board) for board in BOARDS},
        "dashboards/rules.yml": HEADER + as_yaml(rules()),
        "dashboards/tests/alerts.yml": HEADER + as_yaml(rule_tests("../rules.yml")),
        "docs/metrics.md": metrics_page(),
        "docs/runbook.md": runbook_page(),
    }


def as_yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)


def main() -> None:
    for path, content in made().items():
        (ROOT / path).write_text(content, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
