"""Who of the fleet lives: supervisor, watchers, watchdog.

Proven by the lock that the kernel keeps for a living process, never by a file alone: a pulse outlives its writer.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

from operations_center.identity import Process, is_alive, read_stat
from operations_center.locks import is_locked, lock_holder
from operations_center.pulse import Pulse, read_pulse
from operations_center.state_directory import SUPERVISOR, WATCHDOG, StateDirectory
from operations_center.titles import is_one_of_ours


@dataclass(frozen=True, slots=True)
class Member:
    """One of the fleet: ``process`` is None when it does not live, ``pulse`` is its own and no predecessor's."""

    name: str
    process: Process | None = None
    pulse: Pulse | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    @property
    def state(self) -> str:
        """``starting``, ``ready`` (the supervisor's: ``up``), ``stopping``, or ``stopped`` when it does not live."""
        if self.process is None:
            return "stopped"
        return self.pulse.state if self.pulse else "starting"


def look_at(state: StateDirectory, name: str) -> Member:
    lock = state.supervisor_lock if name == SUPERVISOR else state.watcher_lock(name)
    pulse = read_pulse(state.pulse(name))
    process = _member(lock_holder(lock, likely=pulse.pid if pulse is not None else None))
    # Some file systems hide the holder's pid.
    if process is None and pulse is not None and is_alive(pulse.process) and is_locked(lock):
        process = _member(pulse.pid)
    own = pulse if pulse is not None and pulse.process == process else None
    return Member(name, process, own)


def survivors(state: StateDirectory) -> list[Member]:
    """Every watcher and watchdog that lives, whether or not the configuration knows its role."""
    names = sorted(path.name.removesuffix(".lock") for path in (state.root / "watchers").glob("*.lock"))
    members = [look_at(state, name) for name in names]
    return [member for member in members if member.process is not None]


def children_of(supervisor: Member) -> dict[str, dict[str, Any]]:
    """What a living supervisor says of each of its children, by name."""
    if supervisor.pulse is None:
        return {}
    children = supervisor.pulse.detail("children", list[_Child]) or []
    return {child["name"]: dict(child) for child in children}


class _Child(TypedDict):
    name: str
    pid: int | None
    state: str
    restarts: int


def called(name: str) -> str:
    """A member's name in a sentence."""
    special = {SUPERVISOR: "the supervisor", WATCHDOG: "the watchdog"}
    return special.get(name, f"watcher {name}")


def _member(pid: int | None) -> Process | None:
    """None for one that has ended, and for a stranger: somebody may have put another program's lock in the place."""
    stat = read_stat(pid) if pid else None
    if pid is None or stat is None or stat.state in "ZX" or not is_one_of_ours(pid):
        return None
    return Process(pid, stat.start_ticks)
