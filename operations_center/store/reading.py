"""Read a ledger that cannot be written: on a read-only file system, or somebody else's.

Whoever has the ledger open shares ``ledger.db-shm``: with it SQLite reads under the kernel's locks, also through a
mount that is read-only. Without it nobody has the ledger open, and SQLite, which would have to make it, refuses; then
a private copy is read, together with its write-ahead log.
"""

import os
import shutil
import sqlite3
import tempfile
from contextlib import ExitStack
from pathlib import Path

from operations_center.errors import OperationsCenterError, Unavailable


def connect_for_reading(path: Path, opened: ExitStack) -> sqlite3.Connection:
    """``opened`` closes what was opened. Raises sqlite3.Error, Unavailable, OperationsCenterError."""
    if _beside(path, "-shm").exists():
        return _connect(path, "ro", opened)
    return _connect(_private_copy(path, opened), "rw", opened)


def look_into(path: Path, opened: ExitStack, *, writable: bool) -> sqlite3.Connection:
    """As it is: nothing is migrated. Raises as above."""
    return _connect(path, "rw", opened) if writable else connect_for_reading(path, opened)


def _connect(path: Path, mode: str, opened: ExitStack) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
    opened.callback(connection.close)
    return connection


def _private_copy(path: Path, opened: ExitStack) -> Path:
    try:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="operations-center-")))
        before = _state_of(path)
        for each in (path, _beside(path, "-wal")):
            if each.exists():
                shutil.copyfile(each, directory / each.name)
        if _beside(path, "-shm").exists() or _state_of(path) != before:
            raise Unavailable(f"cannot read the ledger {path}: it was opened by somebody meanwhile; try again")
    except OSError as error:
        raise OperationsCenterError(
            f"cannot read the ledger {path}: it can only be read as a copy, and {error.filename or 'that'} "
            f"cannot be read or written: {error.strerror or error}"
        ) from error
    return directory / path.name


def _state_of(path: Path) -> list[tuple[int, int, int] | None]:
    """What every write changes, of the ledger and of its log."""
    return [_facts(path), _facts(_beside(path, "-wal"))]


def _facts(path: Path) -> tuple[int, int, int] | None:
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
