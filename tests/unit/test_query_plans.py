"""No query that is asked while runs are admitted, settled or reconciled reads the runs and tasks that are over."""

import re
import sqlite3
from pathlib import Path

import pytest

import operations_center
from operations_center.model import Run
from operations_center.store import load_queries

PACKAGE = Path(operations_center.__file__).parent
QUERIES = load_queries(PACKAGE / "ledger" / "sqlite.sql") | load_queries(PACKAGE / "boards" / "local.sql")
HOT = (
    "admission_facts",
    "admitted_since",
    "attempts_of",
    "closed_before",
    "ended_backoffs",
    "finish_task",
    "next_ready_at",
    "open_run_of_task",
    "open_runs",
    "ready",
    "run_by_id",
    "running",
    "slots_held",
    "states",
    "task",
    "task_row",
    "task_texts",
    "tasks_of_lineage",
    "tasks_with_slot",
    "wishes_ahead",
    "write_run",
    "write_task",
)
OF_OPEN_RUNS = {"one_open_run_per_task", "held_slots"}
"""Indexes in which a closed run does not stand."""


@pytest.fixture(scope="module")
def database() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    for migration in sorted((PACKAGE / "store" / "migrations").glob("*.sql")):
        database.executescript(migration.read_text())
    return database


def plan_of(database: sqlite3.Connection, statement: str) -> list[str]:
    # A comment may hold anything; the columns of a transition are filled in when it is made.
    statement = re.sub(r"--.*", "", statement).format(columns="state", values="?")
    named = dict.fromkeys(re.findall(r":(\w+)", statement))
    rows = database.execute(f"EXPLAIN QUERY PLAN {statement}", named or [None] * statement.count("?"))
    return [row[3] for row in rows]


def scans(plan: list[str]) -> list[str]:
    """The steps that read a whole table, or a whole index in which closed runs stand."""
    return [
        step
        for step in plan
        if re.match(r"SCAN (runs|tasks|events|attempts)\b", step)
        and not any(step.endswith(f"USING INDEX {index}") for index in OF_OPEN_RUNS)
    ]


@pytest.mark.parametrize("name", HOT)
def test_no_hot_query_scans_what_grows(database: sqlite3.Connection, name: str) -> None:
    assert scans(plan_of(database, QUERIES[name])) == []


def test_a_query_that_scans_is_noticed(database: sqlite3.Connection) -> None:
    assert scans(plan_of(database, "SELECT * FROM runs ORDER BY fence")) == ["SCAN runs"]


def test_a_run_has_its_columns_in_the_order_of_its_fields(database: sqlite3.Connection) -> None:
    columns = [row[1] for row in database.execute("PRAGMA table_info(runs)")]
    assert columns == list(Run.__struct_fields__)


@pytest.mark.parametrize("name", ["ready", "ended_backoffs", "next_ready_at"])
def test_a_turn_reads_tasks_from_an_index_alone_and_in_its_order(database: sqlite3.Connection, name: str) -> None:
    """The row of a task has its body before most of its columns: what comes after is found through all of it."""
    plan = plan_of(database, QUERIES[name])
    of_tasks = [step for step in plan if re.match(r"(SEARCH|SCAN) tasks\b", step)]
    assert of_tasks
    assert all("COVERING INDEX" in step for step in of_tasks), plan
    assert "USE TEMP B-TREE FOR ORDER BY" not in plan
