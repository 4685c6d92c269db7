"""A ledger that is cut, overwritten, emptied or replaced is refused with one line, and a backup brings it back."""

import itertools
import os
import random
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.command_line import Answer, CommandLine

PAGE = 4096
READING = (("status",), ("runs",), ("events",), ("ledger", "verify"), ("doctor",))
WRITING = (("task", "add", "x"), ("reconcile",), ("watch", "--role", "goal", "--once"), ("pause",))


@pytest.fixture
def line(line: CommandLine) -> CommandLine:
    """With closed runs, tasks and events of several pages, merged into one file."""
    line.closed_run()
    line.task("waits")
    with line.center() as center, center.ledger.transaction():
        for number in range(60):
            center.ledger.note("test", {"padding": f"{number}" * 200})
    return line


def cut_to(size: int) -> Callable[[CommandLine], None]:
    return lambda line: os.truncate(line.state.ledger, size)


def replaced_by(make: Callable[[Path], object]) -> Callable[[CommandLine], None]:
    def replace(line: CommandLine) -> None:
        line.state.ledger.unlink()
        make(line.state.ledger)

    return replace


def link_elsewhere(line: CommandLine) -> None:
    """To a sound ledger that is not in the state directory."""
    elsewhere = line.root / "elsewhere"
    line.state.ledger.rename(elsewhere)
    elsewhere.chmod(0o400)
    line.state.ledger.symlink_to(elsewhere)


def foreign_database(path: Path) -> None:
    """One that does not say whose it is."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()


def empty_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def newer(line: CommandLine) -> None:
    with closing(sqlite3.connect(line.state.ledger)) as connection:
        connection.execute("PRAGMA user_version = 999")


def header_overwritten(line: CommandLine) -> None:
    with line.state.ledger.open("r+b") as file:
        file.write(b"\xff" * 100)


SPOILED: dict[str, Callable[[CommandLine], None]] = {
    "empty": cut_to(0),
    "missing": lambda line: line.state.ledger.unlink(),
    "directory": replaced_by(Path.mkdir),
    "fifo": replaced_by(os.mkfifo),
    "text": replaced_by(lambda path: path.write_text("this is no ledger\n" * 1000)),
    "random bytes": replaced_by(lambda path: path.write_bytes(random.Random(1).randbytes(100_000))),
    "foreign database": replaced_by(foreign_database),
    "empty database": replaced_by(empty_database),
    "link elsewhere": link_elsewhere,
    "dangling link": replaced_by(lambda path: path.symlink_to("nowhere")),
    "newer schema": newer,
    "header overwritten": header_overwritten,
}


def refusal(line: CommandLine, *words: str) -> Answer:
    """The answer of a command that must say in one line which ledger it cannot use."""
    answer = line(*words, expect=1)
    if words == ("doctor",):
        assert str(line.state.ledger) in answer.out
        return answer
    assert str(line.state.ledger) in answer.complaint
    return answer


@pytest.mark.parametrize("how", SPOILED)
def test_a_ledger_that_is_no_ledger_is_refused_by_every_command_and_left_as_it_is(line: CommandLine, how: str) -> None:
    SPOILED[how](line)
    before = contents(line)
    for words in (*READING, *WRITING):
        refusal(line, *words)
    assert contents(line) == before


def contents(line: CommandLine) -> bytes | str | None:
    path = line.state.ledger
    if path.is_file():
        return path.read_bytes()
    return str(path.stat().st_mode) if path.exists() else None


def test_a_ledger_that_is_cut_at_any_page_is_refused(line: CommandLine) -> None:
    whole = line.state.ledger.read_bytes()
    assert len(whole) > 20 * PAGE
    for size in range(PAGE, len(whole), PAGE):
        line.state.ledger.write_bytes(whole[:size])
        assert "malformed" in refusal(line, "runs").complaint, size
        refusal(line, "task", "add", "x")
        assert line.state.ledger.read_bytes() == whole[:size]


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Rubbish at the head of each page, and somewhere in it; the same each time."""
    chance = random.Random(7)
    for page in range(len(content) // PAGE):
        for name, offset, length in (("head", 0, 8), ("middle", chance.randrange(100, PAGE - 64), 64)):
            at = page * PAGE + offset + (100 if page == 0 and name == "head" else 0)
            yield f"{name} of page {page}", content[:at] + chance.randbytes(length) + content[at + length :]


def test_damage_anywhere_gives_an_answer_or_one_line(line: CommandLine) -> None:
    commands = itertools.cycle((("runs",), ("task", "list"), ("status",), ("reconcile",), ("task", "add", "x")))
    whole = line.state.ledger.read_bytes()
    refused = 0
    for where, content in damages(whole):
        for suffix in ("-wal", "-shm"):
            Path(f"{line.state.ledger}{suffix}").unlink(missing_ok=True)
        line.state.ledger.write_bytes(content)
        for words in (next(commands), ("ledger", "verify")):
            answer = line(*words, expect=None)
            assert answer.code in (0, 1, 3), (where, words)
            if answer.code == 1 and answer.err:
                refused += 1
                assert str(line.state.ledger) in answer.complaint, (where, words)
    assert refused > 20


def test_a_restore_brings_back_what_any_damage_took(line: CommandLine) -> None:
    newest = line.closed_run()
    copy = Path(line("ledger", "backup", str(line.root / "copy.db")).out.strip())
    for how, spoil in SPOILED.items():
        spoil(line)
        assert str(copy) in line("runs", expect=1).complaint or how == "newer schema"
        line("ledger", "restore", str(copy))
        assert line("ledger", "verify").code == 0
        after = line.closed_run()
        assert after.fence > newest.fence, how
        assert int(after.task_id[1:]) > int(newest.task_id[1:]), how
        newest = after
        copy = Path(line("ledger", "backup", str(line.root / f"{how}.db")).out.strip())
    assert stat.S_IMODE((line.root / "elsewhere").stat().st_mode) == 0o400, "it was taken for the ledger"
