"""A real fleet in a directory of its own, driven as its user would, and what its executors witness."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from operations_center.config import load_config
from operations_center.identity import is_alive
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import ProcessTable
from operations_center.pulse import Pulse, read_pulse
from operations_center.state_directory import SUPERVISOR, StateDirectory
from operations_center.wiring import Center, open_center
from tests.promises import broken_promises

PATIENCE_S = 60.0
"""How long a test waits for what must happen: many times what it takes, for a machine that has much else to do."""

WITNESS = """
import os, sys, time
def say(word):
    names = ('OPERATIONS_CENTER_TASK_ID', 'OPERATIONS_CENTER_RUN_ID')
    line = ' '.join([word, *(os.environ[name] for name in names), str(time.monotonic_ns())]) + '\\n'
    file = os.open(os.environ['HOME'] + '/witness', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, line.encode())
    os.close(file)
say('begin')
if sys.argv[1] == 'go':
    while not os.path.exists(os.environ['HOME'] + '/go'):
        time.sleep(0.01)
else:
    time.sleep(float(sys.argv[1]))
say('end')
"""
"""An executor that tells, in one shared file, when it begins and when it ends: after some time, or when let go."""


@dataclass(frozen=True)
class Witnessed:
    word: str
    task_id: str
    run_id: str
    at_ns: int


@dataclass
class Fleet:
    root: Path
    supervisors: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def state(self) -> StateDirectory:
        return StateDirectory(self.root / ".operations_center")

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "HOME": str(self.root),
            "OPERATIONS_CENTER_CONFIG": str(self.root / "operations_center.toml"),
        }

    def configure(self, text: str) -> None:
        (self.root / "operations_center.toml").write_text(text)
        (self.root / "witness.py").write_text(WITNESS)

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "operations_center", *words]

    def run(self, *words: str, expect: int | None = 0, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            self.argv(*words),
            cwd=self.root,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
        assert expect is None or done.returncode == expect, (words, done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *words: str, expect: int | None = 0) -> Any:
        return json.loads(self.run(*words, "--json", expect=expect).stdout)

    def popen(self, *words: str) -> "subprocess.Popen[bytes]":
        with (self.root / "up.log").open("ab") as log:
            process = subprocess.Popen(self.argv(*words), cwd=self.root, env=self.environment, stdout=log, stderr=log)
        self.supervisors.append(process)
        return process

    def up(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start the supervisor in the foreground and wait until all of its watchers are ready."""
        process = self.popen("up", *words)
        wait_until(lambda: self.is_up(process), "the fleet is up")
        return process

    def is_up(self, process: "subprocess.Popen[bytes]") -> bool:
        assert process.poll() is None, (self.root / "up.log").read_text()
        pulse = read_pulse(self.state.pulse(SUPERVISOR))
        return pulse is not None and pulse.pid == process.pid and pulse.state == "up"

    def add(self, count: int, kind: str) -> list[str]:
        lines = "".join(json.dumps({"title": f"task {number}", "kind": kind}) + "\n" for number in range(count))
        self.run("task", "import", "-", stdin=lines)
        return [task["id"] for task in self.json("task", "list")["tasks"] if task["kind"] == kind]

    def pulse(self, name: str) -> Pulse:
        pulse = read_pulse(self.state.pulse(name))
        assert pulse is not None
        return pulse

    def let_go(self) -> None:
        """End every executor that waits for it."""
        (self.root / "go").touch()

    def witnessed(self, word: str | None = None) -> list[Witnessed]:
        try:
            text = (self.root / "witness").read_text()
        except FileNotFoundError:
            return []
        lines = [line.split() for line in text.splitlines()]
        return [Witnessed(a, b, c, int(d)) for a, b, c, d in lines if word in (None, a)]

    def most_at_once(self) -> int:
        running = most = 0
        for event in sorted(self.witnessed(), key=lambda event: event.at_ns):
            running += 1 if event.word == "begin" else -1
            most = max(most, running)
        return most

    @contextmanager
    def center(self) -> Iterator[Center]:
        center = open_center(load_config(self.root / "operations_center.toml", self.environment))
        try:
            yield center
        finally:
            center.close()

    def broken_promises(self) -> list[str]:
        """I1 to I5 (``tests.promises``); to be asked when nobody acts and no stop is in progress."""
        with self.center() as center:
            return broken_promises(center)

    def clean_up(self) -> None:
        """Whatever a test left alive, ended by its pid."""
        for process in self.supervisors:
            if process.poll() is None:
                process.kill()
                process.wait()
        wait_until(lambda: not self._kill_all(), "everything of the fleet is gone")
        for path in self.state.runs.glob("*"):
            remove_cgroup_of(path)

    def _kill_all(self) -> set[int]:
        """What there was to kill: the processes of its runs, and all that work in its directory or call it home."""
        table = ProcessTable.scan()
        ours = {path.name for path in self.state.runs.glob("*")}
        pids = {pid for run_id in table.run_ids & ours for pid in table.pids_of_run(run_id)}
        pids |= {pid for pid in table.processes if pid != os.getpid() and self._is_of_this_fleet(pid)}
        for pid in pids:
            kill_if_there(pid)
        return pids

    def _is_of_this_fleet(self, pid: int) -> bool:
        try:
            # A process that has given itself a title has overwritten its environment.
            directory = Path(os.readlink(f"/proc/{pid}/cwd"))
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return directory.is_relative_to(self.root) or f"HOME={self.root}".encode() in environment.split(b"\0")


def remove_cgroup_of(run_directory: Path) -> None:
    path = cgroup.of_run(run_directory.name, None)
    if path is not None and path.is_dir():
        cgroup.kill(path)
        wait_until(lambda: cgroup.remove(path), f"{path} is empty")


def kill_if_there(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def wait_until(condition: Callable[..., Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """For what no descriptor tells of: a row of the ledger, a line in a file. All of its parameters have defaults."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"still waiting for: {what}"
        time.sleep(0.005)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal. A program that has just been executed has none."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def is_dead(pulse: Pulse) -> bool:
    return not is_alive(pulse.process)
