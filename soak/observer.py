"""Looks at ledger and process table all the while, in a thread of its own, and keeps every breach that it sees."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo.kernel import Seen, look_at
from soak.breaches import Breach, Judge, Look, Tree, witnessed_breaches
from soak.fleet import CAPS, Fleet
from soak.kernel import KEEPER, WATCHDOG, Kernel, Process
from soak.ledger import LedgerReader, View

LOOK_EVERY_S = 0.05


class Observer:
    """``on_breach`` is told of each breach once, from the observer's thread."""

    def __init__(self, fleet: Fleet, on_breach: Callable[[Breach], None]) -> None:
        self.kernel: Kernel = fleet.kernel
        self.judge = Judge(CAPS)
        self.breaches: list[Breach] = []
        self._fleet = fleet
        self._on_breach = on_breach
        self._known: set[tuple[str, str]] = set()
        self._cycles = 0
        self._last_cycle: Any = None
        self._read_up_to = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._observe)
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Raises what ended the observer, if something did: an observer that died has seen nothing."""
        self._over.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def report(self, breach: Breach) -> None:
        """One of each promise and subject is enough to explain."""
        if (breach.promise, breach.subject) not in self._known:
            self._known.add((breach.promise, breach.subject))
            self.breaches.append(breach)
            self._on_breach(breach)

    def _observe(self) -> None:
        try:
            ledger = LedgerReader(self._fleet.state / "ledger.db")
            while not self._over.is_set():
                for breach in self.judge.consider(self.look(ledger)):
                    self.report(breach)
                for breach in self._read_witness():
                    self.report(breach)
                self._over.wait(LOOK_EVERY_S)
            ledger.close()
        except BaseException as error:
            self.failure = error

    def look(self, ledger: LedgerReader) -> Look:
        before = ledger.view()
        table = self.kernel.scan()
        alive = self.kernel.alive_still(table.processes)
        after = ledger.view()
        return Look(
            time.monotonic(),
            before,
            after,
            trees=trees_of(alive, self._fleet.state / "runs"),
            carriers=self.kernel.carriers(table),
            zombies=table.zombies,
            cycles=self._count_cycles(),
            watchdog_works=any(process.state != "T" for process in table.of(WATCHDOG)),
            reserved=frozenset(_about_to_start(before)),
        )

    def _count_cycles(self) -> int:
        """Of whatever watchdog: its pulse changes when it has ended one."""
        pulse = _read_json(self._fleet.state / "pulse" / "@watchdog.json")
        if pulse is not None and (cycle := pulse["details"].get("last_cycle_at")) is not None:
            present = (pulse["pid"], cycle)
            self._cycles += present != self._last_cycle
            self._last_cycle = present
        return self._cycles

    def _read_witness(self) -> list[Breach]:
        try:
            with (self._fleet.shelf / "witness.jsonl").open("rb") as file:
                file.seek(self._read_up_to)
                lines = file.read()
        except FileNotFoundError:
            return []
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read_up_to += len(whole)
        return [breach for line in whole.splitlines() for breach in witnessed_breaches(json.loads(line))]


def trees_of(alive: list[Process], runs_directory: Path) -> tuple[Tree, ...]:
    """A keeper that lost its gate is no tree: it starts nothing, and is about to end."""
    by_run: dict[str, list[Process]] = {}
    for process in alive:
        if process.run is not None:
            by_run.setdefault(process.run, []).append(process)
    return tuple(
        Tree(run, members[0].task or "", members[0].backend or "", members[0].fence, _pids(members))
        for run, members in sorted(by_run.items())
        if not _lost_its_gate(members, runs_directory / run / "gate")
    )


def _lost_its_gate(members: list[Process], gate: Path) -> bool:
    return [process.kind for process in members] == [KEEPER] and os.path.islink(gate)


def _about_to_start(view: View) -> list[str]:
    return [
        run
        for run, held in view.runs.items()
        if held.state == "reserved" and look_at(held.watcher[0]) == Seen(*held.watcher)
    ]


def _pids(processes: list[Process]) -> tuple[int, ...]:
    return tuple(sorted(process.seen.pid for process in processes))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
