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
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from operations_center.errors import OperationsCenterError
from operations_center.ids import checked_commit, checked_config_copy, checked_run_id

WATCHDOG = "@watchdog"
SUPERVISOR = "@supervisor"
FORK_SERVER = "@fork-server"
PULL = "@pull"
RELOAD = "@reload"
"""Names beside those of roles; ``@`` is not allowed in a role's name."""

_LOGS = "logs"
_DIRECTORIES = ("watchers", "pulse", "wake", _LOGS, "runs", "releases", "configs")
_WRITABLE = {True: os.R_OK | os.W_OK | os.X_OK, False: os.R_OK | os.W_OK}
"""By whether it is a directory."""

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


def _refusing_mode(path: Path) -> str | None:
    """The mode of what this user may not write; None where it can be written, or is not there.

    ``access`` says no of what is missing, too, and the ledger's log comes and goes with those who have the ledger open:
    a no counts only when it is said again and again of something that is there.
    """
    mode = 0
    for _ in range(LOOKS):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            return None
        if os.access(path, _WRITABLE[stat.S_ISDIR(mode)], effective_ids=True):
            return None
    return f"{stat.S_IMODE(mode):04o}"
