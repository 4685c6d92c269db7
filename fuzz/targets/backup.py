"""Crafted backups: a restore refuses one, or nothing of it leads anywhere."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import hypothesis.strategies as st

from fuzz.sandbox import Sandbox
from fuzz.targets.center import admit, configuration, dead_process, new_center, note_start
from operations_center.care.restore import restore
from operations_center.care.retention import prune_closed_runs
from operations_center.errors import OperationsCenterError
from operations_center.in_flight_reconcile import Trigger, find_orphaned_in_flight
from operations_center.presentation import task_as_json
from operations_center.releases.records import ReleaseState
from operations_center.views.status import describe, read_status
from operations_center.wiring import open_center

STATEMENTS = (
    "CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM runs; END",
    "CREATE VIEW v AS SELECT * FROM runs",
    "CREATE TABLE more (a)",
    "DROP TABLE deployment",
    "DELETE FROM counters",
    "UPDATE counters SET value = 9223372036854775807",
    "PRAGMA user_version = 99",
    "PRAGMA user_version = -1",
    "PRAGMA application_id = 7",
    "INSERT INTO tasks SELECT 't99', 99, title, kind, body, state, priority, backend, parent, reason, claimed_by, "
    "'x', created_at, updated_at FROM tasks LIMIT 1",
)

Change = tuple[str, Any]


class CraftedBackup:
    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._source = sandbox.root / "backup.db"
        self._sound = self._make_sound()
        with closing(sqlite3.connect(self._write(self._sound))) as connection:
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            self._columns = [
                (table, row[1]) for table in sorted(tables) for row in connection.execute(f"PRAGMA table_info({table})")
            ]

    @property
    def inputs(self) -> st.SearchStrategy[list[Change]]:
        outside = str(self._sandbox.outside)
        values = st.one_of(
            st.sampled_from(
                ["", "..", "../..", outside, f"../../{self._sandbox.outside.name}", "/", "\0", "\x1b]0;x\x07"]
            ),
            st.sampled_from([f'{{"current": ["{outside}", null]}}', '{"current":' + "[" * 2000 + "]" * 2000 + "}"]),
            st.sampled_from([0, -1, 2**63 - 1, -(2**63), 1.5, None, b"\xff\xfe"]),
            st.text(max_size=30),
        )
        update = st.tuples(st.sampled_from(self._columns), values)
        statement = st.tuples(st.sampled_from(STATEMENTS), st.none())
        spoiled = st.tuples(
            st.just("bytes"), st.tuples(st.integers(0, len(self._sound) - 1), st.binary(min_size=1, max_size=8))
        )
        return st.lists(st.one_of(update, update, statement, spoiled), min_size=1, max_size=3)

    def attempt(self, value: list[Change]) -> None:
        self._craft(value)
        self._sandbox.empty()
        config = configuration(self._sandbox)
        try:
            restore(config, self._source)
            with closing(open_center(config)) as center:
                describe(read_status(center))
                [task_as_json(task) for task in center.board.tasks(None)]
                deployment = center.deployments.read()
                if deployment is not None and deployment.current.commit is not None:
                    assert center.state.release(deployment.current.commit).parent == center.state.releases
                [release for release in center.releases.all() if release.state is ReleaseState.GOOD]
                find_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
                prune_closed_runs(center.ledger, center.state.runs, 0, center.clock.now().wall + 10**12)
        except OperationsCenterError:
            return

    def close(self) -> None:
        return

    def _make_sound(self) -> bytes:
        with closing(new_center(self._sandbox)) as center:
            nobody = dead_process()
            note_start(center, admit(center, nobody), nobody)
            run = admit(center, nobody)
            center.board.cancel(run.task_id)
            center.store.copy_to(self._source)
        return self._source.read_bytes()

    def _write(self, content: bytes) -> Path:
        self._source.write_bytes(content)
        return self._source

    def _craft(self, changes: list[Change]) -> None:
        self._write(self._sound)
        for what, how in changes:
            try:
                self._change(what, how)
            except (sqlite3.Error, OverflowError, UnicodeEncodeError):
                continue

    def _change(self, what: Any, how: Any) -> None:
        if what == "bytes":
            place, rubbish = how
            content = self._source.read_bytes()
            self._write(content[:place] + rubbish + content[place + len(rubbish) :])
            return
        with closing(sqlite3.connect(self._source, isolation_level=None)) as connection:
            # The author of a backup is not bound by our constraints.
            connection.execute("PRAGMA ignore_check_constraints = ON")
            if isinstance(what, str):
                connection.execute(what)
            else:
                table, column = what
                connection.execute(f'UPDATE "{table}" SET "{column}" = ?', (how,))
