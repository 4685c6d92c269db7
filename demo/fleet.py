"""A fleet in a directory of its own, driven by the real commands and by nothing else."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.kernel import kill, look_at, processes_by_run
from demo.promises import HOLDS_SLOT, Look

PROGRAMS = Path(__file__).resolve().parent / "programs"
COMMAND = Path(sys.executable).with_name("operations-center")
PATIENCE_S = 45.0

CAPS = {"agent": 3, "tests": 2}
ROLES = ("goal", "test", "improve", "spec-author")

CONFIG = """\
[center]
state_dir = "state"

[roles.goal]
backend = "agent"
concurrency = 2
poll_interval = "5s"
retry_backoff = {{ initial = "300ms" }}

[roles.test]
backend = "tests"
concurrency = 2
poll_interval = "5s"
retry_backoff = {{ initial = "300ms" }}

[roles.improve]
backend = "agent"
concurrency = 2
poll_interval = "5s"
retry_backoff = {{ initial = "300ms" }}

[roles.spec-author]
backend = "agent"
poll_interval = "5s"

[backends.agent]
kind = "command"
argv = [{python}, {agent}]
max_concurrent = {agent_cap}
timeout = "2m"
grace = "2s"
env = ["DEMO_WITNESS", "DEMO_SHELF"]
breaker = {{ failures = 0 }}

[backends.tests]
kind = "command"
argv = [{python}, {tests}]
max_concurrent = {tests_cap}
timeout = "2m"
idle_timeout = "1m"
grace = "2s"
env = ["DEMO_WITNESS", "DEMO_SHELF"]
breaker = {{ failures = 0 }}

[watchdog]
every = "1s"
"""


class DemoFailed(Exception):
    pass


@dataclass
class Fleet:
    root: Path
    supervisors: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    deaths: dict[str, int] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)

    @property
    def runs_directory(self) -> Path:
        return self.root / "state" / "runs"

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OPERATIONS_CENTER_")}
        return clean | {
            "OPERATIONS_CENTER_CONFIG": str(self.root / "operations_center.toml"),
            "DEMO_WITNESS": str(self.root / "witness.jsonl"),
            "DEMO_SHELF": str(self.root / "shelf"),
        }

    def configure(self) -> None:
        text = CONFIG.format(
            python=json.dumps(sys.executable),
            agent=json.dumps(str(PROGRAMS / "agent.py")),
            tests=json.dumps(str(PROGRAMS / "run_tests.py")),
            agent_cap=CAPS["agent"],
            tests_cap=CAPS["tests"],
        )
        (self.root / "operations_center.toml").write_text(text)

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        """In a session of its own: the Ctrl-C of the terminal is for the demo, which ends all in order."""
        with (self.root / "up.log").open("ab") as log:
            process = subprocess.Popen(
                [str(COMMAND), *words],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.supervisors.append(process)
        return process

    def command(
        self, *words: str, stdin: str | None = None, may_fail: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [str(COMMAND), *words],
            cwd=self.root,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            start_new_session=True,
        )
        if done.returncode and not may_fail:
            raise DemoFailed(
                f"`operations-center {' '.join(words)}` ended with {done.returncode}: {done.stderr.strip()}"
            )
        return done

    def ask(self, *words: str, may_fail: bool = False) -> Any:
        return json.loads(self.command(*words, "--json", may_fail=may_fail).stdout)

    def commands_at_once(self, count: int, *words: str) -> list[Any]:
        """The same command so many times, started together."""
        started = [
            subprocess.Popen(
                [str(COMMAND), *words, "--json"],
                cwd=self.root,
                env=self.environment,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            for _ in range(count)
        ]
        return [json.loads(process.communicate(timeout=30)[0]) for process in started]

    def witness(self) -> str:
        """Whole lines only."""
        try:
            text = (self.root / "witness.jsonl").read_text()
        except FileNotFoundError:
            return ""
        return text[: text.rfind("\n") + 1]

    def at_work(self) -> dict[str, dict[str, Any]]:
        """Run → its witnessed beginning, where no end is witnessed and the process lives."""
        lines = [json.loads(line) for line in self.witness().splitlines()]
        ended = {line["run"] for line in lines if line["word"] == "end"}
        return {
            line["run"]: line
            for line in lines
            if line["word"] == "begin" and line["run"] not in ended and look_at(line["pid"]) is not None
        }

    def kill_run_processes(self, run: str, keeper_too: bool) -> list[int]:
        """SIGKILL the executor and what it started; with the keeper, nobody is left who could record an exit."""
        keeper = None if keeper_too else self._keeper(run)
        killed = []
        for process in sorted(processes_by_run(self.runs_directory).get(run, ()), key=lambda each: each.pid):
            if process.pid != keeper and kill(process):
                killed.append(process.pid)
        self.deaths[run] = time.monotonic_ns()
        return killed

    def _keeper(self, run: str) -> int:
        return int((self.runs_directory / run / "gate").read_text().split()[0])

    def look(self) -> None:
        """Ledger between two looks at the process table: what both saw was alive when the ledger was read."""
        before = processes_by_run(self.runs_directory)
        runs = self.ask("runs", "--open")["runs"]
        after = processes_by_run(self.runs_directory)
        surely = frozenset(run for run in before if before[run] & after.get(run, set()))
        holding = frozenset(run["run_id"] for run in runs if run["state"] in HOLDS_SLOT)
        self.looks.append(Look(time.monotonic(), holding, surely, frozenset(before) | frozenset(after)))

    def clean_up(self) -> None:
        """Whatever lives, in whatever state the story was left."""
        if (self.root / "operations_center.toml").exists():
            self.command("down", "--now", "--timeout", "10s", may_fail=True)
        for process in self.supervisors:
            if process.poll() is None:
                process.kill()
            process.wait()
        for left in processes_by_run(self.runs_directory).values():
            for seen in left:
                kill(seen)


class Events:
    """``events --json -f``, as it comes."""

    def __init__(self, fleet: Fleet) -> None:
        self.all: list[dict[str, Any]] = []
        self._new: queue.Queue[dict[str, Any]] = queue.Queue()
        self._process = subprocess.Popen(
            [str(COMMAND), "events", "--json", "-f"],
            cwd=fleet.root,
            env=fleet.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def take(self, seconds: float) -> list[dict[str, Any]]:
        """What is new, after a wait of at most so long for the first."""
        new = []
        try:
            new.append(self._new.get(timeout=seconds))
            while True:
                new.append(self._new.get_nowait())
        except queue.Empty:
            pass
        self.all += new
        return new

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(2)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._new.put(json.loads(line))


def until(condition: Callable[[], Any], what: str, meanwhile: Callable[[], object]) -> Any:
    """Waits for something that happens, never for a time to pass."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise DemoFailed(f"waited {PATIENCE_S:.0f} s for this: {what}")
        meanwhile()
    return answer
