"""Commands that only read make nothing, and a board that was there and is gone is told."""

import os
import shutil
import signal
import subprocess
import threading

import pytest

from tests.cli.command_line import CommandLine

READING = {
    "status": 3,
    "runs": 0,
    "task list": 0,
    "task show t1": 4,
    "events": 0,
    "why": 0,
    "explain r1-abcdef": 4,
    "releases": 0,
    "logs goal": None,
    "ledger verify": 0,
    "reconcile --dry-run": 0,
    "doctor": 0,
    "config check": 0,
    "stop r1-abcdef": 4,
    "task cancel t1": 4,
    "down": 0,
    "down --now": 0,
}


def test_commands_that_only_read_make_nothing(line: CommandLine) -> None:
    before = sorted(os.listdir(line.root))
    for words, code in READING.items():
        line(*words.split(), expect=code)
        assert sorted(os.listdir(line.root)) == before, words


@pytest.mark.parametrize("left", [False, True])
def test_a_board_that_is_gone_is_told_and_never_silently_begun_again(line: CommandLine, left: bool) -> None:
    if not left:
        # In a work tree git may have taken it along.
        (line.root / ".git").mkdir()
    line.task()
    shutil.rmtree(line.state.root)
    if left:
        line.state.root.mkdir()
    for words in ("task add again", "up --detach", "task list", "runs", "watch --role goal", "reconcile"):
        told = line(*words.split(), expect=1).complaint
        assert str(line.state.root) in told and "ledger new" in told, words
    assert line("status", "--json", expect=1).json["ledger_error"]
    if not left:
        assert str(line.state.root) in line("doctor", expect=1).out
    line("ledger", "new")
    assert line.task("a new beginning") == "t1"
    line("ledger", "new", expect=1)


def test_a_board_that_a_person_has_removed_is_told_by_who_reads_and_begun_again_by_who_adds(line: CommandLine) -> None:
    line.task()
    shutil.rmtree(line.state.root)
    assert str(line.state.root) in line("task", "list", expect=1).complaint
    assert line.task("a new beginning") == "t1"


@pytest.mark.parametrize("left", [False, True])
def test_what_runs_of_a_state_directory_that_is_gone_is_named_and_ended(line: CommandLine, left: bool) -> None:
    line.task()
    of_run = {"OPERATIONS_CENTER_RUN_ID": "r1-abcdef", "OPERATIONS_CENTER_RUN_DIR": str(line.state.runs / "r1-abcdef")}
    with subprocess.Popen(["sleep", "300"], env={**os.environ, **of_run}) as executor:
        try:
            shutil.rmtree(line.state.root)
            if left:
                line.state.root.mkdir(mode=0o700)
            assert "r1-abcdef of it is still executing" in line("status", expect=1).out
            told = line("down", expect=1 if left else 0)
            assert "no executor runs" not in told.out
            assert left or "r1-abcdef of it runs on: bring the directory back, or end what runs with" in told.out
            assert executor.poll() is None
            # It is our child: only when it was waited for is it gone.
            reaper = threading.Thread(target=executor.wait)
            reaper.start()
            told = line("down", "--now", expect=1 if left else 0)
            assert "was ended" in told.out + told.err
            reaper.join()
            # Not asked to end: a record of that would count as its own end.
            assert executor.returncode == -signal.SIGKILL
        finally:
            executor.kill()


def test_a_board_that_is_brought_back_is_the_same(line: CommandLine) -> None:
    line.task("before")
    away = line.root / "away"
    line.state.root.rename(away)
    line("task", "list", expect=1)
    away.rename(line.state.root)
    assert [task["title"] for task in line("task", "list", "--json").json["tasks"]] == ["before"]


def test_a_backup_is_restored_where_the_board_is_gone(line: CommandLine) -> None:
    line.task("before")
    copy = line("ledger", "backup", str(line.root / "copy.db")).out.strip()
    shutil.rmtree(line.state.root)
    line("ledger", "restore", copy)
    assert [task["title"] for task in line("task", "list", "--json").json["tasks"]] == ["before"]


def test_a_first_start_whose_ledger_is_empty_yet_is_read_as_empty(line: CommandLine) -> None:
    line.state.root.mkdir(mode=0o700)
    line.state.ledger.touch()
    assert line("task", "list", "--json").json["tasks"] == []
    assert line.task() == "t1"
