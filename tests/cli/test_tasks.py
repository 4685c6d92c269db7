"""task add, import, list, show, edit, retry."""

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from operations_center.model import Attempts, TaskState
from tests.cli.command_line import CommandLine


def test_add_prints_only_the_id(line: CommandLine) -> None:
    assert line("task", "add", "Write it").out == "t1\n"


def test_add_in_json_is_the_task_itself(line: CommandLine) -> None:
    task = line("task", "add", "Write it", "--body", "all of it", "--priority", "high", "--json").json
    assert (task["schema"], task["id"], task["kind"], task["state"]) == (1, "t1", "goal", "ready")
    assert (task["body"], task["priority"], task["parent"], task["not_before"]) == ("all of it", "high", None, None)


def test_a_body_comes_from_a_file_or_from_stdin(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    (line.root / "body").write_bytes("\ufeffAll of it\n".encode())
    assert line("task", "add", "one", "--body-file", "body", "--json").json["body"] == "All of it\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ünd".encode())))
    assert line("task", "add", "two", "--body-file", "-", "--json").json["body"] == "ünd"


def test_two_bodies_are_a_mistake_of_usage(line: CommandLine) -> None:
    line("task", "add", "x", "--body", "a", "--body-file", "b", expect=2)


@pytest.mark.parametrize("title", ["", "  ", "a\0b", "\udcff", "x" * 10_001])
def test_a_title_that_no_program_could_be_given_is_refused(line: CommandLine, title: str) -> None:
    assert "its title" in line("task", "add", title, expect=1).complaint


@pytest.mark.parametrize("content", [b"\xff", b"a\0b"])
def test_a_body_that_is_not_text_is_refused(line: CommandLine, content: bytes) -> None:
    (line.root / "body").write_bytes(content)
    assert "body" in line("task", "add", "x", "--body-file", "body", expect=1).complaint


def test_a_body_file_that_cannot_be_read_is_named(line: CommandLine) -> None:
    for name in ("missing", "."):
        assert name in line("task", "add", "x", "--body-file", name, expect=1).complaint


def test_a_kind_that_no_role_takes_is_accepted_with_a_warning(line: CommandLine) -> None:
    added = line("task", "add", "x", "--kind", "gaol")
    assert added.out == "t1\n"
    assert 'did you mean "goal"' in added.err


def test_a_backend_that_is_not_there_is_not_found(line: CommandLine) -> None:
    assert 'did you mean "agent"' in line("task", "add", "x", "--backend", "agend", expect=4).complaint
    assert line("task", "list", "--json").json["tasks"] == []


def test_list_is_oldest_first_and_by_state(line: CommandLine) -> None:
    line.task("one")
    line.task("two")
    line("task", "edit", "t1", "--state", "backlog")
    assert [task["id"] for task in line("task", "list", "--json").json["tasks"]] == ["t1", "t2"]
    assert [task["id"] for task in line("task", "list", "--state", "ready", "--json").json["tasks"]] == ["t2"]
    assert "two" in line("task", "list").out


def test_a_task_that_is_not_there_is_not_found(line: CommandLine) -> None:
    for words in (["show", "t9"], ["edit", "t9", "--title", "x"], ["retry", "t9"]):
        assert "t9" in line("task", *words, expect=4).complaint


def test_edit_changes_what_is_given(line: CommandLine) -> None:
    line.task()
    changed = ["--title", "new", "--body", "b", "--kind", "test", "--priority", "low", "--backend", "agent"]
    task = line("task", "edit", "t1", *changed, "--json").json
    assert (task["title"], task["body"], task["kind"], task["priority"], task["backend"]) == (
        ("new", "b", "test", "low", "agent")
    )
    assert line("task", "edit", "t1", "--backend", "", "--json").json["backend"] is None


def test_edit_keeps_no_reason_for_a_state_that_is_over(line: CommandLine) -> None:
    line.task()
    assert line("task", "edit", "t1", "--state", "blocked", "--json").json["reason"]
    assert line("task", "edit", "t1", "--state", "ready", "--json").json["reason"] is None


def test_edit_refuses_nothing_to_do_and_a_running_task(line: CommandLine) -> None:
    line.admit(line.task())
    line("task", "edit", "t1", expect=2)
    line("task", "edit", "t1", "--state", "running", expect=2)
    assert "it is running" in line("task", "edit", "t1", "--title", "x", expect=1).complaint
    assert "is still open" in line("task", "retry", "t1", expect=1).complaint


def test_retry_forgets_attempts_and_backoff(line: CommandLine) -> None:
    line.task()
    line("task", "edit", "t1", "--state", "blocked")
    with line.center() as center:
        center.ledger.set_attempts("t1", Attempts(attempts=3, retries=2, not_before=99_999_999_999_999))
    task = line("task", "retry", "t1", "--json").json
    assert (task["state"], task["attempts"], task["retries"], task["not_before"]) == ("ready", 0, 0, None)
    assert line("ledger", "verify").code == 0


def test_import_adds_every_line_in_order(line: CommandLine) -> None:
    (line.root / "tasks.jsonl").write_text(
        '\ufeff{"title": "one"}\r\n\n   \n'
        '{"title": "zwei", "kind": "test", "body": "b", "priority": "urgent", "backend": null}'
    )
    tasks = line("task", "import", "tasks.jsonl", "--json").json["tasks"]
    assert [(task["id"], task["title"], task["kind"], task["priority"]) for task in tasks] == [
        ("t1", "one", "goal", "normal"),
        ("t2", "zwei", "test", "urgent"),
    ]


def test_import_reads_stdin(line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"title": "x"}\n{"title": "y"}\n')))
    assert line("task", "import", "-").out == "t1\nt2\n"


BAD_LINES = [
    b"[]",
    b"null",
    b'"title"',
    b"{}",
    b"{",
    b'{"title": 1}',
    b'{"title": ""}',
    b'{"title": null}',
    b'{"title": "a", "title": "b"}',
    b'{"title": "a", "titel": "b"}',
    b'{"title": "a", "body": []}',
    b'{"title": "a", "body": "\\u0000"}',
    b'{"title": "\\ud800"}',
    b'{"title": "a", "priority": "HIGH"}',
    b'{"title": "a", "priority": 3}',
    b'{"title": "a", "backend": "nobody"}',
    b'{"title": "a", "kind": ""}',
    b'{"title": "\xff"}',
    b'{"title": "\0"}',
    b'{"title": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
]


@pytest.mark.parametrize("bad", BAD_LINES, ids=[str(number) for number in range(len(BAD_LINES))])
def test_import_names_a_bad_line_and_adds_none(line: CommandLine, bad: bytes) -> None:
    (line.root / "tasks.jsonl").write_bytes(b'{"title": "good"}\n\n' + bad + b'\n{"title": "good"}\n')
    assert "tasks.jsonl:3: " in line("task", "import", "tasks.jsonl", expect=1).complaint
    assert line("task", "list", "--json").json["tasks"] == []


@pytest.mark.parametrize("name", ["missing", ".", "a\0b", "/proc/self/mem", "x" * 5000])
def test_import_names_a_file_that_cannot_be_read(line: CommandLine, name: str) -> None:
    assert line("task", "import", name, expect=1).complaint.startswith("cannot import ")


def test_import_of_the_ledger_itself_does_no_harm(line: CommandLine) -> None:
    line.task()
    line("task", "import", str(line.state.ledger), expect=1)
    assert line("ledger", "verify").code == 0


def rubbish(seed: int) -> bytes:
    chance = random.Random(seed)
    pieces = [
        b'{"title": "x"}',
        b'{"title": "x", "kind": "test"}',
        *BAD_LINES[:20],
        b"\xef\xbb\xbf",
        b"\r",
        b"\x0b\x1c",
        chance.randbytes(chance.randrange(200)),
        json.dumps({"title": chance.choice(["t", 1, None, [], {}]), "body": "b" * chance.randrange(3000)}).encode(),
        b'{"title": "NaN", "body": NaN}',
    ]
    chosen = b"\n".join(chance.choice(pieces) for _ in range(chance.randrange(6)))
    if chance.random() < 0.3:
        cut = chance.randrange(len(chosen) + 1)
        return chosen[:cut]
    return chosen


def test_rubbish_is_always_one_line_and_a_known_exit_code(line: CommandLine, tmp_path: Path) -> None:
    file = line.root / "rubbish.jsonl"
    known = 0
    for seed in range(200):
        file.write_bytes(rubbish(seed))
        answer = line("task", "import", str(file), "--json", expect=None)
        if answer.code == 0:
            known += len(answer.json["tasks"])
        else:
            assert (answer.code, answer.out) == (1, ""), seed
            assert answer.complaint.startswith(f"cannot import {file}:"), seed
    assert len(line("task", "list", "--json").json["tasks"]) == known
    assert not list(tmp_path.glob("operations-center-report-*"))


@pytest.fixture
def wake_up(line: CommandLine) -> Iterator[int]:
    line.state.create()
    os.mkfifo(line.state.wake / "goal")
    descriptor = os.open(line.state.wake / "goal", os.O_RDWR | os.O_NONBLOCK)
    yield descriptor
    os.close(descriptor)


def test_whatever_makes_work_ready_wakes_the_watchers(line: CommandLine, wake_up: int) -> None:
    (line.root / "tasks.jsonl").write_text('{"title": "x"}')
    for words in (
        ["task", "add", "x"],
        ["task", "import", "tasks.jsonl"],
        ["task", "edit", "t1", "--state", "backlog"],
        ["task", "retry", "t1"],
        ["resume"],
    ):
        line(*words)
        assert os.read(wake_up, 100), words
    with line.center() as center:
        assert {task.state for task in center.board.tasks()} == {TaskState.READY}


def test_a_title_that_is_not_utf_8_is_refused_without_a_report(line: CommandLine, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "operations_center", "task", "add", b"\xff\xfe"],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"cannot add the task: its title is not UTF-8")
    assert not list(tmp_path.glob("operations-center-report-*"))
