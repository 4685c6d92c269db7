"""Virtual machines: clocks, pid namespaces, processes, cgroups. What a kernel would know, and nothing of runs.

Files are real: run directories, gates, records, locks (held by this very process on behalf of a virtual one).
Pids begin above the largest that Linux gives away, so that no real process is ever meant.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from operations_center.clock import Now
from operations_center.identity import Host, Process, Stat
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import ProcessTable

FIRST_PID = 10_000_000
FIRST_WALL = 1_200_000_000_000
"""Before every real file's time: a directory of a run that no ledger names is always too young to be pruned."""

SPAWN_MS = 10
"""Between two processes of a machine, so that no start tick is given twice."""


@dataclass
class Machine:
    """One kernel. ``monotonic`` begins anew with each boot; both clocks are in milliseconds."""

    name: str
    host_id: str
    boots: int = 1
    wall: int = FIRST_WALL
    monotonic: int = 1_000_000
    namespaces: "list[Namespace]" = field(default_factory=list)

    @property
    def boot_id(self) -> str:
        return f"{self.name}-boot-{self.boots}"

    def now(self) -> Now:
        """As ``Clock``."""
        return Now(self.wall, self.monotonic)

    def advance(self, milliseconds: int) -> None:
        self.wall += milliseconds
        self.monotonic += milliseconds

    def reboot(self) -> None:
        for namespace in self.namespaces:
            namespace.end()
        self.boots += 1
        self.wall += 30_000
        self.monotonic = 1_000_000


@dataclass(eq=False)
class VirtualProcess:
    """``run_id`` is the run that it belongs to, ``shows_run`` whether it carries that in its environment.

    ``slippery``: it forks and exits all the time, so that one look at the process table in two may miss it.
    """

    identity: Process
    parent: int
    group: int
    session: int
    run_id: str | None = None
    shows_run: bool = False
    cgroup: Path | None = None
    is_keeper: bool = False
    unreaped: bool = False
    stopped: bool = False
    ignores_term: bool = False
    slippery: bool = False
    exit_code_on_term: int = 128 + signal.SIGTERM
    exit_code: int = 128 + signal.SIGKILL

    @property
    def pid(self) -> int:
        return self.identity.pid


@dataclass(eq=False)
class Namespace:
    """A pid namespace. ``ends`` counts how often its container was started anew."""

    machine: Machine
    number: int
    runs: Path
    processes: dict[int, VirtualProcess] = field(default_factory=dict)
    zombies: dict[int, VirtualProcess] = field(default_factory=dict)
    gone: list[Process] = field(default_factory=list)
    locks: dict[Process, int] = field(default_factory=dict)
    next_pid: int = FIRST_PID
    ends: int = 0

    @property
    def host(self) -> Host:
        inode = self.number + 100 * self.ends
        return Host(self.machine.host_id, self.machine.boot_id, inode, self.machine.name)

    # Who lives

    def spawn(self, *, parent: int = 1, leads_session: bool = False, identity: Process | None = None) -> VirtualProcess:
        """A new process, in its parent's session unless it leads its own; ``identity`` to reuse a pid."""
        if identity is None:
            identity = Process(self.next_pid, self._tick())
            self.next_pid += 1
        elder = self.processes.get(parent)
        group = identity.pid if leads_session or elder is None else elder.group
        session = identity.pid if leads_session or elder is None else elder.session
        process = VirtualProcess(identity, parent, group, session)
        self.processes[identity.pid] = process
        return process

    def reuse(self, pid: int, start_ticks: int | None = None) -> VirtualProcess:
        """A stranger gets the pid, with start ticks of its own or those that are given."""
        ticks = start_ticks if start_ticks is not None else self._tick()
        return self.spawn(leads_session=True, identity=Process(pid, ticks))

    def is_free(self, pid: int) -> bool:
        """The kernel gives a pid away when no process, group or session has that number any more."""
        everybody = [*self.processes.values(), *self.zombies.values()]
        return all(pid not in (each.pid, each.group, each.session) for each in everybody)

    def find(self, identity: Process) -> VirtualProcess | None:
        process = self.processes.get(identity.pid)
        return process if process is not None and process.identity == identity else None

    def is_alive(self, identity: Process) -> bool:
        return self.find(identity) is not None

    def _tick(self) -> int:
        self.machine.advance(SPAWN_MS)
        return self.machine.monotonic // SPAWN_MS

    # Who ends

    def kill(self, process: VirtualProcess, exit_code: int = 128 + signal.SIGKILL) -> None:
        """It ends at once. What it leaves behind goes to its run's keeper, a subreaper, or to the first process."""
        if self.processes.pop(process.pid, None) is None:
            return
        process.exit_code = exit_code
        if process.unreaped:
            self.zombies[process.pid] = process
        else:
            self.gone.append(process.identity)
        descriptor = self.locks.pop(process.identity, None)
        if descriptor is not None:
            os.close(descriptor)
        heir = None if process.is_keeper else self._keeper_of(process)
        for child in self.processes.values():
            if child.parent == process.pid:
                child.parent = heir.pid if heir is not None else 1
                child.unreaped = False
        for child in [child for child in self.zombies.values() if child.parent == process.pid]:
            self.reap(child)
        self.show_cgroup(process.cgroup)

    def _keeper_of(self, process: VirtualProcess) -> VirtualProcess | None:
        while process.parent in self.processes:
            process = self.processes[process.parent]
            if process.is_keeper:
                return process
        return None

    def reap(self, zombie: VirtualProcess) -> None:
        if self.zombies.pop(zombie.pid, None) is not None:
            self.gone.append(zombie.identity)

    def end(self) -> None:
        """Its first process has ended, and with it all others."""
        self.kill_everybody()
        self.ends += 1

    def kill_everybody(self) -> None:
        for process in list(self.processes.values()):
            process.unreaped = False
            self.kill(process)
        for zombie in list(self.zombies.values()):
            self.reap(zombie)

    def send(self, identity: Process, number: signal.Signals) -> bool:
        process = self.find(identity)
        if process is None:
            return False
        match number:
            case signal.SIGKILL:
                self.kill(process, 128 + number)
            case signal.SIGCONT:
                process.stopped = False
            case signal.SIGTERM if not (process.is_keeper or process.ignores_term or process.stopped):
                self.kill(process, process.exit_code_on_term)
        return True

    # What can be seen

    def table(self, missed: set[Process]) -> ProcessTable:
        """All that lives, without those slippery ones that this observer did not miss the last time."""
        slipping = {each.identity for each in self.processes.values() if each.slippery} - missed
        missed.clear()
        missed.update(slipping)
        facts = {each.pid: _stat(each, "Z") for each in self.zombies.values()}
        carriers: dict[str, set[int]] = {}
        for process in self.processes.values():
            if process.identity in slipping:
                continue
            facts[process.pid] = _stat(process, "T" if process.stopped else "S")
            if process.run_id is not None and process.shows_run:
                carriers.setdefault(process.run_id, set()).add(process.pid)
        return ProcessTable(facts, {run_id: frozenset(pids) for run_id, pids in carriers.items()})

    def of_run(self, run_id: str) -> list[VirtualProcess]:
        return [each for each in self.processes.values() if each.run_id == run_id]

    def is_within_reach(self, process: VirtualProcess) -> bool:
        """Whether anything that the kernel offers still ties it to its run: environment, cgroup, ancestors."""
        while True:
            if process.shows_run or process.is_keeper or process.cgroup is not None:
                return True
            parent = self.processes.get(process.parent)
            if parent is None or parent.run_id != process.run_id:
                return False
            process = parent

    # Cgroups: directories with the kernel's files in them for as long as somebody is inside

    def show_cgroup(self, path: Path | None) -> None:
        if path is None or not path.is_dir():
            return
        inside = [each for each in self.processes.values() if each.cgroup == path]
        files = {
            path / "cgroup.events": "populated 1\n",
            path / "cgroup.procs": _pids(each for each in inside if each.is_keeper),
            path / cgroup.EXECUTOR / "cgroup.procs": _pids(each for each in inside if not each.is_keeper),
        }
        for file, text in files.items():
            if not file.parent.is_dir():
                continue
            if inside:
                file.write_text(text)
            else:
                # The real ones do not keep an empty cgroup from being removed.
                file.unlink(missing_ok=True)

    def obey_cgroups(self) -> None:
        """Carry out what was written into a ``cgroup.kill``."""
        for path in {each.cgroup for each in self.processes.values() if each.cgroup is not None}:
            order = path / cgroup.EXECUTOR / "cgroup.kill"
            if order.exists():
                order.unlink()
                for process in [each for each in self.processes.values() if each.cgroup == path]:
                    if not process.is_keeper:
                        self.kill(process)


def _stat(process: VirtualProcess, state: str) -> Stat:
    return Stat(state, process.parent, process.group, process.session, process.identity.start_ticks)


def _pids(processes: Iterator[VirtualProcess]) -> str:
    return "".join(f"{process.pid}\n" for process in processes)
