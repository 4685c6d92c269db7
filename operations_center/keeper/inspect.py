"""What a run's files and the kernel's process table say. Reads only.

The tree of a run is its keeper, its executor and every descendant. Descendants are found by parent (the
keeper is a subreaper, so daemons stay its children), by session and group of keeper and executor, by the run
id in the environment, and by cgroup where there is one; what was found one way is followed by its children.

The files are hints: the executor may have written them. Nothing is signalled, or taken for dead, because of a file. The
environment that a process was started with cannot be changed by another process, and counts where the process is of
our own user: another user can give any environment to a process of theirs.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Self

import msgspec

from operations_center.files import read_file
from operations_center.identity import Process, Stat, parse_stat, read_stat
from operations_center.keeper import cgroup
from operations_center.pidfds import wait_for_end

RUN_ID_VARIABLE = "OPERATIONS_CENTER_RUN_ID"
REVOKED = "revoked"
"""Where a gate that a revoker has created points to."""

DYING_MS = 200
"""Longer than a process with a few hundred MiB takes from its last instruction to its end."""

_ENTRY = RUN_ID_VARIABLE.encode() + b"="
_ENVIRONMENT_LIMIT = 2 * 1024 * 1024
_CHUNK = 128 * 1024
_RECORD_LIMIT = 4096
_GATE = re.compile(r"([0-9]{1,9}) ([0-9]{1,18}) end\n")
_EXIT = re.compile(r"exit ([0-9]{1,3}) end *\n")
_TIMED_OUT = re.compile(r"(wall|idle) end *\n")


class GateState(StrEnum):
    ABSENT = "absent"
    REVOKED = "revoked"
    KEEPER = "keeper"
    UNREADABLE = "unreadable"


class Gate(msgspec.Struct, frozen=True, gc=False):
    """Who decided whether the run starts. UNREADABLE: a keeper is about to write it, or died doing so.

    ``claimed`` is the keeper as the file has it. The executor may have overwritten it: see ``proven_keeper``.
    """

    state: GateState
    claimed: Process | None = None


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """``code`` is the shell's: 128 + N for death by signal N."""

    code: int


@dataclass(frozen=True, slots=True)
class UnreadableExit:
    reason: str


def read_gate(run_directory: Path | str) -> Gate:
    path = f"{run_directory}/gate"
    try:
        text = _read_record(path)
    except FileNotFoundError:
        return Gate(GateState.ABSENT)
    except OSError as error:
        # A link is not followed.
        revoked = error.errno == errno.ELOOP and _link_target(path) == REVOKED
        return Gate(GateState.REVOKED if revoked else GateState.UNREADABLE)
    match = _GATE.fullmatch(text)
    if match is None:
        return Gate(GateState.UNREADABLE)
    return Gate(GateState.KEEPER, Process(int(match[1]), int(match[2])))


def _link_target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def read_exit(run_directory: Path | str) -> ExitRecord | UnreadableExit | None:
    """None while nothing is recorded."""
    try:
        text = _read_record(f"{run_directory}/exit")
    except FileNotFoundError:
        return None
    except OSError as error:
        return UnreadableExit(f"cannot read the exit record: {error.strerror or error}")
    if not text.strip():
        return None
    match = _EXIT.fullmatch(text)
    if match is None:
        return UnreadableExit(f"cannot understand the exit record: {text[:64]!r}")
    return ExitRecord(int(match[1]))


def read_timed_out(run_directory: Path | str) -> str | None:
    """Which limit the timer found passed before it signalled the run: ``wall``, ``idle``; None for neither."""
    try:
        match = _TIMED_OUT.fullmatch(_read_record(f"{run_directory}/timed_out"))
    except OSError:
        return None
    return match[1] if match else None


def is_of_run(process: Process, run_id: str) -> bool:
    """Whether the kernel says that a process lives, is ours, and was started as part of a run."""
    if run_id not in _run_ids(process.pid):
        return False
    facts = read_stat(process.pid)
    return facts is not None and facts.start_ticks == process.start_ticks and not _is_gone(facts)


class ProcessTable:
    """All processes of this pid namespace at one moment, or nearly so: the kernel offers no snapshot."""

    def __init__(
        self,
        processes: Mapping[int, Stat],
        pids_by_run: Mapping[str, frozenset[int]],
        dying: Sequence[Process] = (),
    ) -> None:
        """``dying``: those that are ending, and whose environment is gone already."""
        self.processes = processes
        self.dying = dying
        self._pids_by_run = pids_by_run

    @classmethod
    def scan(cls, *, with_environments: bool = True) -> Self:
        """Read ``/proc``. Processes that end meanwhile are left out; raises OSError without a ``/proc``."""
        processes: dict[int, Stat] = {}
        by_run: dict[str, set[int]] = {}
        dying = []
        for pid in _pids():
            facts = _read_process(pid)
            if facts is None:
                continue
            processes[pid] = facts
            if _is_gone(facts):
                continue
            if facts.exiting:
                dying.append(Process(pid, facts.start_ticks))
            elif with_environments:
                for run_id in _run_ids(pid):
                    by_run.setdefault(run_id, set()).add(pid)
        return cls(processes, {run_id: frozenset(pids) for run_id, pids in by_run.items()}, dying)

    def is_alive(self, process: Process) -> bool:
        """False for a zombie and for a stranger who reuses the pid."""
        facts = self.processes.get(process.pid)
        return facts is not None and facts.start_ticks == process.start_ticks and not _is_gone(facts)

    @property
    def run_ids(self) -> frozenset[str]:
        """Every run id that some process carries in its environment."""
        return frozenset(self._pids_by_run)

    def pids_of_run(self, run_id: str) -> frozenset[int]:
        """Processes with this run id in the environment that they were started with."""
        return self._pids_by_run.get(run_id, frozenset())

    def may_hold(self, query: "TreeQuery") -> bool:
        """False when nothing in here can be of the run, so that there is nothing to look for."""
        leaders = [leader.pid for leader in (query.keeper, query.executor) if leader is not None]
        return query.run_id in self._pids_by_run or any(
            leader in self.processes or leader in self._by_leader for leader in leaders
        )

    def pids_in_session_or_group(self, leader: int) -> Iterator[int]:
        yield from self._by_leader.get(leader, ())

    def with_descendants(self, pids: Iterable[int]) -> set[int]:
        found: set[int] = set()
        left = list(pids)
        while left:
            pid = left.pop()
            if pid not in found:
                found.add(pid)
                left.extend(self._children.get(pid, ()))
        return found

    @cached_property
    def _children(self) -> dict[int, list[int]]:
        index: dict[int, list[int]] = {}
        for pid, facts in self.processes.items():
            index.setdefault(facts.parent, []).append(pid)
        return index

    @cached_property
    def _by_leader(self) -> dict[int, list[int]]:
        index: dict[int, list[int]] = {}
        for pid, facts in self.processes.items():
            for leader in {facts.session, facts.group}:
                index.setdefault(leader, []).append(pid)
        return index


class TreeQuery(msgspec.Struct, frozen=True, gc=False):
    """What is known of a run when its tree is looked for.

    ``keeper`` is what the ledger has recorded, ``claimed`` what the gate says where the ledger has nothing.
    ``executor`` led a session below the keeper while that lived.
    """

    run_id: str
    keeper: Process | None = None
    cgroup: Path | None = None
    executor: Process | None = None
    claimed: Process | None = None


class Tree(msgspec.Struct, frozen=True, gc=False):
    """What lives of a run. ``members`` are without the keeper; ``populated`` is the cgroup's word, if any.

    ``proven``: the claimed keeper, where the kernel agrees that it is one and alive.
    """

    query: TreeQuery
    keeper_alive: bool
    members: tuple[Process, ...]
    populated: bool | None
    proven: Process | None = None

    @property
    def keeper(self) -> Process | None:
        """The keeper that may be signalled; None where none is known for certain."""
        return self.query.keeper or self.proven

    @property
    def is_empty(self) -> bool:
        return not self.keeper_alive and not self.members and self.populated is not True


def find_trees(queries: Iterable[TreeQuery], scan: Callable[[], ProcessTable] = ProcessTable.scan) -> dict[str, Tree]:
    """The trees by run id. One found empty is gone, or was never there.

    Without the kernel's word for it, its cgroup's, it was empty in two passes: a process that forks and exits all the
    time slips through a single one, and one that is dying may hold locks without showing whose it is.
    """
    wanted = list(queries)
    if not wanted:
        return {}
    table = scan()
    trees = _look_once(wanted, table)
    empty = [tree.query for tree in trees.values() if tree.is_empty and tree.populated is None]
    if not empty:
        return trees
    wait_for_end(table.dying, time.monotonic() + DYING_MS / 1000)
    return trees | _look_once(empty, scan())


def tree_of(table: ProcessTable, query: TreeQuery) -> Tree:
    """One pass. An empty tree is not always proof: see ``find_trees``."""
    if query.cgroup is None and not table.may_hold(query):
        return Tree(query, False, (), None)
    populated = None if query.cgroup is None else cgroup.is_populated(query.cgroup)
    proven = _proven_in(table, query) if query.keeper is None else None
    keeper = query.keeper or proven
    keeper_alive = keeper is not None and table.is_alive(keeper)
    seeds = set(table.pids_of_run(query.run_id))
    if query.keeper is not None:
        seeds.update(_led_by(table, query.keeper))
    elif query.claimed is not None:
        seeds.update(_led_by_claimed(table, query))
    if keeper is not None and keeper_alive:
        # It adopts what its children leave behind, so everything is below it.
        seeds.add(keeper.pid)
    elif query.executor is not None:
        seeds.update(_led_by(table, query.executor))
    if query.cgroup is not None and populated is not False:
        seeds.update(cgroup.members(query.cgroup))
    return Tree(
        query=query,
        keeper_alive=keeper_alive,
        members=tuple(_members(table, seeds, keeper if keeper_alive else None)),
        populated=populated,
        proven=proven,
    )


def _proven_in(table: ProcessTable, query: TreeQuery) -> Process | None:
    """The claimed keeper, if it lives and was started as part of the run."""
    claimed = query.claimed
    if claimed is None or claimed.pid not in table.pids_of_run(query.run_id) or not table.is_alive(claimed):
        return None
    return claimed


def _led_by_claimed(table: ProcessTable, query: TreeQuery) -> Iterable[int]:
    """Sessions and groups of a stranger have no member that was started as part of the run."""
    assert query.claimed is not None
    led = set(_led_by(table, query.claimed))
    return led if led & table.pids_of_run(query.run_id) else ()


def _look_once(queries: Iterable[TreeQuery], table: ProcessTable) -> dict[str, Tree]:
    return {query.run_id: tree_of(table, query) for query in queries}


def _led_by(table: ProcessTable, leader: Process) -> Iterator[int]:
    """Processes in the leader's session or group, unless its pid belongs to a stranger by now.

    The kernel gives a pid away only when no session and no group has that number any more.
    """
    owner = table.processes.get(leader.pid)
    if owner is not None and owner.start_ticks != leader.start_ticks:
        return
    for pid in table.pids_in_session_or_group(leader.pid):
        if table.processes[pid].start_ticks >= leader.start_ticks:
            yield pid


def _members(table: ProcessTable, seeds: set[int], living_keeper: Process | None) -> Iterator[Process]:
    excluded = {1, os.getpid()}
    if living_keeper is not None:
        excluded.add(living_keeper.pid)
    for pid in sorted(table.with_descendants(seeds - {1}) - excluded):
        facts = table.processes.get(pid)
        if facts is not None and not _is_gone(facts):
            yield Process(pid, facts.start_ticks)


def _is_gone(facts: Stat) -> bool:
    return facts.state in "ZX"


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _read_process(pid: int) -> Stat | None:
    facts = parse_stat(_read_bounded(f"/proc/{pid}/stat", 4096))
    if facts is not None and _is_gone(facts) and _has_other_threads(pid):
        # The main thread has ended, the process has not: it looks like a zombie and goes on executing.
        return facts._replace(state="S", exiting=False)
    return facts


def _has_other_threads(pid: int) -> bool:
    try:
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def _run_ids(pid: int) -> set[str]:
    """The run id of a process; empty where it has none, or is not ours."""
    found = environment_values(pid, _ENTRY)
    return found if found and _is_ours(pid) else set()


def _is_ours(pid: int) -> bool:
    """By every one of its user ids: a program with the set-user-id bit takes its environment from whoever calls it."""
    wanted = b"Uid:" + b"\t%d" % os.geteuid() * 4 + b"\n"
    return wanted in _read_bounded(f"/proc/{pid}/status", 4096)


def environment_values(pid: int, entry: bytes) -> set[str]:
    """Every value of a variable (``b"NAME="``) that a process was started with; empty when it cannot be read."""
    data = _read_bounded(f"/proc/{pid}/environ", _ENVIRONMENT_LIMIT)
    if entry not in data:
        return set()
    return {os.fsdecode(each[len(entry) :]) for each in data.split(b"\0") if each.startswith(entry)}


def _read_bounded(path: str, limit: int) -> bytes:
    """Empty for what is gone or not ours to read: from that nothing is learned."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return b"".join(_chunks(descriptor, limit))
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _chunks(descriptor: int, limit: int) -> Iterator[bytes]:
    while limit > 0:
        wanted = min(_CHUNK, limit)
        chunk = os.read(descriptor, wanted)
        yield chunk
        if len(chunk) < wanted:
            return
        limit -= wanted


def is_there(path: str) -> bool:
    """Whether something has that name, whatever it is: cheaper than to try to open what is mostly not there."""
    return os.access(path, os.F_OK, follow_symlinks=False)


def _read_record(path: str) -> str:
    return read_file(path, _RECORD_LIMIT).decode(errors="surrogateescape")
