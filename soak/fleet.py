"""The soak's fleet in a directory of its own: its configuration, its commands, and whoever runs them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from demo.kernel import Seen
from soak.kernel import CGROUP_PREFIX, Kernel, Process, cgroups, send

PROGRAM = Path(__file__).resolve().parent / "programs" / "executor.py"
COMMAND = Path(sys.executable).with_name("operations-center")

CAPS = {"agent": 3, "tests": 2}
ROLES = ("goal", "improve", "test")
MAX_ATTEMPTS = 3
MAX_INTERRUPTIONS = 20
MAX_RETRIES = 6
TIMEOUT_MS = 5_000
IDLE_TIMEOUT_MS = 4_000
WATCHDOG_EVERY_S = 1.0

PRECIOUS = "nobody writes this file\n"

ANSWER_WITHIN_S = 120.0

CONFIG = """\
[center]
cgroup = "{cgroup}"

[roles.goal]
backend = "agent"
concurrency = 3
poll_interval = "2s"
max_attempts = {max_attempts}
max_interruptions = {max_interruptions}
max_retries = {max_retries}
retry_backoff = {{ initial = "50ms", max = "1s" }}

[roles.improve]
backend = "agent"
concurrency = 2
poll_interval = "2s"
max_attempts = {max_attempts}
max_interruptions = {max_interruptions}
max_retries = {max_retries}
retry_backoff = {{ initial = "50ms", max = "1s" }}

[roles.test]
backend = "tests"
concurrency = 3
poll_interval = "2s"
max_attempts = {max_attempts}
max_interruptions = {max_interruptions}
max_retries = {max_retries}
retry_backoff = {{ initial = "50ms", max = "1s" }}

[backends.agent]
kind = "command"
argv = [{python}, "-I", "-S", {program}]
max_concurrent = {agent}
timeout = "{timeout_ms}ms"
grace = "400ms"
env = ["SOAK_SHELF", "SOAK_CAPS"]
breaker = {{ failures = 0 }}

[backends.tests]
kind = "command"
argv = [{python}, "-I", "-S", {program}]
max_concurrent = {tests}
timeout = "{timeout_ms}ms"
idle_timeout = "{idle_timeout_ms}ms"
grace = "400ms"
env = ["SOAK_SHELF", "SOAK_CAPS"]
breaker = {{ failures = 0 }}

[watchdog]
every = "{watchdog_every_s}s"
stalled_after = "10s"
min_free_disk = 0
"""


@dataclass
class Running:
    """A command that was started: ``on_end`` is told when it has ended, and whether somebody killed it."""

    words: tuple[str, ...]
    popen: "subprocess.Popen[bytes]"
    output: IO[bytes]
    errors: IO[bytes]
    on_end: Callable[["Ended"], None]


@dataclass(frozen=True)
class Ended:
    words: tuple[str, ...]
    code: int
    output: str
    errors: str

    @property
    def was_killed(self) -> bool:
        return self.code < 0


@dataclass
class Fleet:
    root: Path
    commands: list[Running] = field(default_factory=list)
    supervisors: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.root / ".operations_center"

    @property
    def shelf(self) -> Path:
        return self.root / "shelf"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def kernel(self) -> Kernel:
        return Kernel(self.root, self.state)

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("OPERATIONS_CENTER_")}
        return clean | {
            "OPERATIONS_CENTER_CONFIG": str(self.root / "operations_center.toml"),
            "SOAK_SHELF": str(self.shelf),
            # Where reports of defects are written.
            "TMPDIR": str(self.reports),
            "SOAK_CAPS": ",".join(f"{name}={cap}" for name, cap in CAPS.items()),
        }

    def configure(self, *, cgroup: bool) -> None:
        text = CONFIG.format(
            cgroup="auto" if cgroup else "off",
            max_attempts=MAX_ATTEMPTS,
            max_interruptions=MAX_INTERRUPTIONS,
            max_retries=MAX_RETRIES,
            timeout_ms=TIMEOUT_MS,
            idle_timeout_ms=IDLE_TIMEOUT_MS,
            watchdog_every_s=f"{WATCHDOG_EVERY_S:g}",
            python=json.dumps(sys.executable),
            program=json.dumps(str(PROGRAM)),
            **CAPS,
        )
        (self.root / "operations_center.toml").write_text(text)
        self.reports.mkdir()
        for name in ("began", "tasks", "tries", "drafts", *(f"crowd/{backend}" for backend in CAPS)):
            (self.shelf / name).mkdir(parents=True)
        (self.shelf / "precious").write_text(PRECIOUS)

    # Supervisors

    def up(self) -> "subprocess.Popen[bytes]":
        """One more ``up``: it runs the fleet, or is refused for the one that does."""
        with (self.root / "up.log").open("ab") as log:
            process = self._popen(("up",), log, log, subprocess.DEVNULL)
        self.supervisors.append(process)
        return process

    def living_supervisors(self) -> int:
        self.supervisors = [process for process in self.supervisors if process.poll() is None]
        return len(self.supervisors)

    # Commands

    def start(self, *words: str, stdin: str = "", on_end: Callable[[Ended], None] = lambda _: None) -> Running:
        """Does not wait; ``reap`` tells ``on_end``."""
        output, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - closed when it is reaped
        with tempfile.TemporaryFile() as given:
            given.write(stdin.encode())
            given.seek(0)
            popen = self._popen(words, output, errors, given)
        running = Running(words, popen, output, errors, on_end)
        self.commands.append(running)
        return running

    def reap(self) -> None:
        for running in [each for each in self.commands if each.popen.poll() is not None]:
            self.commands.remove(running)
            running.on_end(_ended(running))

    def ask(self, *words: str, stdin: str = "") -> Ended:
        """Wait for a command. Raises TimeoutError after two minutes."""
        ended: list[Ended] = []
        running = self.start(*words, stdin=stdin, on_end=ended.append)
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while not ended:
            if time.monotonic() > deadline:
                running.popen.kill()
                raise TimeoutError(f"`operations-center {' '.join(words)}` did not end in time")
            time.sleep(0.01)
            self.reap()
        return ended[0]

    def _popen(
        self, words: tuple[str, ...], output: IO[bytes], errors: IO[bytes], given: IO[bytes] | int
    ) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [str(COMMAND), *words],
            cwd=self.root,
            env=self.environment,
            stdin=given,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )

    def kill_all(self) -> list[Process]:
        """Everything of ours, as a power cut would: stopped until nothing new is born, then killed."""
        stopped: dict[Seen, Process] = {}
        while new := [each for each in self.kernel.scan().processes if each.seen not in stopped]:
            for process in new:
                send(process, signal.SIGSTOP)
                stopped[process.seen] = process
        for process in stopped.values():
            send(process, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.kernel.scan().processes and time.monotonic() < deadline:
            time.sleep(0.005)
        return list(stopped.values())

    def clean_up(self) -> None:
        self.kill_all()
        for process in [*self.supervisors, *(running.popen for running in self.commands)]:
            process.wait()
        self.reap()
        ours = {f"{CGROUP_PREFIX}{path.name}" for path in (self.state / "runs").glob("*")}
        for path in cgroups():
            if path.name in ours:
                for directory in (path / "executor", path):
                    with suppress(FileNotFoundError):
                        directory.rmdir()


def _ended(running: Running) -> Ended:
    texts = []
    for file in (running.output, running.errors):
        file.seek(0)
        texts.append(file.read().decode(errors="replace"))
        file.close()
    return Ended(running.words, running.popen.returncode, *texts)
