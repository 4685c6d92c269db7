"""Who holds a lock of a fleet and is no process of one is named, keeps nobody from ending a run, and is not ended."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from operations_center.errors import LedgerBusy, LedgerHeld, LockHeld
from operations_center.fleet import survivors
from operations_center.locks import lock_holder, take_lock
from operations_center.state_directory import StateDirectory
from operations_center.store.turnstile import Turnstile, locks_of
from operations_center.titles import is_one_of_ours
from tests.fleet import Fleet, wait_until

CONFIG = """
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["true"]
max_concurrent = 1
"""

HOLDER = """
import fcntl, os, sys
if sys.argv[2]:
    open("/proc/self/comm", "w").write(sys.argv[2])
file = os.open(sys.argv[1], os.O_RDONLY if os.path.isdir(sys.argv[1]) else os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


HOLDS_FOR_EVER = """
import fcntl, os, time
for lock in locks:
    fcntl.flock(os.open(lock, os.O_RDWR), fcntl.LOCK_EX)
time.sleep(600)
"""


@contextmanager
def held(path: Path, called: str = "", **environment: str) -> Iterator[int]:
    """By a process that is called so; its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), called],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline()
        yield popen.pid
        assert popen.poll() is None, "it was ended"
        popen.kill()


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    state = StateDirectory(tmp_path / "state")
    state.create()
    return state


def test_holder_of_a_watchers_lock_is_a_member_only_if_it_is_one_of_ours(state: StateDirectory) -> None:
    with held(state.watcher_lock("goal")):
        assert survivors(state) == []
    with held(state.watcher_lock("goal"), called="oc-wtch") as pid:
        assert [member.pid for member in survivors(state)] == [pid]


def test_stranger_that_holds_a_lock_is_named_with_its_run(state: StateDirectory) -> None:
    lock = state.watcher_lock("goal")
    with held(lock, OPERATIONS_CENTER_RUN_ID="r7-abcdef") as pid, pytest.raises(LockHeld) as refused:
        take_lock(lock, "a watcher")
    assert str(refused.value) == (
        f"cannot start a watcher: process {pid} (python of run r7-abcdef) holds {lock}, and is no process of a fleet; "
        "end it with `operations-center stop r7-abcdef`"
    )
    with held(lock) as pid, pytest.raises(LockHeld, match=f"process {pid} .python. holds .*; end it with `kill`"):
        take_lock(lock, "a watcher")


def test_stranger_that_holds_the_ledger_is_named_by_who_cannot_write(state: StateDirectory) -> None:
    with closing(Turnstile(state.ledger)) as turnstile:
        for lock in ("ledger.turn", "ledger.write"):
            with held(state.root / lock) as pid, pytest.raises(LedgerHeld, match=f"process {pid} .* no process of a"):
                turnstile.enter(0.3)
            with held(state.root / lock, called="oc-wtch"), pytest.raises(LedgerBusy, match="try again") as busy:
                turnstile.enter(0.3)
            assert not isinstance(busy.value, LedgerHeld)


def test_stranger_that_holds_the_state_directory_keeps_nobody_from_stopping_the_fleet(fleet: Fleet) -> None:
    fleet.configure(CONFIG)
    fleet.run("task", "add", "one")
    with held(fleet.state.root) as pid:
        told = fleet.run("down", "--now", "--timeout", "50s").stderr
    assert f"process {pid}" in told


def test_run_that_holds_the_ledger_is_ended_by_a_stop(fleet: Fleet) -> None:
    program = fleet.root / "hold.py"
    program.write_text(f"locks = {[*map(str, locks_of(fleet.state.ledger))]}\n{HOLDS_FOR_EVER}")
    fleet.configure(CONFIG.replace('["true"]', f'["{sys.executable}", "{program}"]'))
    fleet.run("task", "add", "one")
    fleet.up()
    wait_until(lambda: all(map(is_locked_by_a_stranger, locks_of(fleet.state.ledger))), "the executor holds the ledger")
    (run_id,) = [path.name for path in fleet.state.runs.iterdir()]
    told = fleet.run("stop", run_id)
    assert f"run {run_id} has ended: stopped" in told.stdout


def is_locked_by_a_stranger(path: Path) -> bool:
    holder = lock_holder(path)
    return holder is not None and not is_one_of_ours(holder)
