"""A short run of the fuzzer, and the fuzzer's checks: each reports the fault that is planted."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest

from fuzz.campaign import run_target
from fuzz.sandbox import HANG_S, Sandbox
from fuzz.targets import TARGETS

INPUTS = 40
SEED = 3


@pytest.mark.parametrize("name", TARGETS)
def test_short_run_finds_no_fault(name: str) -> None:
    outcome = run_target(name, TARGETS[name], INPUTS, SEED)
    assert outcome.finding is None, outcome.finding.report
    assert outcome.tried >= INPUTS


class _Faulty:
    """A target whose reader does harm when it meets one certain input."""

    def __init__(self, sandbox: Sandbox, harm: Callable[[Sandbox], object]) -> None:
        self._sandbox = sandbox
        self._harm = harm

    @property
    def inputs(self) -> st.SearchStrategy[int]:
        return st.integers(0, 3)

    def attempt(self, value: Any) -> None:
        if value == 1:
            self._harm(self._sandbox)

    def close(self) -> None:
        return


def _raise(_sandbox: Sandbox) -> None:
    raise RecursionError("too deep")


def _hang(_sandbox: Sandbox) -> None:
    time.sleep(10 * HANG_S)


def _write_outside(sandbox: Sandbox) -> None:
    (sandbox.outside / "file").write_text("spoiled")


def _make_outside(sandbox: Sandbox) -> None:
    (sandbox.outside / "directory" / str(time.monotonic_ns())).touch()


def _end_stranger(sandbox: Sandbox) -> None:
    os.kill(sandbox.stranger.pid, signal.SIGKILL)
    os.waitid(os.P_PID, sandbox.stranger.pid, os.WEXITED | os.WNOWAIT)


def _stop_stranger(sandbox: Sandbox) -> None:
    os.kill(sandbox.stranger.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, sandbox.stranger.pid, os.WSTOPPED | os.WNOWAIT)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_raise, "RecursionError: too deep"),
        (_hang, "it took more than 1 s"),
        (_write_outside, "something outside was changed"),
        (_make_outside, "something outside was changed"),
        (_end_stranger, "a stranger was signalled"),
        (_stop_stranger, "a stranger was signalled"),
    ],
)
def test_fault_is_found_and_reported(harm: Callable[[Sandbox], object], said: str) -> None:
    outcome = run_target("faulty", lambda sandbox: _Faulty(sandbox, harm), 50, SEED)
    assert outcome.finding is not None
    assert said in outcome.finding.report
