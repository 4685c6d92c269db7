"""What a fleet must not leave behind when it is down: processes, zombies, cgroups, reports of defects."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.kernel import Seen
from soak.breaches import Breach
from soak.fleet import PRECIOUS, Fleet
from soak.kernel import CGROUP_PREFIX, cgroups


def leftover_breaches(fleet: Fleet, ours: Collection[Seen], runs: Sequence[Mapping[str, Any]]) -> Iterable[Breach]:
    """``ours``: every process that was ever seen of the fleet and its runs."""
    table = fleet.kernel.scan()
    for process in table.processes:
        words = " ".join(process.argv)[:120]
        yield Breach(
            "nothing left", str(process.seen.pid), f"process {process.seen.pid} ({process.kind}) lives: {words}"
        )
    names = {f"{CGROUP_PREFIX}{run['run_id']}" for run in runs}
    for path in cgroups():
        if path.name in names or _is_probe_of(path, ours):
            yield Breach("nothing left", path.name, f"the cgroup {path} was left behind")
    if (fleet.shelf / "precious").read_text() != PRECIOUS:
        yield Breach(
            "nothing outside", "precious", "a link in a run directory led to a file outside, which was written"
        )
    for path in fleet.reports.glob("*-report-*"):
        yield Breach("no traceback", path.name, f"{path.name}: {path.read_text()[-1500:]}")
    for path in [*fleet.root.glob("up.log"), *(fleet.state / "logs").glob("*.log")]:
        _, found, after = path.read_text(errors="replace").partition("Traceback (most recent")
        if found:
            yield Breach("no traceback", path.name, f"{path.name}: {after[:1500]}")


def _is_probe_of(path: Path, ours: Collection[Seen]) -> bool:
    """Its name says who made it: ``…-probe-PID-START_TICKS-PID_NAMESPACE``."""
    words = path.name.split("-")
    return words[1] == "probe" and len(words) == 5 and Seen(int(words[2]), int(words[3])) in ours
