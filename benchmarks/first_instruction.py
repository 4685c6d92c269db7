"""A task is committed to an idle fleet → its executor's first instruction: median of 20, in ms.

The floor beside it: a bare ``fork`` and ``exec`` of the same executor.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from operations_center.boards.local import NewTask
from tests.fleet import Fleet, wait_until

CONFIG = """
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["sh", "-c", "read up rest </proc/uptime; date +%s%N >>'{root}/begun'"]
max_concurrent = 1
timeout = "1h"
"""
TRIES = 20


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="oc bench ") as name:
        fleet = Fleet(Path(name))
        fleet.configure(CONFIG.format(root=name))
        try:
            fleet.up()
            ours = [measure(fleet, number) for number in range(1, TRIES + 1)]
        finally:
            fleet.run("down", "--now", expect=None)
            fleet.clean_up()
        floor = [bare(Path(name)) for _ in range(TRIES)]
    print(f"commit → first instruction: median {statistics.median(ours):.1f} ms, max {max(ours):.1f} ms")
    print(f"bare fork and exec:         median {statistics.median(floor):.1f} ms, max {max(floor):.1f} ms")


def measure(fleet: Fleet, number: int) -> float:
    with fleet.center() as center:
        center.board.add([NewTask(f"task {number}", "goal")])
        committed = time.time_ns()
        center.wake_everybody()
        wait_until(lambda: len(begun(fleet.root)) == number, "the executor begins")
        wait_until(lambda: not center.ledger.open_runs(), "the run is closed")
    return (begun(fleet.root)[-1] - committed) / 1e6


def begun(root: Path) -> list[int]:
    path = root / "begun"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def bare(root: Path) -> float:
    path = root / "bare"
    asked = time.time_ns()
    subprocess.run(["sh", "-c", f"read up rest </proc/uptime; date +%s%N >'{path}'"], check=True, env=os.environ)
    return (int(path.read_text()) - asked) / 1e6


if __name__ == "__main__":
    main()
