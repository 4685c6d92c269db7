"""When a lease is over, whatever the wall clock says."""

from operations_center.clock import Now
from operations_center.in_flight_reconcile.evidence import is_held_by_another, over_for_ms
from operations_center.ledger import Lease

MINUTE, DAY = 60_000, 86_400_000
NOW = Now(wall=1_760_000_000_000, monotonic=DAY)


def lease(boot_id: str, renewed_ms_ago: int, *, has_mono: bool = True) -> Lease:
    renewed_at = NOW.wall - renewed_ms_ago
    mono = NOW.monotonic - renewed_ms_ago if has_mono else None
    return Lease(boot_id, renewed_at, renewed_at + MINUTE, mono)


def test_a_lease_of_this_boot_is_over_by_the_clock_that_nobody_sets() -> None:
    jumped = Now(wall=NOW.wall + 60 * DAY, monotonic=NOW.monotonic)
    assert over_for_ms(lease("here", 10_000), "here", jumped) == -50_000
    assert over_for_ms(lease("here", 2 * MINUTE), "here", NOW) == MINUTE


def test_a_lease_of_another_boot_is_over_by_the_wall_clock() -> None:
    assert over_for_ms(lease("there", 2 * MINUTE), "here", NOW) == MINUTE
    assert over_for_ms(lease("here", 2 * MINUTE, has_mono=False), "here", NOW) == MINUTE


def test_another_boot_holds_what_it_has_renewed_and_not_what_a_clock_ahead_has() -> None:
    assert is_held_by_another(lease("there", 10_000), "here", NOW)
    assert is_held_by_another(lease("there", -10_000), "here", NOW)
    assert not is_held_by_another(lease("there", 2 * MINUTE), "here", NOW)
    assert not is_held_by_another(lease("there", -60 * DAY), "here", NOW)
    assert not is_held_by_another(lease("here", 10_000), "here", NOW)
