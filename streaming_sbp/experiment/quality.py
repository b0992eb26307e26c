"""The paper's table "Quality of the synthetic text", for the first and the last published snapshot of a run.

From the tuner's records, so also of snapshots that the store has long pruned. Each value is what the gate measured on
its trial batch (`synthesizer/quality.py` says how); real text beside it is measured the same way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rich import text as rich_text
from rich.console import Group
from rich.table import Table

from streaming_sbp.rundir import RunDir
from streaming_sbp.telemetry import text


class Row(NamedTuple):
    measure: str  # of GATE_MEASURES; real text's is real_<measure>
    name: str
    unit: str  # share, tokens or nats


ROWS = (
    Row("repetitive_share", "documents that repeat themselves", "share"),
    Row("duplicate_share", "duplicates", "share"),
    Row("non_factual_share", "non-factual", "share"),
    Row("unrelated_share", "not related to the seed document", "share"),
    Row("copied_share", "copied from the seed document", "share"),
    Row("corpus_copied_share", "copied from any document of the corpus", "share"),
    Row("corpus_13gram_share", "13-grams that the corpus has", "share"),
    Row("distinct_ngrams", "distinct 3-grams", "share"),
    Row("mean_tokens", "length, tokens", "tokens"),
    Row("mean_log_prob", "log-likelihood, nats per token", "nats"),
)


def quality(run: RunDir) -> dict[str, Any]:
    """JSON-able: ``num_documents`` of each trial, ``snapshots`` (the first and the last published one; one of them when
    there is only one, none when there is none), ``rows`` with ``values`` in that order and ``real``.

    None where it is not known: log-likelihood of real text, facts where the truth is not known (then without that row).
    """
    published = [
        record
        for record in run.read_records("tuner")
        if record["event"] == "snapshot" and record.get("verdict") == "published"
    ]
    chosen = published[:1] + published[1:][-1:]
    measures = [record["measures"] for record in chosen]
    rows = []
    for row in ROWS:
        values = [found.get(row.measure) for found in measures]
        real = measures[-1].get(f"real_{row.measure}") if measures else None
        if any(value is not None for value in (*values, real)):
            rows.append({**row._asdict(), "values": values, "real": real})
    return {
        "num_documents": run.config().gate.trial_documents,
        "snapshots": [{key: record.get(key) for key in ("version", "digest", "parent_tokens")} for record in chosen],
        "rows": rows,
    }


def shown(value: float | None, unit: str) -> str:
    if unit == "share":
        return text.percent(value)
    return text.decimal(value, 1 if unit == "tokens" else 2)


def heading(snapshot: dict[str, Any]) -> str:
    return f"v{snapshot['version']} at {text.quantity(snapshot['parent_tokens'])}"


def render(found: dict[str, Any]) -> Group:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("measure")
    for title in (*map(heading, found["snapshots"]), "real text"):
        table.add_column(title, justify="right")
    for row in found["rows"]:
        values = [*row["values"], row["real"]]
        table.add_row(row["name"], *(shown(value, row["unit"]) for value in values))
    if not found["rows"]:
        return Group(rich_text.Text("no snapshot has been published"))
    return Group(
        table,
        rich_text.Text(
            f"of {found['num_documents']} trial documents of each snapshot; at: trained tokens of its checkpoint"
        ),
    )
