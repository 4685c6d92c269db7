"""Admit, settle, close in a loop: throughput and fairness. Arguments: processes, cap, seconds.

Beside it three transactions of one insert each in bare SQLite behind the same turnstile, same sync mode.
"""

import multiprocessing
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from operations_center.admission import Limits
from operations_center.clock import SystemClock
from operations_center.identity import Process, identify_host
from operations_center.ledger import Admission
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.model import Outcome, Run, RunState
from operations_center.store import Store
from operations_center.store.turnstile import Turnstile

Counts = "multiprocessing.Queue[tuple[int, int]]"


def main(processes: int, cap: int, seconds: float) -> None:
    for name, body in (("ours", cycle_ledger), ("bare", cycle_bare)):
        with tempfile.TemporaryDirectory(prefix="oc bench ") as directory:
            report(name, measure(Path(directory), body, processes, cap, seconds), seconds)


def measure(
    directory: Path, body: Callable[..., None], processes: int, cap: int, seconds: float
) -> list[tuple[int, int]]:
    Store(directory / "ledger.db", SystemClock()).close()
    answers: Counts = multiprocessing.Queue()
    workers = [
        multiprocessing.Process(target=body, args=(directory, number, cap, seconds, answers))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    counts = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    return counts


def report(name: str, counts: list[tuple[int, int]], seconds: float) -> None:
    cycles = [count for count, _ in counts]
    mean = sum(cycles) / len(cycles)
    print(
        f"{name}: {sum(cycles) / seconds:7.0f} cycles/s, slowest / mean {min(cycles) / mean:.2f}, "
        f"most slots held at once {max(most for _, most in counts)}"
    )


def cycle_ledger(directory: Path, number: int, cap: int, seconds: float, answers: Counts) -> None:
    ledger = SqliteLedger(Store(directory / "ledger.db", SystemClock()))
    host, me = identify_host(directory), Process.current()
    done = most = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run = ledger.admit(Admission(f"t{number}-{done}", "goal", "agent", Limits(cap), host, me, 1000, None))
        if not isinstance(run, Run):
            continue
        most = max(most, ledger.slots_held()["agent"])
        settled = ledger.change_run(
            run, "run.settled", state=RunState.SETTLING, outcome=Outcome.SUCCEEDED, settled_at=1
        )
        assert settled is not None
        ledger.change_run(settled, "run.closed", state=RunState.CLOSED, closed_at=1)
        done += 1
    answers.put((done, most))


def cycle_bare(directory: Path, _number: int, _cap: int, seconds: float, answers: Counts) -> None:
    connection = sqlite3.connect(directory / "ledger.db", isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    turnstile = Turnstile(directory / "ledger.db")
    done = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(3):
            turnstile.enter(10)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO events (at, kind, data) VALUES (0, 'bare', '{}')")
            connection.execute("COMMIT")
            turnstile.leave()
        done += 1
    answers.put((done, 0))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
