"""A rollout from move to move, with a fleet that is told of what its processes do."""

from dataclasses import dataclass, field, replace

import pytest

from operations_center.releases.deployment import Deployment, Step, Version
from operations_center.supervisor.rollout import (
    READY_WITHIN_MS,
    SILENT_MS,
    Become,
    Complete,
    Exchange,
    Fleet,
    Member,
    Reach,
    TakeBack,
    Wait,
    next_move,
)

CANARY_MS = 10_000
OLD, NEW = Version("old", "c"), Version("new", "c")
NAMES = ("goal", "test", "@watchdog")


@dataclass
class Story:
    """Makes every move at once; processes of healthy versions are ready at once, and beat all the time."""

    deployment: Deployment = field(default_factory=lambda: Deployment(OLD).begun(NEW))
    me: Version = OLD
    now: int = 1_000
    mine_since: int = 0
    deaths: tuple[str, ...] = ()
    refused: Version | None = None
    awake_since: int = 0
    can_go_back: bool = True
    hanging: frozenset[str] = frozenset()
    never_ready: frozenset[str] = frozenset()
    unwanted: frozenset[str] = frozenset()
    members: dict[str, Member] = field(
        default_factory=lambda: {name: Member(name, OLD, ready_at=0, beat_at=1_000) for name in NAMES}
    )
    told: list[str] = field(default_factory=list)

    def go_on(self) -> None:
        """Until nothing is left to do."""
        while True:
            move = next_move(self.deployment, self.fleet(), self.now, CANARY_MS)
            match move:
                case Exchange(name, version):
                    assert self.busy in ([], [name]), "one at a time"
                    self.told.append(f"{name} {version.commit if version else 'ends'}")
                    self.start(name, version)
                case Become(version):
                    self.told.append(f"becomes {version.commit}")
                    self.me, self.mine_since = version, self.now
                case Reach(step):
                    self.told.append(step)
                    self.deployment = self.deployment.at(step)
                case TakeBack(reason):
                    self.told.append(f"back: {reason}")
                    self.deployment, self.deaths = self.deployment.taken_back(reason, None), ()
                case Complete():
                    self.deployment = self.deployment.completed()
                case Wait(None):
                    return
                case Wait(until):
                    assert until is not None
                    assert until > self.now
                    self.now = until
                    self.beat()

    @property
    def busy(self) -> list[str]:
        wanted = [member for member in self.members.values() if member.version is not None]
        in_time = [member for member in wanted if self.now < member.started_at + READY_WITHIN_MS]
        return [member.name for member in in_time if member.ready_at is None]

    def fleet(self) -> Fleet:
        members = list(self.members.values())
        return Fleet(self.me, self.mine_since, members, self.deaths, self.refused, self.awake_since, self.can_go_back)

    def start(self, name: str, version: Version | None) -> None:
        ready = None if version is None or (version == NEW and name in self.never_ready) else self.now
        self.members[name] = Member(
            name, version, wanted=name not in self.unwanted, started_at=self.now, ready_at=ready, beat_at=self.now
        )

    def beat(self) -> None:
        for name, member in self.members.items():
            if not (member.version == NEW and name in self.hanging):
                self.members[name] = replace(member, beat_at=self.now)

    def versions(self) -> set[Version | None]:
        return {self.me, *(member.version for member in self.members.values())}


def test_processes_are_exchanged_one_by_one_and_the_supervisor_is_the_last() -> None:
    story = Story()
    story.go_on()
    assert story.told == ["goal new", "rest", "test new", "@watchdog new", "supervisor", "becomes new"]
    assert story.now >= 1_000 + 2 * CANARY_MS
    assert story.deployment == Deployment(NEW)
    assert story.versions() == {NEW}


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ({"hanging": frozenset({"goal"})}, "goal does not turn its loop"),
        ({"never_ready": frozenset({"goal"})}, "goal is not ready"),
        ({"deaths": ("a", "b", "c")}, "its processes ended 3 times before they were healthy: c"),
    ],
)
def test_a_canary_that_is_not_healthy_is_taken_back(trouble: dict[str, object], reason: str) -> None:
    story = Story(**trouble)  # type: ignore[arg-type]
    story.go_on()
    exchanged = [] if "deaths" in trouble else ["goal new"]
    assert story.told == [*exchanged, f"back: {reason}", *(["goal old"] if exchanged else [])]
    assert story.deployment == Deployment(OLD)
    assert story.versions() == {OLD}
    assert story.now < 1_000 + max(READY_WITHIN_MS, CANARY_MS + SILENT_MS) + 1


def test_what_fails_behind_the_canary_takes_every_process_back() -> None:
    story = Story(never_ready=frozenset({"@watchdog"}))
    story.go_on()
    assert story.told[-4:] == ["back: @watchdog is not ready", "@watchdog old", "goal old", "test old"]
    assert story.versions() == {OLD}


def test_a_supervisor_that_cannot_become_the_release_takes_it_back() -> None:
    story = Story(refused=NEW)
    story.go_on()
    assert "back: the supervisor cannot become it" in story.told
    assert story.versions() == {OLD}


def test_a_supervisor_that_runs_the_release_goes_back_as_the_last() -> None:
    story = Story(deployment=Deployment(OLD, NEW, Step.BACK), me=NEW)
    story.members = {name: replace(member, version=NEW) for name, member in story.members.items()}
    story.go_on()
    assert story.told == ["goal old", "test old", "@watchdog old", "becomes old"]
    assert story.deployment == Deployment(OLD)


@pytest.mark.parametrize("step", [Step.CANARY, Step.REST, Step.SUPERVISOR])
@pytest.mark.parametrize("exchanged", range(len(NAMES) + 1))
def test_the_next_supervisor_completes_what_was_interrupted(step: Step, exchanged: int) -> None:
    story = Story(deployment=Deployment(OLD, NEW, step, attempts=2))
    for name in NAMES[:exchanged]:
        story.members[name] = replace(story.members[name], version=NEW)
    story.go_on()
    assert story.deployment == Deployment(NEW)
    assert story.versions() == {NEW}


def test_a_rollout_that_two_supervisors_did_not_survive_is_taken_back() -> None:
    story = Story(deployment=Deployment(OLD, NEW, Step.SUPERVISOR, attempts=3))
    story.go_on()
    assert story.told == ["back: 2 supervisors ended while it was rolled out"]


def test_the_watcher_of_a_role_that_the_configuration_has_no_more_is_ended() -> None:
    story = Story(unwanted=frozenset({"test"}))
    story.members["test"] = replace(story.members["test"], wanted=False)
    story.go_on()
    assert "test ends" in story.told
    assert story.members["test"].version is None
    assert story.deployment == Deployment(NEW)


def test_between_rollouts_a_survivor_of_another_version_is_exchanged() -> None:
    story = Story(deployment=Deployment(OLD))
    story.members["test"] = replace(story.members["test"], version=NEW)
    story.go_on()
    assert story.told == ["test old"]


def test_one_that_cannot_be_brought_back_does_not_keep_the_others_from_it() -> None:
    story = Story(deployment=Deployment(OLD, NEW, Step.BACK), never_ready=frozenset({"goal"}))
    story.members = {name: replace(member, version=NEW) for name, member in story.members.items()}
    story.members["goal"] = Member("goal", OLD, started_at=story.now)
    story.go_on()
    assert story.told == ["test old", "@watchdog old"]
    assert story.deployment == Deployment(OLD)


def test_a_fleet_that_cannot_go_back_goes_on_with_what_runs_and_takes_what_is_new() -> None:
    story = Story(deployment=Deployment(OLD, NEW, Step.BACK), can_go_back=False)
    story.members["goal"] = replace(story.members["goal"], version=NEW)
    story.go_on()
    assert story.told == []
    assert story.deployment == Deployment(OLD)


def test_who_was_silent_while_the_supervisor_stood_still_is_not_to_blame() -> None:
    stood_still_ms = 10 * SILENT_MS
    story = Story(now=stood_still_ms, awake_since=stood_still_ms)
    story.members["goal"] = Member("goal", NEW, started_at=0, ready_at=0, beat_at=0)
    story.go_on()
    assert story.deployment == Deployment(NEW)


@pytest.mark.parametrize("me", [OLD, NEW])
def test_time_in_which_the_fleet_stood_still_proves_nothing(me: Version) -> None:
    stood_still_until = 10 * CANARY_MS
    step = Step.CANARY if me == OLD else Step.SUPERVISOR
    story = Story(Deployment(OLD, NEW, step), me=me, now=stood_still_until, awake_since=stood_still_until)
    story.members = {name: Member(name, NEW, ready_at=0, beat_at=stood_still_until) for name in NAMES}
    move = next_move(story.deployment, story.fleet(), story.now, CANARY_MS)
    assert isinstance(move, Wait)
    story.go_on()
    assert story.deployment == Deployment(NEW)
    assert story.now >= stood_still_until + CANARY_MS


def test_a_role_that_the_configuration_has_no_more_is_no_canary() -> None:
    story = Story(unwanted=frozenset({"goal"}))
    story.members["goal"] = replace(story.members["goal"], wanted=False)
    story.go_on()
    assert story.told[:2] == ["test new", "rest"]
    assert story.now >= 1_000 + 2 * CANARY_MS


def test_after_the_death_of_a_supervisor_the_next_one_becomes_it_without_another_canary() -> None:
    for step, move in ((Step.REST, Wait), (Step.SUPERVISOR, Become)):
        story = Story(deployment=Deployment(OLD).begun(NEW).at(step).resumed())
        story.members = {name: Member(name, NEW, ready_at=story.now, beat_at=story.now) for name in NAMES}
        assert isinstance(next_move(story.deployment, story.fleet(), story.now, CANARY_MS), move)
