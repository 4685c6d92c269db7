"""What the ledger keeps of releases: a row is what makes a directory a release."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from operations_center.ids import checked_commit
from operations_center.store import Store, load_queries

_SQL = load_queries(Path(__file__).with_name("records.sql"))


class ReleaseState(StrEnum):
    STAGED = "staged"
    """Made, and its preflight has passed."""
    GOOD = "good"
    """Watchers of it were healthy."""
    BAD = "bad"
    """Never tried again by itself; its directory is gone, or goes."""


@dataclass(frozen=True, slots=True)
class Release:
    """``commit`` is a full id; ``reason`` one line, None where none is needed; ``at`` wall-clock ms, of its state.

    ``ledger_schema``: which its code works with; None where it has none of its own, or was never asked.
    """

    commit: str
    state: ReleaseState
    reason: str | None
    at: int
    ledger_schema: int | None = None

    def fits(self, ledger_schema: int) -> bool:
        return self.ledger_schema in (None, ledger_schema)


class ReleaseRecords:
    """Every method raises LedgerUnusable for a damaged ledger, and those that write raise LedgerBusy."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[Release]:
        """The one that changed last first."""
        return [self._release(row) for row in self._store.rows(_SQL["all"])]

    def find(self, commit: str) -> Release | None:
        row = self._store.row(_SQL["find"], {"commit": commit})
        return self._release(row) if row else None

    def record(
        self, commit: str, state: ReleaseState, reason: str | None = None, ledger_schema: int | None = None
    ) -> Release:
        """``ledger_schema`` None: as it was known before."""
        with self._store.transaction():
            known = self.find(commit)
            if ledger_schema is None and known is not None:
                ledger_schema = known.ledger_schema
            release = Release(commit, state, reason, self._store.clock.now().wall, ledger_schema)
            columns = asdict(release) | {"state": str(state)}
            self._store.execute(_SQL["record"], columns)
            self._store.append_event(f"release.{state}", data={"release": columns})
        return release

    def forget(self, commit: str) -> None:
        with self._store.transaction():
            if self._store.execute(_SQL["forget"], {"commit": commit}):
                self._store.append_event("release.forgotten", data={"release": {"commit": commit}})

    def _release(self, row: Any) -> Release:
        with self._store.damage_told(f"release {row['commit']!r}"):
            return Release(
                checked_commit(row["commit"]),
                ReleaseState(row["state"]),
                row["reason"],
                row["at"],
                row["ledger_schema"],
            )
