"""Work that a run has handed to a daemon is named where it can be seen."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from operations_center.cli.stop import how_it_ended
from operations_center.keeper.inspect import RUN_ID_VARIABLE
from tests.cli.command_line import CommandLine
from tests.fleet import wait_until


@contextmanager
def daemon_with(run_id: str) -> Iterator[int]:
    """A process that was started with the environment of a run, as ``at`` does it; its pid."""
    with subprocess.Popen(
        ["sleep", "300"], env=os.environ | {RUN_ID_VARIABLE: run_id}, start_new_session=True
    ) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_processes_that_outlive_their_run_are_named(line: CommandLine) -> None:
    closed, running = line.closed_run(), line.admit(line.task())
    with line.center() as center:
        closed = center.ledger.run(closed.run_id) or closed
    assert "handed" not in line("doctor", expect=None).out
    with daemon_with(closed.run_id) as left, daemon_with(running.run_id), daemon_with("r7-abcdef"):
        wait_until(lambda: f"({left})" in line("doctor", expect=None).out, "a program in the place of its parent's")
        (check,) = [each for each in line("doctor", "--json").json["checks"] if each["name"].startswith("run ")]
        assert (check["name"], check["status"]) == (f"run {closed.run_id}", "warning")
        assert line("explain", closed.run_id, "--json").json["evidence"] == {"handed_on": [left]}
        assert "handed work to a daemon" in line("explain", closed.run_id).out
        assert how_it_ended(closed).endswith(f"; processes {left} that carry its id run on")
    assert line("explain", closed.run_id, "--json").json["evidence"] == {}
    assert "run on" not in how_it_ended(closed)
