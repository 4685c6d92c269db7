"""The watchdog's rules, one cycle at a time, and what a start refuses."""

import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from operations_center.boards.local import NewTask
from operations_center.keeper.inspect import ProcessTable
from operations_center.ledger import Pause
from operations_center.locks import lock_holder, lock_within
from operations_center.watchdog import Watchdog
from tests.fleet import Fleet, wait_until
from tests.points import Stepped
from tests.process.test_fleet import CONFIG


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    fleet.configure(CONFIG.format(python=sys.executable, seconds=0))
    return fleet


def configure(fleet: Fleet, **keys: str) -> None:
    """Set keys of [watchdog], the last section."""
    lines = "".join(f'{key} = "{value}"\n' for key, value in keys.items())
    fleet.configure(CONFIG.format(python=sys.executable, seconds=0) + lines)


def test_an_almost_full_disk_pauses_admission_with_the_reason_until_there_is_room(fleet: Fleet) -> None:
    (task_id,) = fleet.add(1, "goal")
    configure(fleet, min_free_disk="500TiB")
    fleet.run("watchdog", "--once")

    fleet.run("watch", "--role", "goal", "--once")
    assert not fleet.witnessed()
    (task,) = fleet.json("why")["tasks"]
    assert any("the disk is almost full" in reason["detail"] for reason in task["reasons"])

    configure(fleet, min_free_disk="1MiB")
    fleet.run("watchdog", "--once")
    fleet.run("watch", "--role", "goal", "--once")
    assert [each.task_id for each in fleet.witnessed("end")] == [task_id]


def test_a_pause_of_the_watchdog_does_not_end_that_of_a_person(fleet: Fleet) -> None:
    fleet.run("pause", "--reason", "the office moves")
    configure(fleet, min_free_disk="500TiB")
    fleet.run("watchdog", "--once")
    configure(fleet, min_free_disk="1MiB")
    fleet.run("watchdog", "--once")

    with fleet.center() as center:
        assert [(pause.source, pause.reason) for pause in center.ledger.pauses()] == [("person", "the office moves")]


def test_a_task_that_is_shown_as_running_without_a_run_is_made_ready_again(fleet: Fleet) -> None:
    (task_id,) = fleet.add(1, "goal")
    with fleet.center() as center:
        center.board.claim(task_id, "r999-abcdef")

    fleet.run("watchdog", "--once")

    assert fleet.json("task", "show", task_id)["state"] == "ready"
    fleet.run("watch", "--role", "goal", "--once")
    assert fleet.json("task", "show", task_id)["state"] == "done"


def test_closed_runs_are_forgotten_after_their_time_and_the_log_still_agrees(fleet: Fleet) -> None:
    fleet.configure('[center]\nkeep = "1ms"\n' + CONFIG.format(python=sys.executable, seconds=0))
    fleet.add(2, "goal")
    fleet.run("watch", "--role", "goal", "--once")
    assert len(list(fleet.state.runs.iterdir())) == 2

    fleet.run("watchdog", "--once")

    assert fleet.json("runs")["runs"] == []
    assert not list(fleet.state.runs.iterdir())
    assert not fleet.broken_promises()


def test_the_age_of_the_last_cycle_is_in_the_status(fleet: Fleet) -> None:
    fleet.up()
    wait_until(lambda: fleet.json("status")["watchdog"]["last_cycle_at"], "the first cycle")
    assert fleet.json("status")["watchdog"]["last_cycle_age_s"] < 30


def test_no_dead_run_blocks_a_live_task_even_without_watchdog_and_supervisor(fleet: Fleet) -> None:
    """Admission itself frees the slots of runs whose trees are gone before it refuses for a full backend."""
    config = CONFIG.format(python=sys.executable, seconds=60).replace("max_concurrent = 2", "max_concurrent = 1")
    fleet.configure(config)
    fleet.add(1, "goal")
    watcher = fleet.popen("watch", "--role", "goal")
    wait_until(lambda: fleet.witnessed("begin"), "the run begins")
    (run,) = wait_until(lambda: started_runs(fleet), "the record of its start")
    # The watcher of goal does not look any more, and everything of the run dies.
    watcher.kill()
    watcher.wait()
    os.kill(run["keeper_pid"], signal.SIGKILL)  # before its executor, whose end it would record
    kill_tree(run["run_id"])
    (fleet.root / "witness.py").write_text((fleet.root / "witness.py").read_text().replace("float(sys.argv[1])", "0"))
    with fleet.center() as center:
        (task_id,) = center.board.add([NewTask("a live task", "test")])
        # The start-up sweep would free it as well: hold its lock, so that admission is what does it.
        with lock_within(fleet.state.startup_lock, 1.0) as held:
            assert held
            fleet.run("watch", "--role", "test", "--once")

    assert fleet.json("task", "show", task_id)["state"] == "done"
    assert fleet.json("status", expect=3)["reconcile"]["admission"]["verdicts"] == {"orphan": 1}


def started_runs(fleet: Fleet) -> list[dict[str, Any]]:
    return [run for run in fleet.json("runs", "--open")["runs"] if run["keeper_pid"] is not None]


def kill_tree(run_id: str) -> None:
    def pids() -> frozenset[int]:
        return ProcessTable.scan().pids_of_run(run_id)

    def kill_all() -> bool:
        for pid in pids():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        return not pids()

    wait_until(kill_all, "everything of the run is gone")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
def test_a_state_directory_of_somebody_else_is_refused(fleet: Fleet) -> None:
    fleet.state.root.mkdir()
    shutil.chown(fleet.state.root, user=12345)
    refused = fleet.run("up", expect=1)
    assert refused.stderr.startswith("cannot use the state directory")
    assert "belongs to user 12345" in refused.stderr


def test_a_ledger_of_a_newer_program_is_refused(fleet: Fleet) -> None:
    fleet.add(1, "goal")
    change_database(fleet.state.ledger, "PRAGMA user_version = 99")
    refused = fleet.run("up", expect=1)
    assert refused.stderr.startswith("cannot open the ledger")
    assert "newer than this program's" in refused.stderr


def test_an_empty_ledger_beside_run_directories_is_refused(fleet: Fleet) -> None:
    fleet.add(1, "goal")
    fleet.run("watch", "--role", "goal", "--once")
    for path in fleet.state.root.glob("ledger.db*"):
        path.unlink()
    refused = fleet.run("up", expect=1)
    assert "it is missing" in refused.stderr
    assert "ledger restore" in refused.stderr


def change_database(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    try:
        connection.execute(statement)
        connection.commit()
    finally:
        connection.close()


def asks_who_drains(frame: FrameType, event: str, _argument: object) -> str | None:
    asker = frame.f_back.f_code.co_qualname if frame.f_back is not None else ""
    asked = event == "return" and frame.f_code.co_qualname == "lock_holder"
    return "asked" if asked and "drain" in asker else None


@pytest.mark.parametrize("step", [1, 2])
def test_a_drain_that_begins_while_the_end_of_an_earlier_one_is_judged_goes_on(fleet: Fleet, step: int) -> None:
    fleet.configure(CONFIG.format(python=sys.executable, seconds="go"))
    fleet.add(1, "goal")
    fleet.popen("watch", "--role", "goal")
    wait_until(lambda: fleet.witnessed("begin"), "an executor")

    def cycle() -> None:
        with fleet.center() as center:
            Watchdog(center, once=True).run()

    with fleet.center() as center:
        center.ledger.pause(Pause("*", "drain", "of one that was killed", center.clock.now().wall))
        watchdog = Stepped(cycle, step, signal.SIGSTOP, asks_who_drains)
        assert watchdog.where is not None
        drain = fleet.popen("down", "--drain")
        wait_until(lambda: lock_holder(fleet.state.drain_lock) == drain.pid, "the next one begins")
        if step == 1:
            wait_until(lambda: "waits" in center.ledger.pauses()[0].reason, "it has paused admission")
        watchdog.go_on()
        watchdog.wait()
        wait_until(center.ledger.pauses, "admission is paused")
    fleet.let_go()
    assert drain.wait(60) == 0
