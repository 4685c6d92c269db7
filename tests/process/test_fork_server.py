"""The fork server: watchers come from it, and outlive it."""

import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from operations_center import titles
from operations_center.identity import Process, is_alive, read_stat
from operations_center.locks import lock_holder
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from tests.fleet import PATIENCE_S, Fleet, kill_if_there, wait_until

CONFIG = """
[roles.goal]
backend = "agent"
concurrency = 2
[roles.test]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["{python}", "witness.py", "go"]
working_directory = "."
max_concurrent = 2
[watchdog]
every = "500ms"
"""
MEMBERS = ("goal", "test", WATCHDOG)


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    fleet.configure(CONFIG.format(python=sys.executable))
    return fleet


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in tasks.split()]


def fork_server_of(supervisor: int) -> int:
    (pid,) = children_of(supervisor)
    return pid


def watchers(fleet: Fleet) -> dict[str, Process]:
    return {name: fleet.pulse(name).process for name in MEMBERS}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def wait_for_another(fleet: Fleet, name: str, before: Process) -> Process:
    def look() -> Process | None:
        pulse = fleet.pulse(name)
        return pulse.process if pulse.process != before and pulse.state == "ready" else None

    another: Process = wait_until(look, f"another {name}")
    return another


def begun(fleet: Fleet) -> int:
    return len(fleet.witnessed("begin"))


def test_watchers_and_watchdog_are_children_of_the_fork_server_and_inherit_nothing(fleet: Fleet) -> None:
    server = fork_server_of(fleet.up().pid)

    assert set(children_of(server)) == {process.pid for process in watchers(fleet).values()}
    for name, process in watchers(fleet).items():
        opened = {os.readlink(file) for file in Path(f"/proc/{process.pid}/fd").iterdir()}
        assert str(fleet.state.supervisor_lock) not in opened
        assert not [path for path in opened if path.startswith("socket:")]
        stat = read_stat(process.pid)
        assert stat is not None
        assert stat.session == process.pid, f"{name} has no session of its own"
        title = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").decode()
        assert title == (titles.WATCHDOG if name == WATCHDOG else titles.WATCHER)
        assert f"HOME={fleet.root}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")


def test_a_killed_fork_server_leaves_its_watchers_and_the_next_one_serves(fleet: Fleet) -> None:
    supervisor = fleet.up()
    server, before = fork_server_of(supervisor.pid), watchers(fleet)

    kill(server)
    wait_until(lambda: children_of(supervisor.pid) not in ([], [server]), "another fork server")
    kill(before["goal"].pid)
    after = wait_for_another(fleet, "goal", before["goal"])

    assert children_of(fork_server_of(supervisor.pid)) == [after.pid]
    assert [watchers(fleet)[name] for name in ("test", WATCHDOG)] == [before[name] for name in ("test", WATCHDOG)]


def test_a_watcher_comes_back_when_it_is_killed_together_with_the_fork_server(fleet: Fleet) -> None:
    supervisor = fleet.up()
    for _ in range(5):
        before = fleet.pulse("goal").process
        kill(fork_server_of(supervisor.pid))
        kill(before.pid)
        wait_for_another(fleet, "goal", before)
    assert lock_holder(fleet.state.watcher_lock("goal")) == fleet.pulse("goal").pid


def test_a_stopped_fork_server_is_replaced_when_a_watcher_is_wanted(fleet: Fleet) -> None:
    supervisor = fleet.up()
    server, before = fork_server_of(supervisor.pid), fleet.pulse("goal").process

    os.kill(server, signal.SIGSTOP)
    kill(before.pid)
    wait_for_another(fleet, "goal", before)

    assert fork_server_of(supervisor.pid) != server


def test_a_fork_server_is_not_replaced_for_a_silence_in_which_the_supervisor_stood_still_too(fleet: Fleet) -> None:
    supervisor = fleet.up()
    server, before = fork_server_of(supervisor.pid), fleet.pulse("goal").process

    for pid in (server, before.pid):
        os.kill(pid, signal.SIGSTOP)
    kill(before.pid)
    wait_until(lambda: not is_alive(before), "it is dead")
    wait_until(lambda: told_of_goal(fleet) == "starting", "another is asked for")
    os.kill(supervisor.pid, signal.SIGSTOP)
    signal.sigtimedwait([], 5)
    os.kill(supervisor.pid, signal.SIGCONT)
    signal.sigtimedwait([], 0.3)
    kill_if_there(server, signal.SIGCONT)
    wait_for_another(fleet, "goal", before)

    assert fork_server_of(supervisor.pid) == server


def told_of_goal(fleet: Fleet) -> str:
    """Its state in the supervisor's own words."""
    children = {child["name"]: child for child in fleet.pulse(SUPERVISOR).details["children"]}
    return str(children["goal"]["state"])


def test_a_supervisor_ends_well_when_its_fork_server_has_not_answered(fleet: Fleet) -> None:
    supervisor = fleet.up()
    server, before = fork_server_of(supervisor.pid), fleet.pulse("goal").process
    os.kill(server, signal.SIGSTOP)
    kill(before.pid)
    wait_until(lambda: told_of_goal(fleet) == "starting", "another is asked for")
    supervisor.terminate()
    assert supervisor.wait(PATIENCE_S) == 0


def test_a_watcher_that_stood_still_with_its_supervisor_is_not_killed_when_the_fleet_ends(fleet: Fleet) -> None:
    supervisor = fleet.up()
    goal = fleet.pulse("goal").process
    os.kill(goal.pid, signal.SIGSTOP)
    supervisor.terminate()
    wait_until(lambda: not is_alive(fleet.pulse("test").process), "its watchers are told to end")

    os.kill(supervisor.pid, signal.SIGSTOP)
    # Longer than a watcher may take to end.
    signal.sigtimedwait([], 6)
    os.kill(supervisor.pid, signal.SIGCONT)
    signal.sigtimedwait([], 0.3)
    kill_if_there(goal.pid, signal.SIGCONT)

    assert supervisor.wait(PATIENCE_S) == 0
    assert fleet.pulse("goal").state == "stopping"


def test_the_exit_code_of_a_watcher_is_known_and_no_zombie_stays(fleet: Fleet) -> None:
    supervisor = fleet.up()
    before = fleet.pulse("goal").process
    kill(before.pid)
    after = wait_for_another(fleet, "goal", before)

    def end() -> dict[str, object] | None:
        events = fleet.json("events")["events"]
        return next((event["data"] for event in events if event["kind"] == "watcher.ended"), None)

    told = wait_until(end, "the end is noted")
    assert (told["pid"], told["exit_code"]) == (before.pid, -signal.SIGKILL)
    assert after.pid in children_of(fork_server_of(supervisor.pid))
    wait_until(lambda: read_stat(before.pid) is None, "the dead watcher is reaped")


def test_the_fork_server_of_a_killed_supervisor_ends_and_the_watchers_go_on(fleet: Fleet) -> None:
    supervisor = fleet.up()
    server, before = Process.of(fork_server_of(supervisor.pid)), watchers(fleet)
    supervisor.kill()
    supervisor.wait()

    wait_until(lambda: not is_alive(server), "the fork server ends")
    fleet.up()

    assert watchers(fleet) == before


def test_no_watcher_stays_when_the_supervisor_is_told_to_stop_while_it_starts_them(fleet: Fleet) -> None:
    for _ in range(10):
        supervisor = fleet.popen("up")
        wait_until(
            lambda supervisor=supervisor: lock_holder(fleet.state.supervisor_lock) == supervisor.pid, "it starts"
        )
        supervisor.terminate()
        assert supervisor.wait(PATIENCE_S) in (0, -signal.SIGTERM)
        assert [lock_holder(fleet.state.watcher_lock(name)) for name in MEMBERS] == [None] * 3


# Another image of the supervisor


def test_a_restart_renews_every_process_and_interrupts_no_executor(fleet: Fleet) -> None:
    supervisor = fleet.up()
    fleet.add(2, "goal")
    wait_until(lambda: begun(fleet) == 2, "both executors run")
    server, before = fork_server_of(supervisor.pid), watchers(fleet)

    done = fleet.json("restart")

    assert {each["role"] for each in done["restarted"]} == set(MEMBERS)
    assert supervisor.poll() is None
    assert lock_holder(fleet.state.supervisor_lock) == supervisor.pid
    assert fork_server_of(supervisor.pid) != server
    assert not set(watchers(fleet).values()) & set(before.values())
    fleet.let_go()
    wait_until(lambda: len(fleet.witnessed("end")) == 2, "both executors end")
    assert begun(fleet) == 2


def test_a_supervisor_that_executes_itself_anew_keeps_lock_and_watchers(fleet: Fleet) -> None:
    supervisor = fleet.up()
    before = watchers(fleet)
    for _ in range(3):
        started = fleet.pulse(SUPERVISOR).started_at
        supervisor.send_signal(signal.SIGUSR2)
        wait_until(lambda started=started: fleet.pulse(SUPERVISOR).started_at != started, "the next image")
        assert lock_holder(fleet.state.supervisor_lock) == supervisor.pid
        fleet.run("up", expect=75)
        wait_until(lambda: fleet.is_up(supervisor), "the fleet is up")
    assert watchers(fleet) == before


def test_what_an_image_has_to_tell_is_not_lost_with_it_where_the_ledger_is_busy_for_a_moment(fleet: Fleet) -> None:
    supervisor = fleet.up()
    started = fleet.pulse(SUPERVISOR).started_at
    with closing(sqlite3.connect(fleet.state.ledger, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        supervisor.send_signal(signal.SIGUSR2)
        # Longer than a fleet that starts waits for the ledger, counted from the check of the next image.
        signal.sigtimedwait([], 2)
    wait_until(lambda: fleet.pulse(SUPERVISOR).started_at != started, "the next image")
    assert "supervisor.re_executed" in fleet.run("events").stdout


def test_a_stop_that_comes_while_it_executes_itself_is_not_lost(fleet: Fleet) -> None:
    supervisor = fleet.up()
    supervisor.send_signal(signal.SIGUSR2)
    wait_until(lambda: "supervisor.re_executed" in fleet.run("events").stdout, "it is about to")
    supervisor.terminate()

    assert supervisor.wait(PATIENCE_S) == 0
    assert [lock_holder(fleet.state.watcher_lock(name)) for name in MEMBERS] == [None] * 3
    assert fleet.pulse(SUPERVISOR).state == "stopped"


def test_a_restart_with_a_broken_configuration_is_refused_and_everything_goes_on(fleet: Fleet) -> None:
    supervisor = fleet.up()
    server, before = fork_server_of(supervisor.pid), watchers(fleet)
    config = fleet.root / "operations_center.toml"
    right = config.read_text()
    config.write_text("[roles.goal\n")
    supervisor.send_signal(signal.SIGUSR2)
    wait_until(lambda: "re_execution_refused" in ledger_events(fleet, right), "the refusal is noted")

    assert supervisor.poll() is None
    assert fork_server_of(supervisor.pid) == server
    assert watchers(fleet) == before


def ledger_events(fleet: Fleet, config: str) -> str:
    """The present configuration cannot be read, so the right one is used."""
    other = fleet.root / "right.toml"
    other.write_text(config)
    return fleet.run("events", "--config", str(other)).stdout
