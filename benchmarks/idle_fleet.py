"""An idle fleet's cost: CPU in 10 s, and memory.

Supervisor, fork server if there is one, four watchers and the watchdog have nothing to do. Their CPU time is read from
/proc/PID/schedstat (nanoseconds on a CPU, of every thread) at both ends of 30 s, in which everything that is done on a
timer comes round once, and divided by three; beside it utime + stime, which the kernel counts in ticks of 10 ms. Memory
is PSS: what processes share is counted once. With --peers: PM2's and supervisord's supervisors with eight sleeping
children (peers/a_restart.py), which are not counted.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks import peers
from benchmarks.figures import Options, Row, main
from benchmarks.fleets import directory, running_fleet

SECONDS = 30
SETTLE_S = 3
TARGET_MS = 20.0
TARGET_MIB = 60.0
SETTINGS = ("pm2:default", "supervisord:best")
ROLES = ("goal", "test", "improve", "spec-author")
CONFIG = (
    "".join(f'[roles.{role}]\nbackend = "agent"\n' for role in ROLES)
    + '[backends.agent]\nkind = "command"\nargv = ["true"]\nmax_concurrent = 2\n'
)


def measure(options: Options) -> list[Row]:
    footprints = peers.footprints(SETTINGS, quick=options.quick) if options.peers else {}
    with directory() as root, running_fleet(root, CONFIG) as fleet:
        pids = fleet_of(fleet.supervisors[0].pid)
        time.sleep(0 if options.quick else SETTLE_S)
        nanoseconds, ticks = cpu_while(1 if options.quick else SECONDS, pids)
        shared = {pid: pss_mib(pid) for pid in pids}
    return [
        Row(
            "CPU in 10 s",
            "ms",
            nanoseconds / 1e6,
            {"by ticks": ticks * 1000 / os.sysconf("SC_CLK_TCK")}
            | {name: cpu for name, (cpu, _) in footprints.items()},
            TARGET_MS,
        ),
        Row(
            f"PSS of {len(pids)} processes",
            "MiB",
            sum(shared.values()),
            {"the largest": max(shared.values())} | {name: pss for name, (_, pss) in footprints.items()},
            TARGET_MIB,
        ),
    ]


def fleet_of(supervisor: int) -> list[int]:
    return [supervisor, *(child.pid for child in psutil.Process(supervisor).children(recursive=True))]


def cpu_while(seconds: float, pids: Sequence[int]) -> tuple[float, float]:
    """ns and clock ticks for each 10 s."""
    before, begun = cpu(pids), time.monotonic()
    time.sleep(seconds)
    after, share = cpu(pids), 10 / (time.monotonic() - begun)
    return (after[0] - before[0]) * share, (after[1] - before[1]) * share


def cpu(pids: Sequence[int]) -> tuple[int, int]:
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    nanoseconds = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
    stats = [(task / "stat").read_text().rpartition(")")[2].split() for task in tasks]
    return nanoseconds, sum(int(stat[11]) + int(stat[12]) for stat in stats)


def pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    main(measure)
