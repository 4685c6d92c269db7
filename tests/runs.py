"""Runs that were started by this process, or by one that died at once: as their watcher leaves them."""

import os
import subprocess
from dataclasses import replace
from typing import NoReturn

from operations_center.admission import Limits
from operations_center.clock import Clock
from operations_center.dispatch import Dispatcher, Started
from operations_center.identity import Process, read_stat
from operations_center.keeper.launch import LaunchedRun, LaunchPlan
from operations_center.keeper.processes import KernelProcesses
from operations_center.ledger import Admission
from operations_center.model import Run, RunState
from operations_center.wiring import Center
from tests.fleet import Fleet


def start_run(fleet: Fleet, center: Center, task_id: str) -> Started:
    """Admit, claim and launch; this process is the run's watcher, and has to reap what it has started."""
    backends = center.backends(os.environ | {"HOME": str(fleet.root)})
    task = center.board.task(task_id)
    assert task is not None
    started = Dispatcher(center.surroundings, center.config.roles["goal"], backends).dispatch(task)
    assert isinstance(started, Started), started
    return started


def run_of_a_dead_watcher(fleet: Fleet, task_id: str, *, recorded: bool = True) -> tuple[str, list[int]]:
    """The run's id, and the pids of its keeper and, if it has a limit, of its timer.

    ``recorded``: whether the watcher lived long enough to record the start.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _start_and_die(fleet, task_id, write_end, recorded)
        finally:
            os._exit(1)
    os.close(write_end)
    assert os.waitpid(pid, 0)[1] == 0
    with os.fdopen(read_end) as pipe:
        run_id, *pids = pipe.read().split()
    return run_id, [int(number) for number in pids]


def _start_and_die(fleet: Fleet, task_id: str, told: int, recorded: bool) -> None:
    def tell_and_die(run_id: str, children: list["subprocess.Popen[bytes]"]) -> NoReturn:
        os.write(told, " ".join([run_id, *(str(child.pid) for child in children)]).encode())
        os._exit(0)

    class DieWithTheStart(KernelProcesses):
        def start(self, plan: LaunchPlan) -> LaunchedRun:
            tell_and_die(plan.run_id, super().start(plan).children)

    with fleet.center() as center:
        started = start_run(fleet, center if recorded else replace(center, processes=DieWithTheStart()), task_id)
        tell_and_die(started.run.run_id, started.children)


def process_of(pid: int) -> Process:
    stat = read_stat(pid)
    assert stat is not None
    return Process(pid, stat.start_ticks)


def with_clock(center: Center, clock: Clock) -> Center:
    """The same center by another clock, the ledger's included."""
    center.store.clock = clock
    return replace(center, clock=clock, settlement=replace(center.settlement, clock=clock))


def admit(center: Center, task_id: str, watcher: Process) -> Run:
    """A run that somebody has admitted and claimed, whatever the cap."""
    admission = Admission(
        task_id, "goal", "agent", Limits(1_000_000), center.host, watcher, grace_ms=1_000, timeout_ms=None
    )
    run = center.ledger.admit(admission)
    assert isinstance(run, Run)
    assert center.board.claim(task_id, run.run_id)
    return run


def leave_run(center: Center, task_id: str, *, keeper: Process, watcher: Process, record: str = "") -> str:
    """What a start leaves in the ledger and in the run directory, without processes. ``record``: of its exit."""
    run = admit(center, task_id, watcher)
    directory = center.state.run(run.run_id)
    directory.mkdir()
    (directory / "gate").write_text(f"{keeper.pid} {keeper.start_ticks} end\n")
    (directory / "exit").write_text(f"{record:63}\n")
    assert center.ledger.change_run(
        run,
        "run.started",
        state=RunState.RUNNING,
        started_at=1,
        keeper_pid=keeper.pid,
        keeper_ticks=keeper.start_ticks,
    )
    return run.run_id


def dead_process() -> Process:
    """Who it was is known, and that it is gone."""
    process = subprocess.Popen(["/bin/sh", "-c", "read -r _"], stdin=subprocess.PIPE)
    known = process_of(process.pid)
    process.communicate(b"\n")
    return known
