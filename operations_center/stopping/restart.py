"""Restart the fleet, one process after the other; no executor is interrupted."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from operations_center.config import Config, load_config
from operations_center.errors import OperationsCenterError
from operations_center.files import read_file
from operations_center.fleet import Member, called, look_at
from operations_center.keeper.stop import signal_processes
from operations_center.releases.config_copies import LARGEST, name_of, refuse_to_move
from operations_center.signals import RE_EXECUTE
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


def present_config(center: Center) -> Config:
    """The configuration as it is in the file now, which a running fleet is to take up. Raises ConfigError."""
    config = load_config(center.config.file, os.environ)
    refuse_to_move(center.config, config)
    return config


def renew_supervisor(center: Center) -> int:
    """Let the supervisor become what is installed now, with the file as it is now, in its own process; its pid.

    From then on watchers are forked from that code, and with that configuration. Raises OperationsCenterError without a
    supervisor, or when what is installed cannot start: then everything goes on as it was.
    """
    _refuse_without_supervisor(center.state, SUPERVISOR)
    old = look_at(center.state, SUPERVISOR)
    last_event = center.ledger.last_event()
    signal_processes([old.process] if old.process else [], RE_EXECUTE)
    until, is_late = time.monotonic() + READY_WITHIN_S, False
    while not _is_another_image(old, new := look_at(center.state, SUPERVISOR)):
        _refuse_without_supervisor(center.state, SUPERVISOR)
        _tell_of_refusal(center, last_event)
        if is_late:
            raise OperationsCenterError(
                f"cannot restart the supervisor: it is not ready again after {READY_WITHIN_S:.0f} s; "
                f"see {center.state.log(SUPERVISOR)}"
            )
        time.sleep(LOOK_EVERY_S / 5)
        is_late = time.monotonic() > until
    assert new.pid is not None
    if center.config.code_pull is None and new.pulse is not None and new.pulse.config != _present_name(center):
        raise OperationsCenterError(
            f"cannot restart the supervisor: it has gone back to the configuration of before; "
            f"see {center.state.log(SUPERVISOR)}"
        )
    return new.pid


def _present_name(center: Center) -> str:
    return name_of(read_file(os.path.realpath(center.config.file), LARGEST))


def _tell_of_refusal(center: Center, last_event: int) -> None:
    for event in center.ledger.events(after=last_event):
        if event.kind == "supervisor.re_execution_refused":
            raise OperationsCenterError(f"cannot restart the supervisor: it goes on as it is: {event.data['reason']}")


def _is_another_image(old: Member, new: Member) -> bool:
    return new.pulse is not None and (old.pulse is None or new.pulse.started_at != old.pulse.started_at)


def restart_watchers(
    center: Center,
    names: Sequence[str],
    old: Mapping[str, Member],
    before: Callable[[], object],
    tell: Callable[[Restarted], None],
) -> list[Restarted]:
    """One after the other: the next is stopped when the one before has a new process that is ready.

    ``old`` are those that are to go: a supervisor that has taken up another configuration exchanges them as well.
    ``before`` is called before each, ``tell`` after it.

    Raises OperationsCenterError without a supervisor, or when a watcher does not come back within 30 s.
    """
    done = []
    for name in names:
        before()
        done.append(_restart(center, name, old.get(name, Member(name))))
        tell(done[-1])
    return done


def _restart(center: Center, name: str, old: Member) -> Restarted:
    state, submissions_s = center.state, center.config.submissions_within_ms / 1000
    _refuse_without_supervisor(state, name)
    until, is_late = time.monotonic() + READY_WITHIN_S + submissions_s, False
    if old.process is not None and look_at(state, name).process == old.process:
        end_processes([old.process], WATCHER_KILL_AFTER_S + submissions_s, until)
    while (new := look_at(state, name)).process == old.process or new.pid is None or new.state != "ready":
        _refuse_without_supervisor(state, name)
        if is_late:
            raise OperationsCenterError(
                f"cannot restart {called(name)}: it is not ready again after {READY_WITHIN_S:.0f} s; "
                f"see {state.log(name)}"
            )
        time.sleep(LOOK_EVERY_S / 5)
        is_late = time.monotonic() > until
    return Restarted(name, old.pid, new.pid)


def _refuse_without_supervisor(state: StateDirectory, name: str) -> None:
    if look_at(state, SUPERVISOR).process is None:
        raise OperationsCenterError(
            f"cannot restart {called(name)}: no supervisor runs; start one with `operations-center up`"
        )
