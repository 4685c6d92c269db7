"""An executor exits by itself → its slot is free in the ledger.

The beginning is the moment at which the executor's pidfd, asked without a pause, says that it has ended. Before the
slot is free its keeper has written the exit and synced it. The end is seen as in keeper_killed. The floor is one
record of the same 64 bytes that is made durable the usual way: written, synced, renamed, directory synced; one for
each run, on the same disk.
"""

import os
import time
from pathlib import Path

from benchmarks import floors
from benchmarks.figures import Options, Row, main, milliseconds, summary
from benchmarks.fleets import (
    Announcements,
    LedgerEye,
    add_task,
    directory,
    one_role,
    running_fleet,
    when_ended,
)

RUNS = 100
TIMES_THE_FLOOR = 3


def measure(options: Options) -> list[Row]:
    with directory() as root:
        ours, floor = free_after_exits(root, options.several(RUNS))
    spread = summary(milliseconds(ours))
    rename = summary(milliseconds(floor))
    return [
        Row(
            "exit → slot free, median",
            "ms",
            spread["p50"],
            {"synced rename": rename["p50"], "synced rename, p99": rename["p99"]},
            TIMES_THE_FLOOR * rename["p50"],
            f"{TIMES_THE_FLOOR} × one synced rename",
            spread=spread,
        )
    ]


def free_after_exits(root: Path, runs: int) -> tuple[list[int], list[int]]:
    """ns to the free slot, and ns of a synced rename."""
    announcements = Announcements(root / "announcements")
    go = root / "go"
    os.mkfifo(go)
    let_go = os.open(go, os.O_RDWR)
    took, floor = [], []
    with (
        running_fleet(root, one_role(announcements.executor(f"read line <'{go}'; exit 0"))) as fleet,
        fleet.center() as center,
        LedgerEye(fleet.state.ledger) as eye,
    ):
        for _ in range(runs):
            add_task(center)
            executor, _ = announcements.next()
            run_id, _ = eye.when_started(executor)
            time.sleep(0.02)
            pidfd = os.pidfd_open(executor)
            os.write(let_go, b"\n")
            ended = when_ended(pidfd)
            took.append(eye.when_free(run_id) - ended)
            os.close(pidfd)
            floor.append(floors.synced_rename(root))
    os.close(let_go)
    return took, floor


if __name__ == "__main__":
    main(measure)
