"""Wake a process that sleeps on its selector: one byte into its FIFO.

A FIFO, because it has no length limit on its path (a Unix socket has one of 108 bytes), and because
writing into it needs neither the reader's pid nor that there is one. Full or nobody there: nothing to do,
for then a wake-up is pending already, or the reader looks at everything when it starts.
"""

import os
from pathlib import Path


class WakeUp:
    """The reading end, for one process's selector."""

    def __init__(self, directory: Path, name: str) -> None:
        path = directory / name
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            pass
        # Read and write: without a writer of its own the reader would see an endless end of file.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

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


def wake(directory: Path, name: str) -> None:
    try:
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(descriptor, b"!")
    except OSError:
        pass
    finally:
        os.close(descriptor)


def wake_everybody(directory: Path) -> None:
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        wake(directory, name)
