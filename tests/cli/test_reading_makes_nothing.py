"""Commands that only read make nothing, and a board that was there and is gone is told."""

import os
import shutil

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
    line.task()
    shutil.rmtree(line.state.root)
    if left:
        line.state.root.mkdir()
    for words in ("task add again", "up --detach", "task list", "runs", "watch --role goal", "reconcile"):
        told = line(*words.split(), expect=1).complaint
        assert str(line.state.root) in told and "ledger new" in told, words
    assert line("status", "--json", expect=1).json["ledger_error"]
    line("ledger", "new")
    assert line.task("a new beginning") == "t1"
    line("ledger", "new", expect=1)


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
