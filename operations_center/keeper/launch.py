"""Start a run under a keeper that outlives us, or make sure that it never starts."""

import ctypes
import fcntl
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from operations_center.errors import OperationsCenterError
from operations_center.files import opened_own_directory
from operations_center.identity import Process, is_alive
from operations_center.keeper import cgroup
from operations_center.keeper.executor import children_of
from operations_center.keeper.inspect import REVOKED, RUN_ID_VARIABLE, GateState, read_gate
from operations_center.keeper.script import Script, start_script
from operations_center.keeper.timer import Limits, start_timer

RECORD_SIZE = 64
EXECUTOR_WITHIN_S = 0.05
"""As long as a start waits to see its executor. One that is seen later is noted later."""

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_AGAIN_S = 0.0005

# Read once: a code pull must not change the keeper of a process that is running.
_KEEPER = Script("keeper", Path(__file__).with_name("keeper.sh").read_text())
_SETSID = shutil.which("setsid", path=os.defpath) or shutil.which("setsid")
# Loaded before any fork, and called with the interpreter's lock kept: a forked child has no other thread.
_libc = ctypes.PyDLL(None)


class RunDirectoryExists(OperationsCenterError):
    """Somebody else made it first: the run was revoked, or is already being started."""


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """Everything that is needed to start one run. ``…_ms`` are milliseconds; None means no limit.

    ``stdin``: the executor reads the prompt there, else ``/dev/null``. ``working_directory`` None: a fresh
    one in the run directory. ``cgroup_parent``: where to make the run's cgroup, None for a run without one.
    """

    run_id: str
    run_directory: Path
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """Of keeper and executor: every program of the user may read it."""
    stdin: bool
    working_directory: Path | None
    prompt: str
    task_json: bytes
    timeout_ms: int | None
    idle_timeout_ms: int | None
    grace_ms: int
    cgroup_parent: Path | None
    max_output: int | None = None
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Variables that only the executor is started with."""

    @property
    def limits(self) -> Limits:
        return Limits(self.timeout_ms, self.idle_timeout_ms, self.grace_ms, self.max_output)


@dataclass(frozen=True, slots=True)
class LaunchedRun:
    """``children`` are our own child processes, keeper first: whoever started them has to reap them.

    ``executor`` leads a session of its own; None if it has ended already or was not seen yet.
    """

    keeper: Process
    children: "list[subprocess.Popen[bytes]]"
    cgroup: Path | None
    executor: Process | None = None


def prepare(plan: LaunchPlan) -> None:
    """Make the run directory and what is in it before the keeper starts.

    The exit record gets its blocks here, so that a disk that fills up cannot swallow it. Nothing is synced: the keeper
    syncs its record, and of a run that a power cut ends there is none. Raises RunDirectoryExists when somebody else
    made it, OSError when it cannot be made whole.
    """
    directory = plan.run_directory
    # Somebody may have removed it under a fleet; never what is above it, which may have been moved away.
    directory.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise RunDirectoryExists(
            f"cannot start run {plan.run_id}: {directory} exists already; leave the run to its owner"
        ) from None
    _write(directory / "task.json", plan.task_json)
    _write(directory / "prompt", plan.prompt.encode(errors="replace"))
    _write(directory / "timed_out", _blank_record())
    _write(directory / "exit", _blank_record())
    if plan.working_directory is None:
        (directory / "work").mkdir(mode=0o700)
    _make_cgroup(plan)


def prepare_for_job(directory: Path, task_json: bytes) -> None:
    """The directory of a run that no keeper will ever start. Raises OSError, also where there is one already.

    Synced: a submission that is in doubt may be sent again from what stands here.
    """
    directory.parent.mkdir(mode=0o700, exist_ok=True)
    directory.mkdir(mode=0o700)
    _write(directory / "task.json", task_json)
    for path in (directory / "task.json", directory, directory.parent):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def start(plan: LaunchPlan) -> LaunchedRun:
    """Start timer and keeper in a prepared run directory.

    Raises OSError when a process cannot be started, ValueError for an argument or variable that no program
    can be given (one with a NUL), OperationsCenterError where setsid(1) is missing; then no process and no descriptor
    is left.
    """
    timers: list[subprocess.Popen[bytes]] = []
    try:
        with ExitStack() as ours:
            lock = _take_lock(plan.run_directory, ours)
            timer_pipe = subprocess.DEVNULL
            if plan.limits.need_a_timer:
                read_end, timer_pipe = _pipe(ours)
                timers.append(start_timer(plan.run_directory, plan.limits, read_end))
            keeper = _start_keeper(plan, lock, timer_pipe, ours)
    except Exception:
        # Its pipe has no writer any more, so it ends by itself.
        for timer in timers:
            timer.wait()
        raise
    process = Process.of(keeper.pid)
    return LaunchedRun(process, [keeper, *timers], _cgroup_of(plan), _wait_for_executor(process))


def revoke(run_directory: Path) -> bool:
    """Make sure that the run never starts. True if it never will; False if its keeper was first.

    Raises OSError when the gate cannot be created.
    """
    run_directory.parent.mkdir(mode=0o700, exist_ok=True)
    with opened_own_directory(run_directory) as directory:
        try:
            # A symbolic link says what it has to say in the moment of its creation, also on a full disk.
            os.symlink(REVOKED, "gate", dir_fd=directory)
        except FileExistsError:
            return read_gate(run_directory).state is GateState.REVOKED
    return True


def _blank_record() -> bytes:
    return b" " * (RECORD_SIZE - 1) + b"\n"


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _make_cgroup(plan: LaunchPlan) -> None:
    if plan.cgroup_parent is None:
        return
    # A run without a cgroup is still found by its environment, its session and its parents.
    with suppress(OSError):
        cgroup.create(plan.cgroup_parent, plan.run_id)


def _cgroup_of(plan: LaunchPlan) -> Path | None:
    """None where it could not be made."""
    if plan.cgroup_parent is None:
        return None
    path = cgroup.path_of(plan.cgroup_parent, plan.run_id)
    return path if path.is_dir() else None


def _take_lock(directory: Path, ours: ExitStack) -> int:
    # Renamed into place when it is locked: nobody ever sees a free lock of a run that is being started.
    draft = directory / ".lock"
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    ours.callback(os.close, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    draft.rename(directory / "lock")
    return descriptor


def _pipe(ours: ExitStack) -> tuple[int, int]:
    read_end, write_end = os.pipe()
    ours.callback(os.close, read_end)
    ours.callback(os.close, write_end)
    return read_end, write_end


def _start_keeper(plan: LaunchPlan, lock: int, timer_pipe: int, ours: ExitStack) -> "subprocess.Popen[bytes]":
    if _SETSID is None:
        raise OperationsCenterError(f"cannot start run {plan.run_id}: there is no setsid; install util-linux")
    run_cgroup = _cgroup_of(plan)
    executor_procs = run_cgroup / cgroup.EXECUTOR / "cgroup.procs" if run_cgroup else Path(os.devnull)
    working_directory = plan.working_directory or plan.run_directory / "work"
    stdin = "prompt" if plan.stdin else os.devnull
    return start_script(
        _KEEPER,
        [
            *(str(plan.run_directory.absolute()), str(working_directory.absolute())),
            *(stdin, str(executor_procs), _SETSID),
            *plan.argv,
        ],
        stdin=lock,
        stdout=timer_pipe,
        environment={**plan.environment, RUN_ID_VARIABLE: plan.run_id},
        sixth=_pipe_with(_exports(plan.secrets), ours),
        before=_become_keeper(_open_cgroup(run_cgroup, ours)),
    )


def _exports(variables: Mapping[str, str]) -> bytes:
    """Return commands of a shell that export these variables. Raises ValueError for a NUL, which none can hold."""
    if any("\0" in value for value in variables.values()):
        raise ValueError("embedded null byte")
    return b"".join(os.fsencode(f"export {name}={shlex.quote(value)}\n") for name, value in variables.items())


def _pipe_with(content: bytes, ours: ExitStack) -> int:
    """Return the end to read of a pipe that holds this and no more. Raises OSError where it is too much for one."""
    read_end, write_end = os.pipe()
    ours.callback(os.close, read_end)
    try:
        if len(content) > fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ):
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, len(content))
        os.write(write_end, content)
    finally:
        os.close(write_end)
    return read_end


def _wait_for_executor(keeper: Process) -> Process | None:
    """Its pid is known as soon as the keeper has forked it; it keeps that when it becomes the program."""
    deadline = time.monotonic() + EXECUTOR_WITHIN_S
    while not (children := children_of(keeper)) and time.monotonic() < deadline and is_alive(keeper):
        time.sleep(_LOOK_AGAIN_S)
    return children[0] if children else None


def _open_cgroup(run_cgroup: Path | None, ours: ExitStack) -> int | None:
    if run_cgroup is None:
        return None
    try:
        descriptor = os.open(run_cgroup / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return None
    ours.callback(os.close, descriptor)
    return descriptor


def _become_keeper(cgroup_procs: int | None) -> Callable[[], None]:
    """What the child does between fork and exec."""

    def become() -> None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if cgroup_procs is not None:
            try:
                os.write(cgroup_procs, b"0")
            except OSError:
                return

    return become
