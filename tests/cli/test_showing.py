"""runs, events, pause, resume."""

import json

import pytest

from operations_center.ledger import Pause
from tests.cli.command_line import CommandLine, following, read_line


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
