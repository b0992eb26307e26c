"""Self-contained HTML pages: no scripts, nothing loaded; what is filled in is escaped, and cleaned."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from streaming_sbp.telemetry import text


def render(template: str, content: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None) -> str:
    """A template of `templates/` with the style of all of them, under a policy that allows nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("streaming_sbp.experiment"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("quantity", "whole", "decimal", "percent", "size", "duration", "clock_time"):
        environment.filters[name] = getattr(text, name)
    environment.filters.update(filters or {})
    style = environment.loader.get_source(environment, "report.css")[0]  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return environment.get_template(template).render(content, style=Markup(style), policy=Markup(policy))


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _clean(value: Any) -> Any:
    return text.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
