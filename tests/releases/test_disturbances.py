"""Real fleets that are disturbed while they roll a release out: it becomes current all the same."""

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

from operations_center import cli
from operations_center.pulse import read_pulse
from operations_center.releases.config_copies import keep_copy
from operations_center.releases.deployment import Deployment, Step, Version
from operations_center.releases.records import ReleaseState
from tests.fleet import Fleet, wait_until
from tests.points import Stepped
from tests.releases.staged import CONFIG, stage
from tests.releases.test_rollout import (
    assert_executors_did_not_notice,
    deployment,
    is_at_rest,
    state_of,
    with_running_executors,
)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path / "a fleet")
    fleet.root.mkdir()
    fleet.configure(CONFIG.replace('canary = "1s"', 'canary = "100ms"'))
    yield fleet
    fleet.clean_up()


def test_a_drain_goes_on_through_a_rollout(fleet: Fleet) -> None:
    with_running_executors(fleet)
    drain = fleet.popen("down", "--drain")
    with fleet.center() as center:
        wait_until(center.ledger.pauses, "it drains")
        commit = stage(fleet, 1)
        wait_until(lambda: is_at_rest(fleet, commit), "the release is current")
        assert [pause.source for pause in center.ledger.pauses()] == ["drain"]
    fleet.let_go()
    assert drain.wait(60) == 0


def test_a_release_is_not_to_blame_for_a_person_who_stops_the_fleet_or_restarts_its_watchers(fleet: Fleet) -> None:
    fleet.configure(CONFIG.replace('canary = "1s"', 'canary = "4s"'))
    with_running_executors(fleet)
    commit = stage(fleet, 1)
    for _ in range(2):
        wait_until(lambda: deployment(fleet).step is not None, "it is being rolled out")
        fleet.run("down")
        fleet.up()
    assert deployment(fleet).step is not None
    fleet.run("restart")
    assert is_at_rest(fleet, commit)
    assert state_of(fleet, commit) == (ReleaseState.GOOD, None)
    assert_executors_did_not_notice(fleet, 4)


def test_nobody_else_sees_the_environment_of_a_supervisor_however_large_it_is(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "only for its owner")
    # Beside it, for no single text of an environment may be longer than this (execve(2)).
    monkeypatch.setenv("LARGE", "x" * 100_000)
    monkeypatch.setenv("AS_LARGE", "x" * 100_000)
    supervisor = fleet.up()
    commit = stage(fleet, 1)
    wait_until(lambda: deployment(fleet).step is None and state_of(fleet, commit)[0] is not ReleaseState.STAGED, "rest")
    assert state_of(fleet, commit) == (ReleaseState.GOOD, None)
    assert b"only for its owner" not in Path(f"/proc/{supervisor.pid}/cmdline").read_bytes()


def test_a_supervisor_that_was_proven_ends_when_its_ledger_is_gone_and_is_not_handed_back(fleet: Fleet) -> None:
    supervisor = fleet.up()
    commit = stage(fleet, 1)
    wait_until(lambda: is_at_rest(fleet, commit), "the release is current")
    away = fleet.root / "away"
    away.mkdir()
    for path in fleet.state.root.glob("ledger.db*"):
        path.rename(away / path.name)
    shutil.copy(away / "ledger.db", fleet.state.ledger)
    assert supervisor.wait(60) == 1


def test_a_rollout_is_resumed_when_the_ledger_can_be_written_and_the_fleet_does_not_wait_for_that(fleet: Fleet) -> None:
    with fleet.center():
        pass
    commit = stage(fleet, 1)
    with fleet.center() as center:
        current = Version(None, keep_copy(center.config.file, center.state))
        center.deployments.write(Deployment(current).begun(Version(commit, current.config)), "rollout.begun")
    with closing(sqlite3.connect(fleet.state.ledger, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        fleet.up()
    wait_until(lambda: is_at_rest(fleet, commit), "the release is current")
    assert state_of(fleet, commit) == (ReleaseState.GOOD, None)


@pytest.mark.parametrize(
    "where", ["Supervisor._replace_stalled_watchdog", "Supervisor._seen", "Crew.members", "next_move"]
)
def test_a_fleet_that_stood_still_does_not_blame_the_release(fleet: Fleet, where: str) -> None:
    """Wherever in its judgement the supervisor stood still, with the canary that it judges."""
    fleet.configure(CONFIG.replace('canary = "1s"', 'canary = "2s"'))
    with fleet.center():
        pass
    commit = stage(fleet, 1)

    def is_there(frame: FrameType, event: str, _argument: object) -> str | None:
        return where if event == "call" and frame.f_code.co_qualname == where and tries_out(fleet, commit) else None

    supervisor = Stepped(partial(up, fleet), 1, signal.SIGSTOP, is_there)
    canary = fleet.pulse("goal").pid
    os.kill(canary, signal.SIGSTOP)
    signal.sigtimedwait([], 13)
    # The supervisor is the first that goes on.
    supervisor.go_on()
    signal.sigtimedwait([], 0.3)
    os.kill(canary, signal.SIGCONT)
    wait_until(lambda: deployment(fleet).step is None, "the rollout has ended")
    assert state_of(fleet, commit) == (ReleaseState.GOOD, None)
    os.kill(supervisor.pid, signal.SIGTERM)
    assert supervisor.wait() == 0


def up(fleet: Fleet) -> None:
    os.chdir(fleet.root)
    os.environ.update(fleet.environment)
    cli.run(["up", "--detached", "--config", str(fleet.root / "operations_center.toml")])


def tries_out(fleet: Fleet, commit: str) -> bool:
    """Its first watcher runs."""
    pulse = read_pulse(fleet.state.pulse("goal"))
    return pulse is not None and pulse.release == commit and deployment(fleet).step is Step.CANARY
