from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import kill_if_there
from tests.releases.clones import Clones


@pytest.fixture
def clones(tmp_path: Path) -> Iterator[Clones]:
    clones = Clones(tmp_path)
    yield clones
    for pid in clones.is_left():
        kill_if_there(pid)
