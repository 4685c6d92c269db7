"""Forget closed runs that are older than somebody wants to keep.

The directory goes first and the row, which names it, last: a kill in between leaves a row, and the next
prune finds it again. A directory that no row names any more (the ledger was restored from a backup that is
older than the run) goes by its age. Open runs are kept whatever their age.

A wall clock that was set must not make anything old: a run is forgotten when it is old by that clock and by the time
that was seen to pass (ledger/seen_time.py).
"""

import logging
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from operations_center.files import RemovalBudget, remove_tree
from operations_center.ids import fence_of
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import ProcessTable
from operations_center.ledger import Ledger
from operations_center.locks import is_locked

BATCH = 100
AT_MOST = 1_000
"""Runs in one prune, so that it does not keep the watchdog from its other rules; the next goes on."""

_ENTRIES_AT_MOST = 10_000

_log = logging.getLogger(__name__)


def prune_closed_runs(
    ledger: Ledger, runs_directory: Path, older_than_ms: int, now_wall: int, budget: RemovalBudget | None = None
) -> int:
    """Remove closed runs with their directories, cgroups and events, and notes; how many runs. Raises LedgerBusy.

    ``older_than_ms`` counts from the moment that a run was closed; ``now_wall`` is wall-clock ms. A directory
    that cannot be removed keeps its run in the ledger. What the budget does not suffice for is left to the next prune.
    """
    before = now_wall - older_than_ms
    # Listed first: a run that is admitted meanwhile is neither closed nor in the list.
    present = _run_directories(runs_directory)
    closed = ledger.closed_before(before, AT_MOST)
    gone = (run_id for run_id in closed if _remove(ledger, runs_directory / run_id, budget))
    pruned = sum(ledger.prune(batch, before) for batch in _batches(gone)) + ledger.prune((), before)
    _remove_unknown(ledger, present, ledger.certainly_before(before), budget)
    return pruned


def _batches(run_ids: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for run_id in run_ids:
        batch.append(run_id)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _run_directories(runs_directory: Path) -> list[Path]:
    try:
        return [entry for entry in runs_directory.iterdir() if fence_of(entry.name) is not None]
    except FileNotFoundError:
        return []


def _remove_unknown(ledger: Ledger, directories: Iterable[Path], before: int, budget: RemovalBudget | None) -> None:
    unknown = [path for path in directories if ledger.run(path.name) is None and _changed_at(path) < before]
    alive = ProcessTable.scan().run_ids if unknown else frozenset()
    for path in unknown:
        if path.name not in alive and not is_locked(path / "lock"):
            _remove(ledger, path, budget)


def _changed_at(directory: Path) -> int:
    """Wall-clock ms of the newest change of the directory or of what is directly in it."""
    try:
        return max([directory.lstat().st_mtime_ns, *_times_inside(directory)]) // 1_000_000
    except FileNotFoundError:
        return 0


def _times_inside(directory: Path) -> list[int]:
    try:
        with os.scandir(directory) as entries:
            return [entry.stat(follow_symlinks=False).st_mtime_ns for entry in islice(entries, _ENTRIES_AT_MOST)]
    except (PermissionError, NotADirectoryError):
        return []


def _remove(ledger: Ledger, directory: Path, budget: RemovalBudget | None) -> bool:
    """False when something of it is left: with a warning where it cannot be removed."""
    if budget is not None and budget.is_spent():
        return False
    run = ledger.run(directory.name)
    path = cgroup.of_run(directory.name, run.cgroup if run is not None else None)
    if path is not None and not cgroup.remove(path):
        _log.warning("cannot prune run %s: something lives in its cgroup %s; end that first", directory.name, path)
        return False
    try:
        return remove_tree(directory, budget)
    except OSError as error:
        _log.warning("cannot prune run %s: %s; remove %s by hand", directory.name, error, directory)
        return False
