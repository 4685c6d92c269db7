"""How processes of a fleet are ended: asked first, killed when they do not listen, never waited for without end."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from operations_center.config import load_config
from operations_center.errors import Unavailable
from operations_center.identity import Process, is_alive, read_stat
from operations_center.state_directory import StateDirectory
from operations_center.stopping import fleet as stopping
from operations_center.stopping.ends import end_processes
from operations_center.stopping.fleet import Down, take_down
from tests.fleet import PATIENCE_S

# Called as a process of a fleet is: a stranger that holds a lock is none.
DEAF = """
import fcntl, os, signal, sys, time
open("/proc/self/comm", "w").write("oc-deaf")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = sys.argv[1]
fcntl.flock(os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(300)
"""


@contextmanager
def deaf_holder(lock: Path) -> Iterator[Process]:
    with subprocess.Popen([sys.executable, "-c", DEAF, str(lock)], stdout=subprocess.PIPE) as popen:
        try:
            assert popen.stdout is not None
            popen.stdout.readline()
            stat = read_stat(popen.pid)
            assert stat is not None
            yield Process(popen.pid, stat.start_ticks)
        finally:
            popen.kill()


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    (tmp_path / "operations_center.toml").write_text(
        '[roles.goal]\nbackend = "a"\n[backends.a]\nkind = "command"\nargv = ["true"]\nmax_concurrent = 1\n'
    )
    state = StateDirectory(tmp_path / ".operations_center")
    state.create()
    return state


def test_a_process_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    with deaf_holder(tmp_path / "lock") as process:
        assert end_processes([process], 0.1, time.monotonic() + PATIENCE_S) == []
        assert not is_alive(process)


def test_a_process_that_outlives_the_time_is_named_and_not_killed(tmp_path: Path) -> None:
    with deaf_holder(tmp_path / "lock") as process:
        assert end_processes([process], PATIENCE_S, time.monotonic() + 0.1) == [process]
        assert is_alive(process)


def test_down_kills_a_supervisor_and_watchers_that_do_not_listen(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "SUPERVISOR_KILL_AFTER_S", 0.1)
    monkeypatch.setattr(stopping, "WATCHER_KILL_AFTER_S", 0.1)
    config = load_config(state.root.parent / "operations_center.toml", {})
    with deaf_holder(state.supervisor_lock) as supervisor, deaf_holder(state.watcher_lock("former")) as watcher:
        ended = take_down(config, Down.LEAVE, None)
        assert (ended.supervisor.process, [each.process for each in ended.watchers]) == (supervisor, [watcher])
        assert not is_alive(supervisor) and not is_alive(watcher)


def test_down_gives_up_in_time_and_says_who_lives_on(state: StateDirectory) -> None:
    config = load_config(state.root.parent / "operations_center.toml", {})
    with deaf_holder(state.supervisor_lock) as supervisor:
        with pytest.raises(Unavailable, match=f"the supervisor .process {supervisor.pid}. lives on"):
            take_down(config, Down.LEAVE, 0.2)
        # Had it waited longer than it may, it would have come to kill.
        assert is_alive(supervisor)


def test_down_waits_for_another_down_no_longer_than_it_may(state: StateDirectory) -> None:
    config = load_config(state.root.parent / "operations_center.toml", {})
    with (
        deaf_holder(state.root),
        deaf_holder(state.supervisor_lock) as supervisor,
        pytest.raises(Unavailable, match="another `operations-center down`"),
    ):
        take_down(config, Down.LEAVE, 0.2)
        assert is_alive(supervisor)


def test_a_fleet_is_stopped_also_where_the_ledger_is_broken(state: StateDirectory) -> None:
    config = load_config(state.root.parent / "operations_center.toml", {})
    state.ledger.write_bytes(b"no database at all" * 100)
    with deaf_holder(state.watcher_lock("goal")) as watcher:
        with pytest.raises(Exception, match="cannot use the ledger"):
            take_down(config, Down.LEAVE, None)
        assert not is_alive(watcher)
