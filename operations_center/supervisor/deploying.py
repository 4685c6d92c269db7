"""What the fleet is to run: the release that is current, the one that is rolled out, the configuration as it is now."""

import hashlib
import logging
import os
from pathlib import Path

from operations_center.config import Config, load_config
from operations_center.errors import ConfigError
from operations_center.releases.deployment import Deployment, Step, Version
from operations_center.releases.records import ReleaseState
from operations_center.state_directory import StateDirectory
from operations_center.supervisor.rollout import Become, Complete, Exchange, Fleet, Reach, TakeBack, Wait, next_move
from operations_center.wiring import Center

_log = logging.getLogger(__name__)


class Deploying:
    """The durable side of a rollout: every step is in the ledger before it is done.

    ``handed_over``: this image was executed by the one before it, in the same process; ``handed_back``: by one that
    ended, for this reason.
    """

    def __init__(self, center: Center, *, handed_over: bool, handed_back: str | None) -> None:
        self._center = center
        assert center.config.code_pull is not None
        self._canary_ms = center.config.code_pull.canary_ms
        self._seen_file: tuple[int, ...] | None = None
        self.refused: Version | None = None
        """What the supervisor could not become."""

        self.deployment = self._begin(handed_over, handed_back)
        self._roles_of: dict[str, frozenset[str]] = {}

    def _begin(self, handed_over: bool, handed_back: str | None) -> Deployment:
        mine, known = self._center.version, self._center.deployments.read()
        if known is None or self._is_lost(known.current):
            return self._keep(Deployment(mine._replace(commit=None)), "deployment.begun")
        if handed_back is not None:
            return self._refuse(known, handed_back)
        if handed_over:
            return known
        if known.step is not None:
            return self._keep(known.resumed(), "rollout.resumed")
        # Edited while no fleet ran: whoever starts one has the present configuration in mind.
        present = known.configured(mine.config)
        return known if present == known else self._keep(present, "deployment.begun")

    def _is_lost(self, current: Version) -> bool:
        if current.commit is None or self._center.state.release(current.commit).is_dir():
            return False
        _log.error("release %s is gone from the disk: goes on with the installed code", current.commit)
        self._center.releases.forget(current.commit)
        return True

    def _refuse(self, known: Deployment, reason: str) -> Deployment:
        """The image that was executed did not hold."""
        if known.step in (None, Step.BACK):
            self.refused = known.current
            return known
        self.refused = known.target
        return self._take_back(known, reason)

    def look_for_more(self) -> None:
        """Begin to roll out a release that was staged, or a configuration that has changed."""
        self._notice_what_others_wrote()
        current = self.deployment.current
        if self.deployment.step is None and (target := self._staged(current) or self._changed_config(current)):
            self.deployment = self._keep(self.deployment.begun(target), "rollout.begun")
            _log.info("rolls out %s", _called(target))

    def next_move(self, fleet: Fleet, now: int) -> Exchange | Become | Wait:
        """What is left for the supervisor to do; the ledger knows of it then."""
        while True:
            move = next_move(self.deployment, fleet, now, self._canary_ms)
            match move:
                case Reach(step):
                    self.deployment = self._keep(self.deployment.at(step), "rollout.reached")
                case TakeBack(reason):
                    self.deployment = self._take_back(self.deployment, reason)
                case Complete():
                    self.deployment = self._complete(self.deployment)
                case _:
                    return move

    @property
    def on_trial(self) -> Version | None:
        """What is rolled out, as long as it is not to be taken back."""
        return None if self.deployment.step is Step.BACK else self.deployment.target

    @property
    def commits(self) -> set[str | None]:
        """Whose code is needed now or soon."""
        versions = (self.deployment.current, self.deployment.target)
        return {version.commit for version in versions if version is not None}

    @property
    def roles(self) -> frozenset[str]:
        """Of the configuration that every process is to have in the end."""
        config = (self.on_trial or self.deployment.current).config
        if config not in self._roles_of:
            copy = self._center.state.config_copy(config)
            self._roles_of[config] = frozenset(load_config(self._center.config.file, os.environ, copy).roles)
        return self._roles_of[config]

    def _notice_what_others_wrote(self) -> None:
        """A person may have rolled back."""
        self.deployment = self._center.deployments.read() or self.deployment

    def _staged(self, current: Version) -> Version | None:
        for release in self._center.releases.all():
            if release.state is ReleaseState.STAGED:
                return Version(release.commit, current.config)
        return None

    def _changed_config(self, current: Version) -> Version | None:
        """The configuration file has another content, and it is a good one."""
        file = self._center.config.file
        try:
            facts = file.stat()
        except OSError:
            return None
        seen = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if seen == self._seen_file:
            return None
        self._seen_file = seen
        try:
            name = keep_copy(file, self._center.state)
            if name in (current.config, self.deployment.refused_config):
                return None
            config = load_config(file, os.environ, self._center.state.config_copy(name))
            self._refuse_to_move(config)
        except (ConfigError, OSError) as error:
            reason = " ".join(str(error).split())
            _log.error("goes on with the configuration as it was: %s", reason)
            self._center.ledger.note("config.refused", {"reason": reason})
            return None
        return Version(current.commit, name)

    def _refuse_to_move(self, config: Config) -> None:
        if config.center.state_dir != self._center.config.center.state_dir:
            raise ConfigError(
                [f"cannot use {config.file}: center.state_dir has changed; stop the fleet, and start it again"]
            )

    def _complete(self, deployment: Deployment) -> Deployment:
        target = deployment.target
        assert target is not None
        if deployment.step is Step.BACK:
            _log.warning("is back at %s", _called(deployment.current))
            return self._keep(deployment.completed(), "rollout.undone")
        with self._center.ledger.transaction():
            if target.commit is not None:
                self._center.releases.record(target.commit, ReleaseState.GOOD)
            _log.info("has rolled out %s", _called(target))
            return self._keep(deployment.completed(), "rollout.completed")

    def _take_back(self, deployment: Deployment, reason: str) -> Deployment:
        target = deployment.target
        assert target is not None
        _log.error("takes %s back: %s", _called(target), reason)
        with self._center.ledger.transaction():
            if target.commit is not None and target.commit != deployment.current.commit:
                self._center.releases.record(target.commit, ReleaseState.BAD, reason)
                refused_config = deployment.refused_config
            else:
                refused_config = target.config
            return self._keep(deployment.taken_back(reason, refused_config), "rollout.taken_back")

    def _keep(self, deployment: Deployment, event: str) -> Deployment:
        self._center.deployments.write(deployment, event, supervisor=self._center.me.pid)
        return deployment


def keep_copy(file: Path, state: StateDirectory) -> str:
    """Copy a configuration to where no edit changes it; the copy's name. Raises OSError."""
    content = file.read_bytes()
    name = f"{hashlib.sha256(content).hexdigest()[:16]}.toml"
    copy = state.config_copy(name)
    if not copy.exists():
        draft = copy.with_name(f".{name}.{os.getpid()}")
        draft.write_bytes(content)
        draft.replace(copy)
    return name


def _called(version: Version) -> str:
    return f"{version.commit[:12] if version.commit else 'the installed code'} with configuration {version.config[:8]}"
