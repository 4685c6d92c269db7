"""A copy of the ledger while the fleet runs."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from operations_center.clock import rfc3339
from operations_center.config.wording import on_one_line
from operations_center.errors import OperationsCenterError
from operations_center.ledger.sqlite import SqliteLedger

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What a file system without hard links answers (link(2))."""


@dataclass(frozen=True, slots=True)
class Backup:
    path: Path
    size: int
    runs: int
    events: int


def back_up(ledger: SqliteLedger, destination: Path, now_wall: int) -> Backup:
    """One state of the ledger, 0600, whole or not there. Raises OperationsCenterError; overwrites nothing.

    In a directory the copy's name has the time in it.
    """
    path = destination
    try:
        if destination.is_dir():
            path = destination / f"ledger-{file_time(now_wall)}.db"
        _refuse_existing(path)
        with draft_beside(path) as draft:
            with ledger.snapshot():
                runs, events = ledger.sizes()
                ledger.backup(draft)
            sync(draft)
            size = draft.stat().st_size
            _link(draft, path)
        sync(path.parent)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise OperationsCenterError(on_one_line(f"cannot write the backup {path}: {problem}; name another")) from None
    return Backup(path, size, runs, events)


def file_time(wall_ms: int) -> str:
    """``20260131T120000123Z``: a time for a file's name."""
    return (rfc3339(wall_ms) or "").translate({ord(c): None for c in "-:."})


@contextmanager
def draft_beside(path: Path) -> Iterator[Path]:
    """An empty file, 0600, in the same directory; removed at the end. Raises OSError."""
    draft = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or a directory's names, survive a power cut. Never for a database that is open here."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(draft: Path, path: Path) -> None:
    # A link, unlike a rename, refuses a name that is taken.
    try:
        os.link(draft, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _refuse_existing(path)
        draft.rename(path)


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "it exists already and is not overwritten", str(path))
