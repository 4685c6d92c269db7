"""What a rollout does next. Pure: what was seen goes in, one move comes out.

    canary ──healthy for long enough──▶ rest ──all ready──▶ supervisor ──healthy for long enough──▶ (completed)
      │                                  │                     │
      └────────── three deaths, a hang, too slow ──────────────┴──▶ back ──all ready──▶ (taken back)

One process at a time is exchanged, and only when those before it are healthy; the supervisor comes last. Between
rollouts every process is to run what is current: so a survivor of an earlier supervisor is exchanged, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from operations_center.heart import BEAT_EVERY_MS
from operations_center.releases.deployment import Deployment, Step, Version

DEATHS = 3
"""As often may processes of a release end before they are healthy."""

READY_WITHIN_MS = 10_000
SILENT_MS = 6 * BEAT_EVERY_MS
"""A process that has not beaten for so long hangs; a ledger that is held by others keeps it for 10 s."""

LOOK_EVERY_MS = 200

ATTEMPTS = 2
"""So many supervisors may end over a rollout."""


@dataclass(frozen=True, slots=True)
class Member:
    """One watcher, or the watchdog.

    ``version`` is what it runs or is about to be started with; None: it is not to be started. ``wanted`` is False when
    the configuration that is rolled out has no such role. Times are monotonic milliseconds: when it was started,
    became ready (None: it is not), and last beat.
    """

    name: str
    version: Version | None
    wanted: bool = True
    started_at: int = 0
    ready_at: int | None = None
    beat_at: int = 0


@dataclass(frozen=True, slots=True)
class Fleet:
    """``me`` is what the supervisor itself runs, ``mine_since`` since when. ``refused``: what it could not become.

    ``deaths``: of processes of what is rolled out, who ended and how, in a few words each.
    ``awake_since``: since then the supervisor has turned its own loop; who was silent before may have stood still with
    it. ``can_go_back``: False when the fork server of what is current ends again and again.
    """

    me: Version
    mine_since: int
    members: Sequence[Member]
    deaths: Sequence[str] = ()
    refused: Version | None = None
    awake_since: int = 0
    can_go_back: bool = True

    @property
    def stood_still_until(self) -> int:
        """Since the supervisor has begun; 0 if it has not. What was healthy before may have stood still with it."""
        return self.awake_since if self.awake_since > self.mine_since else 0


@dataclass(frozen=True, slots=True)
class Exchange:
    """End the process, start another one of that version in its place; None: start none."""

    name: str
    version: Version | None


@dataclass(frozen=True, slots=True)
class Become:
    """The supervisor's turn."""

    version: Version


@dataclass(frozen=True, slots=True)
class Reach:
    """The rollout has come to its next step."""

    step: Step


@dataclass(frozen=True, slots=True)
class TakeBack:
    reason: str


@dataclass(frozen=True, slots=True)
class Complete:
    """All run what they are to run."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before this moment, unless something happens; None: nothing to do at all."""

    until: int | None


Move = Exchange | Become | Reach | TakeBack | Complete | Wait


def next_move(deployment: Deployment, fleet: Fleet, now: int, canary_ms: int) -> Move:
    """To be asked again whenever something has happened or the time has come."""
    if deployment.step in (None, Step.BACK):
        return _to_current(deployment, fleet, now)
    assert deployment.target is not None
    if deployment.attempts > ATTEMPTS:
        return TakeBack(f"{deployment.attempts - 1} supervisors ended while it was rolled out")
    if len(fleet.deaths) >= DEATHS:
        return TakeBack(f"its processes ended {len(fleet.deaths)} times before they were healthy: {fleet.deaths[-1]}")
    return _onwards(deployment, fleet, deployment.target, now, canary_ms)


def _to_current(deployment: Deployment, fleet: Fleet, now: int) -> Move:
    """Without a canary: it is proven. Those that are not ready first: their roles are without a watcher.

    What cannot be brought back keeps neither the others from it, nor what is new from being rolled out.
    """
    nothing_left = Complete() if deployment.step is Step.BACK else Wait(None)
    if not fleet.can_go_back:
        return nothing_left
    for member in sorted(fleet.members, key=lambda member: member.ready_at is not None):
        if move := _exchange(member, deployment.current):
            return move
        late_at = max(member.started_at, fleet.awake_since) + READY_WITHIN_MS
        if member.version is not None and member.ready_at is None and now < late_at:
            return Wait(late_at)
    if deployment.current not in (fleet.me, fleet.refused):
        return Become(deployment.current)
    return nothing_left


def _onwards(deployment: Deployment, fleet: Fleet, target: Version, now: int, canary_ms: int) -> Move:
    # Proven before the supervisor's first attempt; one that comes after another's death need not wait for it again.
    is_proven = deployment.step is Step.SUPERVISOR and fleet.me != target
    # A role that goes with the old configuration proves nothing of the new one.
    for place, member in enumerate(sorted(fleet.members, key=lambda member: not member.wanted)):
        healthy_ms = canary_ms if place == 0 and not is_proven else 0
        move = _exchange(member, target) or _wait_for(member, now, healthy_ms, fleet)
        if move is not None:
            return move
        if deployment.step is Step.CANARY:
            return Reach(Step.REST)
    if deployment.step is not Step.SUPERVISOR:
        return Reach(Step.SUPERVISOR)
    if fleet.me != target:
        return TakeBack("the supervisor cannot become it") if fleet.refused == target else Become(target)
    proven_at = max(fleet.mine_since, fleet.stood_still_until) + canary_ms
    return Complete() if now >= proven_at else Wait(proven_at)


def _exchange(member: Member, target: Version) -> Move | None:
    version = target if member.wanted else None
    return None if member.version == version else Exchange(member.name, version)


def _wait_for(member: Member, now: int, healthy_ms: int, fleet: Fleet) -> Move | None:
    """None once it has been healthy for so long: it beat after that time, so its loop turns."""
    if member.version is None:
        return None
    if member.ready_at is None:
        return _unless_late(member, "is not ready", max(member.started_at, fleet.awake_since) + READY_WITHIN_MS, now)
    if now - max(member.beat_at, member.ready_at, fleet.awake_since) > SILENT_MS:
        return TakeBack(f"{member.name} does not turn its loop")
    proven_at = max(member.ready_at, fleet.stood_still_until) + healthy_ms
    if member.beat_at >= proven_at:
        return None
    return _unless_late(member, "does not turn its loop", max(proven_at, fleet.awake_since) + SILENT_MS, now)


def _unless_late(member: Member, problem: str, deadline: int, now: int) -> Move:
    # Nothing tells of a beat: it is looked for.
    return Wait(now + LOOK_EVERY_MS) if now < deadline else TakeBack(f"{member.name} {problem}")
