"""Supervisor, fork server and watchers, each killed at each of its steps while a fleet starts, heals and stops.

A step is every call of and return from a function of some modules: the list is made by running. The suite takes
one point of each part of the list; all of them with ``OPERATIONS_CENTER_TEST_EVERY_POINT=1``.
"""

import logging
import mmap
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from operations_center import cli, titles
from operations_center.identity import is_alive
from operations_center.locks import lock_holder
from operations_center.pulse import read_pulse
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from tests.fleet import PATIENCE_S, Fleet, catches, kill_if_there, wait_until

CONFIG = """
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["{python}", "-I", "-S", "witness.py", "go"]
working_directory = "."
max_concurrent = 1
[watchdog]
every = "500ms"
"""
MEMBERS = ("goal", WATCHDOG)

VICTIMS = {
    "supervisor": ("supervisor", "supervisor.spawner", "supervisor.image", "supervisor.child", "forking", "cli.up"),
    "fork server": ("forking", "supervisor.fork_server"),
    "watcher": ("supervisor.fork_server", "watcher", "in_flight_reconcile", "waiting", "heart"),
}
"""Who dies, and the modules of the package whose calls and returns are its steps."""

LEAST_STEPS = {"supervisor": 300, "fork server": 15, "watcher": 60}
PARTS = 10


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    fleet.configure(CONFIG.format(python=sys.executable))
    return fleet


class Life:
    """An ``up`` in a forked process, in which one victim is killed when it comes to a step, once."""

    def __init__(self, fleet: Fleet, victim: str, step: int, modules: Collection[str] = ()) -> None:
        self.fleet = fleet
        self._victim, self._step = victim, step
        self._modules = modules or VICTIMS[victim]
        self._told = mmap.mmap(-1, 8)
        self.pid = os.fork()
        self._status: int | None = None
        if self.pid == 0:
            try:
                os.chdir(fleet.root)
                os.environ.update(fleet.environment)
                # Those of the test runner: their files are not open here.
                logging.root.handlers.clear()
                sys.setprofile(self._count)
                os._exit(cli.run(["up", "--detached", "--config", str(fleet.root / "operations_center.toml")]))
            finally:
                os._exit(70)

    @property
    def has_struck(self) -> bool:
        return self._told[0] == 1

    @property
    def steps(self) -> int:
        """As many as were counted, of the victim that counted most."""
        return int.from_bytes(self._told[1:8], "little")

    @property
    def exit_code(self) -> int | None:
        """Of the supervisor; None while it lives."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return None if self._status is None else os.waitstatus_to_exitcode(self._status)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        wait_until(lambda: self.exit_code is not None, "it has ended")

    def _count(self, frame: FrameType, event: str, _argument: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if event not in ("call", "return") or not module.startswith("operations_center."):
            return
        if who() == self._victim and module.removeprefix("operations_center.") in self._modules:
            counts[os.getpid()] += 1
            self._told[1:8] = max(self.steps, counts[os.getpid()]).to_bytes(7, "little")
            if counts[os.getpid()] == self._step and not self.has_struck:
                self._told[0] = 1
                os.kill(os.getpid(), signal.SIGKILL)


counts: Counter[int] = Counter()
"""Steps by process; a forked process begins with none of its own."""


def who() -> str:
    """By the generations since the test: supervisor, fork server, watcher."""
    return roles.setdefault(os.getpid(), next_role[roles.get(os.getppid(), "test")])


next_role = {"test": "supervisor", "supervisor": "fork server", "fork server": "watcher", "watcher": "watcher"}
roles = {os.getpid(): "test"}


def begin_anew() -> None:
    """This process is a test, whatever it was forked from."""
    roles.clear()
    roles[os.getpid()] = "test"


def live(fleet: Fleet, victim: str, step: int) -> Life:
    """Start, lose a watcher, get it back, run a task to its end, stop; whoever is killed, by the next ``up``."""
    begin_anew()
    life = Life(fleet, victim, step)
    wait_until(lambda: life.exit_code is not None or is_up(life), "it is up or dead")
    if life.exit_code is None:
        before = fleet.pulse("goal")
        # It may have come to its step just now.
        kill_if_there(before.pid)
        wait_until(
            lambda: life.exit_code is not None or (is_up(life) and fleet.pulse("goal").pid != before.pid),
            "the watcher is back, or the supervisor is dead",
        )
    if life.exit_code is None:
        life.end()
    return life


def is_up(life: Life) -> bool:
    pulse = read_pulse(life.fleet.state.pulse(SUPERVISOR))
    if pulse is None or pulse.pid != life.pid or pulse.state != "up":
        return False
    members = [read_pulse(life.fleet.state.pulse(name)) for name in MEMBERS]
    return all(member is not None and member.state == "ready" and is_alive(member.process) for member in members)


def members_alive(fleet: Fleet) -> Counter[str]:
    """Processes of this fleet by their title."""
    found: Counter[str] = Counter()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
            is_ours = (process / "cwd").samefile(fleet.root)
        except OSError:
            continue
        if is_ours and title in (titles.WATCHER, titles.WATCHDOG):
            found[title] += 1
    return found


def assert_the_next_fleet_is_whole(fleet: Fleet) -> None:
    before = len(fleet.witnessed("begin"))
    (fleet.root / "go").unlink(missing_ok=True)
    fleet.add(1, "goal")
    supervisor = fleet.up()
    whole = {titles.WATCHER: len(MEMBERS) - 1, titles.WATCHDOG: 1}
    wait_until(lambda: members_alive(fleet) == whole, "each role has one watcher")
    assert lock_holder(fleet.state.supervisor_lock) == supervisor.pid
    wait_until(lambda: len(fleet.witnessed("begin")) > before, "the executor runs")
    fleet.let_go()
    wait_until(lambda: {task["state"] for task in fleet.json("task", "list")["tasks"]} == {"done"}, "the task is done")
    assert len(fleet.witnessed("begin")) == len(fleet.witnessed("end")) == before + 1
    fleet.run("down")
    assert members_alive(fleet) == {}
    assert supervisor.wait(PATIENCE_S) == 0
    assert fleet.broken_promises() == []


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, int]:
    """How many each victim has, counted in a life in which nobody is killed at a step."""
    found = {}
    for victim in VICTIMS:
        fleet = Fleet(tmp_path_factory.mktemp("counted"))
        fleet.configure(CONFIG.format(python=sys.executable))
        life = live(fleet, victim, step=0)
        assert (life.exit_code, life.has_struck) == (0, False)
        found[victim] = life.steps
        fleet.clean_up()
    return found


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("victim", VICTIMS)
def test_whoever_is_killed_at_any_step_the_next_fleet_is_whole(
    fleet: Fleet, steps: Mapping[str, int], victim: str, part: int
) -> None:
    assert steps[victim] >= LEAST_STEPS[victim]
    for step in steps_of_part(steps[victim], part):
        life = live(fleet, victim, step)
        assert life.has_struck or step > life.steps, f"{victim} was not killed at step {step}"
        assert (life.exit_code == -signal.SIGKILL) == (victim == "supervisor" and life.has_struck)
        assert_the_next_fleet_is_whole(fleet)


def steps_of_part(count: int, part: int) -> Sequence[int]:
    """All steps of one part of the list; a single one of them, unless all are wanted."""
    mine = range(1 + part, count + 1, PARTS)
    if os.environ.get("OPERATIONS_CENTER_TEST_EVERY_POINT") == "1":
        return mine
    return [mine[part * len(mine) // PARTS]]


@pytest.mark.parametrize("wait_ms", [0, 1, 2, 5, 10, 20, 50, 100, 150, 200])
def test_a_supervisor_that_is_killed_while_it_executes_itself_is_followed_by_a_whole_fleet(
    fleet: Fleet, wait_ms: int
) -> None:
    supervisor = fleet.up()
    supervisor.send_signal(signal.SIGUSR2)
    wait_until(lambda: not catches(supervisor.pid, signal.SIGUSR2), "the next image")
    time.sleep(wait_ms / 1000)
    supervisor.kill()
    supervisor.wait()
    assert_the_next_fleet_is_whole(fleet)
