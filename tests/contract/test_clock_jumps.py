"""The wall clock is set while runs are admitted and forgotten: what counts is the time that was seen to pass."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from operations_center.admission import Limits, Obstacle
from operations_center.care.retention import prune_closed_runs
from operations_center.care.soundness import unsound
from operations_center.clock import Now
from operations_center.identity import Host, Process, this_boot
from operations_center.ledger import Admission
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.model import Outcome, Proof, Run, RunState
from operations_center.store import Store

HOUR = 3_600_000
DAY = 24 * HOUR
KEEP = 30 * DAY
AHEAD = 60 * DAY


@dataclass
class TwoClocks:
    """A wall clock that can be set, and the clock of the boot."""

    wall: int = 1_760_000_000_000
    monotonic: int = 5 * DAY
    slept: int = 0

    def now(self) -> Now:
        return Now(self.wall, self.monotonic, self.slept)

    def pass_by(self, milliseconds: int) -> None:
        self.wall += milliseconds
        self.monotonic += milliseconds

    def sleep(self, milliseconds: int) -> None:
        """The machine is suspended."""
        self.wall += milliseconds
        self.slept += milliseconds

    def reboot(self, monkeypatch: pytest.MonkeyPatch, boot_id: str) -> None:
        self.monotonic, self.slept = 10_000, 0
        monkeypatch.setattr("operations_center.ledger.sqlite.this_boot", lambda: boot_id)


@pytest.fixture
def clock() -> TwoClocks:
    return TwoClocks()


@pytest.fixture
def ledger(tmp_path: Path, clock: TwoClocks) -> Iterator[SqliteLedger]:
    with closing(Store(tmp_path / "ledger.db", clock)) as store:
        yield SqliteLedger(store)


def admit(ledger: SqliteLedger, task_id: str, limits: Limits) -> Run | list[Obstacle]:
    host = Host("h", this_boot(), 1, "here")
    answer = ledger.admit(
        Admission(task_id, "goal", "agent", limits, host, Process(10, 20), grace_ms=1000, timeout_ms=None)
    )
    return answer if isinstance(answer, Run) else [refusal.obstacle for refusal in answer]


def closed_run(ledger: SqliteLedger, clock: TwoClocks, task_id: str = "t1") -> Run:
    run = admit(ledger, task_id, Limits(1000))
    assert isinstance(run, Run)
    now = clock.now()
    settled = ledger.change_run(
        run,
        "run.settled",
        state=RunState.SETTLING,
        outcome=Outcome.SUCCEEDED,
        proof=Proof.EXIT_RECORDED,
        settled_at=now.wall,
        settled_mono=now.monotonic,
    )
    assert settled is not None
    closed = ledger.change_run(settled, "run.closed", state=RunState.CLOSED, closed_at=clock.now().wall)
    assert closed is not None
    return closed


def pruned(ledger: SqliteLedger, clock: TwoClocks, tmp_path: Path) -> int:
    """As the watchdog does it."""
    ledger.observe_clocks()
    return prune_closed_runs(ledger, tmp_path / "runs", KEEP, clock.now().wall)


def watch(ledger: SqliteLedger, clock: TwoClocks, milliseconds: int) -> None:
    """Let time pass under a watchdog that looks each half hour."""
    for _ in range(milliseconds // (HOUR // 2)):
        clock.pass_by(HOUR // 2)
        ledger.observe_clocks()


def test_a_clock_that_jumps_ahead_makes_no_run_of_this_boot_old(
    ledger: SqliteLedger, clock: TwoClocks, tmp_path: Path
) -> None:
    closed_run(ledger, clock)
    ledger.observe_clocks()
    clock.wall += AHEAD
    clock.pass_by(60_000)
    assert pruned(ledger, clock, tmp_path) == 0
    clock.pass_by(KEEP)
    assert pruned(ledger, clock, tmp_path) == 1


@pytest.mark.parametrize("corrected", [True, False])
def test_a_boot_that_is_ahead_makes_no_run_of_an_earlier_boot_old(
    ledger: SqliteLedger, clock: TwoClocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corrected: bool
) -> None:
    ledger.observe_clocks()
    closed_run(ledger, clock)
    ledger.note("a note", {})
    ledger.observe_clocks()
    clock.reboot(monkeypatch, "the next boot")
    clock.wall += AHEAD
    assert pruned(ledger, clock, tmp_path) == 0
    clock.pass_by(60_000)
    if corrected:
        clock.wall -= AHEAD
        watch(ledger, clock, 2 * HOUR)
        assert pruned(ledger, clock, tmp_path) == 0
        watch(ledger, clock, KEEP)
    else:
        # Nobody has said otherwise for an hour: so it was off for so long.
        watch(ledger, clock, 2 * HOUR)
    assert pruned(ledger, clock, tmp_path) == 1
    assert all(event.kind != "a note" for event in ledger.events())


def test_a_run_that_was_closed_under_a_clock_ahead_is_kept_by_the_right_one(
    ledger: SqliteLedger, clock: TwoClocks, tmp_path: Path
) -> None:
    clock.wall += AHEAD
    closed_run(ledger, clock)
    clock.wall -= AHEAD
    clock.pass_by(KEEP + HOUR)
    assert pruned(ledger, clock, tmp_path) == 0
    clock.pass_by(AHEAD)
    assert pruned(ledger, clock, tmp_path) == 1


def test_a_backup_of_a_ledger_whose_clock_was_set_back_is_sound(
    ledger: SqliteLedger, clock: TwoClocks, tmp_path: Path
) -> None:
    closed_run(ledger, clock)
    ledger.observe_clocks()
    clock.wall -= AHEAD
    ledger.observe_clocks()
    ledger.keep_lease(Host("h", this_boot(), 1, "here"), 60_000)
    ledger.backup(tmp_path / "copy.db")
    assert unsound(tmp_path / "copy.db") is None


def test_notes_are_forgotten_by_the_time_that_was_seen(ledger: SqliteLedger, clock: TwoClocks, tmp_path: Path) -> None:
    ledger.observe_clocks()
    ledger.note("first", {})
    ledger.note("second", {})
    clock.wall += AHEAD
    pruned(ledger, clock, tmp_path)
    assert [event.kind for event in ledger.events()] == ["first", "second"]
    watch(ledger, clock, KEEP + 2 * HOUR)
    pruned(ledger, clock, tmp_path)
    assert [event.kind for event in ledger.events()] == ["second"]


def test_a_directory_without_a_run_is_kept_until_it_is_old_by_what_was_seen(
    ledger: SqliteLedger, clock: TwoClocks
) -> None:
    ledger.observe_clocks()
    made_at = clock.wall
    clock.wall += AHEAD
    clock.pass_by(60_000)
    ledger.observe_clocks()
    assert ledger.certainly_before(clock.wall - KEEP) < made_at
    watch(ledger, clock, KEEP + 2 * HOUR)
    assert ledger.certainly_before(clock.wall - KEEP) > made_at


@pytest.mark.parametrize("jump", [2 * HOUR, 2 * DAY, -2 * HOUR, -2 * DAY])
def test_a_budget_is_neither_emptied_nor_used_up_by_a_jump(ledger: SqliteLedger, clock: TwoClocks, jump: int) -> None:
    hourly, daily = Limits(1000, max_per_hour=2), Limits(1000, max_per_day=2)
    for number in range(2):
        assert isinstance(admit(ledger, f"t{number}", hourly), Run)
    clock.wall += jump
    clock.pass_by(60_000)
    assert admit(ledger, "t5", hourly) == admit(ledger, "t5", daily) == [Obstacle.BUDGET]
    clock.pass_by(HOUR)
    assert isinstance(admit(ledger, "t5", hourly), Run)
    assert admit(ledger, "t6", daily) == [Obstacle.BUDGET]
    clock.pass_by(DAY)
    assert isinstance(admit(ledger, "t6", daily), Run)


def test_a_budget_goes_on_while_the_machine_sleeps(ledger: SqliteLedger, clock: TwoClocks) -> None:
    hourly = Limits(1000, max_per_hour=1)
    assert isinstance(admit(ledger, "t1", hourly), Run)
    clock.sleep(30 * 60_000)
    assert admit(ledger, "t2", hourly) == [Obstacle.BUDGET]
    clock.sleep(31 * 60_000)
    assert isinstance(admit(ledger, "t2", hourly), Run)


def test_a_lease_goes_by_the_boot_clock_in_the_same_boot(ledger: SqliteLedger, clock: TwoClocks) -> None:
    host = Host("h", this_boot(), 2, "another namespace")
    ledger.keep_lease(host, 60_000)
    assert ledger.leases()["h", 2].renewed_mono == clock.monotonic
