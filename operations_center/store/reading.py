"""Read a ledger that cannot be written: on a full or read-only file system, or somebody else's.

Whoever has the ledger open shares ``ledger.db-shm``: with it SQLite reads under the kernel's locks, also through a
mount that is read-only. Without it, or where it cannot grow, SQLite refuses; then a private copy is read, together with
its write-ahead log.
"""

import errno
import os
import shutil
import sqlite3
import stat
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from operations_center.errors import OperationsCenterError, Unavailable
from operations_center.files import open_file
from operations_center.store.faults import APPLICATION_ID
from operations_center.store.schema import migrate

_IN_MEMORY = "/dev/shm"
"""For a copy where the disk of ``$TMPDIR`` is full as well."""

_CHUNK = 1024 * 1024
_OPENED_AS_WELL = ("-journal", "-wal", "-shm")


def connect_for_reading(path: Path, opened: ExitStack) -> sqlite3.Connection:
    """``opened`` closes what was opened. Raises sqlite3.Error, Unavailable, OperationsCenterError."""
    if (problem := odd_company(path)) is not None:
        raise OperationsCenterError(f"cannot read the ledger {path}: {problem}")
    if _beside(path, "-shm").exists():
        try:
            return _connect(path, "ro", opened)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _CANNOT_SHARE:
                raise
    return _connect(_private_copy(path, opened), "rw", opened)


_CANNOT_SHARE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL})


def empty_ledger(opened: ExitStack) -> sqlite3.Connection:
    """What there is to read where no ledger was ever made; it is nowhere but in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    opened.callback(connection.close)
    migrate(connection, 0)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    return connection


def odd_company(path: Path) -> str | None:
    """Say what is no file of those that SQLite opens with a database; None where all are, or are not there.

    It would follow a link, and wait for the other end of a FIFO.
    """
    there = [each for each in (path, *map(partial(_beside, path), _OPENED_AS_WELL)) if os.path.lexists(each)]
    odd = next((each for each in there if not stat.S_ISREG(each.lstat().st_mode)), None)
    return f"{odd.name} is not a file" if odd is not None else None


def look_into(path: Path, opened: ExitStack, *, writable: bool) -> sqlite3.Connection:
    """As it is: nothing is migrated. Raises as above."""
    return _connect(path, "rw", opened) if writable else connect_for_reading(path, opened)


def _connect(path: Path, mode: str, opened: ExitStack) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
    opened.callback(connection.close)
    # SQLite opens nothing before something is read.
    connection.execute("PRAGMA schema_version").fetchone()
    return connection


def _private_copy(path: Path, opened: ExitStack) -> Path:
    try:
        return _copy_into(opened.enter_context(_temporary_directory(None)), path)
    except OSError:
        pass
    try:
        return _copy_into(opened.enter_context(_temporary_directory(_IN_MEMORY)), path)
    except OSError as error:
        raise OperationsCenterError(
            f"cannot read the ledger {path}: it can only be read as a copy, and {error.filename or 'that'} "
            f"cannot be read or written: {error.strerror or error}"
        ) from error


def _temporary_directory(parent: str | None) -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="operations-center-", dir=parent)


def _copy_into(directory: str, path: Path) -> Path:
    before = _state_of(path)
    for each in (path, _beside(path, "-wal")):
        if each.exists():
            _copy(each, Path(directory, each.name))
    if _state_of(path) != before:
        raise Unavailable(f"cannot read the ledger {path}: it was opened by somebody meanwhile; try again")
    return Path(directory, path.name)


def _copy(source: Path, target: Path) -> None:
    """No more than it has now, and not where that would fill a disk: it may be somebody else's, and without an end."""
    with os.fdopen(open_file(source), "rb") as original, target.open("xb") as copy:
        left = os.fstat(original.fileno()).st_size
        if left > shutil.disk_usage(target.parent).free // 2:
            raise OSError(errno.ENOSPC, f"there is no room for the {left} bytes of {source.name}", str(target.parent))
        while left and (chunk := original.read(min(left, _CHUNK))):
            copy.write(chunk)
            left -= len(chunk)


def _state_of(path: Path) -> list[tuple[int, int, int] | None]:
    """What every write changes, of the ledger and of its log; and whether somebody has opened it."""
    index = _facts(_beside(path, "-shm"))
    return [_facts(path), _facts(_beside(path, "-wal")), index and (index[0], 0, 0)]


def _facts(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
