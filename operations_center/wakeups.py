"""Wake a process that sleeps on its selector: one byte into its FIFO.

A FIFO, because it has no length limit on its path (a Unix socket has one of 108 bytes), and because
writing into it needs neither the reader's pid nor that there is one. Full or nobody there: nothing to do,
for then a wake-up is pending already, or the reader looks at everything when it starts.
"""

import os
from pathlib import Path

from operations_center.files import open_directory, open_fifo, set_aside


class WakeUp:
    """The reading end, for one process's selector."""

    def __init__(self, directory: Path, name: str) -> None:
        self._descriptor = _open_for_reading(directory / name)

    def fileno(self) -> int:
        return self._descriptor

    def drain(self) -> None:
        try:
            while os.read(self._descriptor, 4096):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self._descriptor)


def _open_for_reading(path: Path) -> int:
    """Open the FIFO for reading and writing: without a writer of its own the reader would see an endless end of file.

    What is no FIFO of ours is set aside, so that it keeps nobody from starting. Raises OSError.
    """
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        pass
    try:
        return open_fifo(path, os.O_RDWR, owner=os.geteuid())
    except OSError:
        set_aside(path)
        os.mkfifo(path, 0o600)
        return open_fifo(path, os.O_RDWR, owner=os.geteuid())


def wake(directory: Path, name: str) -> None:
    try:
        below = open_directory(directory)
    except OSError:
        return
    try:
        _wake(name, below)
    finally:
        os.close(below)


def wake_everybody(directory: Path) -> None:
    try:
        below = open_directory(directory)
    except OSError:
        return
    try:
        for name in os.listdir(below):
            _wake(name, below)
    finally:
        os.close(below)


def _wake(name: str, directory: int) -> None:
    """Write into a FIFO of ours that somebody reads; anything else in its place is left alone."""
    try:
        descriptor = open_fifo(name, os.O_WRONLY, dir_fd=directory, owner=os.geteuid())
    except OSError:
        return
    try:
        os.write(descriptor, b"!")
    except OSError:
        pass
    finally:
        os.close(descriptor)
