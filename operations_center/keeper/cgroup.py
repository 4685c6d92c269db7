"""One cgroup (version 2) for each run: the kernel's own list of a run's processes, where we may have it.

A run's cgroup holds the keeper, and below it ``executor`` holds everything else, so that ``cgroup.kill``
there ends the whole tree at once and leaves the keeper to record it (cgroups(7),
docs.kernel.org/admin-guide/cgroup-v2.html).
"""

import errno
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from operations_center.files import open_directory, open_file, read_file
from operations_center.identity import Process, is_alive

PREFIX = "operations_center-"
EXECUTOR = "executor"
_PROBE = "probe-"
_EVENTS_LIMIT = 4096
_VISITED_AT_MOST = 10_000
_PROCS_LIMIT = 16 * 1024 * 1024


def usable_cgroup_parent() -> Path | None:
    """Where runs' cgroups can be made: our own cgroup, if a probe of everything that is needed works there."""
    parent = _own_cgroup()
    if parent is None:
        return None
    try:
        _remove_probes_of_the_dead(parent)
        return parent if _probe(parent) else None
    except OSError:
        return None


def path_of(parent: Path, run_id: str) -> Path:
    """Where a run's cgroup is, or would be."""
    return parent / f"{PREFIX}{run_id}"


def is_path_of(path: str, run_id: str) -> bool:
    """Whether this may be the path of a run's cgroup: it is the run's by its name, and leads nowhere else."""
    return path.startswith("/") and os.path.normpath(path) == path and os.path.basename(path) == f"{PREFIX}{run_id}"


def of_run(run_id: str, recorded: str | None) -> Path | None:
    """The run's cgroup, if it is one; None where it has none.

    ``recorded`` is the ledger's; where it has none yet, a run that our own cgroup has made room for is looked for. A
    path counts only if its name is made from the run's id and the kernel keeps it: a directory that somebody has made
    elsewhere is no cgroup.
    """
    if recorded is not None:
        path = Path(recorded)
    else:
        parent = _own_cgroup()
        if parent is None:
            return None
        path = path_of(parent, run_id)
    return path if is_path_of(str(path), run_id) and _is_cgroup(path) else None


def create(parent: Path, run_id: str) -> Path:
    """Make a run's cgroup. Raises OSError; then nothing is left of it."""
    path = path_of(parent, run_id)
    path.mkdir()
    try:
        (path / EXECUTOR).mkdir()
    except OSError:
        path.rmdir()
        raise
    return path


def is_populated(path: Path) -> bool | None:
    """Whether a process that is no zombie is in it or below it; None when that cannot be read."""
    try:
        lines = read_file(path / "cgroup.events", _EVENTS_LIMIT).decode().splitlines()
    except (OSError, UnicodeError):
        return None
    facts = dict(line.partition(" ")[::2] for line in lines)
    return facts["populated"] == "1" if "populated" in facts else None


def members(path: Path) -> tuple[int, ...]:
    """Pids in it and below it; those of other pid namespaces (0) are left out."""
    pids: set[int] = set()

    def read(directory: int, _name: str, _parent: int | None) -> None:
        try:
            pids.update(map(int, read_file("cgroup.procs", _PROCS_LIMIT, dir_fd=directory).split()))
        except (OSError, ValueError):
            pass

    with suppress(OSError):
        _for_each(path, read)
    return tuple(sorted(pids - {0}))


def kill(path: Path) -> bool:
    """KILL everything in it and below it; False when that cannot be done."""
    try:
        descriptor = open_file(path / "cgroup.kill", os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(descriptor, b"1")
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def remove(path: Path) -> bool:
    """Remove it with everything below; False while it is populated or when it may not be removed."""

    def remove_one(_directory: int, name: str, parent: int | None) -> None:
        os.rmdir(name, dir_fd=parent)

    try:
        _for_each(path, remove_one)
    except FileNotFoundError:
        return not path.exists()
    except OSError:
        return False
    return True


def _for_each(path: Path, do: Callable[[int, str, int | None], None]) -> None:
    """Call ``do`` with each directory, its name and its parent: those below first, ``path`` last.

    Raises OSError, also when there are more than ``_VISITED_AT_MOST``.

    An executor may nest cgroups deeper than any path or stack reaches: so one directory is open at a time, and ``..``
    leads up again, for nobody can move a cgroup.
    """
    here = open_directory(path)
    try:
        levels, visited = [(str(path), _names_below(here))], 1
        while levels:
            name, below = levels[-1]
            if below:
                visited += 1
                if visited > _VISITED_AT_MOST:
                    raise OSError(errno.E2BIG, "there are too many cgroups in it", str(path))
                here = _go(here, child := below.pop())
                levels.append((child, _names_below(here)))
                continue
            levels.pop()
            if not levels:
                do(here, name, None)
                break
            parent = open_directory("..", dir_fd=here)
            try:
                do(here, name, parent)
            finally:
                os.close(here)
                here = parent
    finally:
        os.close(here)


def _go(here: int, name: str) -> int:
    there = open_directory(name, dir_fd=here)
    os.close(here)
    return there


def _names_below(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _is_cgroup(path: Path) -> bool:
    """Whether it is a directory, and no link to one, on the file system of cgroups."""
    mounted = _mount()
    try:
        facts = path.lstat()
        return mounted is not None and stat.S_ISDIR(facts.st_mode) and facts.st_dev == mounted[1].stat().st_dev
    except (OSError, ValueError):
        return False


def _own_cgroup() -> Path | None:
    mounted = _mount()
    if mounted is None:
        return None
    root, mount_point = mounted
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return _below_mount(Path(line[3:]), root, mount_point)
    return None


def _below_mount(own: Path, root: Path, mount_point: Path) -> Path | None:
    if not own.is_relative_to(root):
        return None
    return mount_point / own.relative_to(root)


@cache
def _mount() -> tuple[Path, Path] | None:
    # proc_pid_mountinfo(5): "36 35 0:30 ROOT MOUNT_POINT rw shared:1 - cgroup2 cgroup2 rw"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if source.startswith("cgroup2 "):
            fields = mount.split()
            return Path(fields[3]), Path(fields[4])
    return None


def _probe(parent: Path) -> bool:
    me = Process.current()
    path = create(parent, f"{_PROBE}{me.pid}-{me.start_ticks}-{_pid_namespace()}")
    try:
        if not (path / "cgroup.kill").exists():
            return False
        with _waiting_process() as process:
            (path / EXECUTOR / "cgroup.procs").write_text(str(process.pid))
            return is_populated(path) is True and kill(path) and process.wait(timeout=2) < 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        _remove_soon(path)


def _remove_probes_of_the_dead(parent: Path) -> None:
    """One that was killed while it probed has left its cgroup behind."""
    for path in parent.glob(f"{PREFIX}{_PROBE}*-*-{_pid_namespace()}"):
        pid, start_ticks, _ = path.name.removeprefix(f"{PREFIX}{_PROBE}").split("-")
        if not is_alive(Process(int(pid), int(start_ticks))):
            remove(path)


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


@contextmanager
def _waiting_process() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["/bin/sh", "-c", "read -r _"], stdin=subprocess.PIPE, env={})
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _remove_soon(path: Path) -> None:
    # The kernel counts a killed process out a moment after its parent could wait for it.
    for _ in range(100):
        if remove(path):
            return
        time.sleep(0.002)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
