import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import Fleet

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background like this, and whatever we start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A directory with a space in its path, and nothing left alive afterwards."""
    root = tmp_path / "a fleet"
    root.mkdir()
    fleet = Fleet(root)
    yield fleet
    fleet.clean_up()
