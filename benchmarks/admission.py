"""Admit, settle and close, as often as it goes: cycles per second at 1, 4 and 8 processes.

Each process repeats three transactions on the ledger: a run is admitted, settled, closed. The cap is far (64) or
contended (half as many slots as processes); a refused process asks again at once, and only whole cycles count. Beside
it the same three transactions in raw SQLite: the cap counted from an index of open slots, the change, and the event
that tells of it; WAL, synchronous=FULL like ours, behind two blocking flocks, which are fair. The two take turns of two
seconds on the same disk, so that both meet the same machine. Slots held at once are counted afterwards from the order
of the events. With --peers: huey's SqliteHuey, as shipped (peers/c_admission.py).
"""

import fcntl
import json
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks import peers
from benchmarks.figures import Options, Row, main
from benchmarks.fleets import directory
from operations_center.admission import Limits
from operations_center.clock import SystemClock
from operations_center.identity import Process, identify_host
from operations_center.ledger import Admission
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.model import Outcome, Run, RunState
from operations_center.store import Store

PROCESSES = (1, 4, 8)
FAR = 64
SECONDS = 10
TURNS = 5
SHARE_OF_RAW = 0.5
SLOWEST_TO_MEAN = 0.5


class Cycles(Protocol):
    """One process's way of doing it."""

    def cycle(self, name: str) -> bool:
        """True when a slot was taken and given back, False when it was refused."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Over all turns: cycles of each process, seconds, and the most slots that were held at once."""

    cycles: tuple[int, ...]
    seconds: float
    most_held: int

    @property
    def per_second(self) -> float:
        return sum(self.cycles) / self.seconds

    @property
    def slowest_to_mean(self) -> float:
        return min(self.cycles) * len(self.cycles) / sum(self.cycles)


def measure(options: Options) -> list[Row]:
    others = peers.admissions(PROCESSES, quick=options.quick) if options.peers else {}
    rows = []
    for processes in PROCESSES:
        for name, cap in (("far", FAR), ("contended", max(1, processes // 2))):
            ours, raw = in_turns(processes, cap, *((0.2, 1) if options.quick else (SECONDS, TURNS)))
            rows += _rows(f"{processes} processes, cap {name}", cap, ours, raw, others.get(processes, {}))
    return rows


def _rows(what: str, cap: int, ours: Counts, raw: Counts, others: dict[str, float]) -> list[Row]:
    goal = SHARE_OF_RAW * raw.per_second
    beside = {"raw SQLite": raw.per_second} | others
    rows = [Row(f"{what}: cycles", "/s", ours.per_second, beside, goal, "half of raw SQLite", at_least=True)]
    if len(ours.cycles) > 1:
        fair = {"raw SQLite": raw.slowest_to_mean}
        rows.append(Row(f"{what}: slowest / mean", "", ours.slowest_to_mean, fair, SLOWEST_TO_MEAN, at_least=True))
    rows.append(Row(f"{what}: most slots held", "", ours.most_held, {"raw SQLite": raw.most_held}, cap, "the cap"))
    return rows


def in_turns(processes: int, cap: int, seconds: float, turns: int) -> tuple[Counts, Counts]:
    with directory() as ours, directory() as raw:
        Store(ours / "ledger.db", SystemClock()).close()
        RawLedger.create(raw / "raw.db")
        kinds: tuple[tuple[Path, Callable[[Path, int], Cycles]], ...] = ((ours, OurLedger), (raw, RawLedger))
        counts = [[run_turn(kind, path, processes, cap, seconds / turns) for path, kind in kinds] for _ in range(turns)]
        held = most_held(ours / "ledger.db", OurLedger.TAKES), most_held(raw / "raw.db", RawLedger.TAKES)
    return _sum([turn[0] for turn in counts], seconds, held[0]), _sum([turn[1] for turn in counts], seconds, held[1])


def _sum(turns: list[list[int]], seconds: float, most: int) -> Counts:
    return Counts(tuple(sum(cycles) for cycles in zip(*turns, strict=True)), seconds, most)


def run_turn(kind: Callable[[Path, int], Cycles], path: Path, processes: int, cap: int, seconds: float) -> list[int]:
    """How many cycles each process made."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(processes), context.SimpleQueue()

    def work(number: int) -> None:
        ledger = kind(path, cap)
        barrier.wait()
        done, end = 0, time.monotonic() + seconds
        # One at least: on a busy machine a short turn may be over before it began.
        while time.monotonic() < end or not done:
            done += ledger.cycle(f"{os.getpid()}-{done}")
        answers.put((number, done))

    workers = [context.Process(target=work, args=(number,)) for number in range(processes)]
    for worker in workers:
        worker.start()
    counts = dict(answers.get() for _ in workers)
    for worker in workers:
        worker.join()
    return [counts[number] for number in range(processes)]


class OurLedger:
    TAKES = "SELECT kind = 'run.reserved' FROM events WHERE kind IN ('run.reserved', 'run.settled') ORDER BY seq"

    def __init__(self, path: Path, cap: int) -> None:
        self._ledger = SqliteLedger(Store(path / "ledger.db", SystemClock()))
        self._limits, self._host, self._me = Limits(cap), identify_host(path), Process.current()

    def cycle(self, name: str) -> bool:
        request = Admission(name, "goal", "agent", self._limits, self._host, self._me, 1000, None)
        run = self._ledger.admit(request)
        if not isinstance(run, Run):
            return False
        settled = self._ledger.change_run(
            run, "run.settled", state=RunState.SETTLING, outcome=Outcome.SUCCEEDED, settled_at=1
        )
        assert settled is not None
        self._ledger.change_run(settled, "run.closed", state=RunState.CLOSED, closed_at=1)
        return True


class RawLedger:
    TAKES = "SELECT kind = 'take' FROM events WHERE kind IN ('take', 'free') ORDER BY seq"

    @staticmethod
    def create(path: Path) -> None:
        database = sqlite3.connect(path)
        database.executescript("""
            PRAGMA journal_mode=WAL;
            CREATE TABLE slots (id INTEGER PRIMARY KEY, task TEXT, backend TEXT, state TEXT, data TEXT);
            CREATE INDEX held ON slots (backend) WHERE state = 'open';
            CREATE TABLE events (seq INTEGER PRIMARY KEY, kind TEXT, slot INTEGER, data TEXT);
        """)
        database.close()

    def __init__(self, path: Path, cap: int) -> None:
        self._database = sqlite3.connect(path / "raw.db", isolation_level=None, timeout=30)
        self._database.execute("PRAGMA synchronous=FULL")
        self._cap = cap
        self._locks = [os.open(path / name, os.O_RDWR | os.O_CREAT) for name in ("turn", "write")]

    def cycle(self, name: str) -> bool:
        execute, data = self._database.execute, json.dumps({"task": name, "at": time.time()})
        with self._transaction():
            held = execute("SELECT count(*) FROM slots WHERE backend = 'agent' AND state = 'open'").fetchone()[0]
            if held >= self._cap:
                return False
            take = "INSERT INTO slots (task, backend, state, data) VALUES (?, 'agent', 'open', ?)"
            slot = execute(take, (name, data)).lastrowid
            execute("INSERT INTO events (kind, slot, data) VALUES ('take', ?, ?)", (slot, data))
        for state, kind in (("settling", "free"), ("closed", "close")):
            with self._transaction():
                execute("UPDATE slots SET state = ?, data = ? WHERE id = ?", (state, data, slot))
                execute("INSERT INTO events (kind, slot, data) VALUES (?, ?, ?)", (kind, slot, data))
        return True

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Who has just written queues behind the one that waits already: nobody is passed."""
        turn, write = self._locks
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(write, fcntl.LOCK_EX)
        fcntl.flock(turn, fcntl.LOCK_UN)
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            self._database.execute("COMMIT")
            fcntl.flock(write, fcntl.LOCK_UN)


def most_held(path: Path, takes: str) -> int:
    """The log is written in the order of the commits."""
    database = sqlite3.connect(path)
    held = most = 0
    for (taken,) in database.execute(takes):
        held += 1 if taken else -1
        most = max(most, held)
    database.close()
    return most


if __name__ == "__main__":
    main(measure)
