"""The state directory, or something in it, is taken away under a fleet whose executors run."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from operations_center.identity import is_alive
from operations_center.keeper.inspect import ProcessTable
from operations_center.pulse import Pulse
from tests.fleet import PATIENCE_S, Fleet, wait_until

CONFIG = """
[roles.goal]
backend = "agent"
concurrency = 2
retry_backoff = { initial = "0s" }
[roles.test]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["python3", "-S", "{release}/witness.py", "go"]
stdin = "none"
max_concurrent = 2
[watchdog]
every = "500ms"
"""

MEMBERS = ("@supervisor", "goal", "test", "@watchdog")


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[Fleet]:
    fleet.configure(CONFIG)
    yield fleet
    # Its directory may be gone, so the executors are let go instead of looked for.
    fleet.let_go()


class Lost:
    """A fleet with two executors that run, after something was taken away from it and its processes ended."""

    def __init__(self, fleet: Fleet, take_away: Callable[[Path], object]) -> None:
        fleet.add(3, "goal")
        supervisor = fleet.up()
        wait_until(lambda: len(fleet.witnessed("begin")) == 2, "two executors")
        wait_until(lambda: [run["state"] for run in fleet.json("runs", "--open")["runs"]] == ["running"] * 2, "both")
        self.run_ids = {event.run_id for event in fleet.witnessed("begin")}
        members = {name: fleet.pulse(name) for name in MEMBERS}
        take_away(fleet.state.root)
        self.code = supervisor.wait(PATIENCE_S)
        wait_until(lambda: not any(is_alive(each.process) for each in members.values()), "the fleet ends")
        self.members: dict[str, Pulse] = members

    def living_runs(self) -> set[str]:
        return self.run_ids & ProcessTable.scan().run_ids


def let_go_and_wait(fleet: Fleet, lost: Lost) -> None:
    fleet.let_go()
    wait_until(lambda: not lost.living_runs(), "the executors end")


def remove_everything(root: Path) -> None:
    """Whoever lives there writes on meanwhile."""
    while root.exists():
        shutil.rmtree(root, ignore_errors=True)


def remove_ledger(root: Path) -> None:
    (root / "ledger.db").unlink()


def remove_all_of_ledger(root: Path) -> None:
    for path in root.glob("ledger.*"):
        path.unlink(missing_ok=True)


def replace_by_empty_directory(root: Path) -> None:
    root.rename(root.with_name("old"))
    root.mkdir(mode=0o700)


@pytest.mark.parametrize("take_away", [remove_everything, replace_by_empty_directory])
def test_a_fleet_whose_state_directory_is_gone_ends_and_no_new_one_begins_while_its_executors_run(
    fleet: Fleet, take_away: Callable[[Path], object]
) -> None:
    lost = Lost(fleet, take_away)
    assert lost.code == 1
    assert lost.living_runs() == lost.run_ids
    assert not fleet.state.ledger.exists()
    refused = fleet.run("up", expect=75).stderr
    assert refused.startswith("cannot begin a new ledger")
    assert all(run_id in refused for run_id in lost.run_ids)
    fleet.run("task", "add", "refused as well", expect=75)
    assert not fleet.state.ledger.exists()
    let_go_and_wait(fleet, lost)
    # Where nothing is left of it, a person has removed it: who adds a task begins again.
    adding = ("task add refused", "up") if fleet.state.root.exists() else ()
    for command in (*adding, "status", "task list"):
        assert "its state directory" in fleet.run(*command.split(), expect=1).stderr, command
    assert not fleet.state.ledger.exists()
    fleet.run("ledger", "new")
    fleet.run("task", "add", "a new beginning", "--kind", "goal")
    assert len(fleet.json("task", "list")["tasks"]) == 1


@pytest.mark.parametrize("take_away", [remove_ledger, remove_all_of_ledger])
def test_a_fleet_whose_ledger_is_removed_ends_and_nobody_makes_an_empty_one(
    fleet: Fleet, take_away: Callable[[Path], object]
) -> None:
    lost = Lost(fleet, take_away)
    assert lost.code == 1
    assert lost.living_runs() == lost.run_ids
    for command in ("up", "status", "watch --role goal", "reconcile", "runs"):
        (line,) = fleet.run(*command.split(), expect=None).stderr.splitlines()
        assert line.startswith("cannot "), line
        assert not fleet.state.ledger.exists()
    let_go_and_wait(fleet, lost)
    assert fleet.run("up", expect=1).stderr.startswith(f"cannot open the ledger {fleet.state.ledger}: it is missing")


def test_down_now_ends_executors_also_where_one_has_put_a_fifo_beside_the_ledger(fleet: Fleet) -> None:
    fleet.add(1, "goal")
    supervisor = fleet.up()
    wait_until(lambda: fleet.witnessed("begin"), "the executor")
    (begun,) = fleet.witnessed("begin")
    os.mkfifo(fleet.state.root / "ledger.db-journal")
    assert f"supervisor {supervisor.pid}" in fleet.run("status", expect=None).stdout
    done = fleet.run("down", "--now", expect=1)
    assert done.stderr.startswith(
        f"{begun.run_id} was ended, and that cannot be recorded: cannot use the state directory"
    )
    assert begun.run_id not in ProcessTable.scan().run_ids
    assert supervisor.wait(PATIENCE_S) == 0


def test_a_state_directory_that_was_moved_away_and_back_has_lost_nothing(fleet: Fleet) -> None:
    away = fleet.root / "moved away"
    lost = Lost(fleet, lambda root: root.rename(away))
    assert lost.code == 1
    assert lost.living_runs() == lost.run_ids
    fleet.run("up", expect=75)
    assert not fleet.state.root.exists()
    away.rename(fleet.state.root)
    fleet.up()
    wait_until(lambda: {run["watcher_pid"] for run in open_runs(fleet)} == {fleet.pulse("goal").pid}, "the adoption")
    fleet.let_go()
    assert_each_ran_once(fleet)


def test_a_state_directory_that_was_moved_goes_on_where_it_is_now(fleet: Fleet) -> None:
    lost = Lost(fleet, lambda root: root.rename(root.with_name("elsewhere")))
    fleet.configure(CONFIG + f'[center]\nstate_dir = "{fleet.root}/elsewhere"\n')
    supervisor = fleet.popen("up")
    wait_until(
        lambda: (
            {run["state"] for run in open_runs(fleet)} == {"running"}
            and not {run["watcher_pid"] for run in open_runs(fleet)} & {each.pid for each in lost.members.values()}
        ),
        "the adoption",
    )
    fleet.let_go()
    assert_each_ran_once(fleet)
    supervisor.terminate()
    assert supervisor.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("which", ["runs", "one run directory"])
def test_runs_whose_directories_are_removed_keep_their_slots_until_they_end_and_never_run_again(
    fleet: Fleet, which: str
) -> None:
    fleet.add(3, "goal")
    supervisor = fleet.up()
    wait_until(lambda: len(fleet.witnessed("begin")) == 2, "two executors")
    removed = {event.run_id for event in fleet.witnessed("begin")}
    if which == "runs":
        shutil.rmtree(fleet.state.runs)
    else:
        removed = {min(removed)}
        shutil.rmtree(fleet.state.run(min(removed)))
    fleet.run("reconcile")
    assert {run["run_id"] for run in open_runs(fleet)} >= removed
    fleet.let_go()
    wait_until(lambda: not open_runs(fleet) and len(fleet.witnessed("end")) == 3, "every run is closed")
    outcomes = {run["run_id"]: run["outcome"] for run in fleet.json("runs")["runs"]}
    assert {run_id for run_id, outcome in outcomes.items() if outcome == "unknown"} == removed
    assert sorted(outcomes.values()).count("succeeded") == 3 - len(removed)
    tasks = [event.task_id for event in fleet.witnessed("begin")]
    assert len(tasks) == len(set(tasks)) == 3
    assert supervisor.poll() is None
    assert not fleet.broken_promises()


def open_runs(fleet: Fleet) -> list[dict[str, object]]:
    runs: list[dict[str, object]] = fleet.json("runs", "--open")["runs"]
    return runs


def assert_each_ran_once(fleet: Fleet) -> None:
    wait_until(lambda: {task["state"] for task in fleet.json("task", "list")["tasks"]} == {"done"}, "every task")
    begun = [event.task_id for event in fleet.witnessed("begin")]
    assert len(begun) == len(set(begun)) == 3
    assert not fleet.broken_promises()
