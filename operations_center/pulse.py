"""Heartbeat files: what a watcher, the watchdog or the supervisor says of itself.

Files, not rows: a writer that was stopped inside a transaction must not look like a fleet that is dead.
``heartbeat`` is written at each turn of the loop, ``progress`` when the process did some of its work, so
that alive is not mistaken for working.

An executor can write these files, too. So what one says is a hint: whoever acts on it proves with the kernel that the
process is the one that it names, by the lock that this one holds.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct, ValidationError, convert, json

from operations_center.files import decode_json, open_file, read_file, set_aside, write_atomically
from operations_center.identity import Process
from operations_center.ids import COMMIT, CONFIG_COPY

T = TypeVar("T")

LIMIT = 256 * 1024
"""Bytes of a heartbeat file; a supervisor with a thousand watchers writes less."""

Milliseconds = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
"""Up to the end of the year 9999, which is the last one that can be written."""


Commit = Annotated[str, Meta(pattern=rf"\A(?:{COMMIT.pattern})\Z")]
ConfigCopy = Annotated[str, Meta(pattern=rf"\A(?:{CONFIG_COPY.pattern})?\Z")]
"""Directories and files are found by these names."""


class Pulse(Struct, frozen=True, kw_only=True):
    """``…_at`` are wall-clock, ``heartbeat_mono`` CLOCK_MONOTONIC milliseconds.

    ``release`` and ``config`` are the version that the process runs; ``config_file`` is the file that ``config`` is a
    copy of, by its real path.
    """

    pid: Annotated[int, Meta(ge=1, le=2**22)]
    start_ticks: Annotated[int, Meta(ge=0, le=2**62)]
    boot_id: str
    state: str
    started_at: Milliseconds
    heartbeat_at: Milliseconds
    heartbeat_mono: Milliseconds
    progress_at: Milliseconds | None = None
    release: Commit | None = None
    config: ConfigCopy = ""
    config_file: str = ""
    details: dict[str, Any] = {}

    @property
    def process(self) -> Process:
        return Process(self.pid, self.start_ticks)

    def detail(self, name: str, kind: type[T]) -> T | None:
        """One of the details; None where it is not there, or is of another kind."""
        try:
            return convert(self.details.get(name), kind)
        except ValidationError:
            return None


def write_pulse(path: Path, pulse: Pulse) -> None:
    """Raises OSError only where not even the blocks that are there can be written."""
    text = json.encode(pulse)
    try:
        write_atomically(path, text)
    except IsADirectoryError:
        set_aside(path)
        write_atomically(path, text)
    except OSError:
        # A full disk must not make a living process look dead.
        _overwrite(path, text)


def _overwrite(path: Path, text: bytes) -> None:
    descriptor = open_file(path, os.O_RDWR)
    try:
        os.pwrite(descriptor, text.ljust(min(os.fstat(descriptor).st_size, LIMIT)), 0)
    finally:
        os.close(descriptor)


def read_pulse(path: Path) -> Pulse | None:
    """None when there is none, or when it cannot be understood (then it says nothing)."""
    with suppress(OSError, ValueError):
        return decode_json(read_file(path, LIMIT), Pulse)
    return None
