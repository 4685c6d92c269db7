"""Stage: fetch → tree → install → preflight; then the commit is a release that can be rolled out, or it is bad.

The directory is made where it stays, for what is installed may know its own path. It becomes a release by its row in
the ledger, which is written last: whoever is killed before that leaves a directory without a row, which the next
stage removes together with all else that was left, and begins anew.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from operations_center.clock import SystemClock
from operations_center.config import CodePull, CommandSettings, Config, HttpJobSettings
from operations_center.errors import LockHeld, OperationsCenterError
from operations_center.heart import Awake
from operations_center.keeper.inspect import RUN_ID_VARIABLE
from operations_center.ledger import Ledger
from operations_center.locks import take_lock
from operations_center.releases.deployment import Deployments
from operations_center.releases.preflight import Preflight
from operations_center.releases.records import Release, ReleaseRecords, ReleaseState
from operations_center.releases.repository import ANOTHER_REPOSITORY, Repository
from operations_center.releases.retention import (
    INDEX,
    prune_releases,
    releases_in_use,
    remove_if_possible,
    remove_leftovers,
)
from operations_center.releases.runtime import Runtime
from operations_center.releases.steps import Refused, Steps
from operations_center.state_directory import PULL, StateDirectory
from operations_center.store import SCHEMA

INSTALL_WITHIN_S = 600.0
LOOK_EVERY_S = 0.1

_OF_ITS_MANAGER = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"})
"""systemd must not hear of a rehearsal."""


class BadRelease(OperationsCenterError):
    """The commit was found to be bad, now or earlier."""


@dataclass(frozen=True, slots=True)
class Staged:
    """``is_new``: it was made now, and not found."""

    release: Release
    is_new: bool


@dataclass(frozen=True, slots=True)
class Incoming:
    """What a pull would fetch. ``new_commits`` is None where that cannot be told, ``known`` for a new commit."""

    commit: str
    new_commits: int | None
    known: Release | None


@dataclass(frozen=True, slots=True)
class Staging:
    """``config_copy`` is the copy of the configuration that ``config`` was read from: the file may be edited meanwhile.
    ``environment`` is the fleet's own; ``tell`` is told of each step, in a few words."""

    config: Config
    config_copy: Path
    state: StateDirectory
    records: ReleaseRecords
    deployments: Deployments
    ledger: Ledger
    environment: Mapping[str, str]
    tell: Callable[[str], object]

    @property
    def repository(self) -> Repository:
        settings = self._settings
        # Git is the user's, and may need what the programs of a release must not have: a token, for one.
        return Repository(settings.repository, settings.remote, settings.branch, self.environment)

    def look(self) -> Incoming:
        """Fetch, and make nothing of it. Raises OperationsCenterError."""
        repository, current = self.repository, self._current
        head = repository.fetch()
        repository.refuse_diverged(head, current)
        new_commits = repository.count_new(repository.base(current), head)
        return Incoming(head, new_commits, self.records.find(head))

    def stage(self, *, again: bool = False, within_s: float = 0) -> Staged:
        """Make a release of the branch's head, unless there is one. ``again``: also if it is known to be bad.

        ``within_s``: wait so long for another pull that is at work.

        Raises LockHeld, BadRelease, Unavailable, OperationsCenterError; then nothing is left of it.
        """
        with self._locked(within_s), clear_errors():
            remove_leftovers(self.state, self.records, self._in_use())
            staged = self._stage_head(again)
            # Asked again: it may have taken minutes.
            prune_releases(self.state, self.records, self.ledger, self.deployments, self._settings.keep)
            return staged

    def _in_use(self) -> set[str]:
        return releases_in_use(self.state, self.ledger, self.deployments)

    @property
    def _current(self) -> str | None:
        """The commit that the fleet runs, or would begin with."""
        deployment = self.deployments.read()
        return deployment.current.commit if deployment else None

    def _stage_head(self, again: bool) -> Staged:
        incoming = self.look()
        known = incoming.known
        if known is None or (known.state is ReleaseState.BAD and again):
            return Staged(self._make(incoming.commit), is_new=True)
        if known.state is ReleaseState.BAD:
            raise _bad(known)
        if not known.fits(SCHEMA):
            # Made for a fleet whose code was older, or newer.
            self.records.forget(known.commit)
            remove_leftovers(self.state, self.records, self._in_use())
        if not self.state.release(known.commit).is_dir():
            return Staged(self._make(known.commit), is_new=True)
        if known.state is ReleaseState.GOOD and not self._is_deployed(known.commit):
            # The branch was set back to it, after the fleet had gone on.
            return Staged(self.records.record(known.commit, ReleaseState.STAGED), is_new=False)
        return Staged(known, is_new=False)

    def _is_deployed(self, commit: str) -> bool:
        deployment = self.deployments.read()
        return deployment is None or commit in [version.commit for version in deployment.versions]

    def _make(self, commit: str) -> Release:
        self.ledger.note("release.fetched", {"release": {"commit": commit}})
        directory = self.state.release(commit)
        if directory.exists():
            raise OperationsCenterError(
                f"cannot make the release {commit} again: runs or watchers of it are alive; try again after their end"
            )
        try:
            schema = SCHEMA if self._fill(commit, directory).has_own_code else None
            # What the row promises must outlast a power cut as the row does.
            subprocess.run(["sync", "-f", str(directory)], check=True)
            return self.records.record(commit, ReleaseState.STAGED, ledger_schema=schema)
        except Refused as refusal:
            # Removed first: on a full disk that makes room for the record.
            remove_if_possible(directory)
            raise _bad(self.records.record(commit, ReleaseState.BAD, str(refusal))) from None
        except BaseException:
            remove_if_possible(directory)
            raise

    def _fill(self, commit: str, directory: Path) -> Runtime:
        self.tell(f"{commit[:12]}: takes its files out of {self._settings.repository}")
        self.repository.refuse_unfit(commit)
        directory.mkdir(mode=0o700)
        index = self.state.releases / INDEX
        self.repository.check_out(commit, directory, index)
        index.unlink()
        runtime = Runtime.of_release(commit, directory, self._settings.python)
        if runtime.import_path is not None and os.pathsep in str(directory):
            raise OperationsCenterError(
                f"cannot make a release in {directory}: code cannot be imported from a path with a {os.pathsep}; "
                "set center.state_dir to another directory"
            )
        release_directory = {"OPERATIONS_CENTER_RELEASE_DIR": str(directory)}
        environment = runtime.environment(self._program_environment()) | release_directory
        awake = Awake(SystemClock())
        steps = Steps(self.state.root.resolve(), self.state.log(PULL), directory, environment, awake)
        if self._settings.install:
            name = f"install {' '.join(self._settings.install)}"
            self.tell(f"{commit[:12]}: {name}")
            steps.run(name, self._settings.install, within_s=INSTALL_WITHIN_S)
        self.tell(f"{commit[:12]}: preflight")
        own = self._own_config(directory)
        Preflight(self.config, self.config_copy, runtime, steps, self.state.rehearsal, own).examine()
        return runtime

    def _own_config(self, directory: Path) -> Path | None:
        """The configuration as the release has it, if it is one of the files that the repository keeps."""
        top = self.repository.top()
        file = self.config.file.resolve()
        if top is None or not file.is_relative_to(top.resolve()):
            return None
        own = directory / file.relative_to(top.resolve())
        return own if own.is_file() else None

    @contextmanager
    def _locked(self, within_s: float) -> Iterator[None]:
        lock = self._take_lock(time.monotonic() + within_s)
        try:
            yield
        finally:
            os.close(lock)

    def _take_lock(self, until: float) -> int:
        while True:
            is_late = time.monotonic() > until
            try:
                return take_lock(self.state.pull_lock, "a pull")
            except LockHeld:
                if is_late:
                    raise
                time.sleep(LOOK_EVERY_S)

    def _program_environment(self) -> dict[str, str]:
        """The fleet's own, without the secrets that are named for backends and boards, what belongs to a run, or what
        would lead a git of theirs to another repository."""
        named: set[str | None] = set()
        for backend in self.config.backends.values():
            match backend:
                case CommandSettings():
                    named.update(backend.env)
                case HttpJobSettings():
                    named.add(backend.secret_env)
        left_out = named | {self.config.board.api_key_env, RUN_ID_VARIABLE} | _OF_ITS_MANAGER | ANOTHER_REPOSITORY
        return {name: value for name, value in self.environment.items() if name not in left_out}

    @property
    def _settings(self) -> CodePull:
        settings = self.config.code_pull
        if settings is None:
            raise OperationsCenterError(
                "cannot pull: the configuration has no [code_pull]; add it to follow a branch of a git repository"
            )
        return settings


def _bad(release: Release) -> BadRelease:
    return BadRelease(
        f"cannot pull {release.commit}: it is bad: {release.reason}; push a commit that mends it, "
        "or try this one again with `operations-center pull --again`"
    )


@contextmanager
def clear_errors() -> Iterator[None]:
    """What the machine refuses is no fault of a release."""
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise OperationsCenterError(f"cannot make a release: {error.strerror or error}{where}; try again") from error
    except subprocess.CalledProcessError as error:
        raise OperationsCenterError(f"cannot make a release: {error}; see whether its disk fails") from error
