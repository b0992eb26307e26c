"""`sbp snapshots`: what is in a run's store, and what a person may change there, while the run lives or after its end.

A change is a new pointer (rules in pointer.py). The trainer looks every second and announces what serves, the
generators load it between two batches, and the tuner compares its next candidate with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from streaming_sbp.config import ConfigError
from streaming_sbp.rundir import RunDir
from streaming_sbp.synthesizer import pointer
from streaming_sbp.synthesizer.pointer import Pointer, PointerError
from streaming_sbp.synthesizer.quarantine import PERSON, Quarantine
from streaming_sbp.synthesizer.snapshots import SnapshotError, SnapshotInfo, SnapshotStore, SnapshotStoreUnavailable
from streaming_sbp.telemetry import text
from streaming_sbp.telemetry.catalogue import TRUTH_MEASURES

Rule = Callable[[Pointer, list[SnapshotInfo]], Pointer]
SHOWN = {  # measure -> heading, short enough for a terminal of 80 columns
    "pair_loss": "pair loss",
    "copied_share": "copied",
    "relatedness_lift": "lift",
    "distinct_ngrams": "distinct",
    "about_seed_share": "seed's person",
    "true_fact_share": "true facts",
}
SHORT_DIGEST = 8


class Manager:
    """What one person does with the snapshots of a run. Methods raise ConfigError when it cannot be done."""

    def __init__(self, run: RunDir):
        self._run = run
        self._store = SnapshotStore(run.config().snapshots.url or str(run.snapshots))

    def find(self, name: str) -> SnapshotInfo:
        """By version, or by the beginning of the digest."""
        with _config_errors():
            infos = self._store.list()
        found = [info for info in infos if name == str(info.version)]
        found = found or [info for info in infos if len(name) >= 4 and info.digest.startswith(name)]
        if len(found) == 1:
            return found[0]
        known = ", ".join(f"{info.version} ({info.digest[:SHORT_DIGEST]})" for info in infos) or "none"
        raise ConfigError(f"snapshot {name!r}: expected a version, or the first 4 or more characters of one: {known}")

    def pin(self, name: str) -> Pointer:
        digest = self.find(name).digest
        return self._serve("pinned by a person", lambda p, _: pointer.pinned(p, digest))

    def unpin(self) -> Pointer:
        return self._serve("unpinned by a person", pointer.unpinned)

    def roll_back(self, name: str | None = None) -> Pointer:
        """To an earlier one; by default to the last good one before the one that serves."""
        to = None if name is None else self.find(name).digest
        return self._serve("rolled back by a person", lambda p, infos: pointer.rolled_back(p, infos, to))

    def quarantine(self, name: str, reason: str = "quarantined by a person") -> Pointer:
        """It never serves again, and a copy goes into RUN/quarantine."""
        info = self.find(name)
        with _config_errors():
            changed = self._store.change(PERSON, reason, lambda p, infos: pointer.quarantined(p, infos, info.digest))
        with tempfile.TemporaryDirectory(prefix="sbp-snapshot-") as folder:
            model = Path(folder) / "model"
            try:
                self._store.fetch(info.digest, model)
            except SnapshotError as error:
                raise ConfigError(f"{error}; it serves no more, but RUN/quarantine has no copy of it") from None
            Quarantine(self._run.quarantine).add(
                model,
                info.digest,
                parent_checkpoint=info.parent_checkpoint,
                parent_tokens=info.parent_tokens,
                reasons=[reason],
                measures=info.measures,
                by=PERSON,
            )
        return changed

    def listing(self) -> dict[str, Any]:
        """JSON-able: ``store``, ``pointer``, and ``snapshots`` by version: ``serves``, ``bad``, ``readers``, measures.

        ``why_bad`` is who found it bad, and why; ``missing_files`` those that are gone. ``num_published``: by this run.
        """
        with _config_errors():
            now, leased, infos = self._store.pointer(), self._store.leased(), self._store.list()
            reasons = self._store.reasons_for_bad() if now.bad else {}
            missing = {info.digest: self._store.missing_files(info.digest) for info in infos}
        snapshots = [
            {
                "version": info.version,
                "digest": info.digest,
                "serves": info.digest == now.digest,
                "bad": info.digest in now.bad,
                "why_bad": reasons.get(info.digest, "") if info.digest in now.bad else "",
                "missing_files": missing[info.digest],
                "parent_checkpoint": info.parent_checkpoint,
                "parent_tokens": info.parent_tokens,
                "created": info.created,
                "readers": leased.get(info.digest, []),
                "measures": info.measures,
            }
            for info in infos
        ]
        return {
            "store": self._store.url,
            "num_published": sum(r.get("verdict") == "published" for r in self._run.read_records("tuner")),
            "pointer": {**vars(now), "bad": list(now.bad)},
            "snapshots": snapshots,
        }

    def comparison(self, first: str, second: str) -> dict[str, Any]:
        """JSON-able: of each measure that both have, the two values and the difference."""
        a, b = self.find(first), self.find(second)
        names = [name for name in a.measures if name in b.measures]
        measures = {name: [a.measures[name], b.measures[name], b.measures[name] - a.measures[name]] for name in names}
        return {"digests": [a.digest, b.digest], "versions": [a.version, b.version], "measures": measures}

    def _serve(self, reason: str, rule: Rule) -> Pointer:
        """Change the pointer, but never to a snapshot that no generator can load."""

        def checked(now: Pointer, infos: list[SnapshotInfo]) -> Pointer:
            after = rule(now, infos)
            if after.digest and (after.digest != now.digest or after.pinned):
                self._check(after.digest)
            return after

        with _config_errors():
            return self._store.change(PERSON, reason, checked)

    def _check(self, digest: str) -> None:
        with tempfile.TemporaryDirectory(prefix="sbp-snapshot-") as folder:
            try:
                self._store.fetch(digest, Path(folder))
            except SnapshotStoreUnavailable:
                raise
            except SnapshotError as error:
                way_out = "no generator can load it, so nothing was changed: name another one"
                raise SnapshotError(f"{error}; {way_out}") from None


@contextmanager
def _config_errors() -> Iterator[None]:
    try:
        yield
    except (PointerError, SnapshotError) as error:
        raise ConfigError(str(error)) from None


def render_listing(listing: dict[str, Any]) -> Group:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    known = {name for snapshot in listing["snapshots"] for name in snapshot["measures"]}
    shown = [name for name in SHOWN if name in known or name not in TRUTH_MEASURES]
    for name in ("version", "digest", "state", "tokens", "readers", *(SHOWN[name] for name in shown)):
        table.add_column(name, justify="left" if name in ("digest", "state") else "right", no_wrap=name == "state")
    for snapshot in listing["snapshots"]:
        measures = [snapshot["measures"].get(name) for name in shown]
        table.add_row(
            str(snapshot["version"]),
            snapshot["digest"][:SHORT_DIGEST],
            _state(snapshot, listing["pointer"]["pinned"]),
            text.quantity(snapshot["parent_tokens"]),
            str(len(snapshot["readers"])),
            *("-" if value is None else f"{value:.3f}" for value in measures),
        )
    return Group(table, *(Text(text.printable(line)) for line in _remarks(listing)))


def _remarks(listing: dict[str, Any]) -> list[str]:
    """What the table has no room for."""
    now, snapshots = listing["pointer"], listing["snapshots"]
    if not now["revision"]:
        gone = f", but the run has published {listing['num_published']}: were they removed, or is this another store?"
        return [f"nothing published in {listing['store']}{gone if listing['num_published'] else ''}"]
    lines = [f"pointer {now['revision']}: by {now['by']}, {now['reason']}"]
    if now["digest"] not in (None, *(snapshot["digest"] for snapshot in snapshots)):
        lines.append(f"snapshot {now['digest']} is to serve, and is gone or damaged: --unpin, or --pin another one")
    for snapshot in snapshots:
        if snapshot["why_bad"]:
            lines.append(f"version {snapshot['version']} is bad, said the {snapshot['why_bad']}")
        if snapshot["missing_files"]:
            lines.append(f"version {snapshot['version']} is damaged, without {', '.join(snapshot['missing_files'])}")
    return lines


def render_comparison(comparison: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold")
    first, second = comparison["versions"]
    for name in ("measure", f"version {first}", f"version {second}", "difference"):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for name, (a, b, difference) in comparison["measures"].items():
        table.add_row(name, f"{a:.4f}", f"{b:.4f}", f"{difference:+.4f}")
    return table


def _state(snapshot: dict[str, Any], pinned: bool) -> str:
    words = {
        "serves": snapshot["serves"],
        "pinned": snapshot["serves"] and pinned,
        "bad": snapshot["bad"],
        "damaged": bool(snapshot["missing_files"]),
    }
    return ", ".join(word for word, holds in words.items() if holds)
