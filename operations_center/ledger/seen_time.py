"""Count the time that was really seen to pass, whatever the wall clock says. Pure.

The boot clock (CLOCK_BOOTTIME) cannot be set, and ends with its boot. The wall clock outlives a boot, and may be wrong:
a machine may start months ahead and be corrected a minute later. So within a boot only the boot clock counts. Time in
which the machine was off is known from the wall clock alone; it counts once that clock has gone steadily for an hour of
the new boot, and a correction until then corrects it, too.
"""

import msgspec
from msgspec.structs import replace

JUMP_MS = 5_000
"""By so much the wall clock may differ from the boot clock between two looks: NTP slews, and two clocks are read."""

STEADY_MS = 3_600_000


class Reading(msgspec.Struct, frozen=True):
    """Both clocks at one moment, in ms: ``wall`` since the epoch, ``boottime`` since the boot with this id."""

    boot_id: str
    wall: int
    boottime: int


class SeenTime(msgspec.Struct, frozen=True):
    """``boot_id``, ``wall`` and ``boottime``: the last look. ``seen``: ms that have passed for certain since the first.

    ``pending``: ms in which the machine was off, by a wall clock that is not believed yet. ``steady_since``: the boot
    time from which on the wall clock has gone like the boot clock. ``jumped_by``: how far it was set in this boot, at
    the last jump; ``jumped_at`` is the wall clock before it.
    """

    boot_id: str
    wall: int
    boottime: int
    seen: int = 0
    pending: int = 0
    steady_since: int = 0
    jumped_at: int | None = None
    jumped_by: int | None = None


def observe(before: SeenTime | None, now: Reading) -> SeenTime:
    """Return what is known after a look at both clocks."""
    if before is None:
        return SeenTime(now.boot_id, now.wall, now.boottime, steady_since=now.boottime)
    if now.boot_id != before.boot_id:
        return SeenTime(
            now.boot_id,
            now.wall,
            now.boottime,
            seen=before.seen,
            pending=before.pending + max(0, now.wall - before.wall),
            steady_since=now.boottime,
        )
    jump = jump_of(before, now)
    known = replace(
        before, wall=now.wall, boottime=now.boottime, seen=before.seen + max(0, now.boottime - before.boottime)
    )
    if jump:
        return replace(
            known,
            pending=max(0, known.pending + jump) if known.pending else 0,
            steady_since=now.boottime,
            jumped_at=before.wall,
            jumped_by=jump,
        )
    if now.boottime - known.steady_since >= STEADY_MS:
        return replace(known, seen=known.seen + known.pending, pending=0)
    return known


def jump_of(before: SeenTime, now: Reading) -> int:
    """Return by how many ms the wall clock was set since the last look; 0 where it was not, or nothing can be said."""
    if now.boot_id != before.boot_id:
        return 0
    apart = (now.wall - before.wall) - (now.boottime - before.boottime)
    return apart if abs(apart) > JUMP_MS else 0
