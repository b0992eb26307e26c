"""Which embedders there are, and whether the one chosen can be used: known before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from streaming_sbp.config import ConfigError

TFIDF, SELF = "tfidf", "self"
PACKAGE = "sentence_transformers"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def require_embedder(name: str) -> None:
    """Raises ConfigError for a name that can be no embedder, and when its package is not installed.

    Whether a model of that name is on the hub is not asked here.
    """
    if name in (TFIDF, SELF):
        return
    if not (Path(name).is_dir() or _HUB_NAME.fullmatch(name)):
        raise ConfigError(
            f'pairing.embedder = "{name}": no such folder; expected "{TFIDF}", "{SELF}", or a sentence-transformers '
            "folder or a name on the hub, as in all-MiniLM-L6-v2"
        )
    if importlib.util.find_spec(PACKAGE) is None:
        raise missing_package(name, "not installed")


def missing_package(name: str, problem: str) -> ConfigError:
    return ConfigError(
        f"pairing.embedder = \"{name}\": needs sentence-transformers ({problem}): pip install 'streaming-sbp[embed]' "
        f"(in a checkout: pip install -e '.[embed]'), or choose \"{TFIDF}\""
    )
