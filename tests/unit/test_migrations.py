"""What a migration makes of the rows that it finds."""

import sqlite3
from pathlib import Path

import operations_center
from operations_center.model import Priority, urgency_of

MIGRATIONS = sorted((Path(operations_center.__file__).parent / "store" / "migrations").glob("*.sql"))
CREATED_AT, LATER = 1_760_000_000_000, 1_760_000_060_000


def test_ready_tasks_from_before_have_their_order_and_their_backoff() -> None:
    database = sqlite3.connect(":memory:")
    for migration in MIGRATIONS[:2]:
        database.executescript(migration.read_text())
    for number, priority in enumerate(Priority):
        database.execute(
            "INSERT INTO tasks (task_id, number, title, kind, body, state, priority, created_at, updated_at) "
            "VALUES (?, ?, 'Do it', 'goal', '', 'ready', ?, ?, 0)",
            (f"t{number}", number, priority, CREATED_AT),
        )
    database.execute("INSERT INTO attempts VALUES ('t2', 1, 0, ?, ?)", (LATER, CREATED_AT))
    database.executescript(MIGRATIONS[2].read_text())
    rows = database.execute("SELECT priority, urgency, waits_until, waits_since FROM tasks ORDER BY number").fetchall()
    assert rows == [
        (priority, urgency_of(priority, CREATED_AT), *((LATER, CREATED_AT) if number == 2 else (None, None)))
        for number, priority in enumerate(Priority)
    ]
