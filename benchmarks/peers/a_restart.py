"""A. Restart latency and idle footprint of process supervisors: one JSON line for each and setting.

restart    kill -9 of a supervised child → first instruction of its replacement. The child is `/bin/sh child.sh`: it
           writes its pid into a FIFO, then execs `sleep`; stamped here when the pid arrives, so that no clock and no
           start of an interpreter is in the child. Our own children are watchers: the pid is written by Python as soon
           as it runs in them. 20 kills, each after an uptime of 1.2-2.2 s at random (1.2-6.2 s for circus' default,
           whose tick of 5 s would otherwise be in step with the kills).
early      10 kills 0.2 s after the first instruction (throttling of crash loops); ``gave_up_after`` is the number of
           the kill after which no replacement came within 15 s.
footprint  8 sleeping children: RSS and PSS of all processes of the supervisor together (the children are not counted)
           and their CPU time over 10 idle seconds (/proc/PID/task/*/schedstat).

    $PEERS_HOME/venv/bin/python -m benchmarks.peers.a_restart [NAME | NAME:VARIANT]… [--only=PART] [--quick]
"""

import argparse
import contextlib
import os
import random
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from benchmarks.fleets import Announcements, announcing_interpreters
from benchmarks.idle_fleet import cpu
from benchmarks.peers.common import PM2, emit, fresh_directory, stop_tree, summary_ms, tree
from benchmarks.peers.supervisors import SUPERVISORS
from operations_center.pulse import read_pulse

PARTS = ("restart", "early", "footprint")
SPREAD_S = {("circus", "default"): 5.0}
NO_REPLACEMENT_S = 15.0


class Supervised:
    """A running supervisor with n children, and the FIFO in which new children announce themselves."""

    def __init__(self, name: str, variant: str, n: int) -> None:
        self.name = name
        self.directory = fresh_directory("run_a", f"{name}-{variant}-{n}")
        self.announcements = Announcements(self.directory / "fifo")
        command, more = SUPERVISORS[name][0](self.directory, self._child(), n, variant)
        self.environment = {**os.environ, **more, **self._announcing()}
        with (self.directory / "out.log").open("w") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                cwd=self.directory,
            )
        self.root = self.process.pid
        self.pids: list[int] = []
        for _ in range(n):
            self._await_first()
        if name == "pm2":
            self.process.wait(20)
            self.root = int((self.directory / "pm2" / "pm2.pid").read_text())

    def _child(self) -> list[str]:
        script = self.directory / "child.sh"
        script.write_text(f"#!/bin/sh\necho $$ > {self.announcements.path}\nexec sleep 86399\n")
        script.chmod(0o755)
        return ["/bin/sh", str(script)]

    def _announcing(self) -> dict[str, str]:
        return {}

    def _await_first(self) -> None:
        pid, _ = self.next_child(20)
        if pid is None:
            self.close()
            raise RuntimeError(f"no child came up, see {self.directory}/out.log")
        self.pids.append(pid)

    def next_child(self, seconds: float) -> tuple[int | None, int]:
        """The pid of the next and the ns at which it announced itself; no pid when none came in time."""
        try:
            return self.announcements.next(seconds)
        except TimeoutError:
            return None, 0

    def supervisors(self) -> list[psutil.Process]:
        """The processes of the tree that are not the sleeping children."""
        return [process for process in tree(self.root) if process.pid not in self.pids]

    def close(self) -> None:
        if self.name == "pm2":
            subprocess.run([str(PM2), "kill"], env=self.environment, capture_output=True, timeout=30, check=False)
        stop_tree(self.root)
        # Also one that was started again while its supervisor was being ended.
        for pid in [*self.pids, *(pid for pid, _ in self.announcements.take())]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.cwd().startswith(str(self.directory)):
                    process.kill()
        self.announcements.close()


class SupervisedByUs(Supervised):
    """Every interpreter announces itself: a child is one whose pulse says that it is a role's watcher."""

    def _announcing(self) -> dict[str, str]:
        self._told: dict[int, int] = {}
        return announcing_interpreters(self.announcements)

    def next_child(self, seconds: float) -> tuple[int | None, int]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            # Short: the pulse comes after the announcement, and tells nobody.
            select.select([self.announcements], [], [], 0.005)
            for pid, at in self.announcements.take():
                self._told.setdefault(pid, at)
            for pid in self._watchers():
                if pid in self._told:
                    return pid, self._told.pop(pid)
        return None, 0

    def _watchers(self) -> list[int]:
        pulses = map(read_pulse, (self.directory / ".operations_center" / "pulse").glob("w*.json"))
        return [pulse.pid for pulse in pulses if pulse is not None]


def supervised(name: str, variant: str, n: int) -> Supervised:
    kind = SupervisedByUs if name == "operations-center" else Supervised
    return kind(name, variant, n)


def kills(name: str, variant: str, count: int, uptime_s: Callable[[], float]) -> tuple[list[float], int | None]:
    """ms to each replacement, and the number of the kill after which none came."""
    it = supervised(name, variant, 1)
    took: list[float] = []
    try:
        for number in range(1, count + 1):
            time.sleep(uptime_s())
            begun = time.monotonic_ns()
            os.kill(it.pids[0], 9)
            pid, at = it.next_child(NO_REPLACEMENT_S)
            if pid is None:
                return took, number
            it.pids[0] = pid
            took.append((at - begun) / 1e6)
        return took, None
    finally:
        it.close()


def footprint(name: str, variant: str, seconds: float, n: int = 8) -> dict[str, float]:
    it = supervised(name, variant, n)
    try:
        time.sleep(3)
        processes = it.supervisors()
        pids = [process.pid for process in processes]
        before, begun = cpu(pids)[0], time.monotonic()
        time.sleep(seconds)
        used_ms = (cpu(pids)[0] - before) / 1e6 / (time.monotonic() - begun) * 10
        memory = [process.memory_full_info() for process in processes]
        return {
            "processes": len(processes),
            "rss_mib": round(sum(each.rss for each in memory) / 2**20, 1),
            "pss_mib": round(sum(each.pss for each in memory) / 2**20, 1),
            "cpu_ms_per_10s": round(used_ms, 2),
        }
    finally:
        it.close()


def measure(name: str, variant: str, parts: Sequence[str], quick: bool) -> dict[str, Any]:
    row: dict[str, Any] = {}
    spread = SPREAD_S.get((name, variant), 1.0)
    if "restart" in parts:
        took, gave_up = kills(name, variant, 5 if quick else 20, lambda: random.uniform(1.2, 1.2 + spread))
        row |= {"restart": summary_ms(took), "gave_up_after": gave_up}
    if "early" in parts and row.get("restart") != {}:
        took, gave_up = kills(name, variant, 5 if quick else 10, lambda: 0.2)
        row["early"] = {**summary_ms(took), "gave_up_after": gave_up}
    if "footprint" in parts:
        row["footprint_8"] = footprint(name, variant, 1 if quick else 10)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    random.seed(5)
    for name, (_, variants) in SUPERVISORS.items():
        for variant in variants:
            if arguments.names and not {name, f"{name}:{variant}"} & set(arguments.names):
                continue
            try:
                row = measure(name, variant, arguments.only or PARTS, arguments.quick)
            except Exception as error:  # One that fails must not hide the others.
                row = {"error": f"{type(error).__name__}: {error}"}
            emit(area="A", peer=name, variant=variant, **row)


if __name__ == "__main__":
    main()
