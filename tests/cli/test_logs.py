"""logs: bytes as they went in, whatever happens to the file; harmless text on a terminal."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from operations_center.cli.tail import CHUNK, Lost, Piece, Tail
from operations_center.model import Run
from tests.cli.command_line import CommandLine, following, read_line
from tests.fleet import PATIENCE_S


@pytest.fixture
def run(line: CommandLine) -> Run:
    """A run that is open and has a directory."""
    run = line.admit(line.task())
    line.state.run(run.run_id).mkdir()
    return run


@pytest.fixture
def write(line: CommandLine, run: Run) -> Callable[[str, bytes], None]:
    def append(stream: str, data: bytes) -> None:
        with (line.state.run(run.run_id) / stream).open("ab") as file:
            file.write(data)

    return append


@contextmanager
def piped(line: CommandLine, *words: str) -> Iterator[Callable[[int], bytes]]:
    """``logs`` into a pipe; what is given reads so many bytes as soon as they have come, or what is left (-1)."""
    command = [sys.executable, "-P", "-m", "operations_center", "logs", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=line.root) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.read
        finally:
            process.kill()


def on_a_terminal(line: CommandLine, *words: str, **variables: str) -> bytes:
    """What ``logs`` prints where its output is a terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "operations_center", "logs", *words],
        stdout=slave,
        cwd=line.root,
        env=os.environ | variables,
    ) as process:
        os.close(slave)
        printed = b""
        try:
            while chunk := os.read(master, CHUNK):
                printed += chunk
        except OSError:  # EIO: nobody has the terminal any more
            pass
        finally:
            os.close(master)
        assert process.wait(PATIENCE_S) == 0
    return printed.replace(b"\r\n", b"\n")


def joined(pieces: Iterable[Piece]) -> bytes:
    return b"".join(b"<%d>" % piece if isinstance(piece, Lost) else piece for piece in pieces)


def last(path: Path, count: int) -> bytes:
    tail = Tail("stdout", path)
    try:
        return joined(tail.begin(count))
    finally:
        tail.close()


def punch(path: Path, begin: int, length: int) -> None:
    command = ["fallocate", "--punch-hole", "--offset", str(begin), "--length", str(length), str(path)]
    subprocess.run(command, check=True)


def test_logs_of_a_role_are_its_last_lines(line: CommandLine) -> None:
    line.state.create()
    assert line("logs", "goal").out == ""
    line.state.log("goal").write_text("".join(f"{number}\n" for number in range(1000)))
    assert line("logs", "goal", "-n", "2").out == "998\n999\n"
    assert len(line("logs", "goal").out.splitlines()) == 100
    assert line("logs", "goal", "-n", "1", "--json").json["lines"] == [{"stream": "log", "text": "999"}]


def test_logs_of_watchdog_and_supervisor_have_names_of_their_own(line: CommandLine) -> None:
    line.state.create()
    line.state.log("@watchdog").write_text("woof\n")
    line.state.log("@supervisor").write_text("up\n")
    assert (line("logs", "watchdog").out, line("logs", "supervisor").out) == ("woof\n", "up\n")


def test_logs_of_what_is_not_there_are_not_found(line: CommandLine) -> None:
    for name in ("nobody", "r9-abcdef", "../../etc/passwd"):
        assert name in line("logs", name, expect=4).complaint


def test_an_executor_cannot_lead_logs_elsewhere(line: CommandLine, run: Run) -> None:
    directory = line.state.run(run.run_id)
    (directory / "stdout").symlink_to("/etc/passwd")
    os.mkfifo(directory / "stderr")
    assert line("logs", run.run_id).out == ""


def test_bytes_come_out_as_they_went_in_and_lines_of_stderr_are_marked(
    line: CommandLine, run: Run, write: Callable[[str, bytes], None]
) -> None:
    assert line("logs", run.run_id, "--json").json["lines"] == []
    out = b"\xff\x00\x1b[2J\r" + b"long " * CHUNK + b"\nnot ended"
    write("stdout", out)
    with piped(line, run.run_id) as read:
        assert read(-1) == out
    write("stderr", b"one\n\ntwo \xff")
    for words in ([], ["--raw"]):
        with piped(line, run.run_id, *words) as read:
            assert read(-1) == out + b"\n[stderr] one\n[stderr] \n[stderr] two \xff"
    lines = line("logs", run.run_id, "--json").json["lines"]
    assert [(each["stream"], each["text"][-9:]) for each in lines[1:]] == [
        ("stdout", "not ended"),
        ("stderr", "one"),
        ("stderr", ""),
        ("stderr", "two \ufffd"),
    ]


def test_a_line_without_an_end_is_followed_at_once(
    line: CommandLine, run: Run, write: Callable[[str, bytes], None]
) -> None:
    write("stdout", b"Overwrite? [y/N] ")
    with piped(line, run.run_id, "-f") as read, following(line, "logs", run.run_id, "-f", "--json") as documents:
        assert read(17) == b"Overwrite? [y/N] "
        assert json.loads(read_line(documents)) == {
            "schema": 1,
            "stream": "stdout",
            "text": "Overwrite? [y/N] ",
            "ended": False,
        }
        write("stderr", b"warning")
        assert read(17) == b"\n[stderr] warning"
        assert json.loads(read_line(documents))["text"] == "warning"
        write("stdout", b"y\n")
        assert read(3) == b"\ny\n"
        assert json.loads(read_line(documents)) == {"schema": 1, "stream": "stdout", "text": "y", "ended": True}
        line.close(run)
        assert read(-1) == b""
        assert documents.wait(PATIENCE_S) == 0


def test_a_terminal_is_given_colours_and_no_other_escape_sequence(
    line: CommandLine, run: Run, write: Callable[[str, bytes], None]
) -> None:
    write("stdout", b"\x1b[31mred \x1b]0;OWNED\x07\xc2\x9b2J \xe2\x80\xae\r\nprogress\rdone\x1b[8")
    write("stderr", b"hm")
    assert on_a_terminal(line, run.run_id) == (
        b"\x1b[31mred \\x1b]0;OWNED\\x07\\x9b2J \\u202e\nprogress\\rdone\x1b[0m\n[stderr] hm\n\\x1b[8\n"
    )
    assert b"\x1b[31m" not in on_a_terminal(line, run.run_id, NO_COLOR="1")
    assert b"\x1b]0;OWNED\x07" in on_a_terminal(line, run.run_id, "--raw")


def test_a_tail_goes_on_in_the_file_that_takes_the_place_of_a_rotated_one(tmp_path: Path) -> None:
    path = tmp_path / "goal.log"
    path.write_text("0\n1\n")
    tail = Tail("log", path)
    assert joined(tail.begin(1)) == b"1\n"
    with path.open("a") as old:
        old.write("2\n")
        path.rename(tmp_path / "goal.log.1")
        old.write("3\n")
    assert joined(tail.more()) == b"2\n3\n"
    path.write_text("4\n")
    assert joined(tail.more()) == b"4\n"
    path.unlink()
    assert joined(tail.more()) == b""
    path.write_text("5\n6")
    assert joined(tail.more()) == b"5\n6"
    tail.close()


@pytest.mark.parametrize("grown", [b"", b"5\n", b"something else\n", b"x" * 2 * CHUNK])
def test_a_tail_begins_again_in_a_file_that_was_truncated(tmp_path: Path, grown: bytes) -> None:
    path = tmp_path / "goal.log"
    path.write_bytes(b"0\n1\n2\n")
    tail = Tail("log", path)
    assert joined(tail.begin(9)) == b"0\n1\n2\n"
    os.truncate(path, 0)
    with path.open("ab") as file:
        file.write(grown)
    assert joined(tail.more()) == grown
    assert joined(tail.more()) == b""
    tail.close()


def test_a_hole_is_shown_as_what_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"head\n" + b"x" * (4 * CHUNK) + b"\ntail\n")
    punch(path, CHUNK, 2 * CHUNK)
    shown = last(path, 9)
    assert shown.startswith(b"head\nx")
    assert shown.count(b"x") == 2 * CHUNK
    assert b"x<%d>x" % (2 * CHUNK) in shown
    assert last(path, 1) == b"tail\n"


def test_what_is_dropped_behind_or_before_a_follower_is_not_shown_again(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"x" * CHUNK + b"y" * CHUNK)
    tail = Tail("stdout", path)
    assert len(joined(tail.begin(9))) == 2 * CHUNK
    punch(path, CHUNK, CHUNK)
    with path.open("ab") as file:
        file.write(b"z" * CHUNK + b"end")
    punch(path, CHUNK, 2 * CHUNK)
    assert joined(tail.more()) == b"<%d>end" % CHUNK
    tail.close()


def test_logs_name_what_was_dropped_in_one_line(
    line: CommandLine, run: Run, write: Callable[[str, bytes], None]
) -> None:
    write("stdout", b"x" * (3 * CHUNK) + b"\n")
    punch(line.state.run(run.run_id) / "stdout", CHUNK, CHUNK)
    dropped = "[64KiB of output were dropped here]"
    assert [each[-40:] for each in line("logs", run.run_id).out.splitlines()] == ["x" * 40, dropped, "x" * 40]
    texts = [each["text"][-40:] for each in line("logs", run.run_id, "--json").json["lines"]]
    assert texts == ["x" * 40, dropped, "x" * 40]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 5000])
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_tail_begins_at_the_right_line_however_chunks_fall(tmp_path: Path, count: int, end: str) -> None:
    lines = ["x" * length for length in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 0, 7, *([30] * 4000))]
    path = tmp_path / "stdout"
    path.write_text("\n".join(lines) + end)
    assert last(path, count) == (("\n".join(lines[-count:]) + end).encode() if count else b"")


def test_a_tail_reads_only_what_is_there_of_what_seems_large(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    size = 20 * 1024**3
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    assert last(path, 1) == b"last\n"
    assert last(path, 9) == b"<%d>\nlast\n" % size
