"""runs, events, logs, pause, resume."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from operations_center.cli.tail import CHUNK, Tail
from operations_center.ledger import Pause
from tests.cli.command_line import CommandLine
from tests.fleet import PATIENCE_S


@contextmanager
def following(line: CommandLine, *words: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "operations_center", *words], stdout=subprocess.PIPE, text=True, cwd=line.root
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_runs_are_newest_first_and_null_where_nothing_is(line: CommandLine) -> None:
    first, second = line.closed_run(), line.admit(line.task())
    runs = line("runs", "--json").json["runs"]
    assert [run["run_id"] for run in runs] == [second.run_id, first.run_id]
    assert (runs[0]["outcome"], runs[1]["outcome"], runs[1]["state"]) == (None, "succeeded", "closed")
    assert first.run_id in line("runs").out


def test_runs_are_chosen_by_task_backend_and_state(line: CommandLine) -> None:
    first, second, third = line.closed_run(), line.admit(line.task()), line.admit(line.task())

    def chosen(*words: str) -> list[str]:
        return [run["run_id"] for run in line("runs", *words, "--json").json["runs"]]

    assert chosen("--open") == [third.run_id, second.run_id]
    assert chosen("--open", "--task", second.task_id) == [second.run_id]
    assert chosen("--task", first.task_id) == [first.run_id]
    assert chosen("--backend", "nobody") == []
    assert chosen("--limit", "1") == [third.run_id]


@pytest.mark.parametrize("limit", ["0", "-1", "99999999999999999999", "many"])
def test_a_limit_that_is_none_is_a_mistake_of_usage(line: CommandLine, limit: str) -> None:
    line("runs", "--limit", limit, expect=2)


def test_events_tell_the_story_of_a_run(line: CommandLine) -> None:
    run = line.closed_run()
    events = line("events", "--run", run.run_id, "--json").json["events"]
    assert [event["kind"] for event in events] == [
        "run.reserved",
        "task.claimed",
        "run.settled",
        "task.finished",
        "run.closed",
    ]
    assert "outcome=succeeded proof=exit_recorded" in line("events", "--run", run.run_id).out


def test_events_since_a_time_or_so_long_ago(line: CommandLine) -> None:
    line.task()
    assert len(line("events", "--since", "1h", "--json").json["events"]) == 1
    assert line("events", "--since", "2999-01-01T00:00:00Z", "--json").json["events"] == []
    line("events", "--since", "yesterday", expect=2)
    line("events", "--since", "0001-01-01T00:00:00+23:00")


def test_events_keep_to_one_short_line_each(line: CommandLine) -> None:
    line("task", "add", "two\nlines \x1b[31m", "--body", "b" * 5000)
    (shown,) = line("events").out.splitlines()
    assert len(shown) < 300
    assert "\x1b" not in shown


def test_events_of_an_unknown_run_are_not_found(line: CommandLine) -> None:
    assert "r9-abcdef" in line("events", "--run", "r9-abcdef", expect=4).complaint


def test_events_are_followed_as_they_happen(line: CommandLine) -> None:
    line.task("before")
    with following(line, "events", "-f", "--json") as process:
        assert json.loads(read_line(process))["kind"] == "task.added"
        line("pause", "goal")
        event = json.loads(read_line(process))
        assert (event["schema"], event["kind"]) == (1, "pause.begun")


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


def test_logs_of_a_run_are_both_streams(line: CommandLine) -> None:
    run = line.admit(line.task())
    assert line("logs", run.run_id, "--json").json["lines"] == []
    directory = line.state.run(run.run_id)
    directory.mkdir()
    (directory / "stdout").write_bytes(b"out\nnot ended")
    (directory / "stderr").write_bytes(b"\xff\n")
    assert line("logs", run.run_id).out == "out\nnot ended\n[stderr] \ufffd\n"


def test_logs_of_what_is_not_there_are_not_found(line: CommandLine) -> None:
    for name in ("nobody", "r9-abcdef", "../../etc/passwd"):
        assert name in line("logs", name, expect=4).complaint


def test_an_executor_cannot_lead_logs_elsewhere(line: CommandLine) -> None:
    run = line.admit(line.task())
    directory = line.state.run(run.run_id)
    directory.mkdir()
    (directory / "stdout").symlink_to("/etc/passwd")
    os.mkfifo(directory / "stderr")
    assert line("logs", run.run_id).out == ""


def test_logs_are_followed_until_the_run_is_closed(line: CommandLine) -> None:
    run = line.admit(line.task())
    directory = line.state.run(run.run_id)
    directory.mkdir()
    (directory / "stdout").write_text("first\n")
    with following(line, "logs", run.run_id, "-f") as process:
        assert read_line(process) == "first\n"
        with (directory / "stdout").open("a") as file:
            file.write("second\nlast")
        assert read_line(process) == "second\n"
        line.close(run)
        assert read_line(process) == "last\n"
        assert process.wait(PATIENCE_S) == 0


def test_a_tail_goes_on_in_the_file_that_takes_the_place_of_a_rotated_one(tmp_path: Path) -> None:
    path = tmp_path / "goal.log"
    path.write_text("0\n1\n")
    tail = Tail("log", path)
    assert list(tail.begin(1)) == ["1"]
    with path.open("a") as old:
        old.write("2\n")
        path.rename(tmp_path / "goal.log.1")
        old.write("3\n")
    assert list(tail.more()) == ["2", "3"]
    path.write_text("4\n")
    assert list(tail.more()) == ["4"]
    path.write_text("")
    assert list(tail.more()) == []
    path.write_text("5\n6")
    assert [*tail.more(), *tail.end()] == ["5", "6"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 5000])
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_tail_begins_at_the_right_line_however_chunks_fall(tmp_path: Path, count: int, end: str) -> None:
    lines = ["x" * length for length in (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 0, 7, *([30] * 4000))]
    path = tmp_path / "stdout"
    path.write_text("\n".join(lines) + end)
    assert list(Tail("stdout", path).last_lines(count)) == (lines[-count:] if count else [])


def test_a_tail_reads_only_the_end_of_what_is_large(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    with path.open("wb") as file:
        file.truncate(20 * 1024**3)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    assert list(Tail("stdout", path).last_lines(1)) == ["last"]


def test_pause_and_resume_are_kept_in_the_ledger(line: CommandLine) -> None:
    assert line("pause", "goal", "--reason", "lunch", "--json").json["name"] == "goal"
    line("pause")
    with line.center() as center:
        assert {(pause.name, pause.source) for pause in center.ledger.pauses()} == {("goal", "person"), ("*", "person")}
    resumed = line("resume", "goal", "--json").json
    assert (resumed["ended"], [pause["name"] for pause in resumed["pauses"]]) == (1, ["*"])
    assert "still paused" not in line("resume").err


def test_resume_ends_what_a_drain_left_and_not_what_the_watchdog_found(line: CommandLine) -> None:
    with line.center() as center:
        for source in ("drain", "watchdog"):
            center.ledger.pause(Pause("*", source, "because", 1))
    resumed = line("resume")
    assert "still paused by watchdog" in resumed.err
    with line.center() as center:
        assert [pause.source for pause in center.ledger.pauses()] == ["watchdog"]


def test_a_name_that_is_neither_role_nor_backend_is_not_found(line: CommandLine) -> None:
    for verb in ("pause", "resume"):
        assert "nobody" in line(verb, "nobody", expect=4).complaint
