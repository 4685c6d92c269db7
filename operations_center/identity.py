"""Who is who: processes by pid and start ticks, hosts by random id, boot and pid namespace.

A pid is reused and ``psutil``'s float create time moves with the wall clock (psutil#2526); field 22 of
``/proc/<pid>/stat``, the start time in clock ticks since boot, does neither. Two containers share a boot
id and two clones share a machine id, so a host is a random id kept in the state directory, together with
the boot id and the inode of the pid namespace.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

from operations_center.files import read_file, write_atomically

ID_LIMIT = 4096


class Process(NamedTuple):
    """A process that cannot be mistaken for a later one with the same pid."""

    pid: int
    start_ticks: int

    @classmethod
    def current(cls) -> Self:
        return cls(os.getpid(), _own_start_ticks())

    @classmethod
    def of(cls, pid: int) -> Self:
        """Of a child of ours. Reaped already by somebody else: start ticks that no process has say that it is gone."""
        stat = read_stat(pid)
        return cls(pid, stat.start_ticks if stat else 0)


class Stat(NamedTuple):
    """The fields of ``/proc/<pid>/stat`` (proc_pid_stat(5)) that the program looks at."""

    state: str
    parent: int
    group: int
    session: int
    start_ticks: int
    exiting: bool = False
    """It executes no instruction of its program any more, and gives back what it held: memory, files, locks."""


_PF_EXITING = 0x4
"""Of the flags in ``/proc/<pid>/stat``; ``include/linux/sched.h``."""


def read_stat(pid: int) -> Stat | None:
    """None when there is no such process. A zombie is returned, with state ``Z``."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(1024)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return parse_stat(text)


def read_exit_code(process: Process) -> int | None:
    """Of a process that has ended and was not reaped yet, negative for a signal; None when it cannot be known.

    Field 52 of ``/proc/<pid>/stat``, which the kernel shows to the process's own user (proc_pid_stat(5)).
    """
    try:
        text = Path(f"/proc/{process.pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    stat = parse_stat(text)
    if stat is None or stat.start_ticks != process.start_ticks or stat.state != "Z":
        return None
    return os.waitstatus_to_exitcode(int(text.split()[-1]))


def parse_stat(text: bytes) -> Stat | None:
    # The command name may itself hold spaces and brackets: the fields start after the last bracket.
    fields = text[text.rfind(b")") + 2 :].split()
    if len(fields) < 20:
        return None
    return Stat(
        state=fields[0].decode(),
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        exiting=bool(int(fields[6]) & _PF_EXITING),
    )


def is_alive(process: Process) -> bool:
    """False for a zombie (it runs nothing) and for a stranger who reuses the pid."""
    stat = read_stat(process.pid)
    return stat is not None and stat.start_ticks == process.start_ticks and stat.state not in "ZX"


def is_stopped(process: Process) -> bool:
    """Stopped by a signal. One that a tracer holds is looked at by somebody, who lets it go on."""
    stat = read_stat(process.pid)
    return stat is not None and stat.start_ticks == process.start_ticks and stat.state == "T"


def _own_start_ticks() -> int:
    stat = read_stat(os.getpid())
    if stat is None:
        raise RuntimeError("cannot read /proc/self/stat: mount /proc")
    return stat.start_ticks


@dataclass(frozen=True, slots=True)
class Host:
    """``name`` is for people only; the other three together identify a host for one boot."""

    host_id: str
    boot_id: str
    pid_namespace: int
    name: str


@cache
def this_boot() -> str:
    """Return the random id that the kernel gave to this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify_host(state_directory: Path, *, make: bool = True) -> Host:
    """Read this host's identity; the first call in a state directory makes its random id.

    Without ``make`` nothing is made, and a host that has no id yet is nobody's.
    """
    return Host(
        host_id=_host_id(state_directory / "host-id", make=make),
        boot_id=this_boot(),
        pid_namespace=Path("/proc/self/ns/pid").stat().st_ino,
        name=os.uname().nodename,
    )


def _host_id(path: Path, *, make: bool) -> str:
    try:
        return _read_id(path)
    except FileNotFoundError:
        if not make:
            return ""
    # Linked into place whole, so that of two first starts both read the same id.
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    write_atomically(draft, f"{os.urandom(8).hex()}\n".encode())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return _read_id(path)


def _read_id(path: Path) -> str:
    return read_file(path, ID_LIMIT).decode(errors="replace").strip()
