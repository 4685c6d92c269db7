"""What an executor does that means harm to the fleet: ``hostile.py NUMBER PRECIOUS`` makes one attack.

None of it may cost another run anything. Each attack is given the state directory, the run's directory and a file
that nobody may write.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

DEEP = "[" * 100_000 + "]" * 100_000
LEVELS = 1_500
FLOOD = 32 * 1024 * 1024
HOLD_S = 0.5

Attack = Callable[[Path, Path, Path], None]


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Put something in the place of a file, by rename, so that nobody finds nothing there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    make(draft)
    try:
        os.rename(draft, path)
    except OSError:
        # A directory stands there: leave it, and take the draft back.
        draft.unlink()


def forge_gate(state: Path, run: Path, _precious: Path) -> None:
    """Name the watchdog as the keeper of this run."""
    pulse = json.loads((state / "pulse" / "@watchdog.json").read_text())
    text = f"{pulse['pid']} {pulse['start_ticks']} end\n"
    _replace(run / "gate", lambda draft: draft.write_text(text))


def link_records(_state: Path, run: Path, precious: Path) -> None:
    for name in ("exit", "timed_out", "stdout", "task.json"):
        _replace(run / name, lambda draft: draft.symlink_to(precious))


def plant_fifos(_state: Path, run: Path, _precious: Path) -> None:
    for name in ("exit", "result.json", "task.json", "cgroup", "timed_out"):
        _replace(run / name, os.mkfifo)


def plant_deep_json(_state: Path, run: Path, _precious: Path) -> None:
    for name in ("task.json", "result.json"):
        _replace(run / name, lambda draft: draft.write_text(f'{{"title":"a","kind":"b","body":"c","x":{DEEP}}}'))


def plant_sparse_files(_state: Path, run: Path, _precious: Path) -> None:
    def make(draft: Path) -> None:
        with draft.open("wb") as file:
            file.truncate(1 << 40)

    for name in ("result.json", "gate", "timed_out"):
        _replace(run / name, make)


def forge_cgroup(_state: Path, run: Path, _precious: Path) -> None:
    forged = run / "operations_center-forged"
    forged.mkdir()
    for name in ("cgroup.events", "cgroup.procs", "cgroup.kill"):
        os.mkfifo(forged / name)
    _replace(run / "cgroup", lambda draft: draft.write_text(str(forged)))


def plant_heartbeats(state: Path, _run: Path, precious: Path) -> None:
    """Each is written over by its process soon after."""
    _replace(state / "pulse" / "@watchdog.json", os.mkfifo)
    _replace(state / "pulse" / "goal.json", lambda draft: draft.write_text(DEEP))
    _replace(state / "pulse" / "test.json", lambda draft: draft.symlink_to(precious))


def plant_wake_ups(state: Path, _run: Path, precious: Path) -> None:
    (state / "wake" / f"planted-{os.getpid()}").symlink_to(precious)
    os.mkfifo(state / "wake" / f"fifo-{os.getpid()}")


def plant_runs(state: Path, _run: Path, _precious: Path) -> None:
    for name in ("r9223372036854775807-aaaaaa", "r1-zzzzzz", "r-1", "\udcff"):
        (state / "runs" / name).mkdir(exist_ok=True)


def dig_deep(_state: Path, run: Path, _precious: Path) -> None:
    descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(LEVELS):
        try:
            os.mkdir("d", dir_fd=descriptor)
        except FileExistsError:
            pass
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)


def flood(_state: Path, _run: Path, _precious: Path) -> None:
    line = b"x" * 65_535 + b"\n"
    for _ in range(FLOOD // len(line)):
        os.write(1, line)
    os.write(1, b"\x1b]0;owned\x07\n")


def hold_locks(state: Path, _run: Path, _precious: Path) -> None:
    """Hold what serialises writers and starts, for as long as somebody may who is only slow."""
    held = []
    for name in ("ledger.turn", "startup.lock"):
        try:
            held.append(os.open(state / name, os.O_RDWR))
            fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
    time.sleep(HOLD_S)
    for descriptor in held:
        os.close(descriptor)


def ask_fleet_to_end(state: Path, _run: Path, _precious: Path) -> None:
    """Send TERM to all that says in its heartbeat that it is of the fleet."""
    for file in (state / "pulse").glob("*.json"):
        try:
            subprocess.run(["kill", "-TERM", str(int(json.loads(file.read_text())["pid"]))], check=False)
        except (OSError, ValueError, KeyError, RecursionError):
            continue


def kill_own_group(_state: Path, _run: Path, _precious: Path) -> None:
    os.kill(0, signal.SIGKILL)


ATTACKS: tuple[Attack, ...] = (
    *(forge_gate, link_records, plant_fifos, plant_deep_json, plant_sparse_files, forge_cgroup, plant_heartbeats),
    *(plant_wake_ups, plant_runs, dig_deep, flood, hold_locks, ask_fleet_to_end, kill_own_group),
)


if __name__ == "__main__":
    run_directory = Path(os.environ["OPERATIONS_CENTER_RUN_DIR"])
    ATTACKS[int(sys.argv[1]) % len(ATTACKS)](run_directory.parents[1], run_directory, Path(sys.argv[2]))
