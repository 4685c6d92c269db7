"""Runs that are faked by their records: rows, events, run directories. ``ledger verify`` finds nothing wrong with them.

Trees that are gone have a gate, a free lock, blank records and outputs, as a killed keeper leaves them. Trees that live
share a hundred living keepers, and their locks are links to those that these hold: what is looked at is what would be
looked at with ten thousand keepers, but for the size of the process table.
"""

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from operations_center.identity import Process, read_stat
from operations_center.keeper.launch import RECORD_SIZE
from operations_center.wiring import Center

KEEPERS = 100
_RECORD = b" " * (RECORD_SIZE - 1) + b"\n"


@dataclass(frozen=True, slots=True)
class Keeper:
    """``lock`` is a file on which it holds its lock; None for one that is gone."""

    process: Process
    lock: Path | None = None


def dead_process() -> Process:
    """Was there once: its pid is free, or a stranger's."""
    child = subprocess.Popen(["true"])
    child.wait()
    return Process(child.pid, 1)


@contextmanager
def living_keepers(directory: Path) -> Iterator[list[Keeper]]:
    """Each is a shell in a session of its own, with a sleeper as its executor."""
    directory.mkdir()
    children = []
    try:
        for number in range(KEEPERS):
            descriptor = os.open(directory / f"lock{number}", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            children.append(subprocess.Popen(["sh", "-c", "sleep 86399; :"], stdin=descriptor, start_new_session=True))
            os.close(descriptor)
        yield [Keeper(_identify(child.pid), directory / f"lock{number}") for number, child in enumerate(children)]
    finally:
        for child in children:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def add_open_runs(
    center: Center, roles: Sequence[str], count: int, watcher: Process, keepers: Sequence[Keeper]
) -> None:
    """Running runs of as many tasks, dealt out to roles and keepers in turn, in a ledger that has none."""
    facts = {
        "roles": json.dumps(list(roles)),
        "keepers": json.dumps([keeper.process for keeper in keepers]),
        "watcher_pid": watcher.pid,
        "watcher_ticks": watcher.start_ticks,
    }
    with _bulk(center, count, facts) as execute:
        for statement in _OPEN:
            execute(statement)
    for number in range(1, count + 1):
        _make_directory(center.state.run(f"r{number}-facade"), keepers[number % len(keepers)], f"t{number}")


def add_closed_runs(center: Center, count: int) -> None:
    """Closed runs of as many finished tasks. Each has its present in one event: enough for the fold to agree."""
    with _bulk(center, count, {}) as execute:
        indexes = execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL").fetchall()
        for name, _ in indexes:
            execute(f"DROP INDEX {name}")
        for statement in _CLOSED:
            execute(statement)
        for _, definition in indexes:
            execute(definition)


def put_back(center: Center) -> None:
    """What a reconciliation has freed is as it was: the open runs run, and nobody has tried their tasks."""
    with _bulk(center, 0, {}) as execute:
        for statement in _UNDO:
            execute(statement)


@contextmanager
def _bulk(center: Center, count: int, facts: Mapping[str, object]) -> Iterator["_Execute"]:
    ledger = sqlite3.connect(center.store.path, isolation_level=None)
    ledger.execute("PRAGMA synchronous=OFF")
    ledger.execute("PRAGMA cache_size=-200000")
    every = asdict(center.host) | {"count": count, "now": center.clock.now().wall} | dict(facts)
    ledger.execute("BEGIN IMMEDIATE")
    yield _Execute(ledger, every)
    ledger.execute("COMMIT")
    ledger.close()


@dataclass(frozen=True, slots=True)
class _Execute:
    ledger: sqlite3.Connection
    facts: Mapping[str, object]

    def __call__(self, statement: str) -> sqlite3.Cursor:
        return self.ledger.execute(statement, self.facts)


def _make_directory(directory: Path, keeper: Keeper, task_id: str) -> None:
    directory.mkdir()
    (directory / "work").mkdir()
    files = {
        "task.json": json.dumps({"id": task_id, "title": "a task", "kind": "goal", "body": ""}).encode(),
        "prompt": b"a task",
        "timed_out": _RECORD,
        "exit": _RECORD,
        "gate": b"%d %d end\n" % keeper.process,
        "stdout": b"",
        "stderr": b"",
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    if keeper.lock is None:
        (directory / "lock").touch()
    else:
        os.link(keeper.lock, directory / "lock")


def _identify(pid: int) -> Process:
    stat = read_stat(pid)
    assert stat is not None
    return Process(pid, stat.start_ticks)


# The statements. Each inserts one row for every n from 1 to :count; a row's columns are what the log tells of it.

_NUMBERS = "WITH RECURSIVE numbers (n) AS (SELECT 1 WHERE :count UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)"


def _rows(table: str, columns: Mapping[str, str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) {_NUMBERS} SELECT {', '.join(columns.values())} FROM numbers"


def _events(kind: str, subject: str, columns: Mapping[str, str]) -> str:
    told = ", ".join(f"'{name}', {value}" for name, value in columns.items())
    run_id = columns.get("run_id", "NULL")
    event = {"at": ":now", "kind": f"'{kind}'", "run_id": run_id, "task_id": columns["task_id"]}
    return _rows("events", event | {"data": f"json_object('{subject}', json_object({told}))"})


_TASK = {
    "title": "'task ' || n",
    "body": "''",
    "priority": "'normal'",
    "created_at": ":now",
    "updated_at": ":now",
}
_RUN = {
    "backend": "'agent'",
    "attempt": "1",
    "host_id": ":host_id",
    "boot_id": ":boot_id",
    "pid_namespace": ":pid_namespace",
    "host": ":name",
    "reserved_at": ":now",
    "reserved_mono": "1",
    "grace_ms": "1000",
    "started_at": ":now",
}

_ROLE = "json_extract(:roles, '$[' || (n % json_array_length(:roles)) || ']')"
_KEEPER = "json_extract(:keepers, '$[' || (n % json_array_length(:keepers)) || '][{}]')"
_OPEN_TASK = _TASK | {
    "task_id": "'t' || n",
    "number": "n",
    "kind": _ROLE,
    "state": "'running'",
    "claimed_by": "'r' || n || '-facade'",
}
_OPEN_RUN = _RUN | {
    "run_id": "'r' || n || '-facade'",
    "task_id": "'t' || n",
    "role": _ROLE,
    "fence": "n",
    "holder": "1",
    "state": "'running'",
    "watcher_pid": ":watcher_pid",
    "watcher_ticks": ":watcher_ticks",
    "keeper_pid": _KEEPER.format(0),
    "keeper_ticks": _KEEPER.format(1),
}
_OPEN = (
    _rows("tasks", _OPEN_TASK),
    _rows("runs", _OPEN_RUN),
    _events("task.added", "task", _OPEN_TASK),
    _events("run.started", "run", _OPEN_RUN),
    "UPDATE counters SET value = :count",
)

# Numbers below every task and every fence that is handed out.
_CLOSED_TASK = _TASK | {"task_id": "'old' || n", "number": "-n", "kind": "'goal'", "state": "'done'"}
_CLOSED_RUN = _RUN | {
    "run_id": "'r' || -n || '-facade'",
    "task_id": "'old' || n",
    "role": "'goal'",
    "fence": "-n",
    "holder": "2",
    "state": "'closed'",
    "watcher_pid": "1",
    "watcher_ticks": "1",
    "keeper_pid": "1",
    "keeper_ticks": "1",
    "outcome": "'succeeded'",
    "proof": "'exit_recorded'",
    "exit_code": "0",
    "finish": """'{"state":"done","reason":null,"follow_ups":[]}'""",
    "settled_at": ":now",
    "settled_mono": "1",
    "closed_at": ":now",
}
_CLOSED = (
    _rows("tasks", _CLOSED_TASK),
    _rows("runs", _CLOSED_RUN),
    _events("task.added", "task", _CLOSED_TASK),
    _events("run.closed", "run", _CLOSED_RUN),
)

_UNDO = (
    """UPDATE runs SET state = 'running', outcome = NULL, proof = NULL, exit_code = NULL, reason = NULL, finish = NULL,
        settled_at = NULL, settled_mono = NULL, closed_at = NULL WHERE fence > 0""",
    "UPDATE tasks SET state = 'running', claimed_by = 'r' || number || '-facade', reason = NULL WHERE number > 0",
    "DELETE FROM attempts",
    "DELETE FROM events WHERE kind NOT IN ('task.added', 'run.started') AND task_id GLOB 't[0-9]*'",
)
