"""A watcher's start-up reconciliation with 1000 open runs whose trees are gone, and three others that start too."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from operations_center.admission import Limits
from operations_center.boards.local import NewTask
from operations_center.identity import Process
from operations_center.in_flight_reconcile import reconcile_in_flight_on_startup
from operations_center.ledger import Admission
from operations_center.model import Run, RunState
from tests.fleet import Fleet

RUNS = 1000
CONFIG = """
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["true"]
max_concurrent = 5000
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="oc bench ") as name:
        fleet = Fleet(Path(name))
        fleet.configure(CONFIG)
        fill(fleet)
        answers: multiprocessing.Queue[str] = multiprocessing.Queue()
        starters = [multiprocessing.Process(target=sweep, args=(fleet, answers)) for _ in range(4)]
        for starter in starters:
            starter.start()
        for _ in starters:
            print(answers.get())
        for starter in starters:
            starter.join()
        with fleet.center() as center:
            runs = center.ledger.recent_runs(task_id=None, backend=None, limit=RUNS)
            closed = sum(run.state is RunState.CLOSED and run.proof is not None for run in runs)
        print(f"{closed} of {RUNS} runs are closed, each with its proof")


def fill(fleet: Fleet) -> None:
    dead = dead_process()
    with fleet.center() as center:
        ids = center.board.add([NewTask(f"task {number}", "goal") for number in range(RUNS)])
        with center.ledger.transaction():
            for task_id in ids:
                run = center.ledger.admit(
                    Admission(task_id, "goal", "agent", Limits(RUNS), center.host, dead, 1000, None)
                )
                assert isinstance(run, Run)
                center.board.claim(task_id, run.run_id)
                center.ledger.change_run(
                    run, "run.started", state=RunState.RUNNING, keeper_pid=dead.pid, keeper_ticks=dead.start_ticks
                )
                directory = center.state.run(run.run_id)
                directory.mkdir()
                (directory / "exit").write_bytes(b" " * 63 + b"\n")
                (directory / "lock").touch()


def dead_process() -> Process:
    child = subprocess.Popen(["true"])
    child.wait()
    return Process(child.pid, 1)


def sweep(fleet: Fleet, answers: "multiprocessing.Queue[str]") -> None:
    with fleet.center() as center:
        begun = time.perf_counter()
        report = reconcile_in_flight_on_startup(center.surroundings, role="goal")
        took = (time.perf_counter() - begun) * 1000
        answers.put(f"process {os.getpid()}: {took:.0f} ms, {report.applied} freed, skipped {report.skipped}")


if __name__ == "__main__":
    main()
