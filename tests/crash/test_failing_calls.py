"""Each system call of a command that writes fails once, as on a failing disk: one line, and the next try works."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import cycle
from pathlib import Path

import pytest

from operations_center import cli
from operations_center.boards.local import NewTask
from operations_center.identity import Process
from tests.fleet import Fleet
from tests.runs import leave_run
from tests.syscalls import EVERY_POINT, Point, Strace, calls_of, forked_and_stopped, naming, needs_strace, some_of

pytestmark = [needs_strace, pytest.mark.timeout(3600 if EVERY_POINT else 300)]

for module in cli.COMMANDS.values():
    import_module(f"operations_center.cli.{module}")  # a forked command must not be seen importing

CAN_FAIL = frozenset(
    {"openat", "pwrite64", "write", "fdatasync", "fsync", "ftruncate", "mkdir", "link", "rename", "symlink"}
)
"""Of the visible calls those that need room, or a disk that works."""

GONE = Process(2**22 + 1, 1)

CONFIG = """
[roles.goal]
backend = "agent"
poll_interval = "200ms"
retry_backoff = { initial = "0s" }
[backends.agent]
kind = "command"
argv = ["sh", "-c", 'echo "$OPERATIONS_CENTER_TASK_ID" >>"$HOME/begun"']
stdin = "none"
max_concurrent = 10
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks that are ready, and two whose runs were left by dead processes."""
    fleet = Fleet(tmp_path_factory.mktemp("template"))
    fleet.configure(CONFIG)
    with fleet.center() as center:
        ids = center.board.add([NewTask(f"task {number}", "goal") for number in range(4)])
        for task_id in ids[2:]:
            leave_run(center, task_id, keeper=GONE, watcher=GONE)
    fleet.run("ledger", "backup", str(fleet.root / "backup.db"))
    return fleet.root


def anew(template: Path, fleet: Fleet) -> None:
    shutil.rmtree(fleet.root)
    shutil.copytree(template, fleet.root)


def without_state(template: Path, fleet: Fleet) -> None:
    anew(template, fleet)
    shutil.rmtree(fleet.state.root)


def with_a_damaged_ledger(template: Path, fleet: Fleet) -> None:
    anew(template, fleet)
    for run_id in os.listdir(fleet.state.runs):
        shutil.rmtree(fleet.state.run(run_id))
    fleet.state.ledger.write_bytes(b"rubbish" * 1000)


def body_of(fleet: Fleet, words: str) -> Callable[[], object]:
    def body() -> None:
        os.environ.update(fleet.environment)
        os.chdir(fleet.root)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(fleet.root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
        # pytest has put its own in their places.
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        (fleet.root / "code").write_text(str(cli.run(words.split())))

    return body


def calls(fleet: Fleet, words: str) -> list[Point]:
    """What the command does to the state directory and beside it, as one whole life shows."""
    pid = forked_and_stopped(body_of(fleet, words))
    trace = Strace(pid)
    os.kill(pid, signal.SIGCONT)
    points = calls_of(trace.lines(), within=fleet.state.root).get(0, [])
    trace.let_go()
    os.waitpid(pid, 0)
    return [point for point in points if point.name in CAN_FAIL]


def live_with_failing_call(fleet: Fleet, words: str, point: Point, error: str) -> tuple[int, str, bool]:
    """Exit code, what was said, and whether the call was made: how often /proc is read differs from life to life."""
    pid = forked_and_stopped(body_of(fleet, words))
    trace = Strace(pid, "-e", f"inject={point.name}:error={error}:when={point.occurrence}")
    os.kill(pid, signal.SIGCONT)
    # Read to the end: a full pipe would hold the command up.
    failed = "INJECTED" in "".join(trace.lines())
    trace.let_go()
    os.waitpid(pid, 0)
    return int((fleet.root / "code").read_text()), (fleet.root / "err").read_text(), failed


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("task add x", anew),
        ("task add x", without_state),
        ("reconcile", anew),
        ("ledger backup copy.db", anew),
        ("ledger prune --older-than 1d", anew),
        ("ledger restore backup.db", with_a_damaged_ledger),
    ],
)
def test_a_command_whose_system_call_fails_says_so_in_one_line_and_can_be_repeated(
    fleet: Fleet, template: Path, words: str, found: Callable[[Path, Fleet], None]
) -> None:
    found(template, fleet)
    points = calls(fleet, words)
    assert len(points) > 3
    sample = some_of(points, max(1, len(points) // 6), 0)
    failed = 0
    for point, error in zip(sample, cycle(("ENOSPC", "EIO", "EROFS")), strict=False):
        found(template, fleet)
        with naming(point):
            code, said, made = live_with_failing_call(fleet, words, point, error)
            failed += made
            assert code in (0, 1, 75)
            if code:
                (line,) = said.splitlines()
                assert line.startswith("cannot ")
                assert "defect" not in line
            if code:
                assert not list(fleet.root.glob("copy.db*"))
            (fleet.root / "copy.db").unlink(missing_ok=True)
            fleet.run(*words.split())
            with fleet.center() as center:
                assert center.ledger.verify() == []
    assert failed > len(sample) // 2
