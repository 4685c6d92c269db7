"""The ledger as it is, read beside the fleet and only read: what the observer holds against the process table."""

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOLDS_SLOT = ("reserved", "running")

TRIES = 6
"""SQLite itself tries for ten seconds each time."""


@dataclass(frozen=True)
class Held:
    """An open run. ``begun`` is whether the ledger knows a keeper of it; ``watcher`` pid and start ticks."""

    task: str
    backend: str
    state: str
    watcher: tuple[int, int] = (0, 0)
    begun: bool = True

    @property
    def holds_slot(self) -> bool:
        return self.state in HOLDS_SLOT


@dataclass(frozen=True)
class View:
    """One reading, consistent in itself. ``fence`` is the last one that was given: every run up to it is known."""

    fence: int = 0
    runs: Mapping[str, Held] = field(default_factory=dict)

    @property
    def holding(self) -> frozenset[str]:
        return frozenset(run for run, held in self.runs.items() if held.holds_slot)


class LedgerReader:
    """One connection, kept open; to be used by the thread that made it."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=10)
        self._database.row_factory = sqlite3.Row

    def _read(self, statement: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Who was stopped in the midst of a write may keep readers out until the fleet has ended it."""
        for _ in range(TRIES - 1):
            try:
                return self._database.execute(statement, parameters)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_PROTOCOL:
                    raise
        return self._database.execute(statement, parameters)

    def view(self) -> View:
        self._database.execute("BEGIN")
        try:
            [fence] = self._read("SELECT value FROM counters WHERE name = 'fence'").fetchone()
            rows = self._database.execute("SELECT * FROM runs WHERE state <> 'closed'").fetchall()
        finally:
            self._database.execute("COMMIT")
        return View(
            fence,
            {
                row["run_id"]: Held(
                    row["task_id"],
                    row["backend"],
                    row["state"],
                    (row["watcher_pid"], row["watcher_ticks"]),
                    row["keeper_pid"] is not None,
                )
                for row in rows
            },
        )

    def unfinished(self) -> int:
        """Open runs, and tasks that something is still to be done about."""
        [runs] = self._read("SELECT count(*) FROM runs WHERE state <> 'closed'").fetchone()
        [tasks] = self._read("SELECT count(*) FROM tasks WHERE state IN ('ready', 'running')").fetchone()
        return int(runs) + int(tasks)

    def ready(self) -> int:
        return int(self._read("SELECT count(*) FROM tasks WHERE state = 'ready'").fetchone()[0])

    def open_tasks(self) -> list[str]:
        rows = self._read("SELECT task_id FROM tasks WHERE state IN ('ready', 'running') ORDER BY number")
        return [row["task_id"] for row in rows]

    def open_runs(self) -> list[str]:
        rows = self._read("SELECT run_id FROM runs WHERE state <> 'closed' ORDER BY fence")
        return [row["run_id"] for row in rows]

    def runs(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self._read("SELECT * FROM runs ORDER BY fence")]

    def tasks(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self._read("SELECT * FROM tasks ORDER BY number")]

    def events(self, run: str | None = None) -> list[dict[str, Any]]:
        where = "WHERE run_id = ?" if run else ""
        rows = self._read(f"SELECT * FROM events {where} ORDER BY seq", (run,) if run else ())
        return [{**dict(row), "data": json.loads(row["data"])} for row in rows]

    def close(self) -> None:
        self._database.close()


def is_whole(backup: Path) -> bool:
    """Whether SQLite finds nothing wrong with a copy of the ledger."""
    with closing(sqlite3.connect(f"{backup.as_uri()}?mode=ro", uri=True)) as database:
        return database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
