"""Candidates that the gate refused, and snapshots that a person did, kept to be looked at: RUN/quarantine/<digest>/.

reason.json     who refused it, every reason, the measures, the checkpoint it came from
examples.json   the gate's: up to ten trial documents beside their seed documents, as text
model/          the candidate
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from streaming_sbp.files import read_json, write_json

NUM_EXAMPLES = 10
KEEP_LAST = 3  # of the gate's, and of a person's; each is as large as a snapshot
GATE, PERSON = "gate", "person"


class Quarantine:
    """The quarantine of one run; the tuner writes it, and `sbp snapshots --quarantine`."""

    def __init__(self, folder: Path):
        self._folder = folder

    def add(
        self,
        model: Path,
        digest: str,
        *,
        parent_checkpoint: str,
        parent_tokens: int,
        reasons: Sequence[str],
        measures: Mapping[str, float],
        examples: Sequence[Mapping[str, str]] = (),
        by: str = GATE,
    ) -> Path:
        """Move the candidate's ``model`` folder in, and remove all but the last `KEEP_LAST` that ``by`` refused."""
        target = self._folder / digest
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        shutil.move(model, target / "model")
        if by == GATE:
            write_json(target / "examples.json", list(examples[:NUM_EXAMPLES]))
        reason = {
            "by": by,
            "digest": digest,
            "parent_checkpoint": parent_checkpoint,
            "parent_tokens": parent_tokens,
            "reasons": list(reasons),
            "measures": dict(measures),
            "created": time.time(),
        }
        write_json(target / "reason.json", reason)
        alike = [path for reason, path in self._by_age() if reason.get("by", GATE) == by]
        for old in alike[:-KEEP_LAST]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def list(self) -> list[dict[str, Any]]:
        """The reason files, oldest first."""
        return [reason for reason, _ in self._by_age()]

    def _by_age(self) -> Sequence[tuple[dict[str, Any], Path]]:
        found = [(read_json(path), path.parent) for path in self._folder.glob("*/reason.json")]
        return sorted(((reason, path) for reason, path in found if reason), key=lambda entry: entry[0]["created"])
