"""Commands that write, killed at each of their system calls: nothing lost, nothing half done, and done when repeated."""

import shutil
from importlib import import_module
from pathlib import Path

import pytest

from operations_center import cli
from operations_center.boards.local import NewTask
from operations_center.identity import Process
from operations_center.in_flight_reconcile import Trigger, clear_orphaned_in_flight
from operations_center.model import Outcome, Proof
from operations_center.outcomes import Ending
from tests.crash.test_sweep import admit, leave_run
from tests.fleet import Fleet, wait_until
from tests.syscalls import (
    EVERY_POINT,
    needs_strace,
)

pytestmark = [needs_strace, pytest.mark.timeout(1800 if EVERY_POINT else 120)]

for module in cli.COMMANDS.values():
    import_module(f"operations_center.cli.{module}")  # here, so that a forked command is not seen importing

CONFIG = """
[roles.goal]
backend = "agent"
poll_interval = "1h"
retry_backoff = { initial = "0s" }
[backends.agent]
kind = "command"
argv = ["sh", "-c", 'echo "$OPERATIONS_CENTER_RUN_ID" >>"$HOME/begun"; until [ -e "$HOME/go" ]; do sleep 0.01; done']
stdin = "none"
max_concurrent = 10
grace = "200ms"
"""
GONE = Process(2**22 + 1, 1)
"""A process that cannot be: pids end at 2**22 (proc_sys_kernel(5), pid_max)."""
CLOSED, DEAD, READY = 3, 2, 2


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were closed, runs whose processes are gone, one that is settled and not told of, tasks that are ready."""
    fleet = Fleet(tmp_path_factory.mktemp("template"))
    fleet.configure(CONFIG)
    with fleet.center() as center:
        ids = center.board.add([NewTask(f"task {number}", "goal") for number in range(CLOSED + DEAD + 1 + READY)])
        for task_id in ids[:CLOSED]:
            run_id = leave_run(center, task_id, keeper=GONE, watcher=GONE)
            (fleet.state.run(run_id) / "exit").write_text("exit 0 end".ljust(63) + "\n")
        clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
        for task_id in ids[CLOSED : CLOSED + DEAD]:
            leave_run(center, task_id, keeper=GONE, watcher=GONE)
        untold = admit(center, ids[CLOSED + DEAD], GONE)
        assert center.settlement.settle(untold, Ending(Outcome.FAILED, Proof.PROCESS_GONE, "for this test"), GONE)
    fleet.run("ledger", "backup", str(fleet.root / "backup.db"))
    return fleet.root


def copied(template: Path, fleet: Fleet) -> None:
    fleet.clean_up()
    shutil.rmtree(fleet.root)
    shutil.copytree(template, fleet.root)


def emptied(_template: Path, fleet: Fleet) -> None:
    fleet.clean_up()
    shutil.rmtree(fleet.root)
    fleet.root.mkdir()
    fleet.configure(CONFIG)


def with_a_damaged_ledger(template: Path, fleet: Fleet) -> None:
    copied(template, fleet)
    fleet.state.ledger.write_bytes(b"rubbish" * 1000)


def with_live_runs(template: Path, fleet: Fleet) -> None:
    """Two of the ready tasks run, and their watcher is dead."""
    copied(template, fleet)
    watcher = fleet.popen("watch", "--role", "goal")
    wait_until(lambda: begun(fleet) == READY, "the executors")
    watcher.kill()
    watcher.wait()


def begun(fleet: Fleet) -> int:
    path = fleet.root / "begun"
    return len(path.read_text().split()) if path.exists() else 0
