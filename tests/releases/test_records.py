"""What the ledger keeps of releases."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from operations_center.clock import SystemClock
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.releases.records import ReleaseRecords, ReleaseState
from operations_center.store import Store

ONE, TWO = "1" * 40, "2" * 40


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "ledger.db", SystemClock())
    yield store
    store.close()


def test_a_release_is_what_was_recorded_last(store: Store) -> None:
    records = ReleaseRecords(store)
    assert records.find(ONE) is None
    records.record(ONE, ReleaseState.STAGED)
    bad = records.record(ONE, ReleaseState.BAD, "its watcher hung")
    assert records.all() == [bad]
    assert records.find(ONE) == bad
    assert (bad.state, bad.reason) == (ReleaseState.BAD, "its watcher hung")


def test_releases_are_listed_with_the_one_that_changed_last_first(store: Store) -> None:
    records = ReleaseRecords(store)
    for commit, state in ((ONE, ReleaseState.STAGED), (TWO, ReleaseState.STAGED), (ONE, ReleaseState.GOOD)):
        records.record(commit, state)
    assert [release.commit for release in records.all()] == [ONE, TWO]


def test_the_log_tells_every_change_of_a_release(store: Store) -> None:
    records, ledger = ReleaseRecords(store), SqliteLedger(store)
    records.record(ONE, ReleaseState.STAGED)
    records.record(TWO, ReleaseState.STAGED)
    records.record(TWO, ReleaseState.BAD, "for a test")
    records.forget(ONE)
    records.forget(ONE)
    assert [event.kind for event in ledger.events()] == [
        "release.staged",
        "release.staged",
        "release.bad",
        "release.forgotten",
    ]
    assert ledger.verify() == []
    # However old they are: the present is told by nothing else.
    ledger.prune((), events_before=2**62)
    assert ledger.verify() == []


def test_a_release_that_was_changed_by_hand_is_noticed(store: Store) -> None:
    ReleaseRecords(store).record(ONE, ReleaseState.BAD, "for a test")
    with store.transaction():
        store.execute("UPDATE releases SET state = 'good'", {})
    assert SqliteLedger(store).verify() == [f"release {ONE}: state is 'good', the log says 'bad'"]
