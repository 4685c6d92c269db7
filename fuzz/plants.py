"""What may stand where a file of ours is expected: strategies of Hypothesis, and how each is planted."""

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st

from fuzz.sandbox import Sandbox

PID, TICKS = b"@pid@", b"@ticks@"
"""In a file that is planted: those of the stranger."""

DEEP = 100_000
"""Levels of brackets: more than any reader's stack."""


@dataclass(frozen=True)
class Plant:
    """``kind`` names the row of ``_PLANTERS``; ``content`` is text of a file, or what a link points to."""

    kind: str
    content: bytes = b""
    size: int = 0

    def __repr__(self) -> str:
        return f"Plant({self.kind!r}, {self.content[:60]!r} ({len(self.content)} bytes), size={self.size})"


def contents(*shapes: bytes) -> st.SearchStrategy[bytes]:
    """Bytes of a file: rubbish, deep JSON, or one of the right shapes, whole or spoiled."""
    right = st.sampled_from(shapes or (b"",))
    return st.one_of(
        right,
        st.binary(max_size=200),
        st.tuples(right, st.integers(0, 200), st.binary(max_size=20)).map(_spoil),
        st.sampled_from([b"[" * DEEP + b"]" * DEEP, b'{"a":' * DEEP, b"\xff" * 5000, b"\0" * 5000, b"9" * 5000]),
    )


def _spoil(parts: tuple[bytes, int, bytes]) -> bytes:
    text, place, rubbish = parts
    place = min(place, len(text))
    return text[:place] + rubbish + text[place + len(rubbish) :]


def plants(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[Plant]:
    """Everything that a program of the user's may put into a place."""
    return st.one_of(
        content.map(lambda text: Plant("file", text)),
        content.map(lambda text: Plant("unreadable", text)),
        st.sampled_from([1 << 20, 1 << 32, 1 << 40]).map(lambda size: Plant("sparse", size=size)),
        st.sampled_from(["file", "directory", "directory/file", "fifo", "nothing"]).map(
            lambda name: Plant("link outside", name.encode())
        ),
        st.sampled_from(["/dev/zero", "/dev/full", "/dev/tty", "/proc/self/mem", "/proc/kmsg", ".", "itself"]).map(
            lambda target: Plant("link", target.encode())
        ),
        st.sampled_from(["fifo", "socket", "directory", "deep directory", "full directory", "nothing"]).map(Plant),
        *([st.sampled_from(["zero device"]).map(Plant)] if os.geteuid() == 0 else []),
    )


def plant(thing: Plant, path: Path, sandbox: Sandbox) -> None:
    """Put it there, in the place of whatever is there already."""
    remove(path)
    _PLANTERS[thing.kind](thing, path, sandbox)


def remove(path: Path) -> None:
    """Remove a thing that was planted, of any kind."""
    try:
        facts = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(facts.st_mode):
        path.unlink()
        return
    for parent, names, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(parent, name))
        for name in names:
            below = os.path.join(parent, name)
            (os.unlink if os.path.islink(below) else os.rmdir)(below)
    path.rmdir()


def _file(thing: Plant, path: Path, sandbox: Sandbox) -> None:
    stranger = sandbox.stranger
    content = thing.content.replace(PID, b"%d" % stranger.pid).replace(TICKS, b"%d" % stranger.start_ticks)
    path.write_bytes(content)


def _unreadable(thing: Plant, path: Path, sandbox: Sandbox) -> None:
    _file(thing, path, sandbox)
    path.chmod(0)


def _sparse(thing: Plant, path: Path, _sandbox: Sandbox) -> None:
    with path.open("wb") as file:
        file.truncate(thing.size)


def _link_outside(thing: Plant, path: Path, sandbox: Sandbox) -> None:
    path.symlink_to(sandbox.outside / thing.content.decode())


def _link(thing: Plant, path: Path, _sandbox: Sandbox) -> None:
    path.symlink_to(path.name if thing.content == b"itself" else thing.content.decode())


def _fifo(_thing: Plant, path: Path, _sandbox: Sandbox) -> None:
    os.mkfifo(path)


def _socket(_thing: Plant, path: Path, _sandbox: Sandbox) -> None:
    # A path of a socket has at most 108 bytes: bind it by a short one of its directory.
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{descriptor}/{path.name}")
    finally:
        os.close(descriptor)


def _directory(_thing: Plant, path: Path, _sandbox: Sandbox) -> None:
    path.mkdir()


def _deep_directory(_thing: Plant, path: Path, _sandbox: Sandbox) -> None:
    path.mkdir()
    # As deep as `remove` can follow by paths; the removal of deeper ones has tests of its own.
    for _ in range(100):
        path = path / "d"
        path.mkdir()


def _full_directory(_thing: Plant, path: Path, sandbox: Sandbox) -> None:
    path.mkdir()
    for number in range(50):
        (path / f"file {number}").write_bytes(b"x")
    (path / "link").symlink_to(sandbox.outside)
    os.mkfifo(path / "fifo")


def _nothing(_thing: Plant, _path: Path, _sandbox: Sandbox) -> None:
    return


def _zero_device(_thing: Plant, path: Path, _sandbox: Sandbox) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


_PLANTERS: dict[str, Callable[[Plant, Path, Sandbox], None]] = {
    "file": _file,
    "unreadable": _unreadable,
    "sparse": _sparse,
    "link outside": _link_outside,
    "link": _link,
    "fifo": _fifo,
    "socket": _socket,
    "directory": _directory,
    "deep directory": _deep_directory,
    "full directory": _full_directory,
    "nothing": _nothing,
    "zero device": _zero_device,
}
