"""A fleet that meets a damaged ledger: it waits, says why, and goes on after a restore."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.fleet import PATIENCE_S, Fleet, wait_until

CONFIG = """
[roles.goal]
backend = "agent"
poll_interval = "200ms"
[backends.agent]
kind = "command"
argv = ["sh", "-c", 'echo "$OPERATIONS_CENTER_TASK_ID $OPERATIONS_CENTER_FENCE" >>"$HOME/told"']
stdin = "none"
max_concurrent = 1
[watchdog]
every = "300ms"
"""

PAGE = 4096


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    fleet.configure(CONFIG)
    return fleet


def told(fleet: Fleet) -> list[tuple[str, int]]:
    """Task and fence of every executor that began."""
    path = fleet.root / "told"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(task, int(fence)) for task, fence in map(str.split, lines)]


def damage_table(ledger: Path, table: str) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with ledger.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xa5" * PAGE)


def test_watchers_that_meet_damage_wait_longer_and_longer_and_a_restore_lets_the_work_go_on(fleet: Fleet) -> None:
    fleet.add(1, "goal")
    fleet.run("watch", "--role", "goal", "--once")
    backup = fleet.run("ledger", "backup", str(fleet.root / "copy.db")).stdout.strip()
    fleet.run("task", "add", "after the backup", "--kind", "goal")
    fleet.run("watch", "--role", "goal", "--once")
    fleet.run("task", "add", "to be read again", "--kind", "goal")
    damage_table(fleet.state.ledger, "tasks")

    supervisor = fleet.popen("up")
    problems = wait_until(lambda: problems_of_a_pause(fleet), "a pause after two restarts")
    # A watcher meets the damage when it claims a task, and so may the watchdog, which then looks after that run.
    assert any(str(fleet.state.log("goal")) in problem for problem in problems)
    (check,) = ledger_checks(fleet)
    assert check["status"] == "fault"
    assert backup in check["detail"]
    refused = fleet.run("task", "list", expect=1).stderr
    assert refused.startswith(f"cannot use the ledger {fleet.state.ledger}")
    assert backup in refused
    assert supervisor.poll() is None
    fleet.run("down", expect=None)
    assert supervisor.wait(PATIENCE_S) == 0
    before = told(fleet)

    fleet.run("ledger", "restore", backup)
    fleet.add(2, "goal")
    fleet.up()
    wait_until(lambda: {task["state"] for task in fleet.json("task", "list")["tasks"]} == {"done"}, "every task")
    after = told(fleet)[len(before) :]
    assert len(after) == 2
    assert not {task for task, _ in after} & {task for task, _ in before}
    assert min(fence for _, fence in after) > max(fence for _, fence in before)
    assert not fleet.broken_promises()


def problems_of_a_pause(fleet: Fleet) -> list[str] | None:
    """At one moment: the next one the watcher may be starting again."""
    status = fleet.json("status", expect=None)
    (watcher,) = [each for each in status["watchers"] if each["role"] == "goal"]
    pauses = watcher["state"] in ("backoff", "failed") and watcher["restarts"] >= 2
    problems: list[str] = status["problems"]
    return problems if pauses else None


def ledger_checks(fleet: Fleet) -> list[dict[str, str]]:
    checks: list[dict[str, str]] = fleet.json("doctor", expect=1)["checks"]
    return [check for check in checks if check["name"] == "ledger"]


def test_a_log_that_was_removed_takes_admissions_with_it_and_that_is_noticed(fleet: Fleet) -> None:
    fleet.add(1, "goal")
    fleet.run("watch", "--role", "goal", "--once")
    fleet.add(1, "goal")
    killed = fleet.popen("watch", "--role", "goal")
    wait_until(lambda: len(told(fleet)) == 2, "the executor")
    wait_until(lambda: not fleet.json("runs", "--open")["runs"], "its end")
    killed.kill()
    killed.wait()
    log = Path(f"{fleet.state.ledger}-wal")
    assert log.stat().st_size
    log.unlink()
    for command in ("up", "watch --role goal"):
        assert "its last writes are lost" in fleet.run(*command.split(), expect=1).stderr
    assert "its last writes are lost" in ledger_checks(fleet)[-1]["detail"]
    # To go on with what it has: its numbers leap over those that it has lost.
    copy = fleet.run("ledger", "backup", str(fleet.root / "as it is.db")).stdout.strip()
    fleet.run("ledger", "restore", copy)
    fleet.add(1, "goal")
    fleet.run("watch", "--role", "goal", "--once")
    fences = [fence for _, fence in told(fleet)]
    assert len(fences) == len(set(fences))


def test_a_log_that_is_removed_under_a_fleet_ends_it(fleet: Fleet) -> None:
    supervisor = fleet.up()
    Path(f"{fleet.state.ledger}-wal").unlink()
    assert supervisor.wait(PATIENCE_S) == 1
