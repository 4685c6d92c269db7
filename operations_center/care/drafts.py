"""What is written here is whole or not there: made under another name, synced, then given its own."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What a file system without hard links answers (link(2))."""


@contextmanager
def draft_beside(path: Path) -> Iterator[Path]:
    """An empty file, 0600, in the same directory; removed at the end. Raises OSError."""
    draft = _other_name(path)
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def draft_directory_beside(path: Path) -> Iterator[Path]:
    """An empty directory, 0700, in the same one; removed at the end, with all that is in it. Raises OSError."""
    draft = _other_name(path)
    draft.mkdir(mode=0o700)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def publish(draft: Path, path: Path) -> None:
    """Give a file its name. Raises FileExistsError where that is taken, OSError."""
    # A link, unlike a rename, refuses a name that is taken.
    try:
        os.link(draft, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        refuse_existing(path)
        draft.rename(path)


def refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, f"{path.name} exists already and is not overwritten", str(path))


def sync(path: Path) -> None:
    """Make a file's content, or a directory's names, survive a power cut. Never for a database that is open here."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _other_name(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
