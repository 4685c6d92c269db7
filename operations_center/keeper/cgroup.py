"""One cgroup (version 2) for each run: the kernel's own list of a run's processes, where we may have it.

A run's cgroup holds the keeper, and below it ``executor`` holds everything else, so that ``cgroup.kill``
there ends the whole tree at once and leaves the keeper to record it (cgroups(7),
docs.kernel.org/admin-guide/cgroup-v2.html).
"""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from operations_center.identity import Process, is_alive

PREFIX = "operations_center-"
EXECUTOR = "executor"
_PROBE = "probe-"


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
        lines = (path / "cgroup.events").read_text().splitlines()
    except OSError:
        return None
    facts = dict(line.partition(" ")[::2] for line in lines)
    return facts["populated"] == "1" if "populated" in facts else None


def members(path: Path) -> tuple[int, ...]:
    """Pids in it and below it; those of other pid namespaces (0) are left out."""
    pids: set[int] = set()
    for directory in _tree(path):
        try:
            pids.update(map(int, (directory / "cgroup.procs").read_text().split()))
        except OSError:
            continue
    return tuple(sorted(pids - {0}))


def kill(path: Path) -> bool:
    """KILL everything in it and below it; False when that cannot be done."""
    try:
        (path / "cgroup.kill").write_text("1")
    except OSError:
        return False
    return True


def remove(path: Path) -> bool:
    """Remove it with everything below; False while it is populated or when it may not be removed."""
    try:
        for directory in reversed(list(_tree(path))):
            directory.rmdir()
    except FileNotFoundError:
        return not path.exists()
    except OSError:
        return False
    return True


def _tree(path: Path) -> Iterator[Path]:
    yield path
    try:
        below = [Path(entry.path) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for directory in below:
        yield from _tree(directory)


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
    process = subprocess.Popen(["/bin/sh", "-c", "read -r _"], stdin=subprocess.PIPE)
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
