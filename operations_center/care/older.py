"""Is the ledger older than its run directories? Then its last writes are lost, as with a removed write-ahead log.

An admission is durable before its run's directory is made. So a directory in which a run has begun, under a fence that
was never handed out, proves it: who went on would hand that fence out again, and run again what may be done.

Any program of the user may make a directory. One in which nothing has begun proves nothing, nor does a fence that no
lost write explains.
"""

import os
from collections.abc import Callable
from pathlib import Path

from operations_center.errors import LedgerUnusable
from operations_center.ids import fence_of
from operations_center.store.faults import way_back

UNKNOWN_NUMBERS = 1_000_000
"""As many fences and task ids may have been handed out and forgotten again: a fence beyond them is nobody's."""


def refuse_older_ledger(path: Path, runs: Path, newest_fence: Callable[[], int]) -> None:
    """``newest_fence`` reads what the ledger has handed out, after the directories were. Raises LedgerUnusable."""
    begun = [fence for fence, name in _run_directories(runs) if os.path.lexists(runs / name / "gate")]
    known = newest_fence()
    seen = max(plausible(begun, known), default=0)
    if seen > known:
        raise LedgerUnusable(
            f"cannot trust the ledger {path}: {runs} has a run with fence {seen}, and it knows none after {known}, so "
            f"its last writes are lost; {way_back(path)}, or make a backup of it and restore that, to go on as it is"
        )


def fences_of_directories(runs: Path) -> list[int]:
    return [fence for fence, _ in _run_directories(runs)]


def plausible(fences: list[int], known: int) -> list[int]:
    """Those that may have been handed out, if ``known`` is the newest that is certain."""
    return [fence for fence in fences if fence <= known + UNKNOWN_NUMBERS]


def _run_directories(runs: Path) -> list[tuple[int, str]]:
    try:
        names = os.listdir(runs)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [(fence, name) for name in names if (fence := fence_of(name)) is not None]
