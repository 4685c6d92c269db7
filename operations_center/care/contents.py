"""Read what somebody else may have put there: no FIFO is waited for, no link below a directory is followed."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Unreadable(Exception):
    """``str`` says why, in words."""


@dataclass(frozen=True, slots=True)
class Content:
    """Of a file. ``size`` in bytes, ``sha256`` in hex."""

    size: int
    sha256: str


@contextmanager
def opened_file(path: Path | str, directory: int | None = None) -> Iterator[int]:
    """A regular file, for reading; in a ``directory`` that is open, no link. Raises FileNotFoundError, Unreadable."""
    descriptor = _open(path, directory, os.O_NONBLOCK, stat.S_IFREG, follow=directory is None)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_directory(path: Path | str, directory: int | None = None) -> Iterator[int]:
    """No link in a ``directory`` that is open. Raises FileNotFoundError, Unreadable."""
    descriptor = _open(path, directory, os.O_DIRECTORY, stat.S_IFDIR, follow=directory is None)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path | str, directory: int | None, flags: int, wanted: int, *, follow: bool) -> int:
    with _errors_in_words():
        # Looked at first, for to open a device can do something; and once more, for it may be another by then.
        _refuse_other(os.stat(path, dir_fd=directory, follow_symlinks=follow), wanted)
        flags |= os.O_RDONLY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        descriptor = os.open(path, flags, dir_fd=directory)
        try:
            _refuse_other(os.fstat(descriptor), wanted)
        except Unreadable:
            os.close(descriptor)
            raise
        return descriptor


def _refuse_other(facts: os.stat_result, wanted: int) -> None:
    kind = stat.S_IFMT(facts.st_mode)
    if kind != wanted:
        raise Unreadable(f"it is {_KINDS.get(kind, 'of an unknown kind')}, not {_KINDS[wanted]}")


@contextmanager
def _errors_in_words() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise Unreadable(str(getattr(error, "strerror", None) or error)) from None


def names_in(directory: int) -> list[str]:
    """Raises Unreadable."""
    with _errors_in_words():
        return sorted(os.listdir(directory))


def read_content(descriptor: int, write: Callable[[bytes], object] | None = None) -> Content:
    """To the end that the file has now: somebody may be writing on. What is read is written, too.

    Raises Unreadable, and what ``write`` raises.
    """
    left, digest, size = os.fstat(descriptor).st_size, hashlib.sha256(), 0
    while left and (data := _read(descriptor, min(left, CHUNK))):
        digest.update(data)
        if write is not None:
            write(data)
        size += len(data)
        left -= len(data)
    return Content(size, digest.hexdigest())


def _read(descriptor: int, size: int) -> bytes:
    with _errors_in_words():
        return os.read(descriptor, size)


def content_of(path: Path | str, directory: int | None = None) -> Content:
    """As ``opened_file``, and with what it raises."""
    with opened_file(path, directory) as descriptor:
        return read_content(descriptor)
