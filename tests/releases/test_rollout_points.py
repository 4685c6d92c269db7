"""The supervisor killed at each step of a rollout; the next one completes it, and no executor notices.

The steps of the image that begins the rollout are the calls and returns of some modules, found by running; those of
the image that the release brings are its writes of the deployment. The suite takes one point of each part of the list;
all of them with ``OPERATIONS_CENTER_TEST_EVERY_POINT=1``.
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from operations_center.releases.records import ReleaseState
from tests.crash.test_supervisor_points import PARTS, Life, begin_anew, steps_of_part
from tests.fleet import Fleet, catches, wait_until
from tests.releases.staged import CONFIG, stage
from tests.releases.test_rollout import assert_executors_did_not_notice, is_at_rest, releases_run, running, state_of
from tests.syscalls import EVERY_POINT

pytestmark = pytest.mark.timeout(7200 if EVERY_POINT else 300)

MODULES = ("supervisor", "supervisor.deploying", "supervisor.spawner", "supervisor.image", "releases.deployment")
LEAST_STEPS = 1000


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = fleet_in(tmp_path)
    yield fleet
    fleet.clean_up()


def fleet_in(root: Path) -> Fleet:
    """It has run before, and four executors of it still do."""
    fleet = Fleet(root)
    fleet.configure(CONFIG.replace('canary = "1s"', 'canary = "100ms"'))
    supervisor = fleet.up()
    fleet.add(2, "goal")
    fleet.add(2, "test")
    wait_until(lambda: running(fleet) == 4, "four executors run")
    fleet.run("down")
    supervisor.wait(60)
    return fleet


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many there are, until the supervisor has become another image."""
    fleet = fleet_in(tmp_path_factory.mktemp("counted"))
    commit = stage(fleet, 1)
    begin_anew()
    life = Life(fleet, "supervisor", 0, MODULES)
    wait_until(lambda: is_at_rest(fleet, commit), "the release is current")
    life.end()
    fleet.clean_up()
    return life.steps


@pytest.mark.parametrize("part", range(PARTS))
def test_a_rollout_goes_on_wherever_its_supervisor_was_killed(fleet: Fleet, steps: int, part: int) -> None:
    assert steps >= LEAST_STEPS
    for number, step in enumerate(steps_of_part(steps, part), start=1):
        commit = stage(fleet, number)
        begin_anew()
        life = Life(fleet, "supervisor", step, MODULES)
        wait_until(lambda life=life, commit=commit: life.exit_code is not None or is_at_rest(fleet, commit), "its end")
        assert life.exit_code == (-signal.SIGKILL if life.has_struck else None)
        if life.exit_code is None:
            life.end()
        fleet.popen("up")
        assert_is_rolled_out(fleet, commit)
        fleet.run("down")
    fleet.up()
    assert_executors_did_not_notice(fleet, 4)


DEPLOYING = "supervisor/deploying.py"

KILLING = """
def _kill_once(word: str, path: str) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), 9)


def _called("""

WRITE = "            self._write(after, event)\n"
WRITTEN = "        self.deployment = after\n"
KILL = '        _kill_once(event, str(self._center.config.directory / "killed"))\n'


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_rollout_goes_on_when_the_new_supervisor_is_killed_as_it_completes_it(fleet: Fleet, killed: str) -> None:
    replaced = (WRITE, f"    {KILL}{WRITE}") if killed == "before" else (WRITTEN, KILL + WRITTEN)
    commit = stage(fleet, 1, (DEPLOYING, replaced), (DEPLOYING, ("\ndef _called(", KILLING)))
    first = fleet.popen("up")
    assert first.wait(60) == -signal.SIGKILL
    fleet.popen("up")
    assert_is_rolled_out(fleet, commit)
    assert_executors_did_not_notice(fleet, 4)


@pytest.mark.parametrize("parts", range(1, 5))
def test_a_rollout_goes_on_when_the_new_supervisor_is_killed_as_it_starts(fleet: Fleet, parts: int) -> None:
    commit = stage(fleet, 1)
    first = fleet.popen("up")
    wait_until(lambda: catches(first.pid, signal.SIGUSR2), "the supervisor")
    wait_until(lambda: not catches(first.pid, signal.SIGUSR2), "the next image")
    # So many pieces of a start: nothing tells a stranger how far it has come.
    signal.sigtimedwait([], parts * 0.06)
    first.kill()
    first.wait()
    fleet.popen("up")
    assert_is_rolled_out(fleet, commit)
    assert_executors_did_not_notice(fleet, 4)


def assert_is_rolled_out(fleet: Fleet, commit: str) -> None:
    wait_until(lambda: is_at_rest(fleet, commit), "the release is current")
    wait_until(lambda: fleet.json("status", expect=None)["state"] == "up", "the fleet is up")
    assert releases_run(fleet) == {commit}
    assert state_of(fleet, commit) == (ReleaseState.GOOD, None)
    assert running(fleet) == 4
