"""Processes are told to end, and killed when their time is over: theirs, and not that of a clock that went on alone."""

import signal
import subprocess
import time
from pathlib import Path
from types import FrameType

import pytest

from operations_center import heart
from operations_center.identity import Process
from operations_center.stopping import ends
from tests.points import Stepped

ENDS_LATER = "trap 'until [ -e go ]; do sleep 0.05; done; exit 0' TERM; echo listens; while :; do sleep 0.05; done"


def waits(frame: FrameType, event: str, _argument: object) -> str | None:
    return "waits" if event == "call" and frame.f_code.co_qualname == "wait_for_end" else None


def test_time_in_which_who_ends_a_process_stood_still_is_not_taken_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heart, "BEAT_EVERY_MS", 300)
    monkeypatch.setattr(ends, "LONGEST_WAIT_S", 0.2)
    with subprocess.Popen(["sh", "-c", ENDS_LATER], cwd=tmp_path, stdout=subprocess.PIPE) as target:
        assert target.stdout is not None
        assert target.stdout.readline() == b"listens\n"
        until = time.monotonic() + 60
        ender = Stepped(lambda: ends.end_processes([Process.of(target.pid)], 2.0, until), 1, signal.SIGSTOP, waits)
        signal.sigtimedwait([], 2.2)
        ender.go_on()
        signal.sigtimedwait([], 0.2)
        (tmp_path / "go").touch()
        assert target.wait() == 0
        assert ender.wait() == 0
