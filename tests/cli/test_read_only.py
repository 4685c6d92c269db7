"""A state directory that cannot be written: what only reads works and is right, and the rest says why it does not."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command_line import CommandLine
from tests.fleet import wait_until

READING = ("runs", "task list", "task show t1", "events", "reconcile --dry-run", "ledger verify", "explain {run}")
WRITING = (
    "task add x",
    "reconcile",
    "pause",
    "task cancel t1",
    "ledger prune --older-than 1d",
    "up",
    "watch --role goal",
)

LEAVE_A_LOG = """
import os
from pathlib import Path
from operations_center.boards.local import NewTask
from operations_center.config import load_config
from operations_center.wiring import open_center
center = open_center(load_config(Path("operations_center.toml"), os.environ))
center.board.add([NewTask("only in the log", "goal")])
print("written", flush=True)
input()
os._exit(0)
"""
"""A process that writes, and ends without merging the log into the ledger."""


@contextmanager
def unwritable(directory: Path) -> Iterator[None]:
    """By a mount as root, whom no mode stops; else by modes."""
    if os.geteuid() == 0:
        subprocess.run(["mount", "--bind", directory, directory], check=True)
        try:
            # Busy as long as somebody writes there at this very moment.
            remount = ["mount", "-o", "remount,bind,ro", str(directory)]
            wait_until(lambda: subprocess.run(remount, check=False).returncode == 0, "the directory is read-only")
            yield
        finally:
            # Somebody may be reading there at this very moment.
            subprocess.run(["umount", "-l", directory], check=True)
        return
    modes = {}
    for path in (directory, *directory.rglob("*")):
        # A draft of somebody's who writes there may be gone again.
        with suppress(FileNotFoundError):
            mode = path.stat().st_mode
            path.chmod(mode & ~0o222)
            modes[path] = mode
    try:
        yield
    finally:
        for path, mode in modes.items():
            with suppress(FileNotFoundError):
                path.chmod(mode)


@contextmanager
def writer(line: CommandLine) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(
        [sys.executable, "-P", "-c", LEAVE_A_LOG], cwd=line.root, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        yield process
        process.communicate(b"\n")


@contextmanager
def merged(_line: CommandLine) -> Iterator[None]:
    yield


@contextmanager
def open_elsewhere(line: CommandLine) -> Iterator[None]:
    with writer(line):
        yield


@contextmanager
def log_left(line: CommandLine) -> Iterator[None]:
    with writer(line):
        pass
    assert Path(f"{line.state.ledger}-wal").stat().st_size
    yield


@contextmanager
def log_left_without_its_index(line: CommandLine) -> Iterator[None]:
    with log_left(line):
        Path(f"{line.state.ledger}-shm").unlink()
        yield


def answers(line: CommandLine, run_id: str) -> dict[str, Any]:
    found = {words: line(*words.format(run=run_id).split(), "--json").json for words in READING}
    return {words: without_times(document) for words, document in found.items()}


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in ("started_at", "wall_ms", "evidence")}


@pytest.fixture
def run_id(line: CommandLine) -> str:
    line.closed_run()
    return line.admit(line.task()).run_id


@pytest.mark.parametrize("left", [merged, open_elsewhere, log_left, log_left_without_its_index])
def test_commands_that_only_read_give_the_same_answers(
    line: CommandLine, run_id: str, left: Callable[[CommandLine], Any], tmp_path: Path
) -> None:
    with left(line):
        with unwritable(line.state.root):
            seen = answers(line, run_id)
            assert line("status", "--json", expect=3).json["backends"][0]["held"] == 1
            backup = Path(line("ledger", "backup", str(tmp_path / "copy.db")).out.strip())
        assert seen == answers(line, run_id)
        assert len(seen["task list"]["tasks"]) == (2 if left is merged else 3)
    line("ledger", "restore", str(backup), "--json", expect=75)  # sound, and a run is open


def test_reading_leaves_nothing_behind(line: CommandLine, run_id: str, tmp_path: Path) -> None:
    before = sorted(os.listdir(line.state.root)), sorted(os.listdir(tmp_path))
    with unwritable(line.state.root):
        answers(line, run_id)
        assert (sorted(os.listdir(line.state.root)), sorted(os.listdir(tmp_path))) == before


def test_commands_that_write_say_why_they_cannot(line: CommandLine, run_id: str) -> None:
    content = line.state.ledger.read_bytes()
    reason = "mounted read-only" if os.geteuid() == 0 else "is not writable for you"
    with unwritable(line.state.root):
        for words in WRITING:
            assert reason in line(*words.split(), expect=1).complaint, words
        checks = line("doctor", "--json", expect=1).json["checks"]
        (status,) = line("status", "--json", expect=3).json["problems"]
    assert [check["name"] for check in checks if check["status"] == "fault"] == ["state_dir"]
    assert all(reason in text for text in (status, next(c["detail"] for c in checks if c["status"] == "fault")))
    assert line.state.ledger.read_bytes() == content
    assert line("runs", "--open", "--json").json["runs"][0]["run_id"] == run_id


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to somebody else")
def test_somebody_elses_state_directory_is_read_and_not_written(line: CommandLine, run_id: str) -> None:
    before = answers(line, run_id)
    for path in (line.state.root, *line.state.root.rglob("*")):
        os.chown(path, 65534, 65534)
    assert answers(line, run_id) == before
    assert "belongs to user 65534" in line("task", "add", "x", expect=1).complaint
    assert {path.stat().st_uid for path in line.state.root.rglob("*")} == {65534}
    for path in (line.state.root, *line.state.root.rglob("*")):
        os.chown(path, 0, 0)
    line("task", "add", "x")


def plant_fifo_beside_an_open_ledger(root: Path) -> None:
    (root / "ledger.db-shm").touch()
    os.mkfifo(root / "ledger.db-journal")


def plant_log_without_end(root: Path) -> None:
    (root / "ledger.db-wal").touch()
    os.truncate(root / "ledger.db-wal", 1 << 42)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to somebody else")
@pytest.mark.parametrize("plant", [plant_fifo_beside_an_open_ledger, plant_log_without_end])
def test_somebody_elses_ledger_neither_holds_a_reader_up_nor_fills_its_disk(
    line: CommandLine, run_id: str, plant: Callable[[Path], None]
) -> None:
    assert run_id
    plant(line.state.root)
    for path in (line.state.root, *line.state.root.rglob("*")):
        os.chown(path, 65534, 65534)
    for command in ("runs", "status", "doctor"):
        said = line(*command.split(), expect=1)
        told = said.out + said.err
        assert "is not a file" in told or "there is no room" in told, command


@pytest.mark.skipif(os.geteuid() == 0, reason="no mode keeps root from reading")
def test_a_ledger_that_may_not_even_be_read_is_one_line(line: CommandLine) -> None:
    line.task()
    line.state.ledger.chmod(0)
    assert str(line.state.ledger) in line("runs", expect=1).complaint
