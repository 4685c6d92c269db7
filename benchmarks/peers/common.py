"""Shared by the peers' scripts: paths, trees of processes, private PostgreSQL and redis.

$PEERS_HOME holds what setup.sh installed. Servers listen on loopback only, on ports of their own, and are stopped by
pid when the ``with`` block ends.
"""

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import percentile
from benchmarks.peers import HOME

BIN = HOME / "venv" / "bin"
UNPACKED = HOME / "root"
PM2 = HOME / "node" / "node_modules" / ".bin" / "pm2"
PG_BIN = Path("/usr/lib/postgresql/15/bin")
PG_PORT, REDIS_PORT = 54329, 63799
PG_DSN = f"host=127.0.0.1 port={PG_PORT} user=postgres dbname=postgres"
UNPACKED_ENV = {
    "LD_LIBRARY_PATH": str(UNPACKED / "usr/lib/x86_64-linux-gnu"),
    "PATH": f"{UNPACKED}/usr/bin:{UNPACKED}/usr/sbin:{UNPACKED}/bin:{UNPACKED}/sbin:{os.environ['PATH']}",
}


def emit(**row: Any) -> None:
    """One line of JSON for one row."""
    print(json.dumps(row), flush=True)


def summary_ms(values: Sequence[float]) -> dict[str, float]:
    """How many, median, p95 and the most of some milliseconds; empty for none."""
    if not values:
        return {}
    return {
        "n": len(values),
        "median_ms": round(statistics.median(values), 2),
        "p95_ms": round(percentile(values, 95), 2),
        "max_ms": round(max(values), 2),
    }


def fresh_directory(*names: str) -> Path:
    """Below $PEERS_HOME, emptied."""
    path = HOME.joinpath(*names)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def tree(pid: int) -> list[psutil.Process]:
    """The process and all of its descendants that still exist."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def stop_tree(pid: int, grace: float = 5.0) -> None:
    """TERM the root, then KILL whatever of the tree is left, by pid."""
    processes = tree(pid)
    if processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes[0].send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=grace)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=2)


def wait_until(condition: Callable[[], Any], timeout: float, step: float = 0.02) -> bool:
    """Whether it came to hold within ``timeout`` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(step)
    return False


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A private PostgreSQL 15 with its default durability (fsync on, synchronous_commit on); yields its DSN."""
    data = fresh_directory("pgdata")
    shutil.chown(data, "postgres")
    as_postgres = ["runuser", "-u", "postgres", "--"]
    subprocess.run(
        [*as_postgres, PG_BIN / "initdb", "-D", data, "-A", "trust", "-U", "postgres"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd="/",
    )
    options = ["-p", str(PG_PORT), "-h", "127.0.0.1", "-k", "", "-c", "max_connections=200"]
    with (HOME / "pg.log").open("w") as log:
        server = subprocess.Popen(
            [*as_postgres, PG_BIN / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd="/"
        )
    ready = [str(PG_BIN / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(PG_PORT)]
    try:
        if not wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, 20, 0.1):
            raise RuntimeError(f"cannot start PostgreSQL: see {HOME / 'pg.log'}")
        yield PG_DSN
    finally:
        # runuser's child is the postmaster; INT is its fast shutdown.
        for process in tree(server.pid)[1:2] or tree(server.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            stop_tree(server.pid)


@contextlib.contextmanager
def redis(persist: str = "default") -> Iterator[str]:
    """A private redis; yields its URL. By default it keeps snapshots only; with ``always`` it syncs every write."""
    data = fresh_directory("redisdata")
    argv = [str(UNPACKED / "usr/bin/redis-server"), "--port", str(REDIS_PORT), "--bind", "127.0.0.1"]
    argv += ["--dir", str(data), "--databases", "64"]
    if persist == "always":
        argv += ["--appendonly", "yes", "--appendfsync", "always"]
    environment = {**os.environ, **UNPACKED_ENV}
    with (HOME / "redis.log").open("w") as log:
        server = subprocess.Popen(argv, stdout=log, stderr=log, env=environment)
    ping = [str(UNPACKED / "usr/bin/redis-cli"), "-p", str(REDIS_PORT), "ping"]

    def answers() -> bool:
        return subprocess.run(ping, env=environment, capture_output=True, check=False).stdout == b"PONG\n"

    try:
        if not wait_until(answers, 10, 0.1):
            raise RuntimeError(f"cannot start redis: see {HOME / 'redis.log'}")
        yield f"redis://127.0.0.1:{REDIS_PORT}/0"
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
