"""A task is committed → its executor's first instruction.

The fleet is idle. The beginning is the moment after the task's commit, before anybody is woken; the end is that the
executor, a shell, has written its pid into a FIFO as its first act. In between the watcher wakes, admits, claims, makes
the run directory and starts timer and keeper. The floor is posix_spawn of the same shell, one for each run;
what the kernel takes to move the keeper into the run's cgroup comes on top of it.
"""

import random
import time
from pathlib import Path

from benchmarks import floors
from benchmarks.figures import Options, Row, main, milliseconds, summary
from benchmarks.fleets import Announcements, LedgerEye, add_task, directory, one_role, running_fleet

TASKS = 60
MOVES = 20
TARGET_MS = 15.0


def measure(options: Options) -> list[Row]:
    with directory() as root:
        ours, spawned = first_instructions(root, options.several(TASKS))
    spread = summary(milliseconds(ours))
    beside = {"posix_spawn alone": summary(milliseconds(spawned))["p50"]}
    moves = floors.moves_into_cgroup(options.several(MOVES))
    if moves:
        beside["moving a process into a cgroup"] = summary(milliseconds(moves))["p50"]
    return [Row("committed → first instruction, median", "ms", spread["p50"], beside, TARGET_MS, spread=spread)]


def first_instructions(root: Path, tasks: int) -> tuple[list[int], list[int]]:
    """ns to the executor's first instruction, and ns of a bare spawn."""
    announcements, bare = Announcements(root / "announcements"), Announcements(root / "bare")
    took, floor = [], []
    with (
        running_fleet(root, one_role(announcements.executor("exit 0"))) as fleet,
        fleet.center() as center,
        LedgerEye(fleet.state.ledger) as eye,
    ):
        for _ in range(tasks):
            task_id, committed = add_task(center)
            _, at = announcements.next()
            took.append(at - committed)
            eye.when("SELECT state = 'closed' FROM runs WHERE task_id = ?", task_id)
            floor.append(floors.spawn(bare))
            time.sleep(random.uniform(0.02, 0.05))
    return took, floor


if __name__ == "__main__":
    main(measure)
