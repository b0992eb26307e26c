"""`sbp experiment concepts --scale tiny`, whole: the directions that a broken mixer, tuner or pairer would turn round.

`python -m tests.checks.directions pairer` breaks a part; docs/experiments.md ("Directions, in small") has the figures.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checks.directions import run_tiny, wrong_directions

pytestmark = pytest.mark.processes


def test_directions_of_the_tiny_experiment(tmp_path: Path) -> None:
    assert wrong_directions(run_tiny(tmp_path / "out")) == []
