"""The only place where concrete classes are chosen."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

from operations_center import wakeups
from operations_center.admission import Breaker
from operations_center.backends import Backend
from operations_center.backends.command import CommandBackend
from operations_center.boards.local import LocalBoard
from operations_center.clock import Clock, SystemClock
from operations_center.config import CommandSettings, Config, HttpJobSettings, Role
from operations_center.errors import LedgerUnusable, LedgerUnwritable, OperationsCenterError, Unavailable
from operations_center.heart import Awake, Heart
from operations_center.identity import Host, Process, identify_host
from operations_center.in_flight_reconcile import Surroundings
from operations_center.in_flight_reconcile.silence import Silence
from operations_center.keeper.cgroup import usable_cgroup_parent
from operations_center.keeper.forgotten import living_runs_below
from operations_center.keeper.processes import KERNEL, Processes
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.locks import refuse_broken_locks
from operations_center.places import work_tree_of
from operations_center.pointer import read_pointers, write_pointer
from operations_center.providers.backend import HttpJobBackend
from operations_center.releases.deployment import INSTALLED, Deployments, Version
from operations_center.releases.records import ReleaseRecords
from operations_center.releases.runtime import Runtime
from operations_center.settlement import Settlement
from operations_center.state_directory import StateDirectory
from operations_center.store import Access, Store
from operations_center.store.faults import is_missing, sign_of_an_earlier_ledger, way_back
from operations_center.store.reserve import Reserve

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Center:
    """Everything that a command, a watcher or the watchdog works with. Opened once per process."""

    config: Config
    state: StateDirectory
    clock: Clock
    host: Host
    me: Process
    processes: Processes
    store: Store
    ledger: SqliteLedger
    board: LocalBoard
    releases: ReleaseRecords
    settlement: Settlement
    deployments: Deployments
    version: Version = INSTALLED
    """What this process runs."""

    obstacle: str | None = None
    """Why the state directory cannot be written, and what to do about it; None where it can."""

    @cached_property
    def surroundings(self) -> Surroundings:
        return Surroundings(
            ledger=self.ledger,
            board=self.board,
            clock=self.clock,
            host=self.host,
            me=self.me,
            processes=self.processes,
            settlement=self.settlement,
            directory_of=self.state.path_of_run,
            wake_everybody=self.wake_everybody,
            wake=partial(wakeups.wake, self.state.wake),
            startup_lock=self.state.startup_lock,
            job_backends=self.job_backends,
            roles=self.config.roles,
            silence=Silence(Awake(self.clock)),
        )

    @property
    def release_directory(self) -> Path:
        """What ``{release}`` stands for: the configuration's directory, where there is no release."""
        commit = self.version.commit
        return self.config.directory if commit is None else self.state.release(commit)

    def runtime(self, commit: str | None) -> Runtime:
        """How the program of a release is run; None: that which the fleet was started with."""
        if commit is None:
            return Runtime.of_start(self.config.directory)
        python = self.config.code_pull.python if self.config.code_pull else ""
        return Runtime.of_release(commit, self.state.release(commit), python)

    def backends(self, environment: Mapping[str, str]) -> dict[str, Backend]:
        """Every backend of the configuration, for a process that starts runs with this environment."""
        cgroup_parent = _cgroup_parent() if self.config.center.cgroup == "auto" else None
        programs = {
            name: CommandBackend(
                settings=settings,
                config_file=self.config.file,
                release=self.release_directory,
                environment=environment,
                cgroup_parent=cgroup_parent,
            )
            for name, settings in self.config.backends.items()
            if isinstance(settings, CommandSettings)
        }
        return {**programs, **self.job_backends}

    @cached_property
    def job_backends(self) -> dict[str, HttpJobBackend]:
        """Backends whose runs are jobs at a provider; their secrets are looked for when one is first asked."""
        return {
            name: HttpJobBackend(settings, os.environ)
            for name, settings in self.config.backends.items()
            if isinstance(settings, HttpJobSettings)
        }

    def heart(self, name: str) -> Heart:
        """The heartbeat of this process, as the one of the fleet that has this name."""
        file = os.path.realpath(self.config.file)
        return Heart(self.state.pulse(name), self.clock, self.host, self.me, *self.version, config_file=file)

    def wake_everybody(self) -> None:
        wakeups.wake_everybody(self.state.wake)

    def close(self) -> None:
        self.store.close()


_OVERRIDE = "OPERATIONS_CENTER_CENTER__STATE_DIR"
"""What one shell says of the state directory is not true for the next: nothing is noted of it, and nothing refused."""

# Once for a process and those that are forked from it.
_cgroup_parent = cache(usable_cgroup_parent)
_refuse_broken_locks = cache(refuse_broken_locks)


def prepare_to_start(config: Config) -> StateDirectory:
    """Find out about the machine what is then known to processes forked from this one, and make the state directory.

    Raises OperationsCenterError.
    """
    if config.center.cgroup == "auto":
        _cgroup_parent()
    return _make_state_directory(config, Access.CREATE)


def open_center(config: Config, access: Access = Access.CREATE, version: Version = INSTALLED) -> Center:
    """Open state directory and ledger. Raises OperationsCenterError.

    CREATE makes what is missing, but no new ledger beside runs of an old one that are alive, or in the place of a board
    that is gone. EXISTING is for what a fleet starts: an empty ledger would forget what that fleet knows. READ makes
    nothing, and makes do with what can be read; what is there is open for writing as well, where that can be. END is
    for whoever ends something: the same, and the reserve of a full disk is given back.
    """
    state = StateDirectory(config.center.state_dir)
    state.refuse_danger()
    clock = SystemClock()
    if access in (Access.READ, Access.END):
        store, obstacle = _open_what_is_there(config, state, clock, access)
    else:
        _make_state_directory(config, access)
        is_new = not state.ledger.exists()
        store, obstacle = Store(state.ledger, clock, access=access), None
        if is_new:
            _note_place(config)
    ledger, board = SqliteLedger(store), LocalBoard(store)
    return Center(
        config=config,
        state=state,
        clock=clock,
        host=identify_host(state.root, make=access in (Access.CREATE, Access.EXISTING)),
        me=Process.current(),
        processes=KERNEL,
        store=store,
        ledger=ledger,
        board=board,
        releases=ReleaseRecords(store),
        settlement=Settlement(
            ledger=ledger,
            board=board,
            clock=clock,
            breaker_of=lambda backend: _breaker_of(config, backend),
            policy_of=lambda role: config.roles.get(role) or Role(name=role, backend=""),
        ),
        deployments=Deployments(store),
        version=version,
        obstacle=obstacle,
    )


def _breaker_of(config: Config, backend: str) -> Breaker | None:
    settings = config.backends.get(backend)
    return settings.limits.breaker if settings else None


def _open_what_is_there(
    config: Config, state: StateDirectory, clock: Clock, access: Access
) -> tuple[Store, str | None]:
    """Open the ledger without making anything, and say what keeps it from being written."""
    obstacle, noted = state.obstacle(), _note_of(config)
    if is_missing(state.ledger, sign_of_an_earlier_ledger(state.ledger)):
        if noted is not None:
            raise _lost_board(config, state, noted)
    elif obstacle is None:
        try:
            return _open_existing(state, clock, access), None
        except LedgerUnwritable as error:
            obstacle = error.obstacle
    return Store(state.ledger, clock, access=Access.READ), obstacle


def _open_existing(state: StateDirectory, clock: Clock, access: Access) -> Store:
    def open_it() -> Store:
        return Store(state.ledger, clock, access=Access.EXISTING)

    # Even to open it takes some room, where nobody has it open.
    return Reserve(state.reserve).spend_on(open_it) if access is Access.END else open_it()


def begin_again(config: Config) -> StateDirectory:
    """Make an empty ledger where an earlier one is gone for good. Raises OperationsCenterError where there is one."""
    state = StateDirectory(config.center.state_dir)
    if state.root.exists() and any(state.root.iterdir()):
        raise OperationsCenterError(
            f"cannot begin a new ledger in {state.root}: there is something in it; move it away first"
        )
    _refuse_beside_living_runs(state)
    state.create()
    _refuse_broken_locks(state.root)
    Store(state.ledger, SystemClock()).close()
    _note_place(config)
    return state


def _make_state_directory(config: Config, access: Access) -> StateDirectory:
    """Make what is missing of it. Raises OperationsCenterError, also where no ledger may be made in it."""
    state = StateDirectory(config.center.state_dir)
    # Before the ledger is looked for: others may be making it, and the note of it, at this very moment.
    noted = _note_of(config)
    if not state.ledger.exists():
        _refuse_new_ledger(config, state, access, noted)
    state.create()
    _refuse_broken_locks(state.root)
    return state


def why_no_new_ledger(config: Config) -> str | None:
    """Say why a start would not make a ledger where there is none; None where it would."""
    try:
        _refuse_new_ledger(config, StateDirectory(config.center.state_dir), Access.CREATE, _note_of(config))
    except OperationsCenterError as error:
        return str(error)
    return None


def _refuse_new_ledger(config: Config, state: StateDirectory, access: Access, noted: Path | None) -> None:
    if access is Access.EXISTING:
        raise LedgerUnusable(f"cannot open the ledger {state.ledger}: it is missing; start the fleet again")
    _refuse_beside_living_runs(state)
    if noted is None or sign_of_an_earlier_ledger(state.ledger) is not None:
        return
    # In a work tree git may have taken it along. Elsewhere only a person removes all of it, and means to begin again.
    if state.root.exists() or work_tree_of(state.root.parent) is not None:
        raise _lost_board(config, state, noted)
    _log.warning("the state directory %s was removed, and its board with it: a new one begins", state.root)


def _note_place(config: Config) -> None:
    """Leave a note, outside of the state directory, that there is a board in it."""
    if _OVERRIDE not in os.environ:
        write_pointer(config.file, config.center.state_dir, os.environ)


def _note_of(config: Config) -> Path | None:
    """Return where it stands that there was a board in the state directory."""
    if _OVERRIDE in os.environ:
        return None
    root = os.path.realpath(config.center.state_dir)
    return next((n.place for n in read_pointers(config.file, os.environ) if str(n.state_dir) == root), None)


def _lost_board(config: Config, state: StateDirectory, noted: Path) -> LedgerUnusable:
    """An empty board in its place would silently forget every task."""
    living = living_runs_below(state.runs)
    executing = f"; {', '.join(living)} of it is still executing, which `down --now` ends" if living else ""
    return LedgerUnusable(
        f"cannot find the board of {config.file}: its state directory {state.root} is gone (there was one by {noted})"
        f"{executing}; bring it back, with `git stash pop` if it was stashed, or {way_back(state.ledger)}, "
        "or begin with an empty board by `operations-center ledger new`"
    )


def _refuse_beside_living_runs(state: StateDirectory) -> None:
    living = living_runs_below(state.runs)
    if living:
        pids = [str(pid) for pids in living.values() for pid in pids]
        raise Unavailable(
            f"cannot begin a new ledger in {state.root}: {', '.join(living)} of an earlier one is still executing "
            f"(processes {', '.join(pids)}); bring that directory back, or end them first"
        )
