"""Where everything lies below ``center.state_dir``; one place that knows the names.

ledger.db               the ledger and the local board (never open() it beside the connection)
ledger.turn, .write     the fair gate in front of its writers
host-id                 this host's random id
supervisor.lock         held by the one supervisor
drain.lock              held while somebody drains the fleet
startup.lock            serialises the watchers' start-up reconciliation
watchers/ROLE.lock      held by the one watcher of a role on this host (the watchdog has one, too)
pulse/NAME.json         heartbeat and progress of a watcher, of the watchdog, of the supervisor
wake/NAME               FIFO: a byte in it wakes that process up
logs/NAME.log           output of the supervisor, its fork server, the watchers, the watchdog, of making a release,
                        and of a reload
runs/RUN/               one directory for each run
releases/COMMIT/        one directory for each release
pull.lock               held while a release is made
rehearsal/              the state directory of the fleet in which a release is rehearsed
configs/NAME            copies of the configuration that processes were started with
reserve/                room for the ledger, given back when the disk is full
"""

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from operations_center.errors import LedgerUnusable, OperationsCenterError
from operations_center.files import write_atomically
from operations_center.ids import checked_commit, checked_config_copy, checked_run_id
from operations_center.ownership import why_untrusted

WATCHDOG = "@watchdog"
SUPERVISOR = "@supervisor"
FORK_SERVER = "@fork-server"
PULL = "@pull"
RELOAD = "@reload"
"""Names beside those of roles; ``@`` is not allowed in a role's name."""

_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_LOGS = "logs"
_DIRECTORIES = ("watchers", "pulse", "wake", _LOGS, "runs", "releases", "configs")
_WRITABLE = {True: os.R_OK | os.W_OK | os.X_OK, False: os.R_OK | os.W_OK}
"""By whether it is a directory."""

# Not the ledger itself: what stands in its place is refused when it is opened, with the way back (store/faults.py).
_FILES = (
    # SQLite looks for a journal as well, and would wait for the other end of a FIFO in its place.
    *("ledger.db-wal", "ledger.db-shm", "ledger.db-journal", "ledger.turn", "ledger.write", "host-id"),
    *("supervisor.lock", "drain.lock", "startup.lock", "pull.lock"),
)
_IGNORE = b"# Made by Operations Center: nothing in here belongs into a repository.\n*\n"

LOOKS = 5
"""At something that seems not to be writable."""


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """Paths that are made from an id raise ValueError for what has not its shape: no id leads anywhere else."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def reserve(self) -> Path:
        return self.root / "reserve"

    @property
    def supervisor_lock(self) -> Path:
        return self.root / "supervisor.lock"

    @property
    def drain_lock(self) -> Path:
        return self.root / "drain.lock"

    @property
    def startup_lock(self) -> Path:
        return self.root / "startup.lock"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def pull_lock(self) -> Path:
        return self.root / "pull.lock"

    @property
    def rehearsal(self) -> Path:
        return self.root / "rehearsal"

    @property
    def wake(self) -> Path:
        return self.root / "wake"

    def watcher_lock(self, name: str) -> Path:
        return self.root / "watchers" / f"{name}.lock"

    def pulse(self, name: str) -> Path:
        return self.root / "pulse" / f"{name}.json"

    def log(self, name: str) -> Path:
        return self.root / _LOGS / f"{name}.log"

    def run(self, run_id: str) -> Path:
        return Path(self.path_of_run(run_id))

    def path_of_run(self, run_id: str) -> str:
        """The same as text, for whoever looks at thousands: a ``Path`` takes as long to make as a file to read."""
        return f"{self.root}/runs/{checked_run_id(run_id)}"

    def release(self, commit: str) -> Path:
        return self.releases / checked_commit(commit)

    @property
    def configs(self) -> Path:
        return self.root / "configs"

    def config_copy(self, name: str) -> Path:
        return self.configs / checked_config_copy(name)

    def danger(self) -> str | None:
        """Why somebody else may have written in it, and what to do about that; None where nobody could have.

        Of one that belongs to another user nothing is written anyway: see ``obstacle``. Links are refused, for a
        repository can bring them along.
        """
        try:
            facts = self.root.lstat()
        except OSError:
            return _danger_on_the_way(self.root.parent)
        if stat.S_ISLNK(facts.st_mode):
            return f"it is a link; set center.state_dir to where it leads, {os.path.realpath(self.root)}"
        if facts.st_uid != os.geteuid() or not stat.S_ISDIR(facts.st_mode):
            return None
        if stat.S_IMODE(facts.st_mode) & _BY_OTHERS:
            return f"{_may_write('it', self.root, facts)}, then look who has put something into it"
        below = filter(None, map(self._danger_below, _DIRECTORIES + _FILES))
        return _danger_on_the_way(self.root.parent) or next(below, None)

    def _danger_below(self, name: str) -> str | None:
        path, wanted = self.root / name, stat.S_ISDIR if name in _DIRECTORIES else stat.S_ISREG
        try:
            facts = path.lstat()
        except FileNotFoundError:
            return None
        if not wanted(facts.st_mode):
            kind = "a link" if stat.S_ISLNK(facts.st_mode) else "something else"
            return f"{path} is {kind} and no {'directory' if name in _DIRECTORIES else 'file'} of ours; remove it"
        if facts.st_uid != os.geteuid():
            return f"{path} belongs to user {facts.st_uid} and not to you; remove it"
        if name in _DIRECTORIES and stat.S_IMODE(facts.st_mode) & _BY_OTHERS:
            return _may_write(str(path), path, facts)
        return None

    def obstacle(self) -> str | None:
        """Why it cannot be written and what to do about that, in words; None where it can, or is yet to be made."""
        try:
            facts = self.root.stat()
        except OSError:
            return None
        if not stat.S_ISDIR(facts.st_mode):
            return "it is not a directory; move it away"
        if os.statvfs(self.root).f_flag & os.ST_RDONLY:
            return "its file system is mounted read-only; remount it, or set center.state_dir to one that is not"
        if facts.st_uid != os.geteuid():
            return (
                f"it belongs to user {facts.st_uid} and this is user {os.geteuid()}; "
                "run as its owner or set center.state_dir"
            )
        for path in self._to_be_writable():
            mode = _refusing_mode(path)
            if mode is not None:
                return f"{path} is not writable for you; change its owner or its mode, which is {mode}"
        return None

    def _to_be_writable(self) -> Iterator[Path]:
        """The directory itself first: only where it can be read is it known what is in it."""
        yield self.root
        yield from (self.root / name for name in _DIRECTORIES if name != _LOGS)
        yield from (path for path in self.root.iterdir() if path.name.startswith("ledger."))

    def obstacle_to_logs(self) -> str | None:
        """Why no log can be begun, which keeps nobody from working; None where one can."""
        logs = self.root / _LOGS
        mode = _refusing_mode(logs)
        if mode is None:
            return None
        return f"no log can be written in {logs}; remount it, or change its owner or its mode, which is {mode}"

    def create(self) -> None:
        """Make what is missing, 0700. Raises OperationsCenterError where that cannot be, or is not safe."""
        self.refuse_danger()
        obstacle = self.obstacle()
        if obstacle is not None:
            raise OperationsCenterError(f"cannot use the state directory {self.root}: {obstacle}")
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in _DIRECTORIES:
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise OperationsCenterError(
                f"cannot use the state directory {self.root}: {error.strerror or error}; "
                "set center.state_dir to a directory that you may write"
            ) from error
        self._keep_out_of_git()

    def refuse_danger(self) -> None:
        """Raises LedgerUnusable where somebody else may have written in it."""
        danger = self.danger()
        if danger is not None:
            raise LedgerUnusable(f"cannot use the state directory {self.root}: {danger}")

    def _keep_out_of_git(self) -> None:
        """An agent that commits or stashes all that it finds takes neither ledger nor prompts along."""
        path = self.root / ".gitignore"
        if not os.path.lexists(path):
            # A full disk keeps nobody from working.
            with suppress(OSError):
                write_atomically(path, _IGNORE)


def _danger_on_the_way(parent: Path) -> str | None:
    """What leads to the state directory, as far as it is there."""
    there = next(each for each in (parent, *parent.parents) if os.path.lexists(each))
    try:
        problem = why_untrusted(there)
    except OSError as error:
        return f"cannot look at {there}: {error.strerror or error}; correct that"
    if problem is None:
        return None
    what = f"{there} {problem.removeprefix('it ')}" if problem.startswith("it ") else problem
    return f"{what}; set center.state_dir to a place that only you may write"


def _may_write(what: str, path: Path, facts: os.stat_result) -> str:
    mode = f"{stat.S_IMODE(facts.st_mode):04o}"
    return f"others may write {what}: its mode is {mode}; `chmod go-w {shlex.quote(str(path))}`"


def _refusing_mode(path: Path) -> str | None:
    """The mode of what this user may not write; None where it can be written, or is not there.

    ``access`` says no of what is missing, too, and the ledger's log comes and goes with those who have the ledger open:
    a no counts only when it is said again and again of something that is there.
    """
    mode = 0
    for _ in range(LOOKS):
        try:
            mode = path.stat().st_mode
        except OSError:
            # It is not there, or a link that leads nowhere, which is refused as a link.
            return None
        if os.access(path, _WRITABLE[stat.S_ISDIR(mode)], effective_ids=True):
            return None
    return f"{stat.S_IMODE(mode):04o}"
