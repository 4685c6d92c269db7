"""Heartbeat files: what a watcher, the watchdog or the supervisor says of itself.

Files, not rows: a writer that was stopped inside a transaction must not look like a fleet that is dead.
``heartbeat`` is written at each turn of the loop, ``progress`` when the process did some of its work, so
that alive is not mistaken for working.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from operations_center.identity import Process


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """``…_at`` are wall-clock, ``heartbeat_mono`` CLOCK_MONOTONIC milliseconds.

    ``release`` and ``config`` are the version that the process runs.
    """

    pid: int
    start_ticks: int
    boot_id: str
    state: str
    started_at: int
    heartbeat_at: int
    heartbeat_mono: int
    progress_at: int | None = None
    release: str | None = None
    config: str = ""
    details: dict[str, Any] = {}

    @property
    def process(self) -> Process:
        return Process(self.pid, self.start_ticks)


def write_pulse(path: Path, pulse: Pulse) -> None:
    """Raises OSError only where not even the blocks that are there can be written."""
    text = msgspec.json.encode(pulse)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(text)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        # A full disk must not make a living process look dead.
        with path.open("r+b", buffering=0) as file:
            file.write(text.ljust(path.stat().st_size))


def read_pulse(path: Path) -> Pulse | None:
    """None when there is none, or when it cannot be understood (then it says nothing)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Pulse)
    except (OSError, msgspec.DecodeError):
        return None
