"""C. Admission throughput: take a slot, give it back, as often as it goes; one JSON line for each peer and number.

1, 4 and 8 processes each repeat one cycle for 5 s: take a slot of one backend if fewer than 64 are held (queues that
have no cap: enqueue, claim and finish a trivial job), then give it back; each half is durable by itself where the peer
says so. Told are cycles per second over all processes (median of the rounds), refused or empty claims, and the latency
of a cycle. Every peer runs in every round, so what is told in one run can be compared; the machine's own rate of syncs
comes first, for it bounds every durable row.

    $PEERS_HOME/venv/bin/python -m benchmarks.peers.c_admission [NAME]… [--rounds=3] [--seconds=5] [--procs=1,4,8]

To add a row: a Peer in admissions.py, and its name in PEERS.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.figures import percentile
from benchmarks.peers.admissions import (
    Huey,
    Litequeue,
    OperationsCenter,
    Peer,
    PersistQueue,
    Procrastinate,
    RawPostgres,
    RawSqlite,
    RawSqliteFlock,
    RedisLua,
    Rq,
)
from benchmarks.peers.common import emit, fresh_directory, postgres, redis

warnings.simplefilter("ignore")

Make = Callable[[], Peer]
PEERS: dict[str, tuple[Make, str]] = {  # with the server that it needs
    "operations-center": (OperationsCenter, ""),
    "raw sqlite3 WAL NORMAL": (lambda: RawSqlite("normal"), ""),
    "raw sqlite3 WAL FULL": (lambda: RawSqlite("full"), ""),
    "raw sqlite3 WAL NORMAL + flock": (lambda: RawSqliteFlock("normal"), ""),
    "raw sqlite3 WAL FULL + flock": (lambda: RawSqliteFlock("full"), ""),
    "huey SqliteHuey": (Huey, ""),
    "litequeue": (Litequeue, ""),
    "persist-queue SQLiteAckQueue": (PersistQueue, ""),
    "raw psycopg sync_commit=on": (lambda: RawPostgres("on"), "postgres"),
    "raw psycopg sync_commit=off": (lambda: RawPostgres("off"), "postgres"),
    "procrastinate": (Procrastinate, "postgres"),
    "redis Lua (RDB only)": (RedisLua, "redis"),
    "redis Lua (AOF always)": (RedisLua, "redis always"),
    "rq SimpleWorker (RDB only)": (Rq, "redis"),
}


class Worked(NamedTuple):
    """What one process did; latencies in seconds."""

    cycles: int
    refused: int
    errors: int
    last_error: str
    latencies: list[float]


def work(make: Make, barrier: Any, seconds: float, answers: Any) -> None:
    cycles = refused = errors = 0
    latencies: list[float] = []
    last_error, peer = "", None
    try:
        peer = make()
        peer.open()
    except Exception as error:  # The others still wait at the barrier.
        peer, errors, last_error = None, 1, f"open: {type(error).__name__}: {error}"
    barrier.wait()
    end = time.monotonic() + seconds
    while peer and time.monotonic() < end:
        begun = time.monotonic()
        try:
            if peer.cycle():
                cycles += 1
                latencies.append(time.monotonic() - begun)
            else:
                refused += 1
        except Exception as error:  # Busy and deadlock errors are part of the answer.
            errors += 1
            last_error = f"{type(error).__name__}: {error}"
            time.sleep(0.01)
    if peer:
        peer.close()
    answers.put(Worked(cycles, refused, errors, last_error, latencies))


def measure(make: Make, processes: int, seconds: float) -> list[Worked]:
    fresh_directory("run_c")
    context = multiprocessing.get_context("fork")
    setup = context.Process(target=lambda: make().setup())
    setup.start()
    setup.join()
    if setup.exitcode:
        raise RuntimeError("setup failed")
    barrier, answers = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=work, args=(make, barrier, seconds, answers)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    rows = [answers.get(timeout=seconds + 60) for _ in workers]
    for worker in workers:
        worker.join()
    return rows


def syncs_per_second(seconds: float = 2) -> int:
    path = fresh_directory("run_c") / "sync"
    with path.open("wb") as file:
        count, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            file.write(b"x" * 4096)
            file.flush()
            os.fdatasync(file.fileno())
            count += 1
    return round(count / seconds)


@contextlib.contextmanager
def server(kind: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if kind == "postgres":
            stack.enter_context(postgres())
        elif kind:
            stack.enter_context(redis(kind.removeprefix("redis").strip() or "default"))
        yield


def row_of(runs: Sequence[Sequence[Worked]], seconds: float) -> dict[str, Any]:
    per_second = [sum(each.cycles for each in run) / seconds for run in runs]
    everybody = [each for run in runs for each in run]
    latencies = [latency * 1000 for each in everybody for latency in each.latencies] or [0.0]
    return {
        "rounds": len(runs),
        "ops_s": round(statistics.median(per_second)),
        "ops_s_min": round(min(per_second)),
        "ops_s_max": round(max(per_second)),
        "p50_ms": round(percentile(latencies, 50), 3),
        "p99_ms": round(percentile(latencies, 99), 2),
        "max_ms": round(max(latencies), 1),
        "least_served": min(each.cycles for each in everybody),
        "most_served": max(each.cycles for each in everybody),
        "refused": sum(each.refused for each in everybody),
        "failed": sum(each.errors for each in everybody),
        "last_error": next((each.last_error for each in everybody if each.last_error), ""),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--procs", type=lambda text: [int(each) for each in text.split(",")], default=[1, 4, 8])
    arguments = parser.parse_args()
    emit(area="C", peer="floor: 4 KiB append + fdatasync per second, 1 process", per_s=syncs_per_second())
    names = [name for name in PEERS if not arguments.names or name in arguments.names]
    found: dict[tuple[str, int], list[list[Worked]]] = {}
    for _ in range(arguments.rounds):
        for kind in dict.fromkeys(PEERS[name][1] for name in names):
            with server(kind):
                for processes in arguments.procs:
                    for name in (name for name in names if PEERS[name][1] == kind):
                        try:
                            run = measure(PEERS[name][0], processes, arguments.seconds)
                            found.setdefault((name, processes), []).append(run)
                        except Exception as error:  # One that fails must not hide the others.
                            print(f"{name} × {processes}: {type(error).__name__}: {error}", file=sys.stderr)
    for (name, processes), runs in sorted(found.items(), key=lambda item: (names.index(item[0][0]), item[0][1])):
        emit(area="C", peer=name, procs=processes, **row_of(runs, arguments.seconds))


if __name__ == "__main__":
    main()
