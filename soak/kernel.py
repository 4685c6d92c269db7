"""What the kernel says of the soak's processes. Written apart from the package: it is to check the package.

A process is the soak's when its environment or its working directory lies below the fleet's directory; what
it is follows from the locks that it holds and from its command line, never from what the fleet says of it.
"""

import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from demo.kernel import Seen, look_at

SUPERVISOR = "supervisor"
WATCHDOG = "watchdog"
WATCHER = "watcher"
FORK_SERVER = "fork server"
NEWCOMER = "newcomer"
KEEPER = "keeper"
TIMER = "timer"
EXECUTOR = "executor"
COMMAND = "command"

CGROUP_PREFIX = "operations_center-"

FLEET = frozenset({SUPERVISOR, WATCHDOG, WATCHER, FORK_SERVER})


@dataclass(frozen=True)
class Process:
    """One process of ours. ``run`` and what follows are from its environment; None where it is no run's."""

    seen: Seen
    parent: int
    session: int
    state: str
    argv: tuple[str, ...]
    run: str | None = None
    task: str | None = None
    backend: str | None = None
    fence: int = 0
    kind: str = COMMAND
    role: str | None = None


@dataclass(frozen=True)
class Table:
    """Every process of ours that lived while ``/proc`` was read, and zombies that a process of ours has not reaped."""

    processes: tuple[Process, ...] = ()
    zombies: frozenset[Seen] = frozenset()

    def of(self, *kinds: str) -> list[Process]:
        return [process for process in self.processes if process.kind in kinds]

    def of_run(self, run: str) -> list[Process]:
        return [process for process in self.processes if process.run == run]

    def runs(self) -> list[str]:
        return sorted({process.run for process in self.processes if process.run is not None})


@dataclass
class Kernel:
    """Looks at ``/proc`` for the fleet below ``root``."""

    root: Path
    state: Path
    ours: set[Seen] = field(default_factory=set)
    """Whatever was seen of ours, ever: a zombie no longer tells whose it was."""

    def scan(self) -> Table:
        """Zombies count as gone; what ends while ``/proc`` is read is left out."""
        found: dict[int, Process] = {}
        dead: dict[int, tuple[Seen, int]] = {}
        for name in os.listdir("/proc"):
            if not name.isdecimal() or int(name) == os.getpid():
                continue
            stat = _stat(int(name))
            if stat is None:
                continue
            seen = Seen(int(name), int(stat[19]))
            if stat[0] in "ZX":
                dead[seen.pid] = (seen, int(stat[1]))
            elif (process := self._ours(seen, stat)) is not None:
                found[seen.pid] = process
                self.ours.add(seen)
        holders = self._holders()
        known = tuple(_classified(process, found, holders) for process in found.values())
        fleet = {process.seen.pid for process in known if process.kind in FLEET}
        return Table(known, frozenset(seen for seen, parent in dead.values() if parent in fleet))

    def alive_still(self, processes: Iterable[Process]) -> list[Process]:
        """Those that live now as well: all of them lived at the moment between."""
        return [process for process in processes if look_at(process.seen.pid) == process.seen]

    def carriers(self, table: Table) -> dict[str, frozenset[tuple[Seen, int]]]:
        """Lock's name → who has a descriptor that holds it, with the inode of the lock's file."""
        found: dict[str, set[tuple[Seen, int]]] = {}
        for process in table.processes:
            if process.run is None:
                for name, inode in self._locks_of(process.seen.pid):
                    found.setdefault(name, set()).add((process.seen, inode))
        return {name: frozenset(holders) for name, holders in found.items()}

    def _locks_of(self, pid: int) -> list[tuple[str, int]]:
        found = []
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            return []
        for descriptor in descriptors:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{descriptor}").removesuffix(" (deleted)")
                if not target.endswith(".lock") or not target.startswith(str(self.state)):
                    continue
                info = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text()
                inode = os.stat(f"/proc/{pid}/fd/{descriptor}").st_ino
            except OSError:
                continue
            name = target.removeprefix(f"{self.state}/")
            if (name == "supervisor.lock" or name.startswith("watchers/")) and "FLOCK  ADVISORY  WRITE" in info:
                found.append((name, inode))
        return found

    def writer(self) -> int | None:
        """The pid of whoever is in the midst of a write to the ledger at this moment."""
        return next(iter(_lock_takers([self.state / "ledger.write"])), None)

    def _holders(self) -> dict[int, str]:
        """Pid → name of the lock that it took."""
        paths = [self.state / "supervisor.lock", *(self.state / "watchers").glob("*.lock")]
        return {pid: path.name.removesuffix(".lock") for pid, path in _lock_takers(paths).items()}

    def _ours(self, seen: Seen, stat: list[str]) -> Process | None:
        environment = _read(seen.pid, "environ")
        root = os.fsencode(self.root)
        if root not in environment and not _cwd(seen.pid).startswith(str(self.root)):
            return None
        argv = tuple(word.decode(errors="replace") for word in _read(seen.pid, "cmdline").split(b"\0")[:-1])
        facts = _variables(environment) if root in environment else {}
        return Process(
            seen,
            int(stat[1]),
            int(stat[3]),
            stat[0],
            argv,
            run=facts.get("RUN_ID"),
            task=facts.get("TASK_ID"),
            backend=facts.get("BACKEND"),
            fence=int(facts.get("FENCE", 0)),
        )


def send(process: Process, number: signal.Signals) -> bool:
    """To that very process; False if it has ended."""
    try:
        pidfd = os.pidfd_open(process.seen.pid)
    except ProcessLookupError:
        return False
    try:
        if look_at(process.seen.pid) != process.seen:
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def open_descriptors(pid: int) -> int | None:
    """None when it has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def resident_kib(pid: int) -> int | None:
    """Its own pages that are in memory; None when it has ended."""
    status = _read(pid, "status").decode(errors="replace")
    lines = [line.split() for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0][1]) if lines else None


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    for line in _read(pid, "status").decode(errors="replace").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def cgroups() -> list[Path]:
    """Every cgroup that the program made on this machine, for whatever fleet."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(words[1]) for words in mounts if words[2] == "cgroup2"]
    # Those of other fleets come and go meanwhile; os.walk does not mind.
    found = ((directory, name) for root in roots for directory, names, _ in os.walk(root) for name in names)
    return sorted(Path(directory, name) for directory, name in found if name.startswith(CGROUP_PREFIX))


def _lock_takers(paths: Iterable[Path]) -> dict[int, Path]:
    """Who has taken which of these locks, by ``/proc/locks``."""
    inodes = {}
    for path in paths:
        try:
            inodes[path.stat().st_ino] = path
        except OSError:
            continue
    takers = {}
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1:4:2] == ["FLOCK", "WRITE"] and (inode := int(words[5].rpartition(":")[2])) in inodes:
            takers[int(words[4])] = inodes[inode]
    return takers


def _classified(process: Process, ours: Mapping[int, Process], holders: Mapping[int, str]) -> Process:
    facts = {**vars(process), "kind": _kind(process, ours, holders)}
    if facts["kind"] == WATCHER:
        facts["role"] = holders[process.seen.pid]
    return Process(**facts)


def _kind(process: Process, ours: Mapping[int, Process], holders: Mapping[int, str]) -> str:
    word = process.argv[-1] if process.argv[:1] in (("oc",), ("sh",)) else ""
    leads = process.session == process.seen.pid
    if process.run is not None:
        return KEEPER if word == "keeper" and leads else EXECUTOR
    if process.argv and Path(process.argv[0]).name in ("oc", "sh", "timeout", "cat", "stat", "sync", "fallocate"):
        return TIMER
    lock = holders.get(process.seen.pid)
    if lock is not None:
        return {"supervisor": SUPERVISOR, "@watchdog": WATCHDOG}.get(lock, WATCHER)
    if leads and holders.get(process.parent) == "supervisor":
        return FORK_SERVER
    return NEWCOMER if process.parent in ours else COMMAND


def _stat(pid: int) -> list[str] | None:
    text = _read(pid, "stat").decode(errors="replace")
    return text.rpartition(")")[2].split() if text else None


def _cwd(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _variables(environment: bytes) -> dict[str, str]:
    prefix = "OPERATIONS_CENTER_"
    entries = (entry.decode(errors="replace").partition("=") for entry in environment.split(b"\0"))
    return {name.removeprefix(prefix): value for name, _, value in entries if name.startswith(prefix)}
