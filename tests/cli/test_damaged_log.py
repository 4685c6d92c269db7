"""A write-ahead log that is cut, overwritten or another ledger's, and an index that is rubbish.

SQLite takes from a log what is whole, up to the first commit that is not, and makes the index anew. So nothing is
ever there that was not written, and where admissions are lost with the log no fleet starts.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from operations_center.boards.local import LocalBoard, NewTask
from operations_center.clock import SystemClock
from operations_center.store import Store
from tests.cli.command_line import CommandLine
from tests.runs import admit, dead_process

FRAME = 24 + 4096
HEADER = 32
IN_THE_LOG = 8


@pytest.fixture
def line(line: CommandLine) -> Iterator[CommandLine]:
    """Its first task is in the file, with a run; the others are in the log only."""
    line.closed_run()
    keep_log(line)
    yield line


def keep_log(line: CommandLine) -> None:
    """As a process leaves it that was killed: the last to close would merge the log into the ledger."""
    kept = line.root / "kept"
    kept.mkdir(exist_ok=True)
    with line.center() as center:
        for number in range(IN_THE_LOG):
            center.board.add([NewTask(f"in the log {number}", "goal")])
        for suffix in ("", "-wal"):
            shutil.copy(f"{line.state.ledger}{suffix}", kept)
    bring_back(line, kept)


def bring_back(line: CommandLine, kept: Path) -> None:
    beside(line, "-shm").unlink(missing_ok=True)
    for suffix in ("", "-wal"):
        shutil.copy(kept / f"{line.state.ledger.name}{suffix}", beside(line, suffix))


def beside(line: CommandLine, suffix: str) -> Path:
    return Path(f"{line.state.ledger}{suffix}")


def begin(run_directory: Path) -> None:
    """As a keeper does: its very first act."""
    run_directory.mkdir()
    (run_directory / "gate").touch()


def titles(line: CommandLine) -> list[str]:
    return [task["title"] for task in line("task", "list", "--json").json["tasks"]]


def assert_is_whole(line: CommandLine) -> None:
    assert line("ledger", "verify").code == 0
    assert len(line("runs", "--json").json["runs"]) == 1


def test_a_log_that_is_cut_anywhere_gives_what_was_committed_before_the_cut(line: CommandLine) -> None:
    kept = line.root / "kept"
    log = (kept / "ledger.db-wal").read_bytes()
    everything = titles(line)
    seen = set()
    for size in sorted({0, 1, HEADER, len(log) - 1, *range(HEADER + FRAME // 2, len(log), 2 * FRAME)}):
        bring_back(line, kept)
        beside(line, "-wal").write_bytes(log[:size])
        present = titles(line)
        assert everything[: len(present)] == present and present, size
        assert_is_whole(line)
        seen.add(len(present))
    assert min(seen) == 1 and len(seen) > IN_THE_LOG // 2


def test_rubbish_in_the_log_gives_what_was_committed_before_it(line: CommandLine) -> None:
    kept = line.root / "kept"
    log = (kept / "ledger.db-wal").read_bytes()
    everything = titles(line)
    chance = random.Random(3)
    seen = set()
    for at in sorted({0, 8, 16, 24, *(chance.randrange(len(log) - 64) for _ in range(12))}):
        bring_back(line, kept)
        beside(line, "-wal").write_bytes(log[:at] + chance.randbytes(64) + log[at + 64 :])
        present = titles(line)
        assert everything[: len(present)] == present and present, at
        assert_is_whole(line)
        seen.add(len(present))
    assert len(seen) > 1


@pytest.mark.parametrize("content", [b"", b"\xff" * 32768, random.Random(5).randbytes(32768), b"x"])
def test_an_index_that_is_rubbish_is_made_anew(line: CommandLine, content: bytes) -> None:
    before = titles(line)
    bring_back(line, line.root / "kept")
    beside(line, "-shm").write_bytes(content)
    assert titles(line) == before
    assert_is_whole(line)


def test_a_log_whose_admissions_are_lost_lets_no_fleet_start(line: CommandLine) -> None:
    with line.center() as center:
        run = admit(center, "t2", dead_process())
        begin(center.state.run(run.run_id))
    bring_back(line, line.root / "kept")
    assert "its last writes are lost" in line("watch", "--role", "goal", "--once", expect=1).complaint
    assert "its last writes are lost" in line("doctor", expect=1).out


def log_of_another(line: CommandLine, tasks_before: int) -> bytes:
    """Of a ledger that has some tasks in its file and two in its log; of none, all that it has is in its log."""
    other = line.root / "another"
    (other / "kept").mkdir(parents=True)
    store = Store(other / "ledger.db", SystemClock())
    board = LocalBoard(store)
    if tasks_before:
        board.add([NewTask(f"another's {number}", "goal") for number in range(tasks_before)])
        store.close()
        store = Store(other / "ledger.db", SystemClock())
        board = LocalBoard(store)
    board.add([NewTask("another's, in its log", "goal") for _ in range(2)])
    log = (other / "ledger.db-wal").read_bytes()
    store.close()
    return log


@pytest.mark.parametrize("tasks_before", [0, 1, 200])
def test_another_ledgers_log_starts_nothing_unseen_and_a_backup_brings_everything_back(
    line: CommandLine, tasks_before: int
) -> None:
    before = titles(line)
    (run,) = line("runs", "--json").json["runs"]
    begin(line.state.run(run["run_id"]))
    copy = line("ledger", "backup", str(line.root / "copy.db")).out.strip()

    bring_back(line, line.root / "kept")
    beside(line, "-wal").write_bytes(log_of_another(line, tasks_before))

    if tasks_before:
        # A mixture of both, which SQLite does not notice everywhere.
        assert line("ledger", "verify", expect=1).out
    else:
        # The other one, whole: it has never handed out a run.
        assert "its last writes are lost" in line("watch", "--role", "goal", "--once", expect=1).complaint
        assert "its last writes are lost" in line("doctor", expect=1).out
    line("ledger", "restore", copy)
    assert titles(line) == before
    assert_is_whole(line)
