"""What the fleet is to run: the release that is current, the one that is rolled out, the configuration as it is now."""

import logging
import os

from msgspec.structs import replace

from operations_center.config import load_config
from operations_center.errors import ConfigError
from operations_center.releases.config_copies import ConfigCopies, keep_copy, refuse_to_move
from operations_center.releases.deployment import Deployment, Step, Version
from operations_center.releases.records import Release, ReleaseState
from operations_center.store import SCHEMA
from operations_center.supervisor.rollout import Become, Complete, Exchange, Fleet, Reach, TakeBack, Wait, next_move
from operations_center.wiring import Center

_log = logging.getLogger(__name__)


class Deploying:
    """The durable side of a rollout: every step is in the ledger before it is done.

    ``handed_over``: this image was executed by the one before it, in the same process; ``handed_back``: by one that
    ended, for this reason. Raises OperationsCenterError where the ledger does not take how it begins.
    """

    def __init__(self, center: Center, *, handed_over: bool, handed_back: str | None) -> None:
        self._center = center
        assert center.config.code_pull is not None
        self._canary_ms = center.config.code_pull.canary_ms
        self._seen_file: tuple[int, ...] | None = None
        self.refused: Version | None = None
        """What the supervisor could not become."""

        self._roles_of: dict[str, frozenset[str]] = {}
        self._copies = ConfigCopies(center.state)
        self.deployment = self._begin(handed_over, handed_back)
        self._keep_copies()
        self._give_up_what_is_lost()

    # How it begins

    def _begin(self, handed_over: bool, handed_back: str | None) -> Deployment:
        mine, known = self._center.version, self._center.deployments.read()
        if known is None:
            return self._write(Deployment(mine._replace(commit=None)), "deployment.begun")
        if handed_over and mine.config in [version.config for version in known.versions]:
            return known if handed_back is None else self._refuse(known, handed_back)
        if handed_back is not None:
            # Whoever starts a fleet executes what is current.
            self.refused = known.current
        if known.step is not None:
            return self._write(known.resumed(), "rollout.resumed")
        # Edited while no fleet ran: whoever starts one has the present configuration in mind.
        present = known.configured(mine.config)
        return known if present == known else self._write(present, "deployment.begun")

    def _refuse(self, known: Deployment, reason: str) -> Deployment:
        """The image that was executed did not hold: what is rolled out, if it was the supervisor's turn."""
        if known.target is None or known.step is not Step.SUPERVISOR:
            self.refused = known.current
            return known
        self.refused = known.target
        self.deployment = known
        self._take_back(reason)
        return self.deployment

    def suspend(self) -> None:
        """The supervisor was told to stop: what is rolled out is not to blame. Raises OperationsCenterError."""
        if self.deployment.step is not None:
            self._go_on(self.deployment.suspended(), "rollout.suspended")

    # What is to be

    def look_for_more(self) -> None:
        """Begin to roll out a release that was staged, or a configuration that has changed.

        Raises OperationsCenterError; then the next look finds the same.
        """
        # A person may have rolled back.
        self.deployment = self._center.deployments.read() or self.deployment
        self._keep_copies()
        self._give_up_what_is_lost()
        if self.deployment.step is not None:
            return
        current = self.deployment.current
        if target := self._staged(current) or self._changed_config(current):
            try:
                self._begin_rollout(target)
            except BaseException:
                self._seen_file = None
                raise

    def next_move(self, fleet: Fleet, now: int) -> Exchange | Become | Wait:
        """What is left for the supervisor to do; the ledger knows of it then."""
        while True:
            move = next_move(self.deployment, fleet, now, self._canary_ms)
            match move:
                case Reach(step):
                    self._go_on(self.deployment.at(step), "rollout.reached")
                case TakeBack(reason):
                    self._take_back(reason)
                case Complete():
                    self._complete()
                case _:
                    return move

    @property
    def on_trial(self) -> Version | None:
        """What is rolled out, as long as it is not to be taken back."""
        return None if self.deployment.step is Step.BACK else self.deployment.target

    @property
    def commits(self) -> set[str | None]:
        """Whose code is needed now or soon."""
        return {version.commit for version in self.deployment.versions}

    @property
    def roles(self) -> frozenset[str]:
        """Of the configuration that every process is to have in the end."""
        config = (self.on_trial or self.deployment.current).config
        if config not in self._roles_of:
            copy = self._center.state.config_copy(config)
            self._roles_of[config] = frozenset(load_config(self._center.config.file, os.environ, copy).roles)
        return self._roles_of[config]

    # What is there

    def _keep_copies(self) -> None:
        """Copies of the configuration that somebody removes are written again."""
        self._copies.keep({version.config for version in self.deployment.versions})

    def _give_up_what_is_lost(self) -> None:
        """A release whose directory was removed, or that works with another ledger, is run by nobody any more."""
        current, target = self.deployment.current, self.deployment.target
        if problem := self._why_lost(current):
            _log.error("goes on with the installed code: release %s %s", current.commit, problem)
            installed = replace(self.deployment, current=current._replace(commit=None))
            self._go_on(installed, "deployment.begun", forgotten=current.commit)
        present = self.deployment.configured(self._center.version.config)
        if present != self.deployment and not self._has_copy(current):
            _log.error("goes on with the present configuration: the copy %s is lost", current.config)
            self._go_on(present, "deployment.begun")
        if target is None or self.on_trial is None:
            return
        problem = self._why_lost(target)
        if problem or not self._has_copy(target):
            reason = f"release {target.commit} {problem}" if problem else "the copy of its configuration is lost"
            back = self.deployment.taken_back(reason, self.deployment.refused_config)
            self._go_on(back, "rollout.taken_back", forgotten=target.commit if problem else None)

    def _has_copy(self, version: Version) -> bool:
        return self._center.state.config_copy(version.config).exists()

    def _why_lost(self, version: Version) -> str | None:
        if version.commit is None:
            return None
        if not self._center.state.release(version.commit).is_dir():
            return "is gone from the disk"
        release = self._center.releases.find(version.commit)
        return "works with another schema of the ledger" if release is not None and not release.fits(SCHEMA) else None

    def _staged(self, current: Version) -> Version | None:
        """The newest, if it was not superseded."""
        staged = self._all_staged()
        return Version(staged[0].commit, current.config) if staged else None

    def _all_staged(self) -> list[Release]:
        """Those that can be rolled out."""
        return [
            release
            for release in self._center.releases.all()
            if release.state is ReleaseState.STAGED and self._why_lost(Version(release.commit, "")) is None
        ]

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
        try:
            name = keep_copy(file, self._center.state)
        except OSError as error:
            # Of a full disk, for one: it is looked at again.
            _log.error("cannot look at %s: %s", file, error)
            return None
        self._seen_file = seen
        if name in (current.config, self.deployment.refused_config):
            return None
        try:
            present = load_config(file, os.environ, self._center.state.config_copy(name))
            refuse_to_move(self._center.config, present)
        except ConfigError as error:
            reason = " ".join(str(error).split())
            _log.error("goes on with the configuration as it was: %s", reason)
            self._center.ledger.note("config.refused", {"reason": reason})
            return None
        return Version(current.commit, name)

    # What is written

    def _begin_rollout(self, target: Version) -> None:
        with self._center.ledger.transaction():
            # What was staged before it is superseded, and must not be rolled out after it.
            staged = [release.commit for release in self._all_staged()]
            if target.commit != self.deployment.current.commit and target.commit not in staged:
                return
            if self._go_on(self.deployment.begun(target), "rollout.begun"):
                for commit in staged:
                    if commit != target.commit:
                        self._center.releases.forget(commit)
        self.refused = None
        _log.info("rolls out %s", _called(target))

    def _complete(self) -> None:
        deployment, target = self.deployment, self.deployment.target
        assert target is not None
        if deployment.step is Step.BACK:
            self._go_on(deployment.completed(), "rollout.undone")
            _log.warning("is back at %s", _called(deployment.current))
        else:
            self._go_on(deployment.completed(), "rollout.completed", good=target.commit)
            _log.info("has rolled out %s", _called(target))

    def _take_back(self, reason: str) -> None:
        deployment, target = self.deployment, self.deployment.target
        assert target is not None
        _log.error("takes %s back: %s", _called(target), reason)
        if target.commit is not None and target.commit != deployment.current.commit:
            back = deployment.taken_back(reason, deployment.refused_config)
            self._go_on(back, "rollout.taken_back", bad=target.commit, reason=reason)
        else:
            self._go_on(deployment.taken_back(reason, target.config), "rollout.taken_back")

    def _go_on(
        self,
        after: Deployment,
        event: str,
        *,
        good: str | None = None,
        bad: str | None = None,
        reason: str | None = None,
        forgotten: str | None = None,
    ) -> bool:
        """Write it, and what it says of releases; False where a person has rolled back meanwhile: that counts."""
        releases = self._center.releases
        with self._center.ledger.transaction():
            present = self._center.deployments.read()
            if present != self.deployment:
                self.deployment = present or self.deployment
                return False
            if good is not None:
                releases.record(good, ReleaseState.GOOD)
            if bad is not None:
                releases.record(bad, ReleaseState.BAD, reason)
            if forgotten is not None:
                releases.forget(forgotten)
            self._write(after, event)
        self.deployment = after
        return True

    def _write(self, deployment: Deployment, event: str) -> Deployment:
        self._center.deployments.write(deployment, event, supervisor=self._center.me.pid)
        return deployment


class Steady:
    """The same for a fleet that pulls no code: every process is to run what its supervisor runs. Nothing is written."""

    refused: Version | None = None
    on_trial: Version | None = None

    def __init__(self, center: Center) -> None:
        self.deployment = Deployment(center.version)
        self.roles = frozenset(center.config.roles)
        self.commits: set[str | None] = {center.version.commit}
        self._copies = ConfigCopies(center.state)

    def look_for_more(self) -> None:
        """A changed configuration is rolled out when that is asked for: then the supervisor executes itself with it."""
        self._copies.keep([version.config for version in self.deployment.versions if version.config])

    def next_move(self, fleet: Fleet, now: int) -> Exchange | Become | Wait:
        move = next_move(self.deployment, fleet, now, 0)
        assert isinstance(move, Exchange | Become | Wait)
        return move

    def suspend(self) -> None:
        """Nothing is on its way."""


def _called(version: Version) -> str:
    return f"{version.commit[:12] if version.commit else 'the installed code'} with configuration {version.config[:8]}"
