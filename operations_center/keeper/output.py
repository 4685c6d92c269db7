"""Bound what a run prints: of too much the beginning and the end are kept, and the middle is dropped.

The executor writes into its files by itself, so nobody stands between it and them. While it runs, the middle becomes a
hole in the file: its length stays, its blocks are given back. A reader finds it by SEEK_DATA and SEEK_HOLE (lseek(2)).
When the run has ended, each file is replaced by one that has a line in place of the middle.

While the keeper lives its descriptors are the files of the run, whatever lies under their names by then.
"""

import ctypes
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from operations_center.files import open_directory, open_file
from operations_center.identity import Process, is_alive

_log = logging.getLogger(__name__)

STREAMS = ("stdout", "stderr")

_DESCRIPTORS = (1, 2)
"""The keeper's, of the streams; ``keeper.sh`` opens them."""

_BLOCK = 64 * 1024
"""What a hole consists of. No file system of ours has larger blocks, and a part of one would only be zeroed."""

_CHUNK = 1024 * 1024
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def sizes_of(keeper: Process) -> tuple[int, ...] | None:
    """Return how long the streams of a run are; None where its keeper does not live or cannot be looked into."""
    try:
        facts = [os.stat(_path(keeper, descriptor)) for descriptor in _DESCRIPTORS]
    except OSError:
        return None
    sizes = tuple(each.st_size if stat.S_ISREG(each.st_mode) else 0 for each in facts)
    return sizes if is_alive(keeper) else None


def kept_of(sizes: Sequence[int], limit: int) -> list[int]:
    """Return how many bytes of each stream are kept. One that is short leaves the rest of its half to the other."""
    half = limit // 2
    others = [sum(sizes) - size for size in sizes]
    return [max(half, limit - other) for other in others]


def bound_running(keeper: Process, sizes: Sequence[int], limit: int) -> bool:
    """Drop the middle of what is longer than it may be; whether there was something to drop.

    Raises OSError, EOPNOTSUPP where the file system cannot do it.
    """
    dropped = False
    for descriptor, size, kept in zip(_DESCRIPTORS, sizes, kept_of(sizes, limit), strict=True):
        begin, end = -(-(kept // 2) // _BLOCK) * _BLOCK, (size - kept // 2) // _BLOCK * _BLOCK
        if end > begin:
            _punch(keeper, descriptor, begin, end)
            dropped = True
    return dropped


def bound_ended(run_directory: Path, limit: int) -> None:
    """Put one line in place of the middle of what is longer than it may be.

    Raises OSError; then the file is as it was.
    """
    directory = open_directory(run_directory)
    descriptors = [_open_stream(directory, name) for name in STREAMS]
    try:
        sizes = [os.fstat(each).st_size if each is not None else 0 for each in descriptors]
        for name, descriptor, size, kept in zip(STREAMS, descriptors, sizes, kept_of(sizes, limit), strict=True):
            if descriptor is not None and size > kept:
                _rewrite(directory, name, descriptor, size, kept)
    finally:
        for descriptor in (directory, *descriptors):
            if descriptor is not None:
                os.close(descriptor)


def mark_of(size: int) -> bytes:
    """Return the line that stands for so many bytes."""
    return f"[{size} bytes of output were dropped here: more than max_output]\n".encode()


@dataclass
class _Bounded:
    keeper: Process
    limit: int
    sizes: tuple[int, ...] = ()


@dataclass
class OutputBounds:
    """Keeps the output of several runs within their bounds while they run."""

    _runs: dict[str, _Bounded] = field(default_factory=dict)

    def watch(self, run_id: str, keeper: Process, limit: int) -> None:
        if run_id not in self._runs:
            self._runs[run_id] = _Bounded(keeper, limit)

    def forget(self, run_id: str) -> None:
        self._runs.pop(run_id, None)

    @property
    def is_empty(self) -> bool:
        return not self._runs

    def enforce(self) -> bool:
        """Look at each run once; whether one of them has printed more than it may.

        One whose output cannot be bounded, as its file system makes no holes, is reported and not looked at again.
        """
        dropped = False
        for run_id, run in list(self._runs.items()):
            sizes = sizes_of(run.keeper)
            if sizes is None or sizes == run.sizes:
                continue
            run.sizes = sizes
            try:
                dropped |= bound_running(run.keeper, sizes, run.limit)
            except OSError as error:
                _log.warning("cannot drop what run %s prints beyond max_output: %s", run_id, error.strerror)
                self.forget(run_id)
        return dropped


def _path(keeper: Process, descriptor: int) -> str:
    return f"/proc/{keeper.pid}/fd/{descriptor}"


def _punch(keeper: Process, descriptor: int, begin: int, end: int) -> None:
    stream = os.open(_path(keeper, descriptor), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        # Asked with the file open: its pid may belong to somebody else by now.
        if not stat.S_ISREG(os.fstat(stream).st_mode) or not is_alive(keeper):
            return
        if _fallocate(stream, _PUNCH_HOLE | _KEEP_SIZE, begin, end - begin) == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(stream)


def _open_stream(directory: int, name: str) -> int | None:
    try:
        return open_file(name, dir_fd=directory)
    except OSError:
        # Removed, or something else lies there: then its output is nowhere.
        return None


def _rewrite(directory: int, name: str, descriptor: int, size: int, kept: int) -> None:
    """In a file of its own that takes the other's name: a reader finds the one or the other, whole."""
    draft = f".{name}.{os.urandom(4).hex()}"
    try:
        with os.fdopen(open_file(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=directory), "wb") as file:
            for chunk in _shortened(descriptor, size, kept):
                file.write(chunk)
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with suppress(OSError):
            os.unlink(draft, dir_fd=directory)
        raise


def _shortened(descriptor: int, size: int, kept: int) -> Iterator[bytes]:
    head, tail = kept // 2, size - kept // 2
    last = b"\n"
    for chunk in _chunks(descriptor, 0, head):
        yield chunk
        last = chunk[-1:]
    yield b"" if last == b"\n" else b"\n"
    yield mark_of(tail - head)
    yield from _chunks(descriptor, tail, size)


def _chunks(descriptor: int, begin: int, end: int) -> Iterator[bytes]:
    while begin < end and (chunk := os.pread(descriptor, min(_CHUNK, end - begin), begin)):
        yield chunk
        begin += len(chunk)
