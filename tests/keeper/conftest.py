"""Real runs in a directory with a space in its name; whatever they leave is ended, process by process."""

import os
import secrets
import select
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from operations_center.identity import Process
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import (
    ExitRecord,
    ProcessTable,
    Tree,
    TreeQuery,
    read_exit,
    tree_of,
)
from operations_center.keeper.launch import LaunchedRun, LaunchPlan, prepare, start
from operations_center.keeper.stop import kill, kill_keeper
from operations_center.pidfds import open_pidfd
from tests.fleet import PATIENCE_S, wait_until


def wait_for_end(process: Process) -> None:
    pidfd = open_pidfd(process)
    if pidfd is None:
        return
    try:
        assert select.select([pidfd], [], [], PATIENCE_S)[0], f"process {process.pid} does not end"
    finally:
        os.close(pidfd)


def is_gone(process: Process) -> bool:
    return not ProcessTable.scan(with_environments=False).is_alive(process)


@dataclass
class Bench:
    """Makes plans, starts them, and cleans up."""

    directory: Path
    cgroup_parent: Path | None = None
    plans: list[LaunchPlan] = field(default_factory=list)
    runs: list[LaunchedRun] = field(default_factory=list)

    def plan(self, *argv: str, **changes: object) -> LaunchPlan:
        run_id = f"run_{secrets.token_hex(6)}"
        plan = LaunchPlan(
            run_id=run_id,
            run_directory=self.directory / run_id,
            argv=argv,
            environment={"PATH": os.environ.get("PATH", os.defpath)},
            stdin=True,
            working_directory=None,
            prompt="Title\n\nBody",
            task_json=b"{}",
            timeout_ms=None,
            idle_timeout_ms=None,
            grace_ms=300,
            cgroup_parent=self.cgroup_parent,
        )
        plan = replace(plan, **changes)  # type: ignore[arg-type]
        self.plans.append(plan)
        return plan

    def start(self, plan: LaunchPlan) -> LaunchedRun:
        prepare(plan)
        run = start(plan)
        self.runs.append(run)
        return run

    def launch(self, *argv: str, **changes: object) -> tuple[LaunchPlan, LaunchedRun]:
        plan = self.plan(*argv, **changes)
        return plan, self.start(plan)

    def finish(self, *argv: str, **changes: object) -> LaunchPlan:
        """Start a run and wait for its keeper's end."""
        plan, run = self.launch(*argv, **changes)
        run.children[0].wait(timeout=PATIENCE_S)
        return plan

    def tree(self, plan: LaunchPlan, keeper: Process | None = None) -> Tree:
        return tree_of(ProcessTable.scan(), TreeQuery(plan.run_id, keeper, cgroup.of_run(plan.run_id, None)))

    def clean_up(self) -> None:
        # By keeper first: a daemon without an environment is found by nothing else.
        for run in self.runs:
            kill(tree_of(ProcessTable.scan(), TreeQuery("", run.keeper)))
        for plan in self.plans:
            kill(self.tree(plan))
        for run in self.runs:
            kill_keeper(run.keeper)
            for child in run.children:
                child.wait(timeout=PATIENCE_S)
        for plan in self.plans:
            path = cgroup.of_run(plan.run_id, None)
            if path is not None:
                kill(self.tree(plan))
                wait_until(partial(cgroup.remove, path), "an empty cgroup")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    directory = tmp_path / "runs with a space"
    directory.mkdir()
    bench = Bench(directory)
    try:
        yield bench
    finally:
        bench.clean_up()


@pytest.fixture
def cgroup_parent() -> Path:
    parent = cgroup.usable_cgroup_parent()
    if parent is None:
        pytest.skip("this machine offers no usable cgroup")
    return parent


@pytest.fixture(params=["without a cgroup", "with a cgroup"])
def bench_both_ways(request: pytest.FixtureRequest, bench: Bench) -> Bench:
    if request.param == "with a cgroup":
        bench.cgroup_parent = request.getfixturevalue("cgroup_parent")
    return bench


def exit_code(plan: LaunchPlan) -> int:
    record = read_exit(plan.run_directory)
    assert isinstance(record, ExitRecord), record
    return record.code


def output(plan: LaunchPlan, name: str = "stdout") -> str:
    return (plan.run_directory / name).read_text()


def python(code: str) -> tuple[str, ...]:
    """An executor in Python that starts fast."""
    return (sys.executable, "-I", "-S", "-c", code)


DAEMON = """
import os, sys, time
if os.fork():
    sys.exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.execve('/bin/sleep', ['sleep', '300'], {})
"""
"""Leaves a process behind that has a session of its own, no parent of the run and no environment."""

SIGNALS_THAT_END = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
