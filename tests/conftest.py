import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples each time, and no clock: how long one takes tells what else the machine does.
settings.register_profile("suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# The helpers' own assertions, too, say what they have found.
pytest.register_assert_rewrite(
    *(
        f"tests.{name}"
        for name in ("cli", "crash", "fleet", "keeper", "model", "providers", "ray", "releases", "runs", "syscalls")
    )
)

from operations_center import text  # noqa: E402
from tests.fleet import Fleet  # noqa: E402

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background like this, and whatever we start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_known_secrets", set())


@pytest.fixture(autouse=True)
def is_called_as_a_process_of_a_fleet() -> None:
    """What a test forks from this process stands for a watcher or a command, and is one by its name."""
    # For each test: pytest-xdist names its workers after the test that they run.
    Path("/proc/self/comm").write_text("oc-test")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A directory with a space in its path, and nothing left alive afterwards."""
    root = tmp_path / "a fleet"
    root.mkdir()
    fleet = Fleet(root)
    yield fleet
    fleet.clean_up()
