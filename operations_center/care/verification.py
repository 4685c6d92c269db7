"""Is a backup what was written, and is that sound? Nothing but a copy is touched."""

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from operations_center.care.bringing_back import Returning, difference
from operations_center.care.contents import Content, Unreadable, content_of
from operations_center.care.manifest import (
    LedgerCopy,
    Manifest,
    artifacts_of,
    look_into,
    manifest_of,
    read_manifest,
    runs_in,
)
from operations_center.care.soundness import unsound
from operations_center.clock import SystemClock
from operations_center.errors import OperationsCenterError
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.store import Store
from operations_center.store.faults import APPLICATION_ID
from operations_center.store.reading import odd_company
from operations_center.text import on_one_line


def copy_backup(source: Path, present: Path, staged: Path) -> None:
    try:
        facts = source.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise _cannot(source, "it is not a file")
        if present.exists() and os.path.samestat(facts, present.stat()):
            raise _cannot(source, "it is the present ledger itself")
        if (problem := odd_company(source.resolve())) is not None:
            raise _cannot(source, problem)
        os.close(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        uri = f"{source.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as original:
            # Locked for reading before the copy, which would wait for ever for a lock that is held.
            original.execute("BEGIN")
            application = original.execute("PRAGMA application_id").fetchone()[0]
            original.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if application != APPLICATION_ID:
                raise _cannot(source, "it is no ledger of this program")
            with closing(sqlite3.connect(staged)) as copy:
                original.backup(copy)
    except (OSError, ValueError, sqlite3.Error) as error:
        raise _cannot(source, str(getattr(error, "strerror", None) or error)) from None


def refuse_unsound(source: Path, staged: Path) -> None:
    """Before anything reads or writes the copy by its own schema. Raises OperationsCenterError."""
    problem = unsound(staged)
    if problem is not None:
        raise _cannot(source, problem)


def compare_with_manifest(source: Path, staged: Path, artifacts: Returning) -> Path | None:
    """Where the manifest is, None when there is none; the artifacts that were taken along are staged.

    ``staged`` is the copy. Raises OperationsCenterError for what differs.
    """
    # A link to a backup stands for it.
    backup = source.resolve()
    path = manifest_of(backup)
    manifest = _read_manifest(source, path)
    if manifest is None:
        return None
    differences = _differences_of_ledger(source, manifest.ledger, backup, staged)
    if manifest.artifacts.taken:
        try:
            differences += artifacts.stage(manifest.artifacts.files, artifacts_of(backup), runs_in(staged))
        except OSError as error:
            problem = f"its artifacts cannot be copied: {error}; correct that and try again; nothing was changed"
            raise OperationsCenterError(on_one_line(f"cannot restore {source}: {problem}")) from None
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise _differs(source, f"it is not what {path.name} beside it says: {differences[0]}{more}")
    return path


def _read_manifest(source: Path, path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except Unreadable as error:
        raise _differs(source, f"{path.name} beside it cannot be read: {error}") from None


def _differences_of_ledger(source: Path, told: LedgerCopy, backup: Path, staged: Path) -> list[str]:
    try:
        found = [difference("it", content_of(backup), Content(told.bytes, told.sha256))]
        schema, tables = look_into(staged)
    except (Unreadable, FileNotFoundError, sqlite3.Error) as error:
        raise _differs(source, f"it cannot be read: {error}") from None
    if schema != told.schema:
        found.append(f"its schema is {schema}, not {told.schema}")
    for table in sorted({*tables, *told.tables}):
        rows, wanted = tables.get(table, "no"), told.tables.get(table, "no")
        if rows != wanted:
            found.append(f"its table {table} has {rows} rows, not {wanted}")
    return [each for each in found if each is not None]


def _differs(source: Path, problem: str) -> OperationsCenterError:
    advice = "name another backup, or move the manifest away to restore the ledger alone, compared with nothing"
    return OperationsCenterError(on_one_line(f"cannot restore {source}: {problem}; {advice}"))


def verify(source: Path, staged: Path) -> None:
    try:
        with closing(Store(staged, SystemClock())) as store:
            wrong = SqliteLedger(store).verify()
    except OperationsCenterError as error:
        raise _cannot(source, str(error).removeprefix(f"cannot open the ledger {staged}: ")) from None
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise _cannot(source, f"it does not agree with its own log: {wrong[0]}{more}")


def _cannot(source: Path, problem: str) -> OperationsCenterError:
    advice = "name a file that `operations-center ledger backup` made"
    return OperationsCenterError(on_one_line(f"cannot restore {source}: {problem}; {advice}"))
