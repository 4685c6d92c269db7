"""Processes of runs whose state directory does not know them any more: it was removed, moved away or replaced."""

import os
from pathlib import Path

from operations_center.keeper.inspect import ProcessTable, environment_values

_ENTRY = b"OPERATIONS_CENTER_RUN_DIR="


def living_runs_below(runs: Path) -> dict[str, list[int]]:
    """Run ids with their processes, of every living run that was started with its directory in ``runs``."""
    table = ProcessTable.scan()
    found = {run_id: sorted(table.pids_of_run(run_id)) for run_id in sorted(table.run_ids)}
    return {run_id: pids for run_id, pids in found.items() if any(_is_below(pid, runs) for pid in pids)}


def _is_below(pid: int, runs: Path) -> bool:
    parents = [os.path.dirname(directory) for directory in environment_values(pid, _ENTRY)]
    return os.path.realpath(runs) in map(os.path.realpath, parents)
