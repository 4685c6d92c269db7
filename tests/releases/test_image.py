"""The image that the supervisor changes to: asked, watched, and not blamed for time in which it stood still."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import pytest

from operations_center.releases.runtime import Runtime
from operations_center.supervisor import image
from tests.points import Stepped


@dataclass(frozen=True)
class Release:
    """One whose whole program is ``main``."""

    directory: Path

    @property
    def runtime(self) -> Runtime:
        return Runtime.of_release("a", self.directory, "")

    def program(self, main: str) -> None:
        package = self.directory / "operations_center"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(main)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


def is_asked(frame: FrameType, event: str, _argument: object) -> str | None:
    return "asked" if event == "call" and frame.f_code.co_qualname == "Popen._communicate" else None


def test_an_image_is_not_refused_because_the_supervisor_stood_still_while_it_was_asked(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "CHECK_WITHIN_S", 1.0)
    release.program("")

    def ask() -> None:
        os._exit(0 if image.why_not_start(release.runtime, release.directory, None) is None else 1)

    supervisor = Stepped(ask, 1, signal.SIGSTOP, is_asked)
    signal.sigtimedwait([], 1.5)
    supervisor.go_on()
    assert supervisor.wait() == 0


def test_an_image_that_does_not_say_whether_it_can_start_is_refused(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "CHECK_WITHIN_S", 0.5)
    release.program("import time; time.sleep(3600)")
    refusal = image.why_not_start(release.runtime, release.directory, None)
    assert refusal is not None
    assert "was not done within 0.5 s" in refusal


TURNS_ITS_LOOP_LATER = """
import os, signal, time
{stand_still}
time.sleep(1)
signal.setitimer(signal.ITIMER_REAL, 0)
os._exit(0)
"""
STANDS_STILL = "os.kill(os.getpid(), signal.SIGSTOP)\n"
BLAMED = 3


def change_to(release: Release) -> NoReturn:
    before = [sys.executable, "-c", f"import os; os._exit({BLAMED})"]
    raise image.execute(release.runtime, [], None, before)


def test_an_image_that_stood_still_twice_has_its_time_to_turn_its_loop(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it goes on: signals of a timer come at its own times, and this one goes on just before the next."""
    times = 2
    monkeypatch.setattr(image, "HANGS_MS", 500)
    monkeypatch.setattr(image, "CERTAIN_MS", 2_000)
    release.program(TURNS_ITS_LOOP_LATER.format(stand_still=STANDS_STILL * times))
    pid = os.fork()
    if pid == 0:
        change_to(release)
    for _ in range(times):
        assert os.waitpid(pid, os.WUNTRACED)[1] >> 8 == signal.SIGSTOP
        signal.sigtimedwait([], 1.9)
        os.kill(pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
