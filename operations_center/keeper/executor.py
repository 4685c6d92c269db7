"""The executor of a run, as the kernel shows it: a child of the keeper that leads a session of its own.

When somebody has killed the keeper, the executor's session is how what is left is found. So who leads it is noted in
the ledger while the keeper lives: no file of the run is believed about it.
"""

from pathlib import Path

from operations_center.identity import Process, is_alive, read_stat


def children_of(keeper: Process) -> list[Process]:
    """Return the living children of a keeper, oldest first; none where the kernel does not list them."""
    try:
        pids = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
    except OSError:
        return []
    if not is_alive(keeper):
        return []
    children = [_child(int(pid), keeper) for pid in pids]
    return [child for child in children if child is not None]


def executor_of(keeper: Process) -> Process | None:
    """Return the oldest child of a keeper that leads a session; None where there is none to be seen."""
    leaders = (child for child in children_of(keeper) if _leads_session(child))
    return next(leaders, None)


def _child(pid: int, keeper: Process) -> Process | None:
    stat = read_stat(pid)
    return Process(pid, stat.start_ticks) if stat is not None and stat.parent == keeper.pid else None


def _leads_session(process: Process) -> bool:
    stat = read_stat(process.pid)
    return stat is not None and stat.session == process.pid
