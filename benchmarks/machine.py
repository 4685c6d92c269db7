"""On what was measured: machine, kernel, versions, date. No name of a host."""

import os
import platform
import re
import sqlite3
import subprocess
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from operations_center.keeper.cgroup import usable_cgroup_parent
from operations_center.locks import file_system_kind

ROOT = Path(__file__).resolve().parents[1]


def describe_machine() -> dict[str, str]:
    """At the beginning of a run: the load is what the run found."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "operations-center": version("operations-center"),
        "CPU": f"{os.cpu_count()} × " + _first("/proc/cpuinfo", r"model name\s*: (.*)"),
        "memory": _first("/proc/meminfo", r"MemTotal:\s*(.*)"),
        "kernel": platform.release(),
        "system": _first("/etc/os-release", r'PRETTY_NAME="?([^"\n]*)'),
        "file system": file_system_kind(Path(tempfile.gettempdir())),
        "sh": Path("/bin/sh").resolve().name,
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "cgroup for each run": "yes" if usable_cgroup_parent() else "no",
        "cgroups favordynmods": "yes" if "favordynmods" in Path("/proc/self/mountinfo").read_text() else "no",
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _first(path: str, pattern: str) -> str:
    found = re.search(pattern, Path(path).read_text())
    return found[1].strip() if found else "unknown"


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
