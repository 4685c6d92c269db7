"""Real fleets change to releases, and back, while executors run."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from operations_center.care.following import wait_for_commit
from operations_center.errors import OperationsCenterError
from operations_center.identity import is_alive
from operations_center.model import RunState
from operations_center.releases.deployment import Deployment, Step, Version
from operations_center.releases.records import ReleaseState
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from tests.fleet import Fleet, wait_until
from tests.releases.staged import CONFIG, Edit, stage

MEMBERS = ("goal", "test", WATCHDOG, SUPERVISOR)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path / "a fleet")
    fleet.root.mkdir()
    fleet.configure(CONFIG)
    yield fleet
    fleet.clean_up()


def deployment(fleet: Fleet) -> Deployment:
    with fleet.center() as center:
        found = center.deployments.read()
    assert found is not None
    return found


def is_at_rest(fleet: Fleet, commit: str | None) -> bool:
    found = deployment(fleet)
    return found.step is None and found.current.commit == commit


def state_of(fleet: Fleet, commit: str) -> tuple[ReleaseState, str | None]:
    with fleet.center() as center:
        release = center.releases.find(commit)
    assert release is not None
    return release.state, release.reason


def releases_run(fleet: Fleet) -> set[str | None]:
    assert all(is_alive(fleet.pulse(name).process) for name in MEMBERS)
    return {fleet.pulse(name).release for name in MEMBERS}


def assert_executors_did_not_notice(fleet: Fleet, tasks: int) -> None:
    fleet.let_go()
    wait_until(lambda: fleet.json("status")["board"]["tasks"]["done"] == tasks, "all tasks are done")
    assert sorted(event.task_id for event in fleet.witnessed("begin")) == sorted(
        event.task_id for event in fleet.witnessed("end")
    )
    assert len(fleet.witnessed("begin")) == tasks
    assert fleet.broken_promises() == []


def running(fleet: Fleet) -> int:
    with fleet.center() as center:
        return sum(run.state is RunState.RUNNING for run in center.ledger.open_runs())


def with_running_executors(fleet: Fleet) -> int:
    """The pid of its supervisor; four executors run."""
    process = fleet.up()
    fleet.add(2, "goal")
    fleet.add(2, "test")
    wait_until(lambda: running(fleet) == 4, "four executors run")
    return process.pid


def test_a_staged_release_is_rolled_out_and_no_executor_notices(fleet: Fleet) -> None:
    supervisor = with_running_executors(fleet)
    shown = [
        line.rpartition(", release ")[2] for line in fleet.run("status").stdout.splitlines() if "last cycle" in line
    ]
    assert shown == ["-"]
    commit = stage(fleet, 1)
    told: list[Deployment] = []
    with fleet.center() as center:
        wait_for_commit(center, commit, told.append)
    assert {Step.CANARY, Step.SUPERVISOR} <= {deployment.step for deployment in told}
    assert is_at_rest(fleet, commit)
    assert releases_run(fleet) == {commit}
    assert fleet.pulse(SUPERVISOR).pid == supervisor
    assert state_of(fleet, commit) == (ReleaseState.GOOD, None)
    assert_executors_did_not_notice(fleet, 4)


BECAME_READY = "                self._ready_at[name] = pulse.heartbeat_mono\n"
READY_SINCE_LONG = (
    "supervisor/crew.py",
    (BECAME_READY, f"{BECAME_READY}                self._started_at[name] -= 60_000\n"),
)
"""Its supervisor takes those that are ready for a minute old."""


def test_processes_have_their_whole_time_to_become_ready_however_old_those_before_them(fleet: Fleet) -> None:
    fleet.configure(CONFIG.replace('canary = "1s"', 'canary = "100ms"'))
    with fleet.center() as center:
        first = stage(fleet, 1, READY_SINCE_LONG)
        center.releases.record(first, ReleaseState.GOOD)
        center.deployments.write(Deployment(Version(first, "")), "rollout.completed")
    fleet.up()
    second = stage(fleet, 2)
    wait_until(lambda: state_of(fleet, second)[0] is not ReleaseState.STAGED, "it is rolled out, or taken back")
    assert state_of(fleet, second) == (ReleaseState.GOOD, None)


WATCHER_ENDS = ("watcher.py", ('        self._heart.beat("starting")\n', "        raise SystemExit(1)\n"))
WATCHER_HANGS = (
    "watcher.py",
    (
        '        """One turn of the loop: what ended, what needs care, what can start; then sleep."""\n',
        "        __import__('time').sleep(3600)\n",
    ),
)
NOT_PYTHON = ("watcher.py", ("import logging\n", "import logging !\n"))
ENDED_THRICE = "its processes ended 3 times before they were healthy: "
SUPERVISOR_RETURNS = ("supervisor/__init__.py", ("        self._begin_to_deploy()\n", "        return 0\n"))
SUPERVISOR_RAISES = (
    "supervisor/__init__.py",
    ("        self._begin_to_deploy()\n", "        raise ValueError('no way')\n"),
)
SUPERVISOR_HANGS = (
    "supervisor/__init__.py",
    (
        "        self._announce()\n",
        "        if self._announced:\n            __import__('time').sleep(3600)\n        self._announce()\n",
    ),
)


@pytest.mark.parametrize(
    ("edit", "reason", "stalled"),
    [
        pytest.param(WATCHER_ENDS, ENDED_THRICE + "watcher goal ended (exit code 1)", [], id="watcher-ends"),
        pytest.param(WATCHER_HANGS, "goal does not turn its loop", ["goal"], id="watcher-hangs"),
        pytest.param(
            NOT_PYTHON,
            ENDED_THRICE + "its fork server ended, its log with: SyntaxError: invalid syntax",
            [],
            id="no-python",
        ),
        pytest.param(
            SUPERVISOR_RAISES,
            "its supervisor ended with exit code 1: cannot go on: an unexpected error, a defect of operations-center "
            "(ValueError: no way)",
            [],
            id="supervisor-raises",
        ),
        pytest.param(SUPERVISOR_RETURNS, "its supervisor ended with exit code 0", [], id="supervisor-returns"),
        pytest.param(SUPERVISOR_HANGS, "its supervisor does not turn its loop", [], id="supervisor-hangs"),
    ],
)
def test_a_release_that_does_not_work_is_taken_back_and_no_executor_notices(
    fleet: Fleet, edit: Edit, reason: str, stalled: list[str]
) -> None:
    supervisor = with_running_executors(fleet)
    bad = stage(fleet, 1, edit)
    wait_until(lambda: state_of(fleet, bad)[0] is ReleaseState.BAD, "the release is bad")
    wait_until(lambda: is_at_rest(fleet, None), "the fleet is back")
    state, why = state_of(fleet, bad)
    assert state is ReleaseState.BAD
    assert why is not None
    assert why.startswith(reason)
    assert releases_run(fleet) == {None}
    assert fleet.pulse(SUPERVISOR).pid == supervisor
    # What the supervisor notes is written when the ledger takes it.
    wait_until(lambda: stalled_roles(fleet) == stalled, "the note of it")
    status = fleet.json("status")
    assert (status["state"], status["deployment"]["bad"]["commit"]) == ("up", bad)
    assert_executors_did_not_notice(fleet, 4)


def stalled_roles(fleet: Fleet) -> list[str]:
    with fleet.center() as center:
        return [event.data["role"] for event in center.ledger.events() if event.kind == "watcher.stalled"]


def test_status_names_the_release_of_every_process_and_why_the_fleets_own_pull_failed(fleet: Fleet) -> None:
    with fleet.center() as center:
        commit = stage(fleet, 1)
        center.releases.record(commit, ReleaseState.GOOD)
        center.deployments.write(Deployment(Version(commit, "")), "rollout.completed")
    fleet.up()
    status = wait_until(lambda: told if (told := fleet.json("status"))["deployment"]["pull_problem"] else None, "it")
    assert status["deployment"]["pull_problem"].startswith("cannot pull: ")
    assert {each["release"] for each in (*status["watchers"], status["watchdog"], status["supervisor"])} == {commit}
    lines = fleet.run("status").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.endswith(commit[:12])] == ["goal", "test", "watchdog"]
    assert f"release {commit}" in lines


def test_a_supervisor_that_kills_itself_anew_is_taken_back_by_the_next(fleet: Fleet) -> None:
    with_running_executors(fleet)
    kill = "        __import__('os').kill(self._center.me.pid, 9)\n"
    bad = stage(fleet, 1, ("supervisor/__init__.py", ("        self._begin_to_deploy()\n", kill)))
    for _ in range(2):
        assert fleet.supervisors[-1].wait(60) == -signal.SIGKILL
        with fleet.center() as center, pytest.raises(OperationsCenterError, match="the supervisor has ended"):
            wait_for_commit(center, bad, lambda deployment: None)
        fleet.popen("up")
    wait_until(lambda: is_at_rest(fleet, None), "the fleet is back")
    assert state_of(fleet, bad)[0] is ReleaseState.BAD
    assert_executors_did_not_notice(fleet, 4)


def test_a_person_rolls_back(fleet: Fleet) -> None:
    with_running_executors(fleet)
    first = stage(fleet, 1)
    wait_until(lambda: is_at_rest(fleet, first), "the first release is current")
    second = stage(fleet, 2)
    wait_until(lambda: is_at_rest(fleet, second), "the second release is current")
    assert fleet.json("rollback")["commit"] == first
    assert releases_run(fleet) == {first}
    assert state_of(fleet, second) == (ReleaseState.BAD, "rolled back by a person")
    assert fleet.json("rollback")["commit"] is None
    assert releases_run(fleet) == {None}
    assert_executors_did_not_notice(fleet, 4)


def test_the_next_fleet_begins_with_the_release_that_is_current(fleet: Fleet) -> None:
    first = fleet.up()
    commit = stage(fleet, 1)
    wait_until(lambda: is_at_rest(fleet, commit), "the release is current")
    fleet.run("down")
    first.wait(60)
    second = fleet.up()
    assert releases_run(fleet) == {commit}
    assert fleet.pulse(SUPERVISOR).pid == second.pid
    assert deployment(fleet).step is None


def test_a_changed_configuration_is_rolled_out_and_a_mistake_in_it_is_not(fleet: Fleet) -> None:
    fleet.up()
    before = deployment(fleet)
    with fleet.center() as center:
        fleet.configure(CONFIG.replace("max_concurrent = 4", "max_concurrent = nonsense"))
        wait_until(lambda: "config.refused" in {event.kind for event in center.ledger.events()}, "it is refused")
        assert center.deployments.read() == before
    fleet.configure(CONFIG.replace("max_concurrent = 4", "max_concurrent = 5"))
    wait_until(lambda: deployment(fleet).current != before.current, "it is rolled out")
    assert {fleet.pulse(name).config for name in MEMBERS} == {deployment(fleet).current.config}


def configured(fleet: Fleet, text: str) -> None:
    """Until the fleet has taken it over."""
    before = deployment(fleet).current
    fleet.configure(text)
    wait_until(lambda: is_at_rest(fleet, None) and deployment(fleet).current != before, "it is rolled out")


def test_runs_above_a_lowered_cap_go_on_and_nothing_is_admitted_beside_them(fleet: Fleet) -> None:
    with_running_executors(fleet)
    (waiting,) = set(fleet.add(1, "goal")) - {run["task_id"] for run in fleet.json("runs", "--open")["runs"]}
    configured(fleet, CONFIG.replace("max_concurrent = 4", "max_concurrent = 1"))
    assert running(fleet) == 4
    assert fleet.json("task", "show", waiting)["state"] == "ready"
    # Only the cap as it is now is known to those who look back.
    fleet.configure(CONFIG)
    assert_executors_did_not_notice(fleet, 5)


def test_the_runs_of_a_role_that_is_gone_are_settled_by_the_watchdog(fleet: Fleet) -> None:
    with_running_executors(fleet)
    without = CONFIG.replace("[roles.test]", "[roles.renamed]").replace(
        "[code_pull]", '[watchdog]\nevery = "1s"\n[code_pull]'
    )
    configured(fleet, without)
    status = fleet.json("status")
    assert (status["state"], [watcher["role"] for watcher in status["watchers"]]) == ("up", ["goal", "renamed"])
    assert_executors_did_not_notice(fleet, 4)


def test_the_runs_of_a_backend_that_is_gone_go_on_and_are_settled(fleet: Fleet) -> None:
    with_running_executors(fleet)
    configured(fleet, CONFIG.replace('"agent"', '"other"').replace("backends.agent", "backends.other"))
    assert running(fleet) == 4
    assert_executors_did_not_notice(fleet, 4)
