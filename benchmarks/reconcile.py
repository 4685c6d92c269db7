"""One reconciliation of 10,000 open runs: their trees alive, then gone; and both again with a million closed runs.

The runs are faked by records.py: rows, run directories, a hundred keepers that live and are then killed. Timed is
what `operations-center reconcile` calls, in a process that has opened the ledger: all evidence is gathered, every run
judged, and those that are gone are settled, told to the board and closed. Afterwards everything is put back; the median
of three. The floors do the bare reading (gate, exit, limit, lock and output of each run, and the process table: twice
where trees are gone, for one look is no proof) and the bare SQL in the fewest statements, in one synced transaction.
"""

import fcntl
import multiprocessing
import os
import sqlite3
import statistics
import time
from collections.abc import Callable

from benchmarks.figures import Options, Row, main
from benchmarks.fleets import directory
from benchmarks.records import add_closed_runs, add_open_runs, living_keepers, put_back
from operations_center.identity import Process
from operations_center.in_flight_reconcile import Trigger, Verdict, clear_orphaned_in_flight
from tests.fleet import Fleet

RUNS = 10_000
CLOSED = 1_000_000
TIMES = 3
TARGET_MS = 300.0
MOST_GROWTH = 1.2
CONFIG = """
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["true"]
max_concurrent = 20000
"""


def measure(options: Options) -> list[Row]:
    runs, closed = (50, 1000) if options.quick else (RUNS, CLOSED)
    with directory() as root:
        fleet = Fleet(root)
        fleet.configure(CONFIG)
        took = measure_all(fleet, runs, closed)
    rows = []
    for trees in ("alive", "gone"):
        ours, floor, grown = (took[f"{trees}, {what}"] for what in ("ours", "floor", "grown"))
        rows.append(Row(f"{runs:,} runs, trees {trees}", "ms", ours, {"bare reads and SQL": floor}, TARGET_MS))
        beside = {f"ms beside {closed:,} closed runs": grown}
        rows.append(Row(f"trees {trees}, growth", "×", grown / ours, beside, MOST_GROWTH))
    return rows


def measure_all(fleet: Fleet, runs: int, closed: int) -> dict[str, float]:
    """Median ms by what was measured."""
    took, small = {}, fleet.root / "small.db"
    with living_keepers(fleet.root / "keepers") as keepers:
        with fleet.center() as center:
            add_open_runs(center, ["goal"], runs, Process.current(), keepers)
            center.ledger.backup(small)
        took["alive, ours"] = median_of(fleet, lambda: reconcile(fleet, Verdict.KEEP, runs))
        took["alive, floor"] = median_of(fleet, lambda: read_everything(fleet, looks=1))
        with fleet.center() as center:
            add_closed_runs(center, closed)
        took["alive, grown"] = median_of(fleet, lambda: reconcile(fleet, Verdict.KEEP, runs))
    took["gone, grown"] = median_of(fleet, lambda: reconcile(fleet, Verdict.ORPHAN, runs))
    small.replace(fleet.state.ledger)
    took["gone, ours"] = median_of(fleet, lambda: reconcile(fleet, Verdict.ORPHAN, runs))
    took["gone, floor"] = median_of(fleet, lambda: free_everything(fleet))
    return took


def median_of(fleet: Fleet, look: Callable[[], float]) -> float:
    """ms; each look in a process of its own, and on the same ledger."""
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.SimpleQueue[float] = context.SimpleQueue()
    took = []
    for _ in range(TIMES):
        looker = context.Process(target=lambda: answers.put(look()))
        looker.start()
        looker.join()
        assert looker.exitcode == 0, "it failed, see above"
        took.append(answers.get())
        with fleet.center() as center:
            put_back(center)
    return statistics.median(took)


def reconcile(fleet: Fleet, expected: Verdict, runs: int) -> float:
    """ms."""
    with fleet.center() as center:
        begun = time.perf_counter()
        report = clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
        took = (time.perf_counter() - begun) * 1000
        assert report.as_json()["verdicts"][expected] == runs, report.summary
        assert report.applied == (runs if expected is Verdict.ORPHAN else 0), report.summary
    return took


def read_everything(fleet: Fleet, looks: int) -> float:
    """ms for the bare reads."""
    ledger = sqlite3.connect(fleet.state.ledger)
    begun = time.perf_counter()
    for (run_id,) in ledger.execute("SELECT run_id FROM runs WHERE state <> 'closed'").fetchall():
        run = f"{fleet.state.runs}/{run_id}"
        for name in ("gate", "exit", "timed_out"):
            read(f"{run}/{name}")
        try_lock(f"{run}/lock")
        os.access(f"{run}/stdout", os.F_OK)
    for _ in range(looks):
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            read(f"/proc/{pid}/stat")
            read(f"/proc/{pid}/environ")
    took = (time.perf_counter() - begun) * 1000
    ledger.close()
    return took


def free_everything(fleet: Fleet) -> float:
    """ms for the bare reads and the bare writes."""
    took = read_everything(fleet, looks=2)
    ledger = sqlite3.connect(fleet.state.ledger, isolation_level=None)
    ledger.execute("PRAGMA synchronous=FULL")
    begun = time.perf_counter()
    ledger.execute("BEGIN IMMEDIATE")
    for statement in _FREE:
        ledger.execute(statement)
    ledger.execute("COMMIT")
    took += (time.perf_counter() - begun) * 1000
    ledger.close()
    return took


def read(path: str) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(file, 4096)
    except OSError:
        return b""
    finally:
        os.close(file)


def try_lock(path: str) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    finally:
        os.close(file)


_FREE = (
    """UPDATE runs SET state = 'closed', outcome = 'lost', proof = 'process_gone', finish = '{}', holder = 2,
        settled_at = 1, settled_mono = 1, closed_at = 1 WHERE state = 'running'""",
    *(
        f"""INSERT INTO events (at, kind, run_id, task_id, data)
            SELECT 1, '{kind}', 'r' || number || '-facade', task_id, '{{}}' FROM tasks WHERE state = 'running'"""
        for kind in ("run.settled", "task.attempts", "run.closed", "task.finished")
    ),
    """INSERT INTO attempts (task_id, attempts, retries, not_before, since)
       SELECT task_id, 1, 0, 1, 1 FROM tasks WHERE state = 'running'""",
    "UPDATE tasks SET state = 'ready', claimed_by = NULL WHERE state = 'running'",
)


if __name__ == "__main__":
    main(measure)
