"""The state directory becomes read-only under a fleet: it starts nothing, ends nobody, and goes on when it can."""

import os
import time
from collections.abc import Iterator

import pytest

from operations_center.identity import is_alive
from tests.cli.test_read_only import unwritable
from tests.fleet import Fleet, wait_until

STALLED_AFTER_S = 5.0

CONFIG = f"""
[roles.goal]
backend = "agent"
poll_interval = "300ms"
concurrency = 2
[backends.agent]
kind = "command"
argv = ["python3", "-S", "{{release}}/witness.py", "go"]
stdin = "none"
max_concurrent = 2
[watchdog]
every = "300ms"
stalled_after = "{STALLED_AFTER_S:g}s"
"""


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[Fleet]:
    fleet.configure(CONFIG)
    yield fleet
    fleet.let_go()


def test_a_fleet_whose_state_directory_becomes_read_only_loses_nothing_and_goes_on(fleet: Fleet) -> None:
    fleet.add(1, "goal")
    supervisor = fleet.up()
    wait_until(lambda: fleet.witnessed("begin"), "the executor")
    members = {name: fleet.pulse(name) for name in ("@supervisor", "goal", "@watchdog")}
    with unwritable(fleet.state.root):
        # As long as it takes to be called stalled, twice: nobody can write a heartbeat.
        time.sleep(2 * STALLED_AFTER_S)
        assert all(is_alive(pulse.process) for pulse in members.values())
        fleet.run("up", expect=1)
        if os.geteuid() == 0:
            # A mount hides only the names: the ledger that is open already can still be written.
            assert [run["state"] for run in fleet.json("runs", "--open")["runs"]] == ["running"]
    fleet.add(2, "goal")
    fleet.let_go()
    wait_until(lambda: {task["state"] for task in fleet.json("task", "list")["tasks"]} == {"done"}, "every task", 60)
    begun = [event.task_id for event in fleet.witnessed("begin")]
    assert len(begun) == len(set(begun)) == 3
    assert {name: fleet.pulse(name).pid for name in members} == {name: pulse.pid for name, pulse in members.items()}
    assert supervisor.poll() is None
    assert not fleet.broken_promises()
