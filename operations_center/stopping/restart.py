"""Restart watchers one after the other; no executor is interrupted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from operations_center.errors import OperationsCenterError
from operations_center.fleet import called, look_at
from operations_center.state_directory import SUPERVISOR, StateDirectory
from operations_center.stopping.ends import LOOK_EVERY_S, end_processes
from operations_center.stopping.fleet import WATCHER_KILL_AFTER_S
from operations_center.wiring import Center

READY_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Restarted:
    role: str
    old_pid: int | None
    pid: int


def restart_watchers(center: Center, names: Sequence[str], tell: Callable[[Restarted], None]) -> list[Restarted]:
    """One after the other: the next is stopped when the one before has a new process that is ready.

    Raises OperationsCenterError without a supervisor, or when a watcher does not come back within 30 s.
    """
    done = []
    for name in names:
        done.append(_restart(center.state, name))
        tell(done[-1])
    return done


def _restart(state: StateDirectory, name: str) -> Restarted:
    _refuse_without_supervisor(state, name)
    old = look_at(state, name)
    until = time.monotonic() + READY_WITHIN_S
    if old.process is not None:
        end_processes([old.process], WATCHER_KILL_AFTER_S, until)
    while (new := look_at(state, name)).process == old.process or new.pid is None or new.state != "ready":
        _refuse_without_supervisor(state, name)
        if time.monotonic() > until:
            raise OperationsCenterError(
                f"cannot restart {called(name)}: it is not ready again after {READY_WITHIN_S:.0f} s; "
                f"see {state.log(name)}"
            )
        time.sleep(LOOK_EVERY_S / 5)
    return Restarted(name, old.pid, new.pid)


def _refuse_without_supervisor(state: StateDirectory, name: str) -> None:
    if look_at(state, SUPERVISOR).process is None:
        raise OperationsCenterError(
            f"cannot restart {called(name)}: no supervisor runs; start one with `operations-center up`"
        )
