"""The whole fleet, on real processes: it does its work, and outlives whatever is killed."""

import os
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from operations_center.clock import SystemClock
from operations_center.identity import Process, is_alive
from operations_center.locks import is_locked, lock_within
from operations_center.pulse import read_pulse
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from tests.fleet import PATIENCE_S, Fleet, kill_if_there, wait_until

CONFIG = """
[roles.goal]
backend = "agent"
concurrency = 4
retry_backoff = {{ initial = "100ms" }}
[roles.test]
backend = "agent"
concurrency = 4
retry_backoff = {{ initial = "100ms" }}
[backends.agent]
kind = "command"
argv = ["{python}", "witness.py", "{seconds}"]
working_directory = "."
max_concurrent = 2
grace = "1s"
[watchdog]
every = "500ms"
"""


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    configure(fleet, seconds=0.4)
    return fleet


def configure(fleet: Fleet, seconds: float | str) -> None:
    fleet.configure(CONFIG.format(python=sys.executable, seconds=seconds))


def states(fleet: Fleet) -> Counter[str]:
    return Counter(task["state"] for task in fleet.json("task", "list")["tasks"])


def adopted(fleet: Fleet) -> set[str]:
    return {event["run_id"] for event in fleet_events(fleet) if event["kind"] == "run.adopted"}


def begun(fleet: Fleet) -> Counter[str]:
    return Counter(each.task_id for each in fleet.witnessed("begin"))


def running(fleet: Fleet, count: int) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]]:
        runs = fleet.json("runs", "--open")["runs"]
        return [run for run in runs if run["state"] == "running"] if len(fleet.witnessed("begin")) >= count else []

    wait_until(lambda: len(look()) == count, f"{count} runs are running")
    return look()


def test_twenty_four_tasks_of_two_roles_run_once_each_and_never_more_than_two_at_once(fleet: Fleet) -> None:
    ids = fleet.add(12, "goal") + fleet.add(12, "test")

    fleet.run("up", "--exit-when-idle")

    assert states(fleet) == {"done": 24}
    assert begun(fleet) == dict.fromkeys(ids, 1)
    assert fleet.most_at_once() == 2
    assert not fleet.broken_promises()


def test_executors_of_a_killed_watcher_go_on_and_are_adopted(fleet: Fleet) -> None:
    configure(fleet, seconds="go")
    fleet.add(2, "goal")
    fleet.up()
    runs = running(fleet, 2)

    before = fleet.pulse("goal")
    os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: fleet.pulse("goal").pid != before.pid, "another watcher")
    wait_until(lambda: adopted(fleet) == {run["run_id"] for run in runs}, "both runs are adopted")
    fleet.let_go()
    wait_until(lambda: states(fleet) == {"done": 2}, "both tasks are done")

    assert len(fleet.witnessed("begin")) == len(fleet.witnessed("end")) == 2
    assert not fleet.broken_promises()


def test_a_killed_supervisor_leaves_its_watchers_and_the_next_one_goes_on_with_them(fleet: Fleet) -> None:
    configure(fleet, seconds="go")
    fleet.add(2, "goal")
    supervisor = fleet.up()
    running(fleet, 2)
    before = {name: fleet.pulse(name).pid for name in ("goal", "test", WATCHDOG)}

    supervisor.kill()
    supervisor.wait()
    assert fleet.json("status", expect=3)["state"] == "stopped"
    fleet.up()

    assert {name: fleet.pulse(name).pid for name in before} == before
    fleet.let_go()
    wait_until(lambda: states(fleet) == {"done": 2}, "both tasks are done")
    assert len(fleet.witnessed("begin")) == 2
    assert not fleet.broken_promises()


def test_everything_killed_at_once_comes_back_and_every_task_is_done(fleet: Fleet) -> None:
    configure(fleet, seconds="go")
    fleet.add(3, "goal")
    fleet.add(3, "test")
    supervisor = fleet.up()
    runs = running(fleet, 2)
    victims = [supervisor.pid, *(fleet.pulse(name).pid for name in ("goal", "test", WATCHDOG))]
    for pid in [*victims, *(int(str(run["keeper_pid"])) for run in runs)]:
        os.kill(pid, signal.SIGKILL)
    supervisor.wait()
    fleet.let_go()

    fleet.run("up", "--exit-when-idle")

    assert states(fleet) == {"done": 6}
    assert fleet.most_at_once() <= 4  # the two that were killed witnessed no end
    assert not fleet.broken_promises()


def test_an_executor_that_is_killed_gives_its_slot_back_and_its_task_runs_again(fleet: Fleet) -> None:
    configure(fleet, seconds="go")
    fleet.add(1, "goal")
    fleet.up()
    (run,) = running(fleet, 1)
    children = wait_until(lambda: executor_pids(int(str(run["keeper_pid"]))), "the executor")

    os.kill(children[0], signal.SIGKILL)
    wait_until(lambda: len(fleet.witnessed("begin")) == 2, "the second attempt")
    fleet.let_go()

    wait_until(lambda: states(fleet) == {"done": 1}, "the task is done")
    first, second = sorted(fleet.json("runs")["runs"], key=lambda run: run["fence"])
    assert (first["outcome"], first["proof"], first["exit_code"]) == ("killed", "exit_recorded", 137)
    assert (second["outcome"], second["attempt"]) == ("succeeded", 2)


def executor_pids(keeper: int) -> list[int]:
    with open(f"/proc/{keeper}/task/{keeper}/children") as file:
        return [int(word) for word in file.read().split()]


def fleet_events(fleet: Fleet) -> Any:
    return fleet.json("events")["events"]


def test_a_watcher_that_is_told_to_stop_ends_before_its_runs_and_leaves_them(fleet: Fleet) -> None:
    configure(fleet, seconds="go")
    fleet.add(2, "goal")
    fleet.up()
    runs = running(fleet, 2)
    before = fleet.pulse("goal")

    os.kill(before.pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(before.process), "the watcher ends")

    assert all(is_alive(keeper(run)) for run in runs)
    fleet.let_go()
    wait_until(lambda: states(fleet) == {"done": 2}, "both tasks are done")
    assert len(fleet.witnessed("begin")) == 2


def keeper(run: dict[str, object]) -> Process:
    pid = int(str(run["keeper_pid"]))
    with open(f"/proc/{pid}/stat") as file:
        return Process(pid, int(file.read().rpartition(")")[2].split()[19]))


def test_a_stopped_watcher_is_replaced_and_its_runs_are_not_touched(fleet: Fleet) -> None:
    fleet.configure(CONFIG.format(python=sys.executable, seconds="go") + 'stalled_after = "5s"\n')
    fleet.add(2, "goal")
    fleet.up()
    running(fleet, 2)
    before = fleet.pulse("goal")

    os.kill(before.pid, signal.SIGSTOP)

    wait_until(lambda: fleet.pulse("goal").pid != before.pid, "another watcher")
    fleet.let_go()
    wait_until(lambda: states(fleet) == {"done": 2}, "both tasks are done")
    assert len(fleet.witnessed("begin")) == len(fleet.witnessed("end")) == 2
    # Whoever ends it tells of it afterwards.
    wait_until(lambda: "watcher.stalled" in {event["kind"] for event in fleet_events(fleet)}, "the note of it")


def test_a_stopped_watchdog_is_replaced_by_the_supervisor(fleet: Fleet) -> None:
    fleet.configure(CONFIG.format(python=sys.executable, seconds=1) + 'stalled_after = "5s"\n')
    fleet.up()
    before = fleet.pulse(WATCHDOG)

    os.kill(before.pid, signal.SIGSTOP)

    wait_until(lambda: fleet.pulse(WATCHDOG).pid != before.pid, "another watchdog")


@pytest.mark.parametrize("first", [SUPERVISOR, WATCHDOG])
def test_nobody_is_replaced_who_stood_still_with_the_whole_fleet(fleet: Fleet, first: str) -> None:
    fleet.configure(CONFIG.format(python=sys.executable, seconds=1) + 'stalled_after = "10s"\n')
    fleet.up()
    before = {name: fleet.pulse(name) for name in (SUPERVISOR, WATCHDOG, "goal", "test")}
    for pulse in before.values():
        os.kill(pulse.pid, signal.SIGSTOP)
    signal.sigtimedwait([], 12)

    os.kill(before[first].pid, signal.SIGCONT)
    # Longer than a turn of either, and much shorter than `stalled_after`: the others have to be heard of by then.
    signal.sigtimedwait([], 3)
    for pulse in before.values():
        kill_if_there(pulse.pid, signal.SIGCONT)

    all_go_on_at = SystemClock().now().monotonic
    wait_until(lambda: all(fleet.pulse(name).heartbeat_mono > all_go_on_at for name in before), "all have beaten")
    assert {name: fleet.pulse(name).pid for name in before} == {name: pulse.pid for name, pulse in before.items()}
    assert "watcher.stalled" not in {event["kind"] for event in fleet_events(fleet)}


def test_terminating_the_supervisor_leaves_executors_and_a_second_term_ends_them(fleet: Fleet) -> None:
    configure(fleet, seconds="go")
    fleet.add(2, "goal")
    supervisor = fleet.up()
    runs = running(fleet, 2)

    supervisor.terminate()
    assert supervisor.wait(PATIENCE_S) == 0
    assert all(is_alive(keeper(run)) for run in runs)

    supervisor = fleet.up()
    watcher = fleet.pulse("goal").pid
    os.kill(watcher, signal.SIGSTOP)  # else the supervisor might be gone before it is asked again
    supervisor.terminate()
    wait_until(lambda: "stopping" in pulse_state(fleet), "it stops")
    supervisor.terminate()
    kill_if_there(watcher, signal.SIGCONT)
    assert supervisor.wait(PATIENCE_S) == 0
    assert states(fleet) == {"ready": 2}
    assert not fleet.json("runs", "--open")["runs"]
    assert not fleet.broken_promises()


def pulse_state(fleet: Fleet) -> str:
    pulse = read_pulse(fleet.state.pulse(SUPERVISOR))
    return pulse.state if pulse else ""


def test_a_fleet_in_the_background_is_not_started_twice_and_its_log_says_nothing_of_the_second(fleet: Fleet) -> None:
    fleet.run("up", "--detach")
    told = fleet.state.log("@supervisor").read_text()
    refused = fleet.run("up", "--detach", expect=75)
    pid = fleet.json("status")["supervisor"]["pid"]
    assert refused.stderr.startswith(f"cannot start the supervisor: process {pid} (oc-sup) already runs it")
    assert "cannot" not in fleet.state.log("@supervisor").read_text().removeprefix(told)
    fleet.run("down")


def test_what_keeps_a_fleet_in_the_background_from_starting_is_told_to_who_starts_it(fleet: Fleet) -> None:
    fleet.state.create()
    fleet.state.supervisor_lock.mkdir()
    refused = fleet.run("up", "--detach", expect=1)
    assert f"{fleet.state.supervisor_lock} is something else and no file of ours; remove it" in refused.stderr


def test_a_supervisor_that_is_killed_in_the_background_before_all_are_ready_is_not_called_started(fleet: Fleet) -> None:
    fleet.state.create()
    # No watcher is ready as long as it waits for its turn to reconcile.
    with lock_within(fleet.state.startup_lock, PATIENCE_S):
        caller = fleet.popen("up", "--detach")
        wait_until(lambda: pulse_state(fleet) == "starting", "the supervisor starts")
        os.kill(fleet.pulse(SUPERVISOR).pid, signal.SIGKILL)
        assert caller.wait(PATIENCE_S) == 1
    log = fleet.state.log(SUPERVISOR)
    told = f"cannot start the fleet: its supervisor ended before all were ready, see {log}\n"
    assert (fleet.root / "up.log").read_text() == told


def test_of_two_supervisors_started_at_once_exactly_one_runs_and_the_other_names_it(fleet: Fleet) -> None:
    for _ in range(5):
        first, second = fleet.popen("up"), fleet.popen("up")
        loser, winner = wait_until(
            lambda first=first, second=second: (
                (first, second) if first.poll() is not None else (second, first) if second.poll() is not None else None
            ),
            "one of them gives up",
        )
        assert loser.returncode == 75
        assert f"process {winner.pid} (oc-sup) already runs it" in (fleet.root / "up.log").read_text()
        wait_until(lambda winner=winner: fleet.is_up(winner), "the other one is up")
        winner.terminate()
        assert winner.wait(PATIENCE_S) == 0


def test_a_watcher_that_cannot_start_is_reported_as_failed_and_tried_again(fleet: Fleet) -> None:
    fleet.up()
    lock = fleet.state.watcher_lock("goal")
    before = fleet.pulse("goal")
    lock.unlink()
    stranger = subprocess.Popen(["flock", "--no-fork", str(lock), "cat"], stdin=subprocess.PIPE)
    wait_until(lambda: is_locked(lock), "the stranger's lock")
    kill_if_there(before.pid)  # it may have missed its lock already

    def state() -> str:
        children = fleet.pulse(SUPERVISOR).details["children"]
        return next(str(child["state"]) for child in children if child["name"] == "goal")

    wait_until(lambda: state() in ("backoff", "failed"), "the watcher backs off")
    wait_until(lambda: fleet.json("status")["state"] == "degraded", "everybody is told")
    stranger.communicate()
    wait_until(lambda: state() == "ready", "the watcher is ready again")


def test_a_terminal_that_closes_stops_the_fleet_and_leaves_its_executors(fleet: Fleet) -> None:
    configure(fleet, seconds="go")
    fleet.add(1, "goal")
    supervisor = fleet.up()
    (run,) = running(fleet, 1)

    supervisor.send_signal(signal.SIGHUP)
    supervisor.send_signal(signal.SIGHUP)

    assert supervisor.wait(PATIENCE_S) == 0
    assert is_alive(keeper(run))
    fleet.let_go()
    fleet.run("up", "--exit-when-idle")
    assert states(fleet) == {"done": 1}
