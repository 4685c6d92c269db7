"""Keeper and tree killed → the slot is free in the ledger.

A run's keeper and executor get SIGKILL; the moment before the first signal is the beginning. The end is when another
process, which reads the ledger through a connection of its own without a pause, first sees that the run holds no slot
any more; how late that may be is the row "between two looks". The floor is watched in the same way: a process that
waits on a pidfd and then updates one row of a bare SQLite database, with synchronous=NORMAL and with FULL (which
survives a power cut; the ledger uses it). Sleepers make the number of processes on the machine.
"""

import random
import time
from pathlib import Path

from benchmarks import floors
from benchmarks.figures import Options, Row, main, milliseconds, percentile, summary
from benchmarks.fleets import (
    Announcements,
    LedgerEye,
    add_task,
    crowd,
    directory,
    kill,
    one_role,
    running_fleet,
)

KILLS = {80: 200, 1000: 100}
"""By number of processes."""

TARGETS_MS = {(80, 50): 3.0, (80, 99): 20.0}
"""By number of processes and percentile."""


def measure(options: Options) -> list[Row]:
    rows = []
    for size, most in KILLS.items():
        with crowd(size if not options.quick else 0) as processes, directory() as root:
            kills = options.several(most)
            ours, gaps = free_after_kills(root, kills)
            normal = milliseconds(floors.free_by_pidfd(root, "NORMAL", kills))
            full = milliseconds(floors.free_by_pidfd(root, "FULL", kills))
        for percent in (50, 99):
            beside = {
                "pidfd + SQLite NORMAL": percentile(normal, percent),
                "pidfd + SQLite FULL": percentile(full, percent),
                "between two looks": percentile(gaps, percent),
            }
            what = f"killed → slot free, p{percent}, {processes} processes"
            target = TARGETS_MS.get((size, percent))
            rows.append(Row(what, "ms", percentile(ours, percent), beside, target, "", spread=summary(ours)))
    return rows


def free_after_kills(root: Path, kills: int) -> tuple[list[float], list[float]]:
    """ms to the free slot, and ms between the looks of which the last one saw it."""
    announcements = Announcements(root / "announcements")
    took = []
    with (
        running_fleet(root, one_role(announcements.executor())) as fleet,
        fleet.center() as center,
        LedgerEye(fleet.state.ledger) as eye,
    ):
        gaps = []
        for _ in range(kills):
            add_task(center)
            executor, _ = announcements.next()
            run_id, keeper = eye.when_started(executor)
            # At no particular moment of the watcher's turn.
            time.sleep(random.uniform(0.02, 0.05))
            begun = kill(keeper, executor)
            took.append(eye.when_free(run_id) - begun)
            gaps.append(eye.gaps_ns[-1])
    return milliseconds(took), milliseconds(gaps)


if __name__ == "__main__":
    main(measure)
