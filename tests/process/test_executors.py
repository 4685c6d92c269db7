"""What an executor sees, and what becomes of its task however it behaves: real watchers, keepers and programs.

The body of a task is a shell script here, and the executor is what runs it.
"""

import json
import os
import random
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from operations_center.boards import ReadyTask
from operations_center.boards.local import LocalBoard, NewTask
from operations_center.config import Role
from operations_center.errors import BoardUnreachable
from operations_center.identity import Process, is_alive, read_stat
from operations_center.keeper.inspect import ExitRecord, ProcessTable
from operations_center.keeper.result import UnreadableResult, read_result
from operations_center.model import Attempts, Outcome, Proof, Run, Task, TaskState
from operations_center.outcomes import ending_of, finish_of
from operations_center.watcher import Watcher
from tests.fleet import PATIENCE_S, Fleet, wait_until

RUN_THE_BODY = ("sh", "-c", "tail -n +3 >script && exec sh ./script")
NO_WAIT = 'initial = "0s"'


@dataclass(frozen=True)
class Story:
    """What is known of a task when its watcher has ended."""

    fleet: Fleet
    task: Task
    runs: list[Run]

    @property
    def run(self) -> Run:
        (run,) = self.runs
        return run

    @property
    def directory(self) -> Path:
        return self.fleet.state.run(self.run.run_id)

    @property
    def output(self) -> str:
        return (self.directory / "stdout").read_text()

    @property
    def ending(self) -> tuple[TaskState, Outcome | None, str | None]:
        return self.task.state, self.runs[-1].outcome, self.task.reason


@pytest.fixture
def fleet(fleet: Fleet) -> Iterator[Fleet]:
    configure(fleet)
    yield fleet
    assert not fleet.broken_promises()


def configure(
    fleet: Fleet,
    argv: tuple[str, ...] = RUN_THE_BODY,
    *,
    role: str = "",
    backend: str = "",
    more: str = "",
    wait: str = NO_WAIT,
) -> None:
    fleet.configure(
        f"""
[roles.goal]
backend = "agent"
concurrency = 4
retry_backoff = {{ {wait} }}
{role}
[backends.agent]
kind = "command"
argv = {json.dumps(argv)}
max_concurrent = 4
{backend}
{more}
"""
    )


def add(fleet: Fleet, *bodies: str, **fields: Any) -> list[str]:
    with fleet.center() as center:
        return center.board.add([NewTask("Do it", "goal", body, **fields) for body in bodies])


def work(fleet: Fleet, *bodies: str, **fields: Any) -> list[Story]:
    """Let a watcher run tasks until nothing of them can start any more."""
    ids = add(fleet, *bodies, **fields)
    fleet.run("watch", "--role", "goal", "--once")
    return [story(fleet, task_id) for task_id in ids]


def work_one(fleet: Fleet, body: str, **fields: Any) -> Story:
    (told,) = work(fleet, body, **fields)
    return told


def story(fleet: Fleet, task_id: str) -> Story:
    with fleet.center() as center:
        task = center.board.task(task_id)
        assert task is not None
        return Story(fleet, task, center.ledger.recent_runs(task_id=task_id, backend=None, limit=100)[::-1])


def tasks(fleet: Fleet) -> list[Task]:
    with fleet.center() as center:
        return center.board.tasks()


def result(document: dict[str, Any], then: str = "exit 0") -> str:
    return f"echo '{json.dumps(document)}' >new && mv new \"$OPERATIONS_CENTER_RESULT_FILE\"; {then}"


# What it sees


def test_it_sees_the_variables_of_its_run_what_is_passed_on_and_nothing_else(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = {
        "PATH": os.environ["PATH"],
        "HOME": str(fleet.root),
        "USER": "somebody",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "LC_TIME": "C",
        "TZ": "Asia/Kathmandu",
        "TMPDIR": "/tmp",
        "WANTED_KEY": "a key of the agent",
    }
    for name in [name for name in os.environ if name.startswith("LC_")]:
        monkeypatch.delenv(name)
    for name, value in passed.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SECRET_OF_THE_SUPERVISOR", "not for executors")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("operations_center_backends__AGENT__GRACE", "3s")
    configure(fleet, ("/usr/bin/env", "-0"), backend='env = ["WANTED_KEY", "NOT_THERE"]')

    told = work_one(fleet, "")

    seen = dict(line.split("=", 1) for line in told.output.split("\0") if line)
    of_the_shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    ours = {name[len("OPERATIONS_CENTER_") :]: seen.pop(name) for name in list(seen) if name.lower().startswith("oper")}
    assert {name: seen[name] for name in seen if name not in of_the_shell} == passed
    assert seen.get("PWD", "") in ("", str(told.directory / "work"))
    assert ours == {
        "CONFIG": str(fleet.root / "operations_center.toml"),
        "backends__AGENT__GRACE": "3s",
        "RUN_ID": told.run.run_id,
        "TASK_ID": told.task.task_id,
        "TASK_FILE": str(told.directory / "task.json"),
        "RUN_DIR": str(told.directory),
        "ROLE": "goal",
        "BACKEND": "agent",
        "ATTEMPT": "1",
        "FENCE": str(told.run.fence),
        "RELEASE_DIR": str(fleet.root),
        "RESULT_FILE": str(told.directory / "result.json"),
    }


def test_its_task_file_is_the_task_as_the_command_line_shows_it(fleet: Fleet) -> None:
    told = work_one(fleet, 'cat "$OPERATIONS_CENTER_TASK_FILE"')
    shown = fleet.json("task", "show", told.task.task_id)
    seen = json.loads(told.output)
    assert {name: shown[name] for name in seen} | {"state": "running", "attempts": 0} | {
        "updated_at": seen["updated_at"]
    } == seen
    assert (seen["title"], seen["kind"], seen["priority"]) == ("Do it", "goal", "normal")


@pytest.mark.parametrize("body", ["several\nlines — ü\n", ""])
def test_its_prompt_is_title_blank_line_and_body(fleet: Fleet, body: str) -> None:
    configure(fleet, ("cat",))
    assert work_one(fleet, body).output == (f"Do it\n\n{body}" if body else "Do it")


def test_without_a_prompt_it_reads_from_nothing(fleet: Fleet) -> None:
    configure(fleet, ("readlink", "/proc/self/fd/0"), backend='stdin = "none"')
    assert work_one(fleet, "").output == "/dev/null\n"


def test_it_works_in_a_fresh_directory_of_its_run(fleet: Fleet) -> None:
    first, second = work(fleet, "pwd; ls; >left", "pwd; ls; >left")
    for told in (first, second):
        assert told.output == f"{told.directory}/work\nscript\n"


def test_it_works_where_the_configuration_says(fleet: Fleet) -> None:
    configure(fleet, ("pwd",), backend='working_directory = "."')
    assert work_one(fleet, "").output == f"{fleet.root}\n"


def test_its_output_lies_in_its_run_directory(fleet: Fleet) -> None:
    told = work_one(fleet, "echo out; echo err >&2")
    assert told.output == "out\n"
    assert (told.directory / "stderr").read_text() == "err\n"


def test_the_backend_that_the_task_names_runs_it(fleet: Fleet) -> None:
    other = '[backends.other]\nkind = "command"\nargv = ["echo", "by the other"]\nmax_concurrent = 1'
    configure(fleet, more=other)
    told = work_one(fleet, "echo by the agent", backend="other")
    assert (told.run.backend, told.output) == ("other", "by the other\n")


# How it may end


def test_each_exit_code_and_each_result_has_its_consequence(fleet: Fleet) -> None:
    configure(fleet, wait='initial = "1h", max = "1h"')
    done, ready, blocked = TaskState.DONE, TaskState.READY, TaskState.BLOCKED
    told_well, told_badly = {"outcome": "succeeded", "summary": "well"}, {"outcome": "failed", "summary": "no bricks"}
    cases = [
        ("exit 0", done, Outcome.SUCCEEDED, None),
        ("exit 3", blocked, Outcome.FAILED, "exit code 3"),
        ("exit 75", ready, Outcome.RETRY, "asked to be run again later (exit 75)"),
        ("exec /not/there", blocked, Outcome.FAILED, "cannot find the program (exit 127); see its stderr"),
        (">file; exec ./file", blocked, Outcome.FAILED, "cannot run the program (exit 126); see its stderr"),
        (result(told_well), done, Outcome.SUCCEEDED, "well"),
        (result(told_badly), blocked, Outcome.FAILED, "no bricks"),
        (result({"outcome": "blocked", "summary": "which one?"}), blocked, Outcome.BLOCKED, "which one?"),
        (result({"outcome": "retry", "summary": "busy"}), ready, Outcome.RETRY, "busy"),
        (result({"summary": "no outcome"}), done, Outcome.SUCCEEDED, "no outcome"),
        (result({}, "exit 4"), blocked, Outcome.FAILED, "exit code 4"),
        (result(told_well, "exit 5"), blocked, Outcome.FAILED, "exit code 5"),
        (result(told_well, "exit 75"), ready, Outcome.RETRY, "asked to be run again later (exit 75)"),
        (result(told_badly, "exit 75"), blocked, Outcome.FAILED, "no bricks"),
        (result(told_well, "kill -KILL $$"), ready, Outcome.KILLED, KILLED),
    ]

    stories = work(fleet, *(body for body, *_ in cases))

    assert [told.ending for told in stories] == [(state, outcome, reason) for _, state, outcome, reason in cases]
    assert all(told.run.proof is Proof.EXIT_RECORDED for told in stories)
    backing_off = [told for told in stories if told.task.state is ready]
    assert all(told.task.not_before and told.task.not_before > told.task.updated_at + 3_500_000 for told in backing_off)
    assert {told.task.attempts for told in stories if told.run.outcome is Outcome.RETRY} == {0}
    assert {told.task.attempts for told in stories if told.run.outcome is not Outcome.RETRY} == {1}


KILLED = "killed by SIGKILL, which Operations Center did not send"


def test_a_retry_waits_as_long_as_it_asked_for(fleet: Fleet) -> None:
    told = work_one(fleet, result({"outcome": "retry", "retry_after": "2h"}, "exit 75"))
    assert told.task.state is TaskState.READY
    assert told.task.not_before is not None
    assert told.run.settled_at is not None
    assert told.task.not_before - told.run.settled_at == 7_200_000


def test_retries_are_bounded_and_count_no_attempt(fleet: Fleet) -> None:
    configure(fleet, role="max_retries = 2")
    told = work_one(fleet, "exit 75")
    assert [(run.outcome, run.attempt) for run in told.runs] == [(Outcome.RETRY, 1)] * 3
    assert told.task.state is TaskState.BLOCKED
    assert told.task.reason == "asked for a later retry more than 2 times; asked to be run again later (exit 75)"
    assert told.task.attempts == 0


def test_death_by_a_strangers_signal_is_retried_until_the_attempts_are_used_up(fleet: Fleet) -> None:
    told = work_one(fleet, "echo $OPERATIONS_CENTER_ATTEMPT $OPERATIONS_CENTER_FENCE; kill -KILL $$")
    assert [(run.outcome, run.exit_code) for run in told.runs] == [(Outcome.KILLED, 137)] * 3
    seen = [(fleet.state.run(run.run_id) / "stdout").read_text().split() for run in told.runs]
    assert [int(attempt) for attempt, _ in seen] == [1, 2, 3]
    assert [int(fence) for _, fence in seen] == sorted({run.fence for run in told.runs})
    assert (told.task.state, told.task.reason) == (TaskState.BLOCKED, f"{KILLED}; attempt 3 of 3")


def test_an_attempt_after_a_death_may_succeed(fleet: Fleet) -> None:
    told = work_one(fleet, "[ $OPERATIONS_CENTER_ATTEMPT = 2 ] || kill -SEGV $$")
    assert [run.outcome for run in told.runs] == [Outcome.KILLED, Outcome.SUCCEEDED]
    assert told.task.state is TaskState.DONE


def test_a_program_that_is_not_there_blocks_the_task_with_a_reason_that_says_so(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A directory of the PATH that may not be searched would make it a program that cannot be run.
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    configure(fleet, ("no-such-agent", "-p"))
    told = work_one(fleet, "")
    assert told.ending == (TaskState.BLOCKED, Outcome.FAILED, "cannot find the program (exit 127); see its stderr")
    assert "no-such-agent" in (told.directory / "stderr").read_text()


def test_a_working_directory_that_is_not_there_blocks_the_task(fleet: Fleet) -> None:
    configure(fleet, backend='working_directory = "gone"')
    told = work_one(fleet, "")
    assert told.ending == (TaskState.BLOCKED, Outcome.FAILED, "cannot run the program (exit 126); see its stderr")
    assert "gone" in (told.directory / "stderr").read_text()


def test_it_may_delete_its_own_working_directory(fleet: Fleet) -> None:
    told = work_one(fleet, 'rm -r "$OPERATIONS_CENTER_RUN_DIR/work"')
    assert told.ending == (TaskState.DONE, Outcome.SUCCEEDED, None)


def test_follow_ups_of_a_result_are_made_once_with_parent_and_kind(fleet: Fleet) -> None:
    wanted = [{"title": "Test it", "kind": "test", "body": "well"}, {"title": "Go on", "kind": "later"}]
    told = work_one(fleet, result({"outcome": "succeeded", "follow_ups": wanted}))
    fleet.run("reconcile")
    fleet.run("watch", "--role", "goal", "--once")
    made = [(task.title, task.kind, task.body, task.parent, task.state) for task in tasks(fleet)[1:]]
    assert made == [
        ("Test it", "test", "well", told.task.task_id, TaskState.READY),
        ("Go on", "later", "", told.task.task_id, TaskState.READY),
    ]


def test_a_follow_up_without_a_kind_has_that_of_its_task(fleet: Fleet) -> None:
    body = "[ ! -e ~/again ] || exit 0; >~/again; " + result({"follow_ups": [{"title": "Again"}]})
    work_one(fleet, body)
    assert [(task.title, task.kind, task.state) for task in tasks(fleet)] == [
        ("Do it", "goal", TaskState.DONE),
        ("Again", "goal", TaskState.DONE),
    ]


def test_success_leads_where_its_role_says(fleet: Fleet) -> None:
    configure(
        fleet, role='on_success = { state = "review", follow_up = "test" }', more='[roles.test]\nbackend = "agent"'
    )
    told = work_one(fleet, "exit 0")
    assert told.task.state is TaskState.REVIEW
    (follow_up,) = tasks(fleet)[1:]
    assert (follow_up.title, follow_up.kind, follow_up.body) == ("Do it", "test", "exit 0")
    assert (follow_up.parent, follow_up.state) == (told.task.task_id, TaskState.READY)


# Rubbish


def rubbish(count: int) -> list[bytes]:
    chance = random.Random(4711)
    whole = json.dumps({"outcome": "succeeded", "summary": "ok", "follow_ups": [{"title": "t"}]}).encode()
    return [chance.randbytes(chance.randrange(200)) if n % 2 else mutilate(whole, chance) for n in range(count)]


def mutilate(whole: bytes, chance: random.Random) -> bytes:
    data = bytearray(whole[: chance.randrange(len(whole) - 1)])
    for _ in range(chance.randrange(3)):
        data[chance.randrange(len(data)) if len(data) > 1 else 0 : 1] = chance.randbytes(1)
    return bytes(data)


def test_no_rubbish_for_a_result_raises_and_all_of_it_is_a_failure_with_its_reason(fleet: Fleet) -> None:
    run = work_one(fleet, "exit 0").run
    directory = fleet.state.run(run.run_id)
    for content in rubbish(200):
        (directory / "result.json").write_bytes(content)
        read = read_result(directory)
        assert isinstance(read, UnreadableResult), content
        ending = ending_of(run, ExitRecord(0), read, None)
        assert (ending.outcome, ending.reason) == (Outcome.FAILED, read.reason)
        role = Role(name="goal", backend="agent")
        finish, after = finish_of(run, ending, Attempts(), policy=role, now=0)
        assert (finish.state, finish.reason, after.attempts) == (TaskState.BLOCKED, read.reason, 1)


def test_a_result_that_cannot_be_read_fails_its_run_with_the_reason(fleet: Fleet) -> None:
    contents = [*rubbish(3), b"\xff\xfe\0", b"[" * 100_000]
    for number, content in enumerate(contents):
        (fleet.root / f"rubbish.{number}").write_bytes(content)
    stories = work(
        fleet,
        *(f'cp ~/rubbish.{number} "$OPERATIONS_CENTER_RESULT_FILE"' for number in range(len(contents))),
        'mkfifo "$OPERATIONS_CENTER_RESULT_FILE"',
        'ln -s /etc/passwd "$OPERATIONS_CENTER_RESULT_FILE"',
        'mkdir "$OPERATIONS_CENTER_RESULT_FILE"',
    )
    for told in stories:
        assert told.ending[:2] == (TaskState.BLOCKED, Outcome.FAILED)
        assert (told.task.reason or "").startswith("cannot read result.json: ")
        assert told.run.exit_code == 0


# Much, and what is left behind


def test_output_of_300_mb_is_kept_whole_where_it_may_be_as_long(fleet: Fleet) -> None:
    configure(fleet, ("head", "-c", "300000000", "/dev/zero"), backend='max_output = "300MB"')
    told = work_one(fleet, "")
    stdout = told.directory / "stdout"
    try:
        assert told.ending == (TaskState.DONE, Outcome.SUCCEEDED, None)
        assert stdout.stat().st_size == 300_000_000
    finally:
        stdout.unlink()


DAEMON = r"""
import os, time
if os.fork():
    # From its end on the daemon lives no longer than its grace.
    while not os.path.exists(os.environ["HOME"] + "/go"):
        time.sleep(0.01)
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
os.chdir("/")
script = "trap '' TERM; echo $$ >\"$0.new\" && mv \"$0.new\" \"$0\"; while :; do sleep 0.1; done"
os.execve("/bin/sh", ["sh", "-c", script, os.environ["HOME"] + "/daemon"], {})
"""


@pytest.mark.parametrize("cgroup", ["auto", "off"])
def test_a_daemon_that_it_leaves_behind_holds_the_slot_until_it_is_ended(fleet: Fleet, cgroup: str) -> None:
    argv = (sys.executable, "-I", "-S", "-c", DAEMON)
    configure(fleet, argv, backend='grace = "2s"', more=f'[center]\ncgroup = "{cgroup}"')
    (task_id,) = add(fleet, "")
    watcher = fleet.popen("watch", "--role", "goal", "--once")
    daemon = wait_until(lambda: read_process(fleet.root / "daemon"), "the daemon")
    fleet.let_go()

    def slot_is_free() -> bool:
        with fleet.center() as center:
            return not center.ledger.slots_held()

    while watcher.poll() is None:
        # Read in this order: a slot that is free before its daemon is dead is a broken promise.
        free, alive = slot_is_free(), is_alive(daemon)
        assert not (free and alive)
    assert watcher.wait(PATIENCE_S) == 0
    assert not is_alive(daemon)
    told = story(fleet, task_id)
    assert told.ending == (TaskState.DONE, Outcome.SUCCEEDED, None)
    assert told.run.signalled_at is not None
    assert told.run.proof is Proof.EXIT_RECORDED


def read_process(path: Path) -> Process | None:
    try:
        pid = int(path.read_text())
    except FileNotFoundError:
        return None
    stat = read_stat(pid)
    return Process(pid, stat.start_ticks) if stat else None


def test_a_hundred_children_that_it_leaves_behind_are_ended_before_its_task_is_done(fleet: Fleet) -> None:
    told = work_one(fleet, "i=0; while [ $i -lt 100 ]; do sleep 300 & echo $!; i=$((i + 1)); done")
    assert told.ending == (TaskState.DONE, Outcome.SUCCEEDED, None)
    assert len(told.output.split()) == 100
    table = ProcessTable.scan()
    assert not table.pids_of_run(told.run.run_id)


def test_a_hundred_children_that_it_waits_for_are_let_be(fleet: Fleet) -> None:
    told = work_one(fleet, "i=0; while [ $i -lt 100 ]; do (sleep 0.3; echo x) & i=$((i + 1)); done; wait")
    assert told.ending == (TaskState.DONE, Outcome.SUCCEEDED, None)
    assert told.output == "x\n" * 100
    assert told.run.signalled_at is None


def test_a_watcher_that_runs_once_starts_what_waited_behind_a_tree_that_it_had_to_end(fleet: Fleet) -> None:
    configure(fleet, role="max_interruptions = 1", backend='grace = "200ms"', more="")
    text = (fleet.root / "operations_center.toml").read_text()
    fleet.configure(text.replace("max_concurrent = 4", "max_concurrent = 1"))
    killing, waiting = work(fleet, "trap '' TERM; kill -KILL $PPID; sleep 3600; :", "exit 0")
    assert killing.run.outcome is Outcome.LOST
    assert waiting.task.state is TaskState.DONE


@dataclass(frozen=True)
class SilentAtFirst:
    """A board that does not answer the first time it is asked what is ready."""

    board: LocalBoard
    asked: list[None] = field(default_factory=list)

    def ready(self, kinds: Collection[str], *page: Any) -> Sequence[ReadyTask]:
        self.asked.append(None)
        if len(self.asked) == 1:
            raise BoardUnreachable("cannot reach the board: it is silent")
        return self.board.ready(kinds, *page)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.board, name)


def test_a_watcher_that_runs_once_ends_only_when_the_board_has_said_that_nothing_is_ready(fleet: Fleet) -> None:
    with fleet.center() as center:
        (task_id,) = center.board.add([NewTask("Do it", "goal", "exit 0")])
    pid = os.fork()
    if pid == 0:
        try:
            os.environ.update(fleet.environment)
            with fleet.center() as center:
                hindered = replace(center, board=SilentAtFirst(center.board))  # type: ignore[arg-type]
                Watcher(hindered, center.config.roles["goal"], once=True).run()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    with fleet.center() as center:
        task = center.board.task(task_id)
    assert task is not None
    assert task.state is TaskState.DONE
