"""Which releases are kept, and that nobody loses the one that it works with."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from operations_center.model import Outcome, Proof
from operations_center.outcomes import Ending
from operations_center.pulse import Pulse, write_pulse
from operations_center.releases.records import Release, ReleaseState
from operations_center.releases.retention import may_go, prune_releases, releases_in_use
from operations_center.watchdog import Watchdog
from operations_center.wiring import Center
from tests.releases.clones import Clones, open_run_of

G, S, B = ReleaseState.GOOD, ReleaseState.STAGED, ReleaseState.BAD


def in_use(center: Center) -> set[str]:
    return releases_in_use(center.state, center.ledger, center.deployments)


def prune(center: Center) -> list[str]:
    return prune_releases(center.state, center.releases, center.ledger, center.deployments, keep=1)


def named(*states: ReleaseState) -> list[Release]:
    return [Release(str(number), state, None, 0) for number, state in enumerate(states)]


def test_the_newest_good_ones_and_the_newest_that_is_yet_to_be_rolled_out_are_kept() -> None:
    assert may_go(named(S, G, S, B, G, G, G), in_use=(), keep=2) == ["5", "6", "2"]


def test_what_is_in_use_is_kept_however_old_it_is() -> None:
    assert may_go(named(G, G, G, S, S), in_use=("2", "4"), keep=1) == ["1"]


@given(st.lists(st.sampled_from([G, S, B])), st.sets(st.integers(0, 9).map(str)), st.integers(1, 5))
def test_what_goes_is_known_not_bad_not_in_use_and_not_the_last_good(
    states: list[ReleaseState], in_use: set[str], keep: int
) -> None:
    releases = named(*states)
    gone = may_go(releases, in_use, keep)
    assert len(set(gone)) == len(gone)
    by_commit = {release.commit: release for release in releases}
    assert all(by_commit[commit].state is not B and commit not in in_use for commit in gone)
    good_left = [release for release in releases if release.state is G and release.commit not in gone]
    assert len(good_left) >= min(keep, states.count(G))


def commit_of(number: int) -> str:
    return f"{number:040x}"


def released(center: Center, number: int, state: ReleaseState) -> Path:
    directory = center.state.release(commit_of(number))
    directory.mkdir()
    (directory / "program").touch()
    center.releases.record(directory.name, state, "for a test" if state is B else None)
    return directory


def test_a_release_stays_until_the_runs_that_were_admitted_with_it_are_closed(clones: Clones) -> None:
    with clones.center() as center:
        old, bad, _ = [released(center, number, state) for number, state in enumerate((G, B, G))]
        runs = [open_run_of(center, directory.name) for directory in (old, bad)]
        prune(center)
        assert old.exists()
        assert bad.exists()
        for run in runs:
            assert center.settlement.end(run, Ending(Outcome.SUCCEEDED, Proof.EXIT_RECORDED, "done"), center.me)
        gone = prune(center)
        assert gone == [old.name]
        assert not old.exists()
        assert not bad.exists()
        # A bad one is remembered.
        assert [each.state for each in center.releases.all()] == [G, B]


def test_a_release_stays_while_a_process_of_the_fleet_runs_it(clones: Clones) -> None:
    with clones.center() as center:
        old = released(center, 1, G)
        released(center, 2, G)
        pulse = Pulse(
            pid=center.me.pid,
            start_ticks=center.me.start_ticks,
            boot_id=center.host.boot_id,
            state="ready",
            started_at=0,
            heartbeat_at=0,
            heartbeat_mono=0,
            release=old.name,
        )
        write_pulse(center.state.pulse("goal"), pulse)
        assert in_use(center) == {old.name}
        write_pulse(center.state.pulse("goal"), replace(pulse, start_ticks=1))
        assert in_use(center) == set()


def test_what_was_removed_in_part_is_removed_by_the_next(clones: Clones) -> None:
    with clones.center() as center:
        left = center.state.release(commit_of(7))
        (left / "not writable").mkdir(parents=True)
        (left / "not writable" / "file").touch()
        (left / "not writable").chmod(0o500)
        (center.state.releases / ".index.lock").touch()
        theirs = center.state.releases / "somebody's"
        theirs.mkdir()
        prune(center)
        assert list(center.state.releases.iterdir()) == [theirs]


def test_the_watchdog_prunes_releases(clones: Clones) -> None:
    clones.configure(keep="1")
    with clones.center() as center:
        old, new = released(center, 1, G), released(center, 2, G)
        assert Watchdog(center, once=True).run() == 0
        assert not old.exists()
        assert new.exists()
        assert center.ledger.verify() == []
