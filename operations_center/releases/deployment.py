"""Which release and which configuration the fleet runs, and how far it has come with others. Durable.

One row of the ledger. Whoever starts a supervisor reads in it what an earlier one was about, however that one ended.
"""

from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
from msgspec.structs import replace

from operations_center.ids import checked_commit, checked_config_copy
from operations_center.store import Store, load_queries

_SQL = load_queries(Path(__file__).with_name("deployment.sql"))


class Version(NamedTuple):
    """What a process runs: the commit of its release (None: the code that ``up`` was started with), and the name of the
    copy of the configuration that it was started with."""

    commit: str | None
    config: str


INSTALLED = Version(None, "")
"""Where code is not pulled: what is installed, with the configuration as it is when a process starts."""


class Step(StrEnum):
    """Of a rollout. While there is none, every process is to run ``current``."""

    CANARY = "canary"
    REST = "rest"
    SUPERVISOR = "supervisor"
    BACK = "back"


class Deployment(msgspec.Struct, frozen=True):
    """``current`` is proven, or is what the fleet began with; ``target`` is rolled out, or taken back in step BACK.

    ``attempts``: how many supervisors have been started while this rollout was on its way, without those that were told
    to stop. ``reason``: why it is taken back. ``refused_config``: a configuration that was taken back, and is not tried
    again while it stays as it is.
    """

    current: Version
    target: Version | None = None
    step: Step | None = None
    attempts: int = 0
    reason: str | None = None
    refused_config: str | None = None

    @property
    def versions(self) -> list[Version]:
        """What is current, and what is rolled out or taken back."""
        return [version for version in (self.current, self.target) if version is not None]

    def begun(self, target: Version) -> Self:
        return replace(self, target=target, step=Step.CANARY, attempts=1, reason=None)

    def configured(self, config: str) -> Self:
        return replace(self, current=self.current._replace(config=config))

    def resumed(self) -> Self:
        return replace(self, attempts=self.attempts + 1)

    def suspended(self) -> Self:
        return replace(self, attempts=self.attempts - 1)

    def at(self, step: Step) -> Self:
        return replace(self, step=step)

    def taken_back(self, reason: str, refused_config: str | None) -> Self:
        return replace(self, step=Step.BACK, reason=reason, refused_config=refused_config)

    def completed(self) -> Self:
        """Forwards or backwards."""
        assert self.target is not None
        current = self.current if self.step is Step.BACK else self.target
        return replace(self, current=current, target=None, step=None, attempts=0, reason=None)


class Deployments:
    """Where it is kept."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self) -> Deployment | None:
        """None before the first supervisor with code pulls."""
        row = self._store.row(_SQL["read"])
        if row is None:
            return None
        with self._store.damage_told("the deployment"):
            deployment = msgspec.json.decode(row["deployment"], type=Deployment)
            refuse_odd_names(deployment)
            return deployment

    def write(self, deployment: Deployment, event: str, **note: Any) -> None:
        """Together with the event that tells of it."""
        with self._store.transaction():
            self._store.execute(_SQL["write"], {"deployment": msgspec.json.encode(deployment).decode()})
            self._store.append_event(event, data={**_told(deployment), **note})


def refuse_odd_names(deployment: Deployment) -> None:
    """Raises ValueError where a name in it is none: directories and files are found by these names."""
    for commit, config in deployment.versions:
        if commit is not None:
            checked_commit(commit)
        if config:
            checked_config_copy(config)


def _told(deployment: Deployment) -> dict[str, Any]:
    """The version that is meant first; of one that is rolled out also where it would go back to."""
    current, target = deployment.current, deployment.target
    told = {"release": (target or current).commit, "config": (target or current).config}
    if target is not None:
        told |= {"from_release": current.commit, "from_config": current.config, "step": deployment.step}
    return told | ({"reason": deployment.reason} if deployment.reason else {})
