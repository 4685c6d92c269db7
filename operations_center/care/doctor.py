"""Everything that a fleet needs, looked at without changing anything.

A *fault* keeps a fleet, or every run of a backend, from starting; a *warning* says what is weaker than it could be.
"""

import os
import platform
import shutil
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from operations_center.backends.command import DEFAULT_PATH
from operations_center.care.older import refuse_older_ledger
from operations_center.care.service import environment_file, is_private, names_in, variables_of
from operations_center.clock import SystemClock, rfc3339
from operations_center.config import Backend, CommandSettings, Config, HttpJobSettings, format_size, hints
from operations_center.environment import value_of
from operations_center.errors import OperationsCenterError
from operations_center.identity import this_boot
from operations_center.ids import fence_of
from operations_center.keeper.cgroup import usable_cgroup_parent
from operations_center.keeper.handed_on import processes_by_run
from operations_center.ledger.seen_time import Reading, SeenTime, observe
from operations_center.locks import NETWORK_FILE_SYSTEMS, file_system_kind, refuse_broken_locks
from operations_center.memory import available_memory
from operations_center.model import RunState
from operations_center.places import state_directory_outside, work_tree_of
from operations_center.providers.secret import Secret
from operations_center.releases.repository import Repository
from operations_center.state_directory import StateDirectory
from operations_center.store import SCHEMA, load_queries
from operations_center.store.faults import (
    APPLICATION_ID,
    ClearErrors,
    is_missing,
    sign_of_an_earlier_ledger,
    way_back,
)
from operations_center.store.reading import look_into
from operations_center.text import hide_secrets, on_one_line
from operations_center.wiring import why_no_new_ledger

OLDEST_KERNEL = (5, 3)
"""pidfd_open(2)."""

OLDEST_PYTHON = (3, 11)

KEEPER_PROGRAMS = ("sh", "setsid", "timeout", "sync", "stat", "cat", "head", "grep", "sleep")

MOST_PIDS = 10

OLDEST_TIME_MS = 1_735_689_600_000
"""2025: a clock that says less has not been set."""

_SQL = load_queries(Path(__file__).with_name("ledger_file.sql"))


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    status: Status
    detail: str


def examine_machine() -> list[Check]:
    return [_kernel(), _python(), *_keeper_programs(), _clock()]


def examine_fleet(config: Config, environment: Mapping[str, str]) -> list[Check]:
    """``environment`` is what watchers would be started with."""
    return [
        _cgroup(config),
        *_state_directory(config),
        *_work_tree(config, environment),
        *_ledger(config),
        *(check for backend in config.backends.values() for check in _backend(backend, config, environment)),
        *_service(config),
        *_follow_ups(config),
        *(_warning(hint.about, hint.text) for hint in hints(config)),
        *_code_pull(config, environment),
        *(
            _warning("inactive", f"[{section}] is checked, but this version does not act on it")
            for section in config.inactive_sections
        ),
    ]


def _ok(name: str, detail: str) -> Check:
    return Check(name, Status.OK, on_one_line(hide_secrets(detail)))


def _warning(name: str, detail: str) -> Check:
    return Check(name, Status.WARNING, on_one_line(hide_secrets(detail)))


def _fault(name: str, detail: str) -> Check:
    return Check(name, Status.FAULT, on_one_line(hide_secrets(detail)))


# The machine


def _kernel() -> Check:
    release = platform.release()
    if sys.platform != "linux":
        return _fault("kernel", f"cannot run on {platform.system()}: only Linux can say who is alive; use a Linux host")
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < OLDEST_KERNEL:
        return _fault("kernel", f"cannot run on Linux {release}: it has no pidfd; use 5.3 or later")
    return _ok("kernel", f"Linux {release}")


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return _fault("python", f"cannot run on Python {version}: use 3.11 or later")
    return _ok("python", f"{version} ({sys.executable})")


def _keeper_programs() -> Iterator[Check]:
    # "command -p" looks where the system's own programs are, and the shell itself is named by its path.
    path = os.confstr("CS_PATH") or os.defpath
    missing = [program for program in KEEPER_PROGRAMS if shutil.which(program, path=path) is None]
    if missing:
        yield _fault(
            "programs",
            f"cannot start runs: {', '.join(missing)} is not in {path}; install coreutils, grep and util-linux",
        )
    else:
        yield _ok("programs", f"{', '.join(KEEPER_PROGRAMS)} are there")


def _clock() -> Check:
    now = time.time_ns() // 1_000_000
    if now < OLDEST_TIME_MS:
        return _warning("clock", f"it says {rfc3339(now)}; set it, or times shown to people are wrong")
    return _ok("clock", f"{rfc3339(now)}; time in which this machine is suspended counts against no limit of a run")


# Cgroups

ESCAPES = (
    "a process of a run that leaves its session, its parents and its environment behind escapes its run "
    "once its keeper is killed"
)


def _cgroup(config: Config) -> Check:
    if config.center.cgroup == "off":
        return _warning("cgroup", f'center.cgroup is "off": {ESCAPES}; set it to "auto"')
    parent = usable_cgroup_parent()
    if parent is None:
        return _warning(
            "cgroup",
            f"no cgroup v2 is usable: {ESCAPES}; a systemd unit with Delegate=yes gives one (`operations-center unit`)",
        )
    return _ok("cgroup", f"each run gets its own below {parent}")


# The state directory and the ledger


def _state_directory(config: Config) -> Iterator[Check]:
    root = config.center.state_dir
    if (danger := StateDirectory(root).danger()) is not None:
        yield _fault("state_dir", f"cannot use {root}: {danger}")
    elif not root.exists():
        yield from _missing_state_directory(root)
        if (refusal := why_no_new_ledger(config)) is not None:
            yield _fault("ledger", refusal)
    elif not root.is_dir():
        yield _fault("state_dir", f"cannot use {root}: it is not a directory; set center.state_dir")
    else:
        obstacle = StateDirectory(root).obstacle()
        yield _owner(root, obstacle)
        if obstacle is None:
            yield _locks(root)
            yield _logs(root)
        yield _disk(root, config.watchdog.min_free_disk_bytes)


def _work_tree(config: Config, environment: Mapping[str, str]) -> Iterator[Check]:
    root = config.center.state_dir
    tree, outside = work_tree_of(root), state_directory_outside(config.directory, environment)
    if tree is not None:
        place = outside or "a place outside of it"
        yield _warning(
            "state_dir",
            f"{root} is in the git work tree {tree}, where `git clean -x` removes it; set center.state_dir to {place}",
        )


def _missing_state_directory(root: Path) -> Iterator[Check]:
    nearest = next(parent for parent in root.parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        yield _fault("state_dir", f"cannot make {root}: {nearest} is not writable; set center.state_dir")
        return
    yield _ok("state_dir", f"{root} is made by the first start")
    kind = file_system_kind(nearest)
    if kind in NETWORK_FILE_SYSTEMS:
        yield _fault("locks", f"cannot rely on the locks of {kind} in {nearest}; set center.state_dir")


def _owner(root: Path, obstacle: str | None) -> Check:
    mode = stat.S_IMODE(root.stat().st_mode)
    if obstacle is not None:
        return _fault("state_dir", f"cannot write {root}: {obstacle}")
    if mode & 0o077:
        return _warning("state_dir", f"{root} has mode {mode:04o}, and others may look into it; chmod 0700 it")
    return _ok("state_dir", str(root))


def _locks(root: Path) -> Check:
    try:
        refuse_broken_locks(root)
    except (OperationsCenterError, OSError) as error:
        return _fault("locks", str(error))
    return _ok("locks", f"file locks work on {file_system_kind(root)}")


def _logs(root: Path) -> Check:
    obstacle = StateDirectory(root).obstacle_to_logs()
    return _ok("logs", "they can be written") if obstacle is None else _warning("logs", obstacle)


def _disk(root: Path, wanted: int) -> Check:
    free = shutil.disk_usage(root).free
    amount = f"{free >> 20} MiB are free"
    if free < wanted:
        return _warning("disk", f"{amount}; nothing is admitted below {format_size(wanted)}")
    return _ok("disk", amount)


def _ledger(config: Config) -> Iterator[Check]:
    state = StateDirectory(config.center.state_dir)
    path = state.ledger
    if state.danger() is not None:
        # What SQLite would open there may be anything, and it waits for the other end of a FIFO.
        return
    try:
        if is_missing(path, sign_of_an_earlier_ledger(path)):
            yield _ok("ledger", f"{path} is made by the first start")
            return
        with ExitStack() as opened, ClearErrors(path):
            ledger = look_into(path, opened, writable=state.obstacle() is None)
            whole = _whole(path, ledger)
            yield whole
            if whole.status is Status.OK:
                refuse_older_ledger(path, state.runs, lambda: _newest_fence(ledger))
                yield _newest_event(ledger)
                yield from _handed_on(ledger)
                yield from _jumps(ledger)
    except OperationsCenterError as error:
        yield _fault("ledger", str(error))


def _whole(path: Path, ledger: sqlite3.Connection) -> Check:
    application = ledger.execute("PRAGMA application_id").fetchone()[0]
    schema = ledger.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        return _fault(
            "ledger", f"cannot use {path}: it is some other program's database; move it away and {way_back(path)}"
        )
    if schema > SCHEMA:
        return _fault("ledger", f"cannot use {path}: its schema {schema} is newer than {SCHEMA}; upgrade")
    damage = ledger.execute("PRAGMA quick_check(1)").fetchone()[0]
    if damage != "ok":
        return _fault("ledger", f"cannot trust {path}: {damage}; {way_back(path)}")
    return _ok("ledger", f"{path}, schema {schema}")


def _newest_fence(ledger: sqlite3.Connection) -> int:
    (fence,) = ledger.execute(_SQL["newest_fence"]).fetchone()
    return int(fence)


def _newest_event(ledger: sqlite3.Connection) -> Check:
    (at,) = ledger.execute(_SQL["newest_event"]).fetchone()
    if at is not None and at > time.time_ns() // 1_000_000 + 60_000:
        return _warning("clock", f"the newest event is of {rfc3339(at)}, which is yet to come: the clock went back")
    return _ok("events", f"the newest is of {rfc3339(at)}" if at is not None else "there is none yet")


def _handed_on(ledger: sqlite3.Connection) -> Iterator[Check]:
    """Name what is left of runs that have closed: whoever wants it ended has to do that."""
    for run_id, pids in processes_by_run().items():
        found = ledger.execute(_SQL["state_of_run"], {"fence": fence_of(run_id), "run_id": run_id}).fetchone()
        if found is not None and found[0] == RunState.CLOSED:
            listed = ", ".join(map(str, pids[:MOST_PIDS])) + (" and more" if len(pids) > MOST_PIDS else "")
            yield _warning(
                f"run {run_id}",
                f"it has closed, and processes with its id run on ({listed}): it has handed work to a daemon, such as "
                "at or a service manager; end that there",
            )


def _jumps(ledger: sqlite3.Connection) -> Iterator[Check]:
    """What the watchdog has seen of the clocks, and what became of the wall clock since its last look."""
    if ledger.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
        return
    row = ledger.execute(_SQL["seen_time"]).fetchone()
    if row is None:
        return
    now = SystemClock().now()
    seen = observe(SeenTime(*row), Reading(this_boot(), now.wall, now.boottime))
    if seen.jumped_at is not None and seen.jumped_by is not None:
        yield _warning(
            "clock",
            f"the wall clock was set by {seen.jumped_by / 1000:+.0f} s at {rfc3339(seen.jumped_at)}; retention and "
            "budgets go by the time that was seen to pass",
        )


# Backends


def _follow_ups(config: Config) -> Iterator[Check]:
    for role in config.roles.values():
        for ending, then in (("on_success", role.on_success), ("on_failure", role.on_failure)):
            if then.follow_up is not None and config.role_for_kind(then.follow_up) is None:
                yield _warning(
                    f"role {role.name}",
                    f'no role takes the kind "{then.follow_up}" of {ending}.follow_up: it will wait',
                )


def _backend(backend: Backend, config: Config, environment: Mapping[str, str]) -> Iterator[Check]:
    name = f"backend {backend.name}"
    match backend:
        case CommandSettings():
            yield from _command(name, backend, config, environment)
        case HttpJobSettings():
            yield from _provider(name, backend, environment)
    wanted = backend.min_available_memory_bytes
    if wanted is not None and (available := available_memory()) < wanted:
        yield _warning(name, f"{available >> 20} MiB of memory are available; it wants {format_size(wanted)}")


def _command(name: str, backend: CommandSettings, config: Config, environment: Mapping[str, str]) -> Iterator[Check]:
    yield _program(name, backend, config, environment)
    directory = backend.working_directory
    if directory is not None and not directory.is_dir():
        yield _warning(name, f"its runs will fail: its working_directory {directory} is no directory; make it")
    missing = [variable for variable in backend.env if value_of(variable, environment) is None]
    if missing:
        yield _warning(name, f"{', '.join(missing)} is not set here; set it where the fleet is started")


def _service(config: Config) -> Iterator[Check]:
    """What the printed unit gives a fleet. Where there is no such file, the fleet may be no service."""
    file = environment_file(config)
    try:
        named = names_in(file)
        if named is None:
            return
        if not is_private(file):
            yield _warning("service", f"{file} may be read by others; chmod 600 it")
    except OSError as error:
        yield _warning("service", f"cannot read {file}: {error.strerror}; a service gets no variables from it")
        return
    missing = [variable for variable in variables_of(config) if variable not in named]
    if missing:
        yield _warning("service", f"a service does not get {', '.join(missing)}; set it in {file}")


def _provider(name: str, backend: HttpJobSettings, environment: Mapping[str, str]) -> Iterator[Check]:
    """Nothing is asked of the provider. Who starts the fleet may have a secret that whoever looks here has not."""
    secret = Secret.of(backend, environment)
    if secret.value() is None:
        yield _warning(name, f"{secret.obstacle}; nothing is submitted without it")
    else:
        yield _ok(name, backend.submit.url.replace("{base_url}", backend.base_url or ""))


def _program(name: str, backend: CommandSettings, config: Config, environment: Mapping[str, str]) -> Check:
    program = backend.argv[0].replace("{release}", str(config.directory))
    if "/" in program:
        found = shutil.which(str(config.directory / program))
    else:
        found = shutil.which(program, path=environment.get("PATH", DEFAULT_PATH))
    if found is None:
        return _warning(
            name, f"its runs will fail: {program} is not there or not executable; install it or change argv"
        )
    return _ok(name, found)


# Code pull: what is wrong with it keeps new code away, and no fleet from starting.


def _code_pull(config: Config, environment: Mapping[str, str]) -> Iterator[Check]:
    settings = config.code_pull
    if settings is None:
        return
    repository = Repository(settings.repository, settings.remote, settings.branch, environment)
    try:
        repository.refuse_unusable()
    except OperationsCenterError as error:
        yield _warning("code_pull", str(error))
        return
    yield _ok("code_pull", f"{settings.repository} follows {settings.branch} of {settings.remote}")
    if settings.python and not settings.install and not (settings.repository / settings.python).exists():
        yield _warning(
            "code_pull",
            f"no release will have its interpreter {settings.python}: it is not in the clone, and nothing makes it; "
            "set code_pull.install",
        )
