"""Is the ledger older than its run directories? Then its last writes are lost, as with a removed write-ahead log.

An admission is durable before its run's directory is made, so the directory of a fence that was never handed out
proves it. Who went on would hand that fence out again, and run again what may be done.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from operations_center.errors import LedgerUnusable
from operations_center.store.faults import way_back

_RUN_ID = re.compile(r"r([0-9]+)-[0-9a-f]{6}")


def refuse_older_ledger(path: Path, runs: Path, newest_fence: Callable[[], int]) -> None:
    """``newest_fence`` reads what the ledger has handed out, after the directories were. Raises LedgerUnusable."""
    seen = max(fences_of_directories(runs), default=0)
    known = newest_fence()
    if seen > known:
        raise LedgerUnusable(
            f"cannot trust the ledger {path}: {runs} has a run with fence {seen}, and it knows none after {known}, so "
            f"its last writes are lost; {way_back(path)}, or make a backup of it and restore that, to go on as it is"
        )


def fences_of_directories(runs: Path) -> list[int]:
    try:
        names = os.listdir(runs)
    except FileNotFoundError:
        return []
    return [int(match[1]) for name in names if (match := _RUN_ID.fullmatch(name))]
