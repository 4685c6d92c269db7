"""B. Recovery: kill -9 of a worker that holds a running job → the job runs on another: one JSON line for each.

Two workers, one job. The job (b_jobs.py, b_jobs.js) spawns the executor `sleep 300`, logs a line and waits. 2-3 s after
that line the worker is killed, and a second line is waited for, ``--cap`` seconds at most:

    all    kill -9 of every process of the worker that holds the job, but not of the executor
    child  kill -9 of only the framework's child process that runs the job (rq, celery, dramatiq)
    none   nothing is killed: a second line means that the job is run twice without any crash (40 s, ``best``)

Also: does the executor survive its worker (alive 1 s after the kill), and is it still alive when the second one starts
(the same job runs twice at once). All trials of one setting run side by side, for they mostly sleep; resolution 50 ms.

Our own row: the watcher that follows the run is killed. Its executor is not started a second time, so the time is that
until another watcher has adopted the run (`run.adopted` in the log), and a second start is what must not be.

    $PEERS_HOME/venv/bin/python -m benchmarks.peers.b_recovery [NAME]… [--only=VARIANT:KILL]… [--trials=3] [--cap=120]

To add a row: a branch in b_jobs.py with prepare, enqueue and worker, and its name in PEERS.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.fleets import add_task, one_role
from benchmarks.peers import HOME
from benchmarks.peers.common import (
    PG_PORT,
    REDIS_PORT,
    emit,
    fresh_directory,
    postgres,
    redis,
    stop_tree,
    tree,
    wait_until,
)
from tests.fleet import Fleet

HERE = Path(__file__).resolve().parent
OURS = "operations-center"
PEERS = {  # name: (language, store, has child processes, variants)
    OURS: ("ours", "", False, ("default",)),
    "huey": ("py", "file", False, ("default",)),
    "procrastinate": ("py", "pg", False, ("default", "best")),
    "rq": ("py", "redis", True, ("default", "best")),
    "celery": ("py", "redis", True, ("default", "best")),
    "dramatiq": ("py", "redis", True, ("default", "best")),
    "bullmq": ("js", "redis", False, ("default", "best")),
    "pgboss": ("js", "pg", False, ("default", "best")),
}
CONTROL_S = 40


class Trial(threading.Thread):
    """One kill. ``result`` is what came of it."""

    def __init__(self, name: str, variant: str, kill: str, number: int, cap: float) -> None:
        super().__init__()
        self.peer, self.variant, self.kill = name, variant, kill
        self.cap = CONTROL_S if kill == "none" else cap
        self.directory = fresh_directory("run_b", f"{name}-{variant}-{kill}-{number}")
        self.starts = self.directory / "starts"
        self.starts.touch()
        self.result: dict[str, Any] = {}

    def run(self) -> None:
        try:
            self.begin()
            if not wait_until(self.lines, 40):
                raise RuntimeError("the job never started")
            worker, executor = self.lines()[0]
            time.sleep(random.uniform(2, 3))
            killed = self.end_worker(worker, executor)
            time.sleep(1)
            survives = is_alive(executor)
            goes_on = wait_until(self.goes_on, self.cap - 1, 0.05)
            twice = len(self.lines()) > 1 and is_alive(executor)
            seconds = self.went_on_at() - killed if goes_on else None
            self.result = {"s": seconds, "survives": survives, "twice": twice}
        except Exception as error:  # One that fails must not hide the others.
            self.result = {"error": f"{type(error).__name__}: {error}"}
        finally:
            self.end()
            for _, executor in self.lines():
                if is_alive(executor):
                    os.kill(executor, signal.SIGKILL)

    def lines(self) -> list[tuple[int, int]]:
        """Worker and executor of each start."""
        return [
            (int(worker), int(executor)) for worker, executor in map(str.split, self.starts.read_text().splitlines())
        ]

    def begin(self) -> None:
        raise NotImplementedError

    def end_worker(self, worker: int, executor: int) -> float:
        raise NotImplementedError

    def goes_on(self) -> bool:
        raise NotImplementedError

    def went_on_at(self) -> float:
        return time.monotonic()

    def end(self) -> None:
        raise NotImplementedError


class QueueTrial(Trial):
    def __init__(self, name: str, variant: str, kill: str, number: int, cap: float, database: int) -> None:
        super().__init__(name, variant, kill, number, cap)
        language, store, _, _ = PEERS[name]
        python, node = [sys.executable, str(HERE / "b_jobs.py")], ["node", str(HERE / "b_jobs.js")]
        self.command = python if language == "py" else node
        url = {
            "file": str(self.directory / "q.db"),
            "redis": f"redis://127.0.0.1:{REDIS_PORT}/{database}",
            "pg": f"postgresql://postgres@127.0.0.1:{PG_PORT}/b{database}",
        }[store]
        if store == "pg":
            make_database(f"b{database}")
        named = {"B_PEER": name, "B_VARIANT": variant, "B_URL": url, "B_LOG": str(self.starts)}
        self.environment = os.environ | named | {"PEERS_HOME": str(HOME), "PYTHONPATH": str(HERE)}
        self.workers: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        self.spawn("prepare").wait(60)
        self.workers = [self.spawn("worker") for _ in range(2)]
        # Both are idle before there is a job.
        time.sleep(8)
        self.spawn("enqueue").wait(60)

    def spawn(self, what: str) -> "subprocess.Popen[bytes]":
        with (self.directory / f"{what}.log").open("ab") as log:
            return subprocess.Popen(
                [*self.command, what],
                env=self.environment,
                cwd=self.directory,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def end_worker(self, worker: int, executor: int) -> float:
        if self.kill == "all":
            root = next(each.pid for each in self.workers if worker in [process.pid for process in tree(each.pid)])
            for process in tree(root):
                if process.pid != executor:
                    process.kill()
        elif self.kill == "child":
            os.kill(worker, signal.SIGKILL)
        return time.monotonic()

    def goes_on(self) -> bool:
        return len(self.lines()) > 1

    def end(self) -> None:
        for worker in self.workers:
            stop_tree(worker.pid, grace=1)


class OurTrial(Trial):
    def begin(self) -> None:
        self.fleet = Fleet(self.directory)
        self.fleet.configure(one_role(["sh", "-c", f"echo $PPID $$ >>'{self.starts}'; exec sleep 300"]))
        self.fleet.up()
        with self.fleet.center() as center:
            add_task(center)

    def end_worker(self, _worker: int, _executor: int) -> float:
        if self.kill != "none":
            os.kill(self.fleet.pulse("goal").pid, signal.SIGKILL)
        self.killed, self.killed_at = time.monotonic(), time.time()
        return self.killed

    def goes_on(self) -> bool:
        return bool(self.adoptions()) or len(self.lines()) > 1

    def went_on_at(self) -> float:
        return self.killed + self.adoptions()[0] / 1000 - self.killed_at

    def adoptions(self) -> list[int]:
        """Wall-clock ms of each."""
        with self.fleet.center() as center:
            return [event.at for event in center.ledger.events() if event.kind == "run.adopted"]

    def end(self) -> None:
        self.fleet.run("down", "--now", expect=None)
        self.fleet.clean_up()


def make_database(name: str) -> None:
    import psycopg  # noqa: PLC0415 - only under the peers' interpreter

    with psycopg.connect(f"postgresql://postgres@127.0.0.1:{PG_PORT}/postgres", autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)")
        connection.execute(f"create database {name}")


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def batch(wanted: Sequence[tuple[str, str, str, int]], cap: float) -> None:
    """Run these (name, variant, kill, number) side by side on fresh servers, and print their rows."""
    with redis(), postgres():
        databases = iter(range(64))
        trials = [
            OurTrial(*each, cap) if each[0] == OURS else QueueTrial(*each, cap, next(databases)) for each in wanted
        ]
        for trial in trials:
            trial.start()
            time.sleep(0.3)
        for trial in trials:
            trial.join()
    for peer, variant, kill in dict.fromkeys((trial.peer, trial.variant, trial.kill) for trial in trials):
        same = [trial for trial in trials if (trial.peer, trial.variant, trial.kill) == (peer, variant, kill)]
        emit(area="B", peer=peer, variant=variant, kill=kill, **row_of(same))


def row_of(trials: Sequence[Trial]) -> dict[str, Any]:
    good = [trial.result for trial in trials if "error" not in trial.result]
    seconds = sorted(result["s"] for result in good if result["s"] is not None)
    return {
        "trials": len(trials),
        "went_on": len(seconds),
        "median_s": round(statistics.median(seconds), 3) if seconds else f">{trials[0].cap:g}",
        "all_s": [round(each, 3) for each in seconds],
        "executor_survives": sum(result["survives"] for result in good),
        "ran_twice_at_once": sum(result["twice"] for result in good),
        "errors": [trial.result["error"] for trial in trials if "error" in trial.result],
    }


def settings(names: Sequence[str], trials: int) -> Iterator[tuple[str, str, str, int]]:
    for name, (_, _, has_children, variants) in PEERS.items():
        if names and name not in names:
            continue
        for variant in variants:
            yield from ((name, variant, "all", number) for number in range(trials))
            if has_children:
                yield name, variant, "child", 0
            if variant == variants[-1]:
                yield name, variant, "none", 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--only", action="append", metavar="VARIANT:KILL")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--cap", type=float, default=120)
    arguments = parser.parse_args()
    wanted = [
        each
        for each in settings(arguments.names, arguments.trials)
        if not arguments.only or f"{each[1]}:{each[2]}" in arguments.only
    ]
    for variant in ("default", "best"):
        if mine := [each for each in wanted if each[1] == variant]:
            batch(mine, arguments.cap)


if __name__ == "__main__":
    main()
