"""What is wrong with a ledger's file: one line that names the file, the fault and the way back."""

import os
import shlex
import sqlite3
import stat
from pathlib import Path

from operations_center.errors import LedgerBusy, LedgerUnusable, LedgerUnwritable, OperationsCenterError

APPLICATION_ID = 0x0C0C0C01
"""Marks the file as ours in its header (sqlite.org/pragma.html#pragma_application_id)."""

LONGEST_PATH = 500
"""SQLite's own limit (MAX_PATHNAME) is 512, with the names of log and index."""

_HEADER_SIZE = 100
_APPLICATION_ID_AT = 68
"""sqlite.org/fileformat2.html#the_database_header"""


def sign_of_an_earlier_ledger(path: Path) -> str | None:
    """What tells that there was a ledger here, in words; to be asked before the ledger itself is looked for.

    In this order, because others may be making ledger and signs at this very moment.
    """
    runs, host_id = path.with_name("runs"), path.with_name("host-id")
    if runs.is_dir() and any(runs.iterdir()):
        return f"{runs} has runs"
    # Made when the first ledger was whole.
    return f"{host_id} says that there was one" if host_id.exists() else None


def is_missing(path: Path, sign: str | None) -> bool:
    """Whether a ledger has to be made: there is none, or the empty file that a killed first start has left.

    Raises LedgerUnusable where there was one: an empty ledger in its place would forget what may still be alive.
    """
    # Before the ledger, as above. A file with tables or without: SQLite makes it before its log.
    sign = sign or _left_log(path)
    try:
        # Of a link itself: where it leads to, nobody here has made a ledger.
        facts = path.lstat()
    except FileNotFoundError:
        problem = "it is missing"
    except OSError as error:
        raise OperationsCenterError(f"cannot open the ledger {path}: {error.strerror}; correct that") from error
    else:
        if not stat.S_ISREG(facts.st_mode):
            raise LedgerUnusable(f"cannot open the ledger {path}: it is not a file; move it away and {way_back(path)}")
        if facts.st_size:
            return False
        problem = "it is empty"
    if sign is not None:
        raise lost(path, problem, sign)
    return True


def _left_log(path: Path) -> str | None:
    log = path.with_name(f"{path.name}-wal")
    return f"its write-ahead log {log.name} is there" if log.exists() and log.stat().st_size else None


def lost(path: Path, problem: str, sign: str) -> LedgerUnusable:
    return LedgerUnusable(
        f"cannot open the ledger {path}: {problem}, but {sign}; {way_back(path)}, "
        f"or move {path.parent} away and begin with an empty board by `operations-center ledger new`"
    )


def way_back(path: Path) -> str:
    """What to do about a ledger that cannot be used, with the newest backup that is found."""
    found = backups_beside(path)
    if not found:
        return "bring back a backup with `operations-center ledger restore FILE`"
    others = f" ({len(found) - 1} older beside it or near)" if len(found) > 1 else ""
    return f"bring back the newest backup with `operations-center ledger restore {shlex.quote(str(found[0]))}`{others}"


def backups_beside(path: Path) -> list[Path]:
    """Files with a ledger's header in the state directory, beside it, or in ``backups`` there; newest first."""
    state = path.parent
    found = {}
    for directory in (state, state / "backups", state.parent, state.parent / "backups"):
        for candidate in _files(directory):
            if not _is_same(candidate, path) and _is_ledger(candidate):
                found[candidate] = candidate.stat().st_mtime_ns
    return sorted(found, key=lambda each: found[each], reverse=True)


class ClearErrors:
    """What SQLite raises as errors of ours; a constraint that a caller has broken goes through.

    For any number of blocks, also one inside another.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        match error:
            case None | sqlite3.IntegrityError():
                pass
            case sqlite3.DatabaseError():
                raise _explained(self._path, error) from error
            case UnicodeDecodeError():
                # Of SQLite's message, which quotes the damage.
                raise _damaged_text(self._path) from error


def _damaged_text(path: Path) -> LedgerUnusable:
    return LedgerUnusable(f"cannot use the ledger {path}: a text in it is damaged; {way_back(path)}")


def _explained(path: Path, error: sqlite3.DatabaseError) -> OperationsCenterError:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # Python's own, which quotes the text that is no UTF-8.
        return _damaged_text(path)
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return LedgerBusy(f"cannot write the ledger {path}: another program holds it; try again")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return LedgerUnusable(f"cannot use the ledger {path}: {error}; {way_back(path)}")
        case sqlite3.SQLITE_CANTOPEN if len(os.fsencode(path.absolute())) > LONGEST_PATH:
            return OperationsCenterError(
                f"cannot use the ledger {path}: its path has more than {LONGEST_PATH} bytes; shorten center.state_dir"
            )
        case sqlite3.SQLITE_FULL:
            return LedgerUnwritable(path, f"the disk is full; {_MAKE_ROOM}")
        case sqlite3.SQLITE_READONLY:
            return LedgerUnwritable(
                path, "it, or the file system that it is on, is read-only; make it writable and try again"
            )
        case sqlite3.SQLITE_IOERR if code in _FAILED_WRITES:
            return LedgerUnwritable(path, _why_unwritable(path, f"{error} ({error.sqlite_errorname})"))
        case sqlite3.SQLITE_CANTOPEN if path.exists() and (reason := _lack_of_room(path)):
            return LedgerUnwritable(path, reason)
        case sqlite3.SQLITE_IOERR:
            return OperationsCenterError(
                f"cannot use the ledger {path}: {error} ({error.sqlite_errorname}); "
                "see whether its disk is full or fails, and try again"
            )
    return OperationsCenterError(f"cannot use the ledger {path}: {error}; see `operations-center doctor`")


_MAKE_ROOM = "make room and try again"

_FAILED_WRITES = frozenset(
    {
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_DIR_FSYNC,
        sqlite3.SQLITE_IOERR_TRUNCATE,
        sqlite3.SQLITE_IOERR_SHMOPEN,
        sqlite3.SQLITE_IOERR_SHMSIZE,
        sqlite3.SQLITE_IOERR_SHMMAP,
    }
)
"""What SQLite says where a log, or its index, cannot grow: over a quota, for one."""


def unwritable(path: Path, error: OSError) -> LedgerUnwritable:
    """What keeps a file beside the ledger from being made."""
    return LedgerUnwritable(path, _why_unwritable(path, error.strerror or str(error)))


def _why_unwritable(path: Path, problem: str) -> str:
    return _lack_of_room(path) or f"{problem}; see whether its quota is used up or its disk fails, and try again"


def _lack_of_room(path: Path) -> str | None:
    try:
        facts = os.statvfs(path.parent)
    except OSError:
        return None
    if facts.f_bavail == 0:
        return f"the disk is full; {_MAKE_ROOM}"
    # A file system without a fixed number of inodes says that it has none at all.
    if facts.f_files and facts.f_favail == 0:
        return "its file system has no inode left; remove some files and try again"
    return None


def _files(directory: Path) -> list[Path]:
    try:
        return [entry for entry in directory.iterdir() if ".db" in entry.name and entry.is_file()]
    except OSError:
        return []


def _is_same(candidate: Path, path: Path) -> bool:
    # Closing a descriptor of the ledger itself would drop the locks of a connection.
    try:
        return os.path.samestat(candidate.stat(), path.stat())
    except OSError:
        return False


def _is_ledger(candidate: Path) -> bool:
    try:
        with candidate.open("rb", buffering=0) as file:
            header = file.read(_HEADER_SIZE)
    except OSError:
        return False
    return header[_APPLICATION_ID_AT:][:4] == APPLICATION_ID.to_bytes(4, "big")
