"""The schema that this program's code reads and writes, and how an older one becomes it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

from operations_center.store.queries import load_queries

_MIGRATIONS = [file.read_text("utf-8") for file in sorted(Path(__file__).with_name("migrations").glob("*.sql"))]
"""Read with the code that goes with them: who outlives a code pull must not migrate to what it cannot read."""

SCHEMA = len(_MIGRATIONS)
"""Which schema this program reads and writes: a ledger that it has opened has this ``user_version``."""

_SQL = load_queries(Path(__file__).with_name("events.sql"))


def migrate(connection: sqlite3.Connection, present: int, to: int = SCHEMA) -> None:
    """Bring a database from one schema to a later one, inside a transaction of the caller's."""
    for number, migration in enumerate(_MIGRATIONS[present:to], start=present + 1):
        for statement in _statements(migration):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")


def schema_difference(connection: sqlite3.Connection, version: int) -> str | None:
    """Say what a database has beside the tables of this schema, or has not; None where it is the very same.

    A trigger or a view runs with the rights of whoever writes or reads; a constraint that is missing lets through what
    nobody here could have written.
    """
    found, expected = _objects(connection), _objects_of(version)
    for each in sorted(found ^ expected):
        kind, name = each[:2]
        if each in expected:
            return f"its {kind} {name} is missing or another"
        return f"it has a {kind} {name!r} that no ledger has"
    return None


_Object = tuple[str, str, str, str]


@cache
def _objects_of(version: int) -> frozenset[_Object]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, 0, version)
        return _objects(connection)


def _objects(connection: sqlite3.Connection) -> frozenset[_Object]:
    """Return kind, name, table and text of each; the text with its white space made even."""
    rows = connection.execute(_SQL["objects"])
    return frozenset(
        (str(kind), str(name), str(table), " ".join(str(text).split())) for kind, name, table, text in rows
    )


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
