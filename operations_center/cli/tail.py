"""The end of a file, and what is written to it from then on: bytes as they went in, and holes as what is lost.

A file may be rotated, truncated, removed or made anew at any moment, and the middle of an output may be dropped, which
leaves a hole (``max_output``).
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from operations_center.files import open_file

CHUNK = 64 * 1024

KNOWN = 4096
"""Bytes before the place of reading that are compared: others there mean that the file was written from its start."""

ENDS_ALIKE = 1024
"""Bytes at the end of two files that make one of them a shortened form of the other."""

LOOK_EVERY_S = 0.2


class Lost(int):
    """So many bytes that were in a file and are not there any more."""


Piece = bytes | Lost


class Tail:
    """One file, called ``stream``; it need not exist yet."""

    def __init__(self, stream: str, path: Path) -> None:
        self.stream = stream
        self._path = path
        self._descriptor: int | None = None
        self._position = 0
        self._known = b""

    def begin(self, count: int) -> Iterator[Piece]:
        """Read the last ``count`` lines; one without an end counts as one."""
        self._open()
        if self._descriptor is not None:
            self._go_to(_start_of_last(self._descriptor, count))
        yield from self._read()

    def more(self) -> Iterator[Piece]:
        """Read what was written since; to a file that was rotated away before its successor."""
        self._start_again_if_rewritten()
        yield from self._read()
        if self._is_replaced():
            # What was written between the reading and the replacement.
            yield from self._read()
            last = self._known[-ENDS_ALIKE:]
            self.close()
            self._open()
            self._skip_if_shortened(last)
            yield from self._read()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def _open(self) -> None:
        try:
            self._descriptor = open_file(self._path)
        except OSError:
            self._descriptor = None
        self._position, self._known = 0, b""

    def _go_to(self, position: int) -> None:
        assert self._descriptor is not None
        begin = max(0, position - KNOWN)
        self._position, self._known = position, os.pread(self._descriptor, position - begin, begin)

    def _read(self) -> Iterator[Piece]:
        """Read no further than the file reaches now: a fast writer must not keep another stream from being shown."""
        if self._descriptor is None:
            return
        end = os.fstat(self._descriptor).st_size
        while self._position < end:
            begin, stop = _next_data(self._descriptor, self._position, end)
            if begin > self._position:
                yield Lost(begin - self._position)
                self._position, self._known = begin, b""
            elif chunk := os.pread(self._descriptor, min(CHUNK, stop - begin), begin):
                self._position, self._known = begin + len(chunk), (self._known + chunk)[-KNOWN:]
                yield chunk
            else:
                return  # cut in this very moment

    def _start_again_if_rewritten(self) -> None:
        if self._descriptor is None:
            return
        size = os.fstat(self._descriptor).st_size
        known = os.pread(self._descriptor, len(self._known), self._position - len(self._known))
        if size < self._position or _differ(self._known, known):
            self._position, self._known = 0, b""

    def _skip_if_shortened(self, last: bytes) -> None:
        """Go to the end of a file that ends as the one before it: only the middle of that was dropped."""
        if self._descriptor is None or len(last) < ENDS_ALIKE:
            return
        size = os.fstat(self._descriptor).st_size
        if size >= len(last) and os.pread(self._descriptor, len(last), size - len(last)) == last:
            self._go_to(size)

    def _is_replaced(self) -> bool:
        try:
            present = self._path.lstat()
        except OSError:
            return False
        return self._descriptor is None or not os.path.samestat(present, os.fstat(self._descriptor))


def last_lines(tails: Sequence[Tail], count: int) -> Iterator[tuple[str, Piece]]:
    """Stream and piece, one stream after the other."""
    for tail in tails:
        for piece in tail.begin(count):
            yield tail.stream, piece
        tail.close()


def follow(tails: Sequence[Tail], count: int, is_over: Callable[[], bool]) -> Iterator[tuple[str, Piece]]:
    """Stream and piece, as they come, until nothing more can."""
    for tail in tails:
        for piece in tail.begin(count):
            yield tail.stream, piece
    over = False
    while not over:
        # Asked before the reading: what was written before it was over is still shown.
        over = is_over()
        for tail in tails:
            for piece in tail.more():
                yield tail.stream, piece
        if not over:
            time.sleep(LOOK_EVERY_S)


def _differ(before: bytes, now: bytes) -> bool:
    """Whether bytes were written over; NULs may be a hole by now, where what was read is dropped since."""
    return before != now and any(new and new != old for old, new in zip(before, now, strict=False))


def _next_data(descriptor: int, position: int, end: int) -> tuple[int, int]:
    """Where data begin at ``position`` or after it, and where the next hole begins."""
    try:
        begin = min(os.lseek(descriptor, position, os.SEEK_DATA), end)
        return begin, min(os.lseek(descriptor, begin, os.SEEK_HOLE), end)
    except OSError:  # ENXIO: there is nothing but a hole, or it was cut
        return end, end


def _start_of_last(descriptor: int, count: int) -> int:
    """Where the last ``count`` lines begin: looked for from the end, and only counted; holes are skipped."""
    end = os.fstat(descriptor).st_size
    if count == 0:
        return end
    left = count
    if end and os.pread(descriptor, 1, end - 1) == b"\n":
        left += 1
    for begin, stop in reversed(list(_data_of(descriptor, end))):
        position = stop
        while position > begin:
            size = min(CHUNK, position - begin)
            chunk = os.pread(descriptor, size, position - size)
            ends = chunk.count(b"\n")
            if ends >= left:
                return position - size + _nth_from_end(chunk, left) + 1
            left -= ends
            position -= size
    return 0


def _data_of(descriptor: int, end: int) -> Iterator[tuple[int, int]]:
    """Where data begin and end, from the start to the end."""
    position = 0
    while position < end:
        begin, position = _next_data(descriptor, position, end)
        if begin < position:
            yield begin, position


def _nth_from_end(chunk: bytes, number: int) -> int:
    at = len(chunk)
    for _ in range(number):
        at = chunk.rfind(b"\n", 0, at)
    return at
