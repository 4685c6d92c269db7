"""``resolve`` of command runs that nobody but a person can judge."""

import errno
import os
import subprocess
from dataclasses import replace

import pytest

from operations_center.config import load_config
from operations_center.dispatch import Dispatcher, Started
from operations_center.errors import Unavailable
from operations_center.identity import Process
from operations_center.in_flight_reconcile import Trigger, clear_orphaned_in_flight
from operations_center.keeper.launch import LaunchedRun, LaunchPlan
from operations_center.keeper.processes import KernelProcesses
from operations_center.model import Outcome, Proof, Run, RunState, TaskState
from operations_center.outcomes import Ending
from operations_center.stopping.resolving import Resolution, resolve_run
from operations_center.wiring import Center, open_center
from tests.fleet import Fleet
from tests.runs import admit

CONFIG = """
[center]
cgroup = "off"
[roles.goal]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["sh", "-c", "touch ~/begun"]
max_concurrent = 1
"""


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    fleet.configure(CONFIG)
    return fleet


def elsewhere(fleet: Fleet) -> Center:
    """What a watcher in another pid namespace of this machine would have, without a lease to judge it by."""
    center = open_center(load_config(fleet.root / "operations_center.toml", fleet.environment))
    return replace(center, host=replace(center.host, pid_namespace=1))


def resolve(fleet: Fleet, run_id: str, expect: int = 0) -> "subprocess.CompletedProcess[str]":
    return fleet.run("resolve", run_id, "--as", "lost", "--reason", "that container is gone", expect=expect)


class FrozenBeforeTheKeeper(KernelProcesses):
    """Is frozen with all prepared; somebody resolves the run meanwhile; then it thaws."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def start(self, plan: LaunchPlan) -> LaunchedRun:
        resolve(self.fleet, plan.run_id)
        return super().start(plan)


class FrozenBehindTheKeeper(FrozenBeforeTheKeeper):
    def start(self, plan: LaunchPlan) -> LaunchedRun:
        launched = KernelProcesses.start(self, plan)
        launched.children[0].wait()
        resolve(self.fleet, plan.run_id)
        return launched


def start_there(fleet: Fleet, processes: KernelProcesses) -> Run:
    """The run as it is when whatever its watcher has started has ended."""
    center = replace(elsewhere(fleet), processes=processes)
    (task_id,) = fleet.add(1, "goal")
    task = center.board.task(task_id)
    assert task is not None
    backends = center.backends(os.environ | {"HOME": str(fleet.root)})
    started = Dispatcher(center.surroundings, center.config.roles["goal"], backends).dispatch(task)
    assert isinstance(started, Started)
    for child in started.children:
        child.wait()
    run = center.ledger.run(started.run.run_id)
    assert run is not None
    center.close()
    return run


def state_of(fleet: Fleet, run: Run) -> TaskState:
    with fleet.center() as center:
        task = center.board.task(run.task_id)
        assert task is not None
        return task.state


def test_a_keeper_that_comes_after_its_run_was_resolved_starts_nothing(fleet: Fleet) -> None:
    run = start_there(fleet, FrozenBeforeTheKeeper(fleet))
    assert (run.state, run.outcome, run.proof) == (RunState.CLOSED, Outcome.LOST, Proof.RESOLVED)
    assert state_of(fleet, run) is TaskState.READY
    assert not (fleet.root / "begun").exists()


def test_a_run_whose_keeper_was_first_is_resolved_by_the_persons_word(fleet: Fleet) -> None:
    run = start_there(fleet, FrozenBehindTheKeeper(fleet))
    assert (run.state, run.outcome, run.proof) == (RunState.CLOSED, Outcome.LOST, Proof.RESOLVED)
    assert (fleet.root / "begun").exists()


def test_a_run_whose_gate_cannot_be_created_keeps_its_slot(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    (task_id,) = fleet.add(1, "goal")
    center = elsewhere(fleet)
    run = admit(center, task_id, center.me)
    with monkeypatch.context() as patched, fleet.center() as here:
        patched.setattr("operations_center.stopping.resolving.revoke", no_room)
        with pytest.raises(Unavailable, match=f"cannot resolve run {run.run_id}: .* No space left on device"):
            resolve_run(here, run.run_id, Resolution.LOST, "it is gone")
    assert center.ledger.slots_held() == {"agent": 1}
    resolve(fleet, run.run_id)
    assert not center.ledger.slots_held()
    center.close()


def test_what_lies_in_the_place_of_a_run_directory_keeps_no_slot(fleet: Fleet) -> None:
    (task_id,) = fleet.add(1, "goal")
    center = elsewhere(fleet)
    run = admit(center, task_id, center.me)
    center.state.run(run.run_id).write_text("no directory")
    resolve(fleet, run.run_id)
    assert not center.ledger.slots_held()
    center.close()


def test_a_run_that_finds_no_room_for_its_directory_gives_its_slot_back(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task_id,) = fleet.add(1, "goal")
    with fleet.center() as center:
        task = center.board.task(task_id)
        assert task is not None
        monkeypatch.setattr("operations_center.dispatch.prepare", no_room)
        monkeypatch.setattr("operations_center.dispatch.revoke", no_room)
        backends = center.backends(os.environ | {"HOME": str(fleet.root)})
        assert Dispatcher(center.surroundings, center.config.roles["goal"], backends).dispatch(task) is None
        assert not center.ledger.slots_held()
        (run,) = center.ledger.recent_runs(task_id=None, backend=None, limit=2)
        assert (run.outcome, run.proof) == (Outcome.NEVER_STARTED, Proof.NEVER_STARTED)


def test_a_run_of_a_dead_watcher_without_a_directory_gives_its_slot_back_without_a_gate(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task_id,) = fleet.add(1, "goal")
    with subprocess.Popen(["true"]) as popen, fleet.center() as center:
        admit(center, task_id, Process.of(popen.pid))
        popen.wait()
        monkeypatch.setattr("operations_center.in_flight_reconcile.freeing.revoke", no_room)
        clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
        assert not center.ledger.slots_held()


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def closed_as_unknown(fleet: Fleet, task_id: str | None = None) -> Run:
    task_id = task_id or fleet.add(1, "goal")[0]
    with fleet.center() as center:
        run = admit(center, task_id, center.me)
        assert center.board.claim(task_id, run.run_id)
        closed = center.settlement.end(
            run, Ending(Outcome.UNKNOWN, Proof.PROCESS_GONE, "its traces are gone"), center.me
        )
        assert closed is not None
        return closed


@pytest.mark.parametrize(
    ("word", "outcome", "state"),
    [
        ("succeeded", Outcome.SUCCEEDED, TaskState.DONE),
        ("failed", Outcome.FAILED, TaskState.BLOCKED),
        ("lost", Outcome.LOST, TaskState.READY),
    ],
)
def test_a_run_that_has_closed_as_unknown_is_what_a_person_says(
    fleet: Fleet, word: str, outcome: Outcome, state: TaskState
) -> None:
    run = closed_as_unknown(fleet)
    assert f"operations-center resolve {run.run_id}" in fleet.json("task", "show", run.task_id)["reason"]
    told = fleet.json("resolve", run.run_id, "--as", word, "--reason", "I looked")
    assert (told["state"], told["outcome"], told["proof"]) == ("closed", outcome, "resolved")
    assert state_of(fleet, run) is state
    task = fleet.json("task", "show", run.task_id)
    assert task["attempts"] == 1
    fleet.run("ledger", "verify")
    refused = fleet.run("resolve", run.run_id, "--as", word, "--reason", "again", expect=1)
    assert refused.stderr.startswith(f"cannot resolve run {run.run_id}: it has ended as {outcome} already")


def test_a_run_that_has_closed_as_unknown_says_nothing_of_a_task_that_has_gone_on(fleet: Fleet) -> None:
    run = closed_as_unknown(fleet)
    fleet.run("task", "retry", run.task_id)
    refused = fleet.run("resolve", run.run_id, "--as", "succeeded", "--reason", "I looked", expect=1)
    assert "is not blocked by it any more" in refused.stderr
    assert state_of(fleet, run) is TaskState.READY


def test_only_the_last_run_of_a_task_decides_what_becomes_of_it(fleet: Fleet) -> None:
    first = closed_as_unknown(fleet)
    fleet.run("task", "retry", first.task_id)
    second = closed_as_unknown(fleet, first.task_id)
    refused = fleet.run("resolve", first.run_id, "--as", "succeeded", "--reason", "I looked", expect=1)
    assert "is not blocked by it any more" in refused.stderr
    assert state_of(fleet, first) is TaskState.BLOCKED
    fleet.run("resolve", second.run_id, "--as", "succeeded", "--reason", "I looked")
    assert state_of(fleet, second) is TaskState.DONE


def test_a_person_who_dies_while_resolving_is_heard_all_the_same(fleet: Fleet) -> None:
    run = closed_as_unknown(fleet)
    with fleet.center() as center:
        ending = Ending(Outcome.SUCCEEDED, Proof.RESOLVED, "seen")
        assert center.settlement.resolve(run, ending, center.me._replace(start_ticks=1), {})
    assert state_of(fleet, run) is TaskState.BLOCKED
    fleet.run("reconcile")
    assert state_of(fleet, run) is TaskState.DONE
    fleet.run("ledger", "verify")
