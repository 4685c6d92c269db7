"""A backup that somebody else made or changed: nothing in it leads out of the state directory or runs by itself."""

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from operations_center.care.manifest import manifest_of
from operations_center.cli.common import refuse_to_start
from operations_center.errors import LedgerUnusable
from operations_center.identity import Process
from operations_center.ids import LARGEST_NUMBER
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.model import RunState
from operations_center.store import SCHEMA
from operations_center.store.schema import migrate, schema_difference
from tests.cli.command_line import CommandLine


def deploying(current: str) -> str:
    return f"INSERT INTO deployment VALUES (1, '{{\"current\": {current}}}')"


DEEP = '{"a":' * 5000 + "1" + "}" * 5000
OUTSIDE = "r1-/../../../outside"


def backup_of(line: CommandLine, *changes: str) -> Path:
    """A sound backup with a task and a closed run, after statements of its author's; without a manifest."""
    line.closed_run()
    copy = Path(line("ledger", "backup", "crafted.db").out.strip())
    manifest_of(copy).unlink()
    change(copy, *changes)
    return copy


def change(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def runs_say(assignment: str) -> tuple[str, ...]:
    """A change of the run that its log agrees with."""
    column, value = assignment.split(" = ", 1)
    return (
        f"UPDATE runs SET {column} = {value}",
        f"UPDATE events SET data = json_set(data, '$.run.{column}', {value}) WHERE kind = 'run.closed'",
    )


CRAFTED = {
    "a path as the deployed release": (deploying('["/home/evil", ""]'),),
    "a path as the deployed configuration": (deploying('[null, "../../evil.toml"]'),),
    "a release that it does not know": (deploying(json.dumps(["a" * 40, ""])),),
    "a path as a run's id": runs_say(f"run_id = '{OUTSIDE}'"),
    "a path as a run's release": runs_say("release = '../../evil'"),
    "a cgroup that is not the run's": runs_say("cgroup = '/sys/fs/cgroup/user.slice'"),
    "a path as a release": ("INSERT INTO releases VALUES (1, '../../evil', 'good', NULL, 0, NULL)",),
    "a task that claims to be another's": ("UPDATE tasks SET task_id = 't1/..'",),
    "a follow-up of a path": ("UPDATE tasks SET origin = '../x/0'",),
    "a task whose parent is missing": ("UPDATE tasks SET parent = 't77'",),
    "a job of no run": ("INSERT INTO jobs (run_id, urls, heard_at, failures) VALUES ('r9-abcdef', '{}', 0, 0)",),
    "a job's id that leads elsewhere": runs_say("provider_job_id = '..'"),
    "an outcome that there is not": runs_say("outcome = 'fine'"),
    "a fence that leaves no room": (f"UPDATE counters SET value = {2**63 - 1} WHERE name = 'fence'",),
    "a task's number that leaves no room": (f"UPDATE counters SET value = {LARGEST_NUMBER + 1} WHERE name = 'task'",),
    "a fence that was not handed out": ("UPDATE counters SET value = 0 WHERE name = 'fence'",),
    "no counters": ("DELETE FROM counters",),
    "a time before all times": ("UPDATE tasks SET created_at = -1",),
    "a time after all times": runs_say(f"closed_at = {2**62}"),
    "a text that is no UTF-8": ("UPDATE tasks SET title = CAST(x'ff41' AS TEXT)",),
    "an id with a NUL": (
        "UPDATE attempts SET task_id = 't' || char(0)",
        "INSERT INTO pauses VALUES (char(0),'a','b',0)",
    ),
    "an event nested without end": (f"UPDATE events SET data = '{DEEP}'",),
    "a trigger": ("CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM runs; END",),
    "a view": ("CREATE VIEW v AS SELECT * FROM runs",),
    "a table of its own": ("CREATE TABLE more (x)",),
    "a virtual table": ("CREATE VIRTUAL TABLE words USING fts5(x)",),
    "an index of its own": ("CREATE INDEX more ON runs (abs(fence))",),
    "a check that is missing": (
        "UPDATE sqlite_schema SET sql = replace(sql, 'CHECK (run_id GLOB', 'CHECK (1 OR run_id GLOB') "
        "WHERE name = 'runs'",
    ),
    "a table that is a view": ("DROP TABLE jobs", "CREATE VIEW jobs AS SELECT 1 AS run_id"),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_backup_is_refused_in_one_line(line: CommandLine, what: str) -> None:
    copy = backup_of(line, *CRAFTED[what])
    before = line.state.ledger.read_bytes()
    assert line("ledger", "restore", str(copy), expect=1).complaint.startswith(f"cannot restore {copy}: ")
    assert line.state.ledger.read_bytes() == before


def test_a_sound_backup_is_restored_and_says_what_it_will_run(line: CommandLine) -> None:
    line.task("of somebody else")
    copy = backup_of(line)
    told = line("ledger", "restore", str(copy)).out
    assert "1 of its tasks are ready" in told
    assert line("ledger", "restore", str(copy), "--json").json["tasks_ready"] == 1


@pytest.mark.parametrize("suffix", ["-journal", "-wal"])
def test_a_backup_with_a_fifo_beside_it_holds_nobody_up(line: CommandLine, suffix: str) -> None:
    copy = backup_of(line)
    os.mkfifo(f"{copy}{suffix}")
    assert f"{copy.name}{suffix} is not a file" in line("ledger", "restore", str(copy), expect=1).complaint


def test_a_backup_of_an_older_schema_is_compared_with_that_schema() -> None:
    for version in range(1, SCHEMA + 1):
        with closing(sqlite3.connect(":memory:")) as connection:
            migrate(connection, 0, version)
            assert schema_difference(connection, version) is None
            assert version == SCHEMA or schema_difference(connection, SCHEMA) is not None


def test_a_backup_that_calls_a_stranger_its_keeper_is_not_restored(line: CommandLine) -> None:
    run = line.admit(line.task())
    with line.center() as center:
        me = Process.current()
        running = center.ledger.change_run(
            run, "run.started", state=RunState.RUNNING, keeper_pid=me.pid, keeper_ticks=me.start_ticks
        )
    assert running is not None
    copy = line("ledger", "backup", "copy.db").out.strip()
    line.close(running)
    assert run.run_id in line("ledger", "restore", copy, expect=75).complaint


@pytest.mark.parametrize(
    ("table", "assignment", "reading"),
    [
        ("runs", f"run_id = '{OUTSIDE}'", lambda ledger: ledger.closed_before(2**60, 10)),
        ("runs", f"run_id = '{OUTSIDE}'", lambda ledger: ledger.recent_runs(task_id=None, backend=None, limit=9)),
        ("runs", "release = '../evil'", lambda ledger: ledger.recent_runs(task_id=None, backend=None, limit=9)),
        ("runs", "cgroup = '/etc'", lambda ledger: ledger.recent_runs(task_id=None, backend=None, limit=9)),
    ],
)
def test_a_ledger_that_was_changed_by_hand_leads_nowhere(
    line: CommandLine, table: str, assignment: str, reading: Callable[[SqliteLedger], object]
) -> None:
    line.closed_run()
    change(line.state.ledger, f"UPDATE {table} SET {assignment}")
    with line.center() as center, pytest.raises(LedgerUnusable, match="it is damaged"):
        reading(center.ledger)


def test_retention_removes_nothing_that_a_changed_ledger_names(line: CommandLine) -> None:
    line.closed_run()
    precious = line.root / "outside"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (line.state.runs / "r1-").mkdir()
    change(line.state.ledger, f"UPDATE runs SET run_id = '{OUTSIDE}'")
    line("ledger", "prune", "--older-than", "0s", expect=1)
    assert (precious / "file").exists()


@pytest.mark.parametrize("current", ['["/home/evil", ""]', '[null, "../../evil.toml"]', '["..", ""]'])
def test_a_deployment_that_names_a_path_is_damage(line: CommandLine, current: str) -> None:
    line.task()
    change(line.state.ledger, deploying(current))
    with line.center() as center, pytest.raises(LedgerUnusable, match="the deployment"):
        center.deployments.read()


@pytest.mark.parametrize("name", ["r9223372036854775807-aaaaaa", f"r{LARGEST_NUMBER}-aaaaaa", f"r{'9' * 240}-aaaaaa"])
def test_a_planted_run_directory_keeps_nobody_from_starting_and_no_fence_from_counting(
    line: CommandLine, name: str
) -> None:
    first = line.closed_run()
    (line.state.runs / name).mkdir()
    (line.state.runs / name / "gate").touch()
    copy = line("ledger", "backup", "copy.db").out.strip()
    line("ledger", "restore", copy)
    assert line.closed_run().fence == first.fence + 1
    with line.center() as center:
        refuse_to_start(center, "a fleet")


def test_a_directory_in_which_nothing_has_begun_proves_no_lost_writes(line: CommandLine) -> None:
    line.task()
    (line.state.runs / "r9-aaaaaa").mkdir()
    with line.center() as center:
        refuse_to_start(center, "a fleet")
        (line.state.runs / "r9-aaaaaa" / "gate").touch()
        with pytest.raises(LedgerUnusable, match="its last writes are lost"):
            refuse_to_start(center, "a fleet")
