"""Tree killed → the next waiting task's executor runs, at a cap of one.

A task waits while the only slot is held. The holder's keeper and executor get SIGKILL; the moment before the first
signal is the beginning, and the end is that the next task's executor, a shell, has written its pid into a FIFO as its
first act. In between the death is proven, the slot freed, the killed task's end told to the board, the next task
admitted, claimed and launched. The floors are a bare Python loop of waitpid and posix_spawn that starts the same shell
again after a kill, and posix_spawn of that shell alone. With --peers: job queues at their most aggressive sane
settings, from the kill of a worker to the start of its own job on another (peers/b_recovery.py).
"""

import random
import time
from pathlib import Path

from benchmarks import floors, peers
from benchmarks.figures import Options, Row, main, milliseconds, summary
from benchmarks.fleets import Announcements, LedgerEye, add_task, directory, kill, one_role, running_fleet

KILLS = 60
TARGET_MS = 15.0


def measure(options: Options) -> list[Row]:
    kills = options.several(KILLS)
    with directory() as root:
        ours, spawned = next_after_kills(root, kills)
        again = summary(milliseconds(floors.start_again(root, kills)))
    spread = summary(milliseconds(ours))
    spawn = summary(milliseconds(spawned))
    beside = {"waitpid + posix_spawn": again["p50"], "posix_spawn alone": spawn["p50"]}
    if options.peers:
        beside |= peers.recoveries(quick=options.quick)
    return [Row("killed → next executor runs, median", "ms", spread["p50"], beside, TARGET_MS, spread=spread)]


def next_after_kills(root: Path, kills: int) -> tuple[list[int], list[int]]:
    """ns to the next executor's first instruction, and ns of a bare spawn."""
    announcements, bare = Announcements(root / "announcements"), Announcements(root / "bare")
    took, floor = [], []
    with (
        running_fleet(root, one_role(announcements.executor())) as fleet,
        fleet.center() as center,
        LedgerEye(fleet.state.ledger) as eye,
    ):
        add_task(center)
        executor, _ = announcements.next()
        for _ in range(kills):
            add_task(center)
            _, keeper = eye.when_started(executor)
            time.sleep(random.uniform(0.05, 0.1))
            begun = kill(keeper, executor)
            executor, at = announcements.next()
            took.append(at - begun)
            floor.append(floors.spawn(bare))
    return took, floor


if __name__ == "__main__":
    main(measure)
