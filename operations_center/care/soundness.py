"""Could this program have written what stands in a ledger? A backup may have been made, or changed, by anybody.

Two questions, before anything of it is written or followed: is its schema the very schema of its version, and is each
row one that could be there. What its rows say is still its author's word: its tasks will run.
"""

import math
import re
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Any

from operations_center.files import decode_json
from operations_center.ids import COMMIT, LARGEST_NUMBER, fence_of
from operations_center.keeper import cgroup
from operations_center.model import Finish, Outcome, Proof, TaskState
from operations_center.providers.answers import is_job_id
from operations_center.releases.deployment import Deployment, refuse_odd_names
from operations_center.store import SCHEMA, load_queries
from operations_center.store.schema import schema_difference

_SQL = load_queries(Path(__file__).with_name("ledger_file.sql"))

Rule = Callable[[Any], bool]
"""Whether a value that is not NULL could stand in its column; a ValueError says no as well."""


def unsound(database: Path) -> str | None:
    """Say in words what could not be in a ledger that this program has written; None where all could.

    Nothing of it is executed: no trigger fires for a reader, and no view or virtual table is read.
    """
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            return _odd_schema(connection) or _damage(connection) or _odd_row(connection) or _dangling(connection)
    except sqlite3.Error as error:
        return f"it cannot be read: {error}"


def _odd_schema(connection: sqlite3.Connection) -> str | None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA:
        return f"its schema {version} is newer than this program's {SCHEMA} (upgrade operations-center)"
    return schema_difference(connection, version)


def _damage(connection: sqlite3.Connection) -> str | None:
    """SQLite's own check: also of types, of what may not be NULL and of every CHECK."""
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    return None if found == "ok" else str(found)


def _odd_row(connection: sqlite3.Connection) -> str | None:
    for (table,) in connection.execute(_SQL["tables"]).fetchall():
        rules = _RULES.get(table, {})
        for row in connection.execute(_SQL["all_rows"].format(table=table)):
            for column, value in dict(row).items():
                if value is not None and not _may_be(value, rules.get(column)):
                    return f"its table {table} has a {column} that cannot be: {value!r:.60}"
            if table == "runs" and not _agree(row):
                return f"its run {row['run_id']} does not fit together"
    return None


def _may_be(value: Any, rule: Rule | None) -> bool:
    try:
        return (rule or _default)(value)
    except ValueError:
        return False


def _default(value: Any) -> bool:
    """Times and numbers are not negative and leave room to count on; a text was decoded already."""
    match value:
        case int():
            return 0 <= value <= LARGEST_NUMBER
        case float():
            return math.isfinite(value)
    return isinstance(value, str)


def _agree(run: sqlite3.Row) -> bool:
    is_its_cgroup = run["cgroup"] is None or cgroup.is_path_of(run["cgroup"], run["run_id"])
    return fence_of(run["run_id"]) == run["fence"] and is_its_cgroup


def _dangling(connection: sqlite3.Connection) -> str | None:
    """What one row says of another that is not there, or that says otherwise."""
    found = connection.execute(_SQL["dangling"]).fetchone()
    if found is not None:
        return f"it {found[0]}"
    deployed = {commit for commit in _deployed(connection) if commit is not None}
    known = {commit for (commit,) in connection.execute(_SQL["commits"])}
    missing = sorted(deployed - known)
    return f"it deploys the release {missing[0]}, which it does not know" if missing else None


def _deployed(connection: sqlite3.Connection) -> list[str | None]:
    row = connection.execute(_SQL["deployment"]).fetchone()
    return [] if row is None else [each.commit for each in decode_json(row[0].encode(), Deployment).versions]


def _is_run_id(text: str) -> bool:
    return fence_of(text) is not None


def _is_commit(text: str) -> bool:
    return COMMIT.fullmatch(text) is not None


def _matches(pattern: str) -> Rule:
    compiled = re.compile(pattern)
    return lambda text: compiled.fullmatch(text) is not None


def _is_word_of(words: type[StrEnum]) -> Rule:
    return lambda text: words(text) is not None


def _is_json_of(kind: Any) -> Rule:
    return lambda text: decode_json(text.encode(), kind) is not None


def _is_deployment(text: str) -> bool:
    refuse_odd_names(decode_json(text.encode(), Deployment))
    return True


_is_id = _matches(r"[!-~]{1,200}")
"""Ids contain no white space, and nothing that a terminal would obey."""

_is_name = _matches(r"[^\x00-\x1f\x7f]{1,1000}")
_is_exit_code = range(-(2**31), 2**31).__contains__

_RULES: Mapping[str, Mapping[str, Rule]] = {
    "counters": {"name": _matches("fence|task")},
    "events": {"kind": _matches("[a-z_.]+"), "run_id": _is_id, "task_id": _is_id, "data": _is_json_of(dict[str, Any])},
    "runs": {
        "run_id": _is_run_id,
        "task_id": _is_id,
        "role": _is_name,
        "backend": _is_name,
        "host_id": _is_name,
        "boot_id": _is_name,
        "host": _is_name,
        "release": _is_commit,
        "provider_job_id": is_job_id,
        "stop_outcome": _is_word_of(Outcome),
        "stop_then": _is_word_of(TaskState),
        "outcome": _is_word_of(Outcome),
        "proof": _is_word_of(Proof),
        "exit_code": _is_exit_code,
        "finish": _is_json_of(Finish),
    },
    "tasks": {
        "task_id": _matches("t(0|[1-9][0-9]{0,15})"),
        "kind": _is_name,
        "backend": _is_name,
        "parent": _is_id,
        "lineage": _is_id,
        "claimed_by": _is_run_id,
        "origin": _matches(r"r[0-9]{1,16}-[0-9a-f]{6}/[0-9]{1,9}"),
    },
    "attempts": {"task_id": _is_id},
    "task_holds": {"task_id": _is_id},
    "pauses": {"name": _is_name, "source": _is_name},
    "releases": {"commit": _is_commit},
    "deployment": {"deployment": _is_deployment},
    "reconciles": {"trigger": _is_name, "verdicts": _is_json_of(dict[str, int])},
    "jobs": {"run_id": _is_run_id, "urls": _is_json_of(dict[str, str])},
    "backend_health": {"backend": _is_name},
    "seen_time": {"boot_id": _is_name, "jumped_by": range(-LARGEST_NUMBER, LARGEST_NUMBER).__contains__},
    "forgotten_admissions": {"backend": _is_name},
}
"""By table and column. Whatever has no rule of its own is a number, a time or a text for people."""
