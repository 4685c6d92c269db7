"""SQLite in WAL mode: transactions behind a fair gate, migrations, and the event log that every change feeds.

``synchronous=FULL``: what was committed survives a power cut. A process keeps one connection, and never
forks with a transaction open. The database file must not be opened beside the connection: closing that
descriptor would drop the connection's POSIX locks (sqlite.org/howtocorrupt.html, 2.2).
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from operations_center.clock import Clock
from operations_center.errors import LedgerReplaced, LedgerUnusable, LedgerUnwritable
from operations_center.store.faults import (
    APPLICATION_ID,
    ClearErrors,
    is_missing,
    lost,
    sign_of_an_earlier_ledger,
    unwritable,
    way_back,
)
from operations_center.store.queries import load_queries
from operations_center.store.reading import connect_for_reading, empty_ledger
from operations_center.store.schema import SCHEMA, migrate
from operations_center.store.turnstile import Turnstile

WRITE_WITHIN_S = 10.0
BUSY_STEP_MS = 100

Parameters = Mapping[str, Any] | Sequence[Any]

_SQL = load_queries(Path(__file__).with_name("events.sql"))


class Access(Enum):
    """How a ledger is opened."""

    CREATE = "made where none is and none was"
    EXISTING = "never made: it has to be there"
    READ = "never made and never written; empty where there is none"
    END = "as READ, and written at the cost of the reserve: for whoever ends something"


class Store:
    """One process's connection. Not for use by two threads at once."""

    def __init__(
        self, path: Path, clock: Clock, *, write_within_s: float = WRITE_WITHIN_S, access: Access = Access.CREATE
    ) -> None:
        """Raises LedgerUnusable, OperationsCenterError."""
        self.path = path
        self.clock = clock
        self.write_within_s = write_within_s
        self._clear_errors = ClearErrors(path)
        self._depth = 0
        self._busy_timeout_ms = round(write_within_s * 1000)
        self._hurry_until: float | None = None
        self._turnstile: Turnstile | None = None
        self._names = [str(path)] if access is Access.READ else [str(path), f"{path}-wal"]
        sign = sign_of_an_earlier_ledger(path)
        missing = is_missing(path, sign)
        if missing and access is Access.EXISTING:
            raise LedgerUnusable(f"cannot open the ledger {path}: it is missing; start a fleet to make one")
        with ExitStack() as opened, self._clear_errors:
            if access is Access.READ:
                self._connection = empty_ledger(opened) if missing else connect_for_reading(path, opened)
                self._connection.row_factory = sqlite3.Row
                self._refuse_other_schema()
                self._files = [] if missing else self._named_files()
            else:
                self._turnstile = self._open_turnstile(opened)
                self._connection = self._connect("rwc" if missing else "rw", opened)
                self._refuse_what_is_no_ledger(sign if not missing else None)
                self._make_ours(self._turnstile)
                # Not before something was read in this mode: that makes the log.
                self._files = self._named_files()
                self._migrate()
            self._opened = opened.pop_all()

    def _open_turnstile(self, opened: ExitStack) -> Turnstile:
        try:
            turnstile = Turnstile(self.path)
        except OSError as error:
            raise unwritable(self.path, error) from error
        opened.callback(turnstile.close)
        return turnstile

    def close(self) -> None:
        self._opened.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A write transaction; one inside another joins it. Raises LedgerBusy."""
        if self._depth:
            yield
            return
        turnstile = self._turnstile
        if turnstile is None:
            raise LedgerUnwritable(self.path, "it is open for reading only")
        deadline = time.monotonic() + self._patience_s()
        turnstile.enter(self._patience_s())
        try:
            with self._clear_errors:
                self.refuse_if_replaced()
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
            turnstile.leave()

    def _begin(self, within_s: float) -> None:
        # Behind the turnstile only a program that does not know it can be in the way. In steps, for it is seldom told.
        timeout_ms = int(within_s * 1000 / BUSY_STEP_MS) * BUSY_STEP_MS
        if timeout_ms != self._busy_timeout_ms:
            self._connection.execute(f"PRAGMA busy_timeout = {timeout_ms}")
            self._busy_timeout_ms = timeout_ms
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
        with self._clear_errors:
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._end_snapshot()

    def _end_snapshot(self) -> None:
        # A failure inside may have ended it already.
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")

    def execute(self, statement: str, parameters: Parameters) -> int:
        """Run a writing statement inside a transaction; the number of rows that it changed."""
        return self._connection.execute(statement, parameters).rowcount

    def execute_each(self, statement: str, rows: Iterable[Parameters]) -> None:
        """The same statement for many rows, where nobody asks what each has changed."""
        self._connection.executemany(statement, rows)

    def rows(self, statement: str, parameters: Parameters | None = None) -> list[sqlite3.Row]:
        with self._clear_errors:
            return self._read(statement, parameters or {}).fetchall()

    def _read(self, statement: str, parameters: Parameters) -> sqlite3.Cursor:
        """A writer that is stopped while it changes what readers look at first keeps them out, too.

        SQLite gives up after ten seconds. Whoever then waits for the turn ends the one that is stopped.
        """
        try:
            return self._connection.execute(statement, parameters)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_PROTOCOL or self._turnstile is None:
                raise
        self._turnstile.enter(self.write_within_s)
        self._turnstile.leave()
        return self._connection.execute(statement, parameters)

    def row(self, statement: str, parameters: Parameters | None = None) -> sqlite3.Row | None:
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
        self.execute(_SQL["append_event"], (self.clock.now().wall, kind, run_id, task_id, as_json(data)))

    def append_events(self, kind: str, told: Iterable[tuple[str | None, str | None, Mapping[str, Any]]]) -> None:
        """Events of one kind: run, task and data of each."""
        at = self.clock.now().wall
        self.execute_each(
            _SQL["append_event"], [(at, kind, run_id, task_id, as_json(data)) for run_id, task_id, data in told]
        )

    @contextmanager
    def damage_told(self, what: str) -> Iterator[None]:
        """A row that cannot be understood as LedgerUnusable: SQLite notices only the damage that hurts itself."""
        try:
            yield
        except (ValueError, TypeError, KeyError) as error:
            raise LedgerUnusable(
                f"cannot understand {what} of the ledger {self.path}: it is damaged; {way_back(self.path)}"
            ) from error

    def integrity_errors(self) -> list[str]:
        """What SQLite itself finds wrong with the file; empty when nothing is."""
        found = [str(row[0]) for row in self.rows("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def copy_to(self, destination: Path) -> None:
        """A consistent copy while others write (sqlite.org/backup.html)."""
        with ClearErrors(destination):
            target = sqlite3.connect(destination)
            try:
                # In one step: begun anew after every write of somebody else, several might never end.
                self._connection.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")
            finally:
                target.close()

    def refuse_if_replaced(self) -> None:
        """What is written to a file without a name is lost, and what is read there is old. Raises LedgerReplaced."""
        try:
            present = self._named_files()
        except OSError as error:
            raise LedgerReplaced(
                f"cannot go on with the ledger {self.path}: {error.filename} was removed or moved away; "
                f"put it back or {way_back(self.path)}, and start again"
            ) from None
        if present != self._files:
            raise LedgerReplaced(f"cannot go on with the ledger {self.path}: it was replaced meanwhile; start again")

    def _named_files(self) -> list[tuple[int, int]]:
        """What the names of the ledger and of its log stand for: as long as somebody has them open, the same files."""
        return [(facts.st_dev, facts.st_ino) for facts in map(os.stat, self._names)]

    def _connect(self, mode: str, opened: ExitStack) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=self.write_within_s, isolation_level=None)
        opened.callback(connection.close)
        connection.row_factory = sqlite3.Row
        return connection

    def _refuse_what_is_no_ledger(self, sign: str | None) -> None:
        """Before anything of the file is changed."""
        if self._schema() == 0 and sign is not None:
            raise lost(self.path, "it is an empty database", sign)

    def _make_ours(self, turnstile: Turnstile) -> None:
        self._use_wal(turnstile)
        self._connection.execute("PRAGMA synchronous=FULL")
        # Damage is noticed when a page is read, and not when its rubbish is used.
        self._connection.execute("PRAGMA cell_size_check=ON")
        self.path.chmod(0o600)
        self._schema()

    def _use_wal(self, turnstile: Turnstile) -> None:
        """Of several that open a new ledger at once one makes the change: SQLite would tell the others it is busy."""
        if _journal_mode(self._connection) == "wal":
            return
        turnstile.enter(self._patience_s())
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
        finally:
            turnstile.leave()

    def _migrate(self) -> None:
        if self._schema() == SCHEMA:
            return
        with self.transaction():
            present = self._schema()
            if present > SCHEMA:
                raise self._newer(present)
            migrate(self._connection, present)
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _refuse_other_schema(self) -> None:
        """Who only reads cannot migrate."""
        present = self._schema()
        if present > SCHEMA:
            raise self._newer(present)
        if present < SCHEMA:
            raise LedgerUnusable(
                f"cannot read the ledger {self.path}: its schema {present} is older than this program's; "
                "the first command that may write it brings it up to date"
            )

    def _newer(self, present: int) -> LedgerUnusable:
        return LedgerUnusable(
            f"cannot open the ledger {self.path}: its schema {present} is newer than this program's "
            f"{SCHEMA}; upgrade operations-center"
        )

    def _schema(self) -> int:
        # In one statement: somebody else may be making the tables at this moment.
        tables, version, application = self._read(_SQL["what_it_is"], {}).fetchone()
        if application not in (0, APPLICATION_ID) or (application == 0 and (version or tables)):
            raise LedgerUnusable(
                f"cannot open the ledger {self.path}: it is some other program's SQLite database; "
                f"move it away and {way_back(self.path)}"
            )
        return int(version)


def _journal_mode(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def as_data(value: Any) -> dict[str, Any]:
    """A flat dataclass as JSON-ready columns."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def as_json(data: Any) -> str:
    try:
        return msgspec.json.encode(data).decode()
    except UnicodeEncodeError:
        # A path that is not UTF-8: only with escapes it is a text that SQLite takes.
        return json.dumps(msgspec.to_builtins(data), separators=(",", ":"))
