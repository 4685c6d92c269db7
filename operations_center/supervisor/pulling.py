"""Look for new commits from time to time, in a process of its own: fetching and installing may take minutes."""

import logging
import os
import signal
import subprocess

from operations_center.environment import kept_apart
from operations_center.files import append_to
from operations_center.identity import Process
from operations_center.releases.steps import last_words
from operations_center.state_directory import PULL
from operations_center.waiting import Waiting
from operations_center.wiring import Center

_log = logging.getLogger(__name__)

END_WITHIN_S = 1.0
"""The fleet waits for it."""

LONGEST_WAIT_MS = 600_000
MOST_DOUBLINGS = 10


class Pulling:
    """``due_at`` is when the next pull begins, in monotonic ms; None while one is on its way.

    ``problem``: why the last one failed.
    """

    def __init__(self, center: Center, waiting: Waiting) -> None:
        assert center.config.code_pull is not None
        self._center = center
        self._waiting = waiting
        self._every_ms = center.config.code_pull.every_ms
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self.due_at: int | None = self._now()
        self.problem: str | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start_if_due(self) -> None:
        if self.due_at is None or self._now() < self.due_at:
            return
        runtime = self._center.runtime(self._center.version.commit)
        copy = self._center.state.config_copy(self._center.version.config)
        try:
            with (
                append_to(self._center.state.log(PULL)) as log,
                kept_apart(runtime.environment(os.environ)) as (environment, variables),
            ):
                self._process = subprocess.Popen(
                    runtime.command("stage", "--config", str(self._center.config.file), "--config-copy", str(copy)),
                    env=environment,
                    pass_fds=(variables,),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            self._plan(f"cannot look for new commits: {error}")
            return
        self.due_at = None
        self._waiting.for_end_of(PULL, Process.of(self._process.pid))

    def bury(self) -> None:
        assert self._process is not None
        code = self._process.wait()
        self._process = None
        self._plan(self._complaint(code) if code else None)

    def end(self) -> None:
        """It began nothing that the next one would not begin anew."""
        if self._process is not None:
            self._waiting.forget(PULL)
            self._terminate(self._process)
            self._process = None
            self.due_at = self._now()

    def _terminate(self, process: subprocess.Popen[bytes]) -> None:
        """What a killed one leaves, the next one ends."""
        os.killpg(process.pid, signal.SIGTERM)
        # One that was stopped would take it only when it goes on.
        os.killpg(process.pid, signal.SIGCONT)
        try:
            process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _complaint(self, code: int) -> str:
        log = self._center.state.log(PULL)
        try:
            return last_words(log)
        except OSError:
            return f"the pull failed ({code}), see {log}"

    def _plan(self, problem: str | None) -> None:
        """Failures in a row make the pauses longer."""
        if problem is not None:
            _log.warning("%s", problem)
        self.problem = problem
        self._failures = self._failures + 1 if problem else 0
        longest = max(self._every_ms, LONGEST_WAIT_MS)
        self.due_at = self._now() + min(self._every_ms << min(self._failures, MOST_DOUBLINGS), longest)

    def _now(self) -> int:
        return self._center.clock.now().monotonic
