"""A cycle of the watchdog, killed and stopped at every step.

The points are those at which it changes something outside of itself, found by running (``tests.points``). It is
killed there; or it stands still, another one does the whole cycle (somebody has removed the lock that kept it away),
and it goes on. At every second point, and in turn; both at all points with ``OPERATIONS_CENTER_TEST_EVERY_POINT=1``.
"""

import itertools
import os
import signal
from pathlib import Path
from types import FrameType

import pytest

from operations_center.boards.local import NewTask
from operations_center.heart import Heart
from operations_center.ledger import Pause
from operations_center.locks import take_lock
from operations_center.model import Outcome, Proof, TaskState
from operations_center.outcomes import Ending
from operations_center.state_directory import WATCHDOG
from operations_center.watchdog import Watchdog
from tests.crash.stage import CONFIG, LaterClock, Stage, Template
from tests.points import Stepped
from tests.runs import admit, dead_process, leave_run, with_clock
from tests.syscalls import EVERY_POINT

pytestmark = pytest.mark.timeout(1800 if EVERY_POINT else 300)

DAY_MS = 86_400_000
HOUR_MS = 3_600_000

KEEP = """
[watchdog]
stalled_after = "1m"
min_free_disk = "1MiB"
"""

PARTS = 2
SHARE = 1 if EVERY_POINT else 2


@pytest.fixture(autouse=True)
def wait_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a stack that a stopped process never dumps, and for a writer that is stopped inside a transaction."""
    monkeypatch.setattr("operations_center.watchdog.DUMP_WITHIN_S", 0.01)
    monkeypatch.setattr("operations_center.store.turnstile.STOPPED_FOR_S", 0.02)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Something for each rule: a dead run, an old one, a drain that was killed, a disk that has room again."""
    config = f"{CONFIG}{KEEP}".replace("[center]", '[center]\nkeep = "1d"')
    template = Template.make(tmp_path_factory.mktemp("template"), tasks=1, config=config)
    nobody = dead_process()
    with template.fleet.center() as center:
        long_ago = with_clock(center, LaterClock(-2 * DAY_MS))
        (task_id,) = center.board.add([NewTask("an old one", "goal")])
        run = admit(long_ago, task_id, nobody)
        center.state.run(run.run_id).mkdir()
        (center.state.run(run.run_id) / "task.json").touch()
        ending = Ending(Outcome.FAILED, Proof.EXIT_RECORDED, "exit code 1", exit_code=1)
        assert long_ago.settlement.end(run, ending, nobody) is not None
    with template.fleet.center() as center:
        leave_run(center, "t1", keeper=nobody, watcher=nobody)
        center.ledger.pause(Pause("*", "drain", "down --drain", 1))
        center.ledger.pause(Pause("*", "watchdog", "the disk is almost full", 1))
    return template


def stall() -> None:
    """Where the watcher stops."""


def calling_stall(frame: FrameType, event: str, _argument: object) -> str | None:
    return "stall" if event == "call" and frame.f_code is stall.__code__ else None


def stalled_watcher(stage: Stage) -> Stepped:
    """It has the lock of its role, has not beaten for an hour, and is stopped."""

    def live() -> None:
        with stage.fleet.center() as center:
            take_lock(center.state.watcher_lock("goal"), "a watcher")
            Heart(center.state.pulse("goal"), LaterClock(-HOUR_MS), center.host, center.me).beat("ready")
            stall()

    return stage.stepped(live, 1, is_step=calling_stall)


def cycle(stage: Stage) -> None:
    with stage.center() as center:
        assert Watchdog(center, once=True).run() == 0


@pytest.mark.parametrize("part", range(PARTS))
def test_what_a_cycle_has_begun_is_completed_by_the_next(template: Template, tmp_path: Path, part: int) -> None:
    points = 0
    for number, step in enumerate(itertools.count(1 + part * SHARE, PARTS * SHARE)):
        for is_killed in (True, False) if EVERY_POINT else (number % 2 == 0,):
            with template.staged(tmp_path / f"{step} {is_killed}") as stage:
                watcher = stalled_watcher(stage)
                watchdog = stage.stepped(lambda: cycle(stage), step)
                if watchdog.where is None:
                    assert watchdog.wait() == 0
                    assert_all_is_well(stage, watcher)
                    assert points >= 90 // PARTS // SHARE
                    return
                points += 1
                if is_killed:
                    watchdog.kill()
                    assert os.WTERMSIG(watchdog.wait()) == signal.SIGKILL
                    stage.in_a_process(lambda: cycle(stage))
                else:
                    overtake(stage, watchdog)
                assert_all_is_well(stage, watcher)


def overtake(stage: Stage, watchdog: Stepped) -> None:
    # So much later that a run which the first has settled, and not yet told the board about, is taken over.
    stage.clock = LaterClock(60_000)
    stage.fleet.state.watcher_lock(WATCHDOG).unlink(missing_ok=True)
    stage.in_a_process(lambda: cycle(stage))
    with stage.center() as center:
        last = center.ledger.last_event()
    watchdog.go_on()
    status = watchdog.wait()
    assert status == 0 or (os.WTERMSIG(status) == signal.SIGKILL and "store." in str(watchdog.where)), watchdog.where
    with stage.center() as center:
        # It may have seen the stalled watcher alive, and found it gone; or the old run, and forgotten it once more.
        told = {event.kind for event in center.ledger.events(after=last)}
        assert told <= {"run.lost_race", "watcher.stalled", "ledger.pruned"}


def assert_all_is_well(stage: Stage, watcher: Stepped) -> None:
    assert os.WTERMSIG(watcher.wait()) == signal.SIGKILL
    assert stage.broken() == []
    stage.assert_a_further_reconcile_does_nothing()
    with stage.center() as center:
        assert center.ledger.pauses() == []
        (run,) = center.ledger.recent_runs(task_id=None, backend=None, limit=100)
        assert (run.task_id, run.outcome, run.proof) == ("t1", Outcome.LOST, Proof.PROCESS_GONE)
        assert [path.name for path in center.state.runs.iterdir()] == [run.run_id]
        assert [task.state for task in center.board.tasks()] == [TaskState.READY, TaskState.BLOCKED]
