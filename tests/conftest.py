from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A directory with a space in its path, and nothing left alive afterwards."""
    root = tmp_path / "a fleet"
    root.mkdir()
    fleet = Fleet(root)
    yield fleet
    fleet.clean_up()
