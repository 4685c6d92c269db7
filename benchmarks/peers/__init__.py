"""Other supervisors and job queues, measured in the same run as ours. See README.md.

Each script runs by itself, under the interpreter that setup.sh made, and prints one JSON object a line.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOME = Path(os.environ.get("PEERS_HOME") or Path.home() / ".cache" / "operations-center-peers")
ROOT = Path(__file__).resolve().parents[2]


def restarts(settings: Sequence[str], *, quick: bool) -> dict[str, float]:
    """Median ms from the kill of a child to the first instruction of the next, by supervisor and setting."""
    rows = _ask("a_restart", *settings, "--only=restart", *_quickly(quick))
    return {_name(row): row["restart"]["median_ms"] for row in rows if row.get("restart")}


def footprints(settings: Sequence[str], *, quick: bool) -> dict[str, tuple[float, float]]:
    """ms of CPU in 10 idle seconds and MiB of PSS of the supervisor alone, by supervisor and setting."""
    rows = _ask("a_restart", *settings, "--only=footprint", *_quickly(quick))
    found = {_name(row): row["footprint_8"] for row in rows if "footprint_8" in row}
    return {name: (each["cpu_ms_per_10s"], each["pss_mib"]) for name, each in found.items()}


def recoveries(*, quick: bool) -> dict[str, float]:
    """Median ms from a worker's kill to the next start of its job, by queue, most aggressive sane settings."""
    names = ("pgboss", "bullmq") if quick else ("pgboss", "bullmq", "procrastinate", "dramatiq", "celery")
    rows = _ask("b_recovery", *names, "--only=best:all", f"--trials={1 if quick else 3}", "--cap=30")
    return {row["peer"]: row["median_s"] * 1000 for row in rows if isinstance(row.get("median_s"), float)}


def admissions(processes: Sequence[int], *, quick: bool) -> dict[int, dict[str, float]]:
    """Cycles per second by number of processes and peer."""
    counts = ",".join(map(str, processes))
    times = ["--rounds=1", f"--seconds={1 if quick else 10}", f"--procs={counts}"]
    found: dict[int, dict[str, float]] = {count: {} for count in processes}
    for row in _ask("c_admission", "huey SqliteHuey", *times):
        if "procs" in row:
            found[row["procs"]][row["peer"]] = row["ops_s"]
    return found


def _quickly(quick: bool) -> list[str]:
    return ["--quick"] if quick else []


def _name(row: dict[str, Any]) -> str:
    return f"{row['peer']} {row['variant']}"


def _ask(script: str, *arguments: str) -> list[dict[str, Any]]:
    """The rows of a script; a peer that failed is named on stderr and left out."""
    python = HOME / "venv" / "bin" / "python"
    if not python.exists():
        sys.exit(f"cannot measure peers: {python} is missing; run benchmarks/peers/setup.sh")
    command = [str(python), "-m", f"benchmarks.peers.{script}", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        if row.get("error") or row.get("errors"):
            print(f"{script}: {row}", file=sys.stderr)
    return [row for row in rows if not row.get("error")]
