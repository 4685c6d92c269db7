"""Work that outlives its run because a daemon does it, such as ``at`` or a service manager, where it can be seen.

It is seen where a process carries the run's id in its environment or in the path of its cgroup. Work that was handed
to a tmux server that was there before, to cron or to a container carries nothing, and cannot be seen.
"""

import re
from contextlib import suppress

from operations_center.files import read_file
from operations_center.ids import RUN_ID
from operations_center.keeper.cgroup import PREFIX
from operations_center.keeper.inspect import ProcessTable

_IN_PATH = re.compile(rf"/{PREFIX}({RUN_ID.pattern})(?=/|$)", re.MULTILINE)
_LARGEST_CGROUP = 64 * 1024


def processes_by_run() -> dict[str, list[int]]:
    """Find by run id the living processes of our user, and those of the run's cgroup, that carry it."""
    table = ProcessTable.scan()
    found = {run_id: set(table.pids_of_run(run_id)) for run_id in table.run_ids}
    for pid in table.processes:
        for run_id in _in_cgroup(pid):
            found.setdefault(run_id, set()).add(pid)
    return {run_id: sorted(pids) for run_id, pids in sorted(found.items())}


def _in_cgroup(pid: int) -> set[str]:
    text = b""
    with suppress(OSError):
        text = read_file(f"/proc/{pid}/cgroup", _LARGEST_CGROUP)
    return {found[1] for found in _IN_PATH.finditer(text.decode(errors="replace"))}
