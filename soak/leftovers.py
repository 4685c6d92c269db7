"""What a fleet must not leave behind when it is down: processes, zombies, cgroups, reports of defects."""

import os
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.kernel import Seen
from soak.breaches import Breach
from soak.fleet import Fleet

PREFIX = "operations_center-"
PROBED_WITHIN_S = 10.0
"""A process probes for cgroups when it starts, and may be stopped for some seconds before."""


def leftover_breaches(fleet: Fleet, ours: Collection[Seen], runs: Sequence[Mapping[str, Any]]) -> Iterable[Breach]:
    """``ours``: every process that was ever seen of the fleet and its runs."""
    table = fleet.kernel.scan()
    for process in table.processes:
        words = " ".join(process.argv)[:120]
        yield Breach(
            "nothing left", str(process.seen.pid), f"process {process.seen.pid} ({process.kind}) lives: {words}"
        )
    names = {f"{PREFIX}{run['run_id']}" for run in runs}
    for path in cgroups():
        if path.name in names or _is_probe_of(path, ours):
            yield Breach("nothing left", path.name, f"the cgroup {path} was left behind")
    for path in [*fleet.reports.glob("*-report-*"), *(fleet.state / "reports").glob("*")]:
        yield Breach("no traceback", path.name, f"{path.name}: {path.read_text()[-1500:]}")
    for path in [fleet.root / "up.log", *(fleet.state / "logs").glob("*.log")]:
        _, found, after = path.read_text(errors="replace").partition("Traceback (most recent")
        if found:
            yield Breach("no traceback", path.name, f"{path.name}: {after[:1500]}")


def _is_probe_of(path: Path, ours: Collection[Seen]) -> bool:
    """Made by one of ours soon after it was born; pids come again."""
    pid = path.name.removeprefix(f"{PREFIX}probe-").partition("-")[0]
    made_s = path.stat().st_mtime - (time.time() - time.clock_gettime(time.CLOCK_BOOTTIME))
    born_s = [seen.ticks / os.sysconf("SC_CLK_TCK") for seen in ours if str(seen.pid) == pid]
    return any(-1 < made_s - each < PROBED_WITHIN_S for each in born_s)


def cgroups() -> list[Path]:
    """Every cgroup that the program made on this machine, for whatever fleet."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(words[1]) for words in mounts if words[2] == "cgroup2"]
    return sorted(path for root in roots for path in root.rglob(f"{PREFIX}*"))
