"""Which snapshot serves, and who may change that: rules without I/O.

The tuner publishes, the trainer rolls back by policy, a person pins, rolls back or quarantines. Each of them reads the
newest pointer, makes the next one by a rule below, and writes it under its own number, which fails when somebody else
was first; then it reads again. So of any number of writers one comes first, and none overwrites what it has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol


class PointerError(ValueError):
    """What was asked for cannot be: the message says why, and the way out."""


class Snapshot(Protocol):
    @property
    def digest(self) -> str: ...

    @property
    def version(self) -> int: ...


@dataclass(frozen=True)
class Pointer:
    """``revision`` counts the changes from 1. ``bad``: digests that were rolled back from or quarantined; they serve
    again only when a person pins them. ``by``: tuner, trainer or person."""

    revision: int = 0
    digest: str | None = None
    pinned: bool = False
    bad: tuple[str, ...] = ()
    by: str = ""
    reason: str = ""
    created: float = 0.0  # Unix time


def published(pointer: Pointer, digest: str) -> Pointer:
    """A candidate passed the gate: it serves, unless another one is pinned, or it was found bad before."""
    if pointer.pinned or digest in pointer.bad:
        return pointer
    return replace(pointer, digest=digest)


def pinned(pointer: Pointer, digest: str) -> Pointer:
    """It serves until it is unpinned, whatever is published, and whatever was thought of it before."""
    return replace(pointer, digest=digest, pinned=True, bad=tuple(d for d in pointer.bad if d != digest))


def unpinned(pointer: Pointer, snapshots: Sequence[Snapshot]) -> Pointer:
    """The newest good one serves again."""
    good = [snapshot for snapshot in snapshots if snapshot.digest not in pointer.bad]
    newest = max(good, key=lambda snapshot: snapshot.version).digest if good else pointer.digest
    return replace(pointer, digest=newest, pinned=False)


def rolled_back(pointer: Pointer, snapshots: Sequence[Snapshot], to: str | None = None) -> Pointer:
    """Go back to ``to``, by default to the last good one published before the one that serves, which becomes bad.

    Whatever is published afterwards serves again. Raises PointerError when there is nothing to go back to.
    """
    versions = {snapshot.digest: snapshot.version for snapshot in snapshots}
    serving = pointer.digest
    if serving is None:
        raise PointerError("no snapshot serves: there is nothing to roll back")
    if serving not in versions:
        raise PointerError(f"snapshot {serving} is to serve, and is gone or damaged; unpin, or pin another one")
    earlier = [d for d, version in versions.items() if version < versions[serving] and d not in pointer.bad]
    if to is None and not earlier:
        raise PointerError(f"snapshot {serving} is the first good one: there is none before it to go back to")
    target = to or max(earlier, key=lambda digest: versions[digest])
    if target not in earlier:
        raise PointerError(f"snapshot {target}: expected one published before {serving}, and not found bad; pin it")
    return replace(pointer, digest=target, pinned=False, bad=(*pointer.bad, serving))


def quarantined(pointer: Pointer, snapshots: Sequence[Snapshot], digest: str) -> Pointer:
    """It never serves again; when it serves now, the last good one before it does, or else the newest good one.

    Raises PointerError when it serves and no other is good.
    """
    bad = tuple(dict.fromkeys((*pointer.bad, digest)))
    if digest != pointer.digest:
        return replace(pointer, bad=bad)
    versions = {snapshot.digest: snapshot.version for snapshot in snapshots}
    good = [d for d in versions if d not in bad]
    earlier = [d for d in good if versions[d] < versions.get(digest, 0)]
    if not good:
        raise PointerError(
            f"snapshot {digest} serves and no other is good: generators would have none to serve; wait for the next "
            "that the gate lets through, or pin another one, which makes that good"
        )
    chosen = max(earlier or good, key=lambda found: versions[found])
    return replace(pointer, digest=chosen, pinned=False, bad=bad)
