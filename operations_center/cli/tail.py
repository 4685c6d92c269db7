"""The end of files that may be gigabytes long, and what comes after it."""

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

LOOK_EVERY_S = 0.2
CHUNK = 64 * 1024
LONGEST_LINE = 1024 * 1024
"""In bytes; a longer line comes in pieces."""


class Tail:
    """One stream's file. It may be missing yet, be rotated away, or be cut."""

    def __init__(self, stream: str, path: Path) -> None:
        self.stream = stream
        self._path = path
        self._descriptor: int | None = None
        self._rest = b""

    def last_lines(self, count: int) -> Iterator[str]:
        """The last lines, the last one also if it is not ended."""
        yield from self.begin(count)
        yield from self.end()

    def begin(self, count: int) -> Iterator[str]:
        self._descriptor = _open(self._path)
        if self._descriptor is not None:
            os.lseek(self._descriptor, _start_of_last(self._descriptor, count), os.SEEK_SET)
            yield from self._read()

    def more(self) -> Iterator[str]:
        """Lines that were ended since; those of a file that was rotated away before those of its successor."""
        if self._descriptor is not None:
            self._rewind_if_cut(self._descriptor)
            yield from self._read()
        if self._is_replaced():
            yield from self.end()
            self._descriptor = _open(self._path)
            yield from self._read()

    def end(self) -> Iterator[str]:
        """What is left, also without a line's end."""
        yield from self._read()
        if self._rest:
            yield _text(self._rest)
        self._rest = b""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _read(self) -> Iterator[str]:
        while self._descriptor is not None and (chunk := os.read(self._descriptor, CHUNK)):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            yield from map(_text, lines)
            if len(self._rest) > LONGEST_LINE:
                yield _text(self._rest)
                self._rest = b""

    def _rewind_if_cut(self, descriptor: int) -> None:
        if os.fstat(descriptor).st_size < os.lseek(descriptor, 0, os.SEEK_CUR):
            os.lseek(descriptor, 0, os.SEEK_SET)

    def _is_replaced(self) -> bool:
        try:
            present = self._path.stat()
        except OSError:
            return False
        return self._descriptor is None or not os.path.samestat(present, os.fstat(self._descriptor))


def follow(tails: Sequence[Tail], count: int, is_over: Callable[[], bool]) -> Iterator[tuple[str, str]]:
    """Stream and line, as they come, until nothing more can."""
    for tail in tails:
        for text in tail.begin(count):
            yield tail.stream, text
    while True:
        # Asked before the reading: what was written before it was over is still shown.
        over = is_over()
        for tail in tails:
            for text in tail.more():
                yield tail.stream, text
        if over:
            break
        time.sleep(LOOK_EVERY_S)
    for tail in tails:
        for text in tail.end():
            yield tail.stream, text


def _open(path: Path) -> int | None:
    # Not blocking and not following: the executor may put anything in the place of these files.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _start_of_last(descriptor: int, count: int) -> int:
    """Where the last ``count`` lines begin: looked for from the end, and only counted."""
    position = os.fstat(descriptor).st_size
    if count == 0:
        return position
    left = count
    if position and os.pread(descriptor, 1, position - 1) == b"\n":
        left += 1
    while position > 0:
        size = min(CHUNK, position)
        chunk = os.pread(descriptor, size, position - size)
        ends = chunk.count(b"\n")
        if ends >= left:
            return position - size + _nth_from_end(chunk, left) + 1
        left -= ends
        position -= size
    return 0


def _nth_from_end(chunk: bytes, number: int) -> int:
    at = len(chunk)
    for _ in range(number):
        at = chunk.rfind(b"\n", 0, at)
    return at


def _text(line: bytes) -> str:
    return line.decode(errors="replace")
