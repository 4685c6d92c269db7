"""Room that is kept for the moment in which there is none: given back so that the end of a run can be recorded.

An executor that has filled the disk is to be ended, and the ledger has to say why it ended. So a few files with real
blocks lie beside the ledger. Whoever ends a run on a full disk removes one after the other, until what has to be
written was written, and the watchdog makes them again when there is room. They are several, because others fill the
disk at the same time, and because a file system may have run out of inodes: SQLite wants two for its log and its index.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from operations_center.errors import LedgerUnwritable
from operations_center.files import open_directory

T = TypeVar("T")

PARTS = 8
LARGEST = 4 << 20
"""Bytes of all parts: room for hundreds of transitions."""

SHARE = 16
"""On a small file system, the part of all its blocks that the reserve takes."""

LEAVES = 4
"""The reserve is made only where this many times its size is free: it is not to be what fills the disk."""

_BLOCK = 4096


class Reserve:
    """The files in one directory of the state directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def fill(self) -> bool:
        """Make what is missing of it where there is room; whether it is whole. Raises OSError."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        directory = open_directory(self._directory, owner=os.geteuid())
        try:
            size = _size_of_part(directory)
            return all(_has(directory, name, size) or _make(directory, name, size) for name in _NAMES)
        finally:
            os.close(directory)

    def spend_on(self, write: Callable[[], T]) -> T:
        """Write, and give back part after part until that works. Raises LedgerUnwritable when nothing is left."""
        while True:
            try:
                return write()
            except LedgerUnwritable:
                if not self._give_back():
                    raise

    def _give_back(self) -> bool:
        """Remove one part; False when there is none. Best effort: whoever asks has nothing else to try."""
        try:
            directory = open_directory(self._directory)
        except OSError:
            return False
        try:
            return any(_remove(directory, name) for name in _NAMES)
        finally:
            os.close(directory)


_NAMES = tuple(f"part-{number}" for number in range(PARTS))


def _size_of_part(directory: int) -> int:
    facts = os.fstatvfs(directory)
    whole = min(LARGEST, facts.f_blocks * facts.f_frsize // SHARE)
    return max(_BLOCK, whole // PARTS // _BLOCK * _BLOCK)


def _has(directory: int, name: str, size: int) -> bool:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_blocks * 512 >= size
    except FileNotFoundError:
        return False


def _make(directory: int, name: str, size: int) -> bool:
    if not _has_room(directory, size * PARTS * LEAVES):
        return False
    _remove(directory, name)
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        _remove(directory, name)
        raise
    finally:
        os.close(descriptor)
    return True


def _has_room(directory: int, wanted: int) -> bool:
    facts = os.fstatvfs(directory)
    # A file system without a fixed number of inodes says that it has none at all.
    return facts.f_bavail * facts.f_frsize >= wanted and (facts.f_files == 0 or facts.f_favail > PARTS)


def _remove(directory: int, name: str) -> bool:
    with suppress(OSError):
        os.unlink(name, dir_fd=directory)
        return True
    return False
