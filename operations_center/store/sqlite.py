"""SQLite in WAL mode: transactions behind a fair gate, migrations, and the event log that every change feeds.

``synchronous=FULL``: what was committed survives a power cut. A process keeps one connection, and never
forks with a transaction open. The database file must not be opened beside the connection: closing that
descriptor would drop the connection's POSIX locks (sqlite.org/howtocorrupt.html, 2.2).
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from operations_center.clock import Clock
from operations_center.errors import LedgerBusy, OperationsCenterError, Unavailable
from operations_center.store.queries import load_queries
from operations_center.store.turnstile import Turnstile

WRITE_WITHIN_S = 10.0
APPLICATION_ID = 0x0C0C0C01
"""Marks the file as ours in its header (sqlite.org/pragma.html#pragma_application_id)."""

_SQL = load_queries(Path(__file__).with_name("events.sql"))


class Store:
    """One process's connection. Not for use by two threads at once."""

    def __init__(self, path: Path, clock: Clock, *, write_within_s: float = WRITE_WITHIN_S) -> None:
        self.path = path
        self.clock = clock
        self.write_within_s = write_within_s
        self._depth = 0
        self._hurry_until: float | None = None
        self._turnstile = Turnstile(path)
        with _clear_errors(path):
            self._refuse_a_lost_ledger()
            self._connection = self._connect()
            try:
                self._file = path.stat()
                self._migrate()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        self._connection.close()
        self._turnstile.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A write transaction; one inside another joins it. Raises LedgerBusy."""
        if self._depth:
            yield
            return
        deadline = time.monotonic() + self._patience_s()
        self._turnstile.enter(self._patience_s())
        try:
            with _clear_errors(self.path):
                self._refuse_a_replaced_ledger()
                self._begin(max(0.0, deadline - time.monotonic()))
                self._depth = 1
                try:
                    yield
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
                finally:
                    self._depth = 0
        finally:
            self._turnstile.leave()

    def _begin(self, within_s: float) -> None:
        # Behind the turnstile only a program that does not know it can be in the way.
        self._connection.execute(f"PRAGMA busy_timeout = {round(within_s * 1000)}")
        self._connection.execute("BEGIN IMMEDIATE")

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """All writes of the block together wait no longer than this for other writers."""
        before, self._hurry_until = self._hurry_until, time.monotonic() + seconds
        try:
            yield
        finally:
            self._hurry_until = before

    def _patience_s(self) -> float:
        if self._hurry_until is None:
            return self.write_within_s
        return min(self.write_within_s, max(0.0, self._hurry_until - time.monotonic()))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Reads inside see one state of the database, whatever is written meanwhile."""
        if self._depth or self._connection.in_transaction:
            yield
            return
        with _clear_errors(self.path):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    def execute(self, statement: str, parameters: Mapping[str, Any]) -> int:
        """Run a writing statement inside a transaction; the number of rows that it changed."""
        return self._connection.execute(statement, parameters).rowcount

    def rows(self, statement: str, parameters: Mapping[str, Any] | None = None) -> list[sqlite3.Row]:
        with _clear_errors(self.path):
            return self._connection.execute(statement, parameters or {}).fetchall()

    def row(self, statement: str, parameters: Mapping[str, Any] | None = None) -> sqlite3.Row | None:
        found = self.rows(statement, parameters)
        return found[0] if found else None

    def next_number(self, counter: str) -> int:
        """Draw the next value of a counter, inside a transaction."""
        row = self.row(_SQL["next_number"], {"name": counter})
        assert row is not None
        return int(row["value"])

    def append_event(
        self, kind: str, *, run_id: str | None = None, task_id: str | None = None, data: Mapping[str, Any]
    ) -> None:
        """To be called in the transaction that makes the change which the event tells of."""
        self.execute(
            _SQL["append_event"],
            {
                "at": self.clock.now().wall,
                "kind": kind,
                "run_id": run_id,
                "task_id": task_id,
                "data": json.dumps(data, separators=(",", ":")),
            },
        )

    def integrity_errors(self) -> list[str]:
        """What SQLite itself finds wrong with the file; empty when nothing is."""
        found = [str(row[0]) for row in self.rows("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def copy_to(self, destination: Path) -> None:
        """A consistent copy while others write (sqlite.org/backup.html)."""
        with _clear_errors(destination):
            target = sqlite3.connect(destination)
            try:
                # In one step: begun anew after every write of somebody else, several might never end.
                self._connection.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")
            finally:
                target.close()

    def _refuse_a_lost_ledger(self) -> None:
        """An empty ledger beside run directories would forget runs that may still be alive."""
        if self.path.exists() and self.path.stat().st_size:
            return
        runs = self.path.with_name("runs")
        if runs.is_dir() and any(runs.iterdir()):
            raise OperationsCenterError(
                f"cannot open the ledger {self.path}: it is missing or empty, but {runs} has runs; "
                "bring back a backup with `operations-center ledger restore`, or move that directory away"
            )

    def _refuse_a_replaced_ledger(self) -> None:
        """What is written to a file without a name is lost."""
        try:
            replaced = not os.path.samestat(self._file, self.path.stat())
        except FileNotFoundError:
            replaced = True
        if replaced:
            raise Unavailable(f"cannot write the ledger {self.path}: it was replaced meanwhile; start again")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self.write_within_s, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            self._use_wal(connection)
            connection.execute("PRAGMA synchronous=FULL")
            self.path.chmod(0o600)
        except BaseException:
            connection.close()
            raise
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        """Of several that open a new ledger at once one makes the change: SQLite would tell the others it is busy."""
        if _journal_mode(connection) == "wal":
            return
        self._turnstile.enter(self._patience_s())
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            self._turnstile.leave()

    def _migrate(self) -> None:
        migrations = sorted(Path(__file__).with_name("migrations").glob("*.sql"))
        if self._schema() == len(migrations):
            return
        with self.transaction():
            present = self._schema()
            if present > len(migrations):
                raise OperationsCenterError(
                    f"cannot open the ledger {self.path}: its schema {present} is newer than this program's "
                    f"{len(migrations)}; upgrade operations-center"
                )
            for number, migration in enumerate(migrations[present:], start=present + 1):
                for statement in _statements(migration.read_text("utf-8")):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {number}")
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _schema(self) -> int:
        # In this order: both are written in one transaction, which may be committed between the two reads.
        version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        if application not in (0, APPLICATION_ID) or (application == 0 and version):
            raise OperationsCenterError(
                f"cannot open the ledger {self.path}: it is some other program's SQLite database; move it away"
            )
        return version


def _journal_mode(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LedgerBusy(f"cannot write the ledger {path}: another program holds it; try again") from error
        raise OperationsCenterError(f"cannot use the ledger {path}: {error}; see `operations-center doctor`") from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError):
            raise
        raise OperationsCenterError(
            f"cannot use the ledger {path}: {error}; bring back a backup with `operations-center ledger restore FILE`"
        ) from error


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def as_data(value: Any) -> dict[str, Any]:
    """A flat dataclass as JSON-ready columns."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def changed_fields(old: Any, new: Any) -> dict[str, Any]:
    """The columns in which two values of one flat dataclass differ, with the new values."""
    return {
        field.name: getattr(new, field.name)
        for field in fields(new)
        if getattr(old, field.name) != getattr(new, field.name)
    }
