"""`synthesizer.mode` "given": a synthesizer from elsewhere."""

from __future__ import annotations

from pathlib import Path

from streaming_sbp import config
from streaming_sbp.config import ConfigError


def require_model(synthesizer: config.Synthesizer) -> Path:
    """The folder `synthesizer.snapshot`. Raises ConfigError when it is no Hugging Face folder; loads nothing."""
    folder = Path(synthesizer.snapshot)
    if not (folder / "config.json").is_file():
        found = "has no config.json" if folder.is_dir() else "is not a folder"
        raise ConfigError(
            f"synthesizer.snapshot = {synthesizer.snapshot!r}: {found}; expected a Hugging Face folder with this data "
            "set's tokenizer, as RUN/model or one of RUN/snapshots"
        )
    return folder
