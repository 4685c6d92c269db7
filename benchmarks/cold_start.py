"""Everything was killed → `up` → the first admission, with 1000 open runs whose trees are gone.

Supervisor, watchers, watchdog, keepers and executors are dead: their runs lie in the ledger and in their directories
as a kill leaves them (faked by records.py), and hold every slot of the backend. One task waits. The beginning is the
moment before the process `operations-center up` is started, the end is that the waiting task is in the ledger as a run,
which takes a slot that was freed; seen as in keeper_killed. Four roles share the runs. Beside it the same with no open
run, and a Python interpreter that imports what `up` and `watch` do, and ends.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Options, Row, main, milliseconds, summary
from benchmarks.fleets import LedgerEye, directory, now_ns
from benchmarks.idle_fleet import ROLES
from benchmarks.records import Keeper, add_open_runs, dead_process
from operations_center.boards.local import NewTask
from operations_center.model import Priority
from tests.fleet import Fleet

RUNS = 1000
TIMES = 5
TARGET_MS = 500.0


def measure(options: Options) -> list[Row]:
    times, runs = (1, 10) if options.quick else (TIMES, RUNS)
    full = summary(milliseconds([first_admission(runs) for _ in range(times)]))
    empty = summary(milliseconds([first_admission(0) for _ in range(times)]))
    imports = summary(milliseconds([import_everything() for _ in range(times)]))
    beside = {"with no open run": empty["p50"], "Python that only imports": imports["p50"]}
    what = f"up → first admission, {runs} open runs, median"
    return [Row(what, "ms", full["p50"], beside, TARGET_MS, spread=full)]


def first_admission(runs: int) -> int:
    """ns."""
    with directory() as root, stopped_fleet(root, runs) as fleet, LedgerEye(fleet.state.ledger) as eye:
        with fleet.center() as center:
            (task_id,) = center.board.add([NewTask("the one that waits", "goal", priority=Priority.URGENT)])
        begun = now_ns()
        fleet.popen("up")
        return eye.when("SELECT 1 FROM runs WHERE task_id = ?", task_id) - begun


@contextmanager
def stopped_fleet(root: Path, runs: int) -> Iterator[Fleet]:
    fleet = Fleet(root)
    roles = "".join(f'[roles.{role}]\nbackend = "agent"\n' for role in ROLES)
    backend = f'[backends.agent]\nkind = "command"\nargv = ["sleep", "1"]\nmax_concurrent = {max(runs, 1)}\n'
    fleet.configure(roles + backend)
    with fleet.center() as center:
        add_open_runs(center, ROLES, runs, dead_process(), [Keeper(dead_process())])
    try:
        yield fleet
    finally:
        fleet.run("down", "--now", expect=None)
        fleet.clean_up()


def import_everything() -> int:
    """ns."""
    begun = now_ns()
    subprocess.run(
        [sys.executable, "-P", "-c", "import operations_center.cli.up, operations_center.cli.watch"], check=True
    )
    return now_ns() - begun


if __name__ == "__main__":
    main(measure)
