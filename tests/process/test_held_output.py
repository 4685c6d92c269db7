"""A fleet whose terminal or pipe takes no output."""

import os
import signal
import subprocess

import pytest

from operations_center.identity import Process
from tests.fleet import PATIENCE_S, Fleet, kill_if_there, wait_until
from tests.process.test_fork_server import wait_for_another

CONFIG = """
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["true"]
max_concurrent = 1
"""


def fill(pipe: int) -> None:
    os.set_blocking(pipe, False)
    try:
        while True:
            os.write(pipe, bytes(4096))
    except BlockingIOError:
        os.set_blocking(pipe, True)


@pytest.mark.parametrize("reader", ["sleeps", "is gone"])
def test_a_fleet_whose_output_nobody_reads_is_supervised_and_stopped(fleet: Fleet, reader: str) -> None:
    fleet.configure(CONFIG)
    read_end, write_end = os.pipe()
    fill(write_end)
    if reader == "is gone":
        os.close(read_end)
    supervisor = subprocess.Popen(
        fleet.argv("up"), cwd=fleet.root, env=fleet.environment, stdout=write_end, stderr=write_end
    )
    fleet.supervisors.append(supervisor)
    wait_until(lambda: fleet.is_up(supervisor), "the fleet is up")
    before: Process = fleet.pulse("goal").process
    kill_if_there(before.pid, signal.SIGKILL)
    wait_for_another(fleet, "goal", before)
    fleet.run("down")
    assert supervisor.wait(PATIENCE_S) == 0
