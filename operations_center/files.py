"""Open, read, write and remove what somebody else may have put there.

An executor, another user, a commit or a backup may have put a link, a FIFO, a device, a file without end or a directory
without bottom in the place of any file. So nothing here follows a link in the last part of a path, waits for a FIFO, or
reads, decodes or removes without a bound. Every failure to open, read, write or remove is an OSError whose ``strerror``
is a phrase for a message; everything that cannot be decoded is a ValueError.
"""

import errno
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate, islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

T = TypeVar("T")

DEPTH = 64
"""Levels of nesting in a JSON document; whatever handles it later may go down level by level."""

OPEN_LEVELS = 32
"""Directories that a removal has open at once. What lies deeper is moved up, which needs no path and no descriptor."""

_CHUNK = 128 * 1024
_NAMES_AT_ONCE = 1000
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOT_A_FILE = (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO)
# Nothing is given back and no end is asked for: else a text without one would be read again from each of its quotes.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

AnyPath = Path | str

_log = logging.getLogger(__name__)


def open_file(path: AnyPath, flags: int = os.O_RDONLY, *, dir_fd: int | None = None, owner: int | None = None) -> int:
    """Open a regular file and return its descriptor, which is not inherited.

    ``owner`` is the only user id that it may belong to. With O_CREAT in ``flags`` it is made 0600.
    Raises OSError: ELOOP for a link, EINVAL for what is no regular file, EPERM for another owner.
    """
    return _open(path, flags, stat.S_IFREG, dir_fd, owner)


def open_directory(path: AnyPath, *, dir_fd: int | None = None, owner: int | None = None) -> int:
    """Open a directory for reading, as ``open_file`` does; raises what it raises."""
    return _open(path, os.O_RDONLY, stat.S_IFDIR, dir_fd, owner)


def open_fifo(path: AnyPath, flags: int, *, dir_fd: int | None = None, owner: int | None = None) -> int:
    """Open a FIFO without waiting for its other end, as ``open_file`` does; raises what it raises."""
    return _open(path, flags, stat.S_IFIFO, dir_fd, owner)


def _open(path: AnyPath, flags: int, kind: int, dir_fd: int | None, owner: int | None) -> int:
    try:
        descriptor = os.open(path, flags | _SAFE, 0o600, dir_fd=dir_fd)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, or lies behind too many links", str(path)) from None
        raise
    try:
        _check(os.fstat(descriptor), path, kind, owner)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(facts: os.stat_result, path: AnyPath, kind: int, owner: int | None) -> None:
    found = stat.S_IFMT(facts.st_mode)
    if found != kind:
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(found, 'of an unknown kind')}, not {_KINDS[kind]}", str(path))
    if owner is not None and facts.st_uid != owner:
        raise OSError(errno.EPERM, f"it belongs to user {facts.st_uid}, not to user {owner}", str(path))


def open_own_file(path: AnyPath, flags: int) -> int:
    """Open a file that only we write, or make it; what else is in its place is set aside. Raises OSError."""
    try:
        return open_file(path, flags | os.O_CREAT)
    except OSError as error:
        if error.errno not in _NOT_A_FILE:
            raise
    set_aside(path)
    return open_file(path, flags | os.O_CREAT)


@contextmanager
def opened_own_directory(path: AnyPath) -> Iterator[int]:
    """Open a directory that only we make, or make it; what else is in its place is set aside. Raises OSError."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            set_aside(path)
            os.mkdir(path, 0o700)
    with _opened_to_change(os.fspath(path), None) as directory:
        yield directory


def append_to(path: AnyPath) -> BinaryIO:
    """Open a log of ours to write at its end, without a buffer; as ``open_own_file``."""
    return os.fdopen(open_own_file(path, os.O_WRONLY | os.O_APPEND), "ab", buffering=0)


def read_file(path: AnyPath, limit: int, *, dir_fd: int | None = None, owner: int | None = None) -> bytes:
    """Read a whole regular file of at most ``limit`` bytes.

    Raises OSError as ``open_file`` does, and EFBIG for a larger one, of which nothing is kept.
    """
    descriptor = open_file(path, dir_fd=dir_fd, owner=owner)
    try:
        content = b"".join(_chunks(descriptor, limit + 1)) if os.fstat(descriptor).st_size <= limit else None
    finally:
        os.close(descriptor)
    if content is None or len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(path))
    return content


def _chunks(descriptor: int, limit: int) -> Iterator[bytes]:
    while limit > 0 and (chunk := os.read(descriptor, min(_CHUNK, limit))):
        yield chunk
        limit -= len(chunk)


def decode_json(data: bytes, kind: type[T], *, depth: int = DEPTH) -> T:
    """Decode a JSON document of at most ``depth`` levels. Raises ValueError, with one line that says why."""
    if _nesting(data) > depth:
        raise ValueError(f"it is nested deeper than {depth} levels")
    try:
        # Text that nothing decodes need not be UTF-8 to msgspec.
        return msgspec.json.decode(data.decode(), type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _nesting(data: bytes) -> int:
    """Return how deep a document is nested, or a lower number than ``DEPTH`` where that is all it can be."""
    most = data.count(b"[") + data.count(b"{")
    if most <= DEPTH:
        return most
    brackets = _STRING.sub(b"", data).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def write_atomically(path: AnyPath, content: bytes, *, mode: int = 0o600, synced: bool = False) -> None:
    """Give a file this content in one step: a reader finds the old one or the new one, whole.

    ``synced``: it has reached the disk, with its name, before this returns. Raises OSError; then the old one is there.
    """
    directory, name = os.path.split(os.fspath(path))
    draft = os.path.join(directory, f".{name[:100]}.{os.getpid()}")
    try:
        _write_new(draft, content, mode, synced=synced)
        os.replace(draft, path)
    except OSError:
        with suppress(OSError):
            os.unlink(draft)
        raise
    if synced:
        sync(directory or ".")


def _write_new(path: str, content: bytes, mode: int, *, synced: bool) -> None:
    # What an earlier process of this number left behind goes first; O_EXCL opens nothing that was put there since.
    with suppress(FileNotFoundError):
        os.unlink(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, mode)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        left = memoryview(content)
        while left:
            left = left[file.write(left) :]
        if synced:
            os.fsync(descriptor)


def sync(path: AnyPath) -> None:
    """Make a file's content, or a directory's names, survive a power cut. Never for a database that is open here."""
    descriptor = os.open(path, os.O_RDONLY | _SAFE)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: AnyPath) -> str:
    """Rename what stands in the place of a file of ours, keep it, say so in the log, and return its new name.

    Raises OSError.
    """
    aside = f"{path}.set-aside-{os.urandom(4).hex()}"
    os.rename(path, aside)
    _log.warning("%s was not what belongs there, and is set aside as %s; see who made it", path, aside)
    return aside


class RemovalBudget:
    """What removals may do together before somebody else's turn has come: entries and seconds."""

    def __init__(self, entries: int, seconds: float) -> None:
        self._entries = entries
        self._end = time.monotonic() + seconds

    def is_spent(self) -> bool:
        return self._entries <= 0 or time.monotonic() >= self._end

    def spend(self) -> None:
        """Count one entry. Raises _BudgetSpent where nothing is left."""
        if self.is_spent():
            raise _BudgetSpent
        self._entries -= 1


class _BudgetSpent(Exception):
    """Not an error: what is left is removed by the next call."""


def remove_tree(path: AnyPath, budget: RemovalBudget | None = None, *, dir_fd: int | None = None) -> bool:
    """Remove a directory with all that is in it, however deep, or a single file or link.

    False when the budget was spent before all was gone: the next call goes on from there. What is not there is removed.
    No link is followed and no mount entered. Raises OSError for what cannot be removed, such as a mount or what belongs
    to somebody else.
    """
    name = os.fspath(path)
    try:
        facts = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    if not stat.S_ISDIR(facts.st_mode):
        os.unlink(name, dir_fd=dir_fd)
        return True
    try:
        with _opened_to_change(name, dir_fd) as top:
            _Emptying(top, budget or RemovalBudget(sys.maxsize, float("inf"))).run(top, 1)
    except _BudgetSpent:
        return False
    os.rmdir(name, dir_fd=dir_fd)
    return True


class _Emptying:
    """Remove what is in the directory that is open as ``top``.

    ``OPEN_LEVELS`` directories are open at once. One that lies deeper is moved up into ``top`` and emptied from there:
    so a tree of any depth takes neither a long path nor many descriptors, and what a spent budget leaves over is not
    walked down again.
    """

    def __init__(self, top: int, budget: RemovalBudget) -> None:
        self._top = top
        self._budget = budget
        self._mount = _mount_of(top)

    def run(self, directory: int, level: int) -> None:
        while entries := _some_entries(directory):
            for name, is_directory in entries:
                self._budget.spend()
                if is_directory:
                    self._remove_directory(name, directory, level)
                else:
                    os.unlink(name, dir_fd=directory)

    def _remove_directory(self, name: str, parent: int, level: int) -> None:
        with _opened_to_change(name, parent) as directory:
            if _mount_of(directory) != self._mount:
                raise OSError(errno.EBUSY, "something is mounted in it; unmount that first", name)
            if level == OPEN_LEVELS:
                os.rename(name, os.urandom(8).hex(), src_dir_fd=parent, dst_dir_fd=self._top)
                return
            self.run(directory, level + 1)
        os.rmdir(name, dir_fd=parent)


def _some_entries(directory: int) -> list[tuple[str, bool]]:
    """Return names of a directory, and whether each is one itself: not all, for there may be millions."""
    with os.scandir(directory) as entries:
        return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in islice(entries, _NAMES_AT_ONCE)]


def _mount_of(descriptor: int) -> str:
    """Return the id of the mount that an open file is on: a device number is the same in a bind mount of its disk."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return line
    raise OSError(errno.ENOSYS, "the kernel does not say which mount it is on")


@contextmanager
def _opened_to_change(name: str, dir_fd: int | None) -> Iterator[int]:
    """Open a directory, and make it ours to read and to change where a program has taken that right away."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) & stat.S_IRWXU != stat.S_IRWXU:
            # Its owner may be another: then it stays as it is, and the next step says what is not permitted.
            with suppress(PermissionError):
                os.chmod(f"/proc/self/fd/{handle}", stat.S_IRWXU)
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle)
    finally:
        os.close(handle)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
