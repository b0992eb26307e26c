"""Self-contained HTML pages: no scripts, nothing loaded; what is filled in is escaped, and cleaned."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from streaming_sbp.experiment import plots
from streaming_sbp.files import write_atomically
from streaming_sbp.telemetry import text


def write(
    out: Path,
    template: str,
    content: Mapping[str, Any],
    drawn: Sequence[plots.Plot],
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> Path:
    """``out``/index.html with the figures in it, and each as a PNG beside it; returns the page's path.

    The template gets ``figures``, a list of ``plot`` and ``source``, and ``plots_available``.
    """
    out.mkdir(parents=True, exist_ok=True)
    for plot in drawn:
        write_atomically(out / f"{plot.name}.png", plot.png, durable=False)
    figures = [{"plot": plot, "source": _data_uri(plot.png)} for plot in drawn]
    html = render(template, {**content, "figures": figures, "plots_available": plots.AVAILABLE}, filters)
    write_atomically(out / "index.html", html.encode("utf-8", "replace"), durable=False)
    return out / "index.html"


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


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _clean(value: Any) -> Any:
    return text.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
