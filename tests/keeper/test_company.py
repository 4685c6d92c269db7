"""What an executor does to its keeper, its timer and their files: by name, by group, by session, by links."""

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from operations_center.identity import Process, read_stat
from operations_center.keeper.executor import executor_of
from operations_center.keeper.inspect import ProcessTable, TreeQuery, read_exit, read_timed_out, tree_of
from operations_center.keeper.launch import prepare
from operations_center.keeper.timer import replace_timer, start_timer
from tests.fleet import PATIENCE_S, kill_if_there, wait_until

from .conftest import Bench, exit_code, output, python


def command_lines(*pids: int) -> list[str]:
    return [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in pids]


def helpers(pid: int) -> dict[str, int]:
    """Children of keeper or timer by name, the executor among them."""
    table = ProcessTable.scan(with_environments=False)
    found = table.with_descendants([pid]) - {pid}
    return {
        Path(f"/proc/{child}/comm").read_text().strip(): child for child in found if Path(f"/proc/{child}").exists()
    }


# Names


def test_command_lines_show_neither_script_nor_run_nor_executor(bench_both_ways: Bench) -> None:
    plan, run = bench_both_ways.launch("sleep", "307", timeout_ms=600_000, max_output=1 << 20)
    keeper, timer = (child.pid for child in run.children)
    wait_until(lambda: {"timeout", "cat"} <= helpers(timer).keys(), "the timer's pause")
    wait_until(lambda: "sleep" in helpers(keeper), "the executor")
    assert command_lines(keeper, timer) == ["oc 2 keeper ", "oc 2 timer "]
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in (keeper, timer)]
    assert names == ["oc-keeper", "oc-timer"]
    shown = " ".join(command_lines(*helpers(timer).values()))
    assert not any(word in shown for word in (plan.run_id, str(plan.run_directory), "307"))


@pytest.mark.parametrize("shell", ["/bin/dash", "/bin/bash"])
def test_every_word_reaches_the_executor_as_it_is(bench: Bench, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    if not Path(shell).exists():
        pytest.skip(f"there is no {shell} here")
    monkeypatch.setattr("operations_center.keeper.script.SHELL", shell)
    words = [os.fsdecode(bytes([byte])) for byte in range(1, 256)]
    words += ["", "-n", "--", "a\nb", "'", '$HOME `false` \\ "', "x" * 100_000, os.fsdecode(bytes(range(1, 256)))]
    show = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    plan = bench.finish(*python(show), *words)
    assert (plan.run_directory / "stdout").read_bytes() == b"\0".join(map(os.fsencode, words))


def test_a_pause_of_the_keeper_that_is_cut_short_is_taken_again(bench: Bench) -> None:
    plan, run = bench.launch("sh", "-c", "sleep 309 & exit 3")
    wait_until(lambda: read_exit(plan.run_directory), "the record")
    for _ in range(5):
        pause = wait_until(lambda: a_pause(run.keeper), "a pause of the keeper")
        kill_if_there(pause)
        wait_until(partial(is_another_pause, run.keeper, pause), "another")
    assert run.children[0].poll() is None
    assert output(plan, "stderr") == ""
    assert exit_code(plan) == 3


def is_another_pause(keeper: Process, pause: int) -> bool:
    return a_pause(keeper) not in (None, pause)


def is_another_helper(timer: int, name: str, helper: int) -> bool:
    return helpers(timer).get(name) not in (None, helper)


def a_pause(keeper: Process) -> int | None:
    """The keeper's own helper: the executor's child sleeps longer."""
    for pid in ProcessTable.scan(with_environments=False).with_descendants([keeper.pid]):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"sleep\x000.1\0"):
                return pid
        except OSError:
            continue
    return None


@pytest.mark.parametrize("name", ["timeout", "cat"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_timer_whose_helpers_are_killed_keeps_its_limits(bench: Bench, name: str, number: signal.Signals) -> None:
    plan, run = bench.launch("sleep", "300", timeout_ms=2_000, grace_ms=60_000)
    timer = run.children[1]
    for _ in range(3):
        helper = wait_until(lambda: helpers(timer.pid).get(name), f"the timer's {name}")
        kill_if_there(helper, number)
        wait_until(partial(is_another_helper, timer.pid, name, helper), "another")
    run.children[0].wait(timeout=PATIENCE_S)
    assert timer.wait(timeout=PATIENCE_S) == 0
    assert (exit_code(plan), read_timed_out(plan.run_directory)) == (143, "wall")


def test_a_timer_that_has_died_is_replaced_and_one_that_lives_is_not(bench: Bench) -> None:
    plan, run = bench.launch("sleep", "300", idle_timeout_ms=1_000_000, grace_ms=60_000)
    assert replace_timer(plan.run_directory, plan.limits, run.keeper) is None
    end_with_helpers(run.children[1])
    short = bench.plan(idle_timeout_ms=1_000, grace_ms=60_000).limits
    other = replace_timer(plan.run_directory, short, run.keeper)
    assert other is not None
    assert replace_timer(plan.run_directory, short, run.keeper) is None
    run.children.append(other)
    assert [run.children[0].wait(timeout=PATIENCE_S), other.wait(timeout=PATIENCE_S)] == [0, 0]
    assert (exit_code(plan), read_timed_out(plan.run_directory)) == (143, "idle")
    assert replace_timer(plan.run_directory, short, run.keeper) is None


def test_a_timer_is_not_replaced_by_one_that_would_write_into_somebodys_file(bench: Bench) -> None:
    plan, run = bench.launch("sleep", "300", timeout_ms=1_000_000)
    end_with_helpers(run.children[1])
    victim = bench.directory / "victim"
    victim.write_text("precious")
    (plan.run_directory / "timed_out").unlink()
    os.link(victim, plan.run_directory / "timed_out")
    with pytest.raises(OSError, match="it has another name"):
        replace_timer(plan.run_directory, plan.limits, run.keeper)


def test_a_timer_touches_nobody_who_does_not_hold_its_pipe(bench: Bench) -> None:
    """An executor may write another pid into the pipe, or keep it open until the keeper's pid is somebody else's."""
    plan = bench.plan(timeout_ms=100, idle_timeout_ms=60_000, grace_ms=0, max_output=1 << 17)
    prepare(plan)
    printed = bench.directory / "printed"
    printed.write_bytes(b"x" * (1 << 20))
    with (
        printed.open("ab") as file,
        subprocess.Popen(["sh", "-c", "sleep 310 & wait"], stdout=file, stderr=file) as stranger,
    ):
        wait_until(lambda: "sleep" in helpers(stranger.pid), "the stranger's child")
        child = helpers(stranger.pid)["sleep"]
        read_end, write_end = os.pipe()
        timer = start_timer(plan.run_directory, plan.limits, read_end)
        os.close(read_end)
        os.write(write_end, f"{stranger.pid}\n".encode())
        try:
            assert timer.wait(timeout=PATIENCE_S) == 0
            assert not is_gone(child)
            assert printed.read_bytes() == b"x" * (1 << 20)
        finally:
            os.close(write_end)
            kill_if_there(child)
            kill_if_there(stranger.pid)
            timer.wait()


def end_with_helpers(timer: "subprocess.Popen[bytes]") -> None:
    wait_until(lambda: {"timeout", "cat"} <= helpers(timer.pid).keys(), "the timer's pause")
    pids = ProcessTable.scan(with_environments=False).with_descendants([timer.pid])
    timer.kill()
    timer.wait()
    for pid in pids - {timer.pid}:
        kill_if_there(pid)
        wait_until(partial(is_gone, pid), "the helper's end")


def is_gone(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is None or stat.state in "ZX"


# Groups and sessions


@pytest.mark.parametrize(
    "script",
    ["kill -KILL 0", "kill -KILL -$$", "kill -TERM 0; sleep 300", f"{shutil.which('pkill')} -KILL -s $$"],
)
def test_an_executor_that_ends_its_group_or_session_has_its_exit_recorded(bench_both_ways: Bench, script: str) -> None:
    if "None" in script:
        pytest.skip("there is no pkill here")
    plan = bench_both_ways.finish("sh", "-c", f"sleep 300 & {script}", timeout_ms=60_000, grace_ms=100)
    number = signal.SIGTERM if "TERM" in script else signal.SIGKILL
    assert exit_code(plan) == 128 + number


HIDDEN = "until [ -e ../../go ]; do sleep 0.05; done; exec env -i sh -c 'sleep 300 & kill -KILL $PPID; exec sleep 300'"
"""Nothing of it carries the run's id, and its keeper is dead."""


def test_the_session_of_an_executor_is_found_when_its_keeper_was_killed(bench: Bench) -> None:
    plan, run = bench.launch("sh", "-c", HIDDEN)
    # A start waits only a moment for it, which a busy machine may miss.
    executor = run.executor or wait_until(lambda: executor_of(run.keeper), "the executor")
    (bench.directory / "go").touch()
    run.children[0].wait(timeout=PATIENCE_S)
    query = TreeQuery(plan.run_id, run.keeper, None, executor)
    tree = wait_until(lambda: two_members(query), "both")
    assert executor in tree.members
    for process in tree.members:
        kill_if_there(process.pid)


def two_members(query: TreeQuery) -> object:
    tree = tree_of(ProcessTable.scan(), query)
    return tree if len(tree.members) == 2 else None


# Files


@pytest.mark.parametrize("plant", ["ln -sf {victim} {name}", "rm {name}; mkfifo {name}", "mkdir d; mv -T d {name}"])
def test_what_is_put_in_the_place_of_a_record_leads_nobody_astray(bench: Bench, plant: str) -> None:
    victim = bench.directory / "victim"
    victim.write_text("precious")
    names = "exit timed_out stdout stderr prompt"
    body = plant.format(victim=f"'{victim}'", name="$name")
    script = (
        f"cd ..; for name in {names}; do rm -f $name; {body}; done; echo more; trap '' TERM; sleep 300 & wait; wait"
    )
    plan, run = bench.launch(
        "sh", "-c", script, timeout_ms=1_000, idle_timeout_ms=60_000, grace_ms=200, max_output=1 << 20
    )
    assert [child.wait(timeout=PATIENCE_S) for child in run.children] == [0, 0]
    assert victim.read_text() == "precious"
    assert (plan.run_directory / "exit").is_symlink() or not (plan.run_directory / "exit").is_file()


def test_a_record_of_any_size_keeps_no_timer_reading(bench: Bench) -> None:
    plan, run = bench.launch("sh", "-c", "truncate -s 1T ../exit; exec sleep 300", timeout_ms=1_000)
    assert [child.wait(timeout=PATIENCE_S) for child in run.children] == [0, 0]
    assert read_timed_out(plan.run_directory) == "wall"


# Time


SLEEPS = """
import os, subprocess, sys, threading, time
with open("uptime", "w") as uptime:
    uptime.write("1000.00 1.00\\n")
subprocess.run(["mount", "--bind", "uptime", "/proc/uptime"], check=True)
from pathlib import Path
from operations_center.keeper.launch import LaunchPlan, prepare, start
plan = LaunchPlan(
    run_id="r", run_directory=Path("run").absolute(), argv=("sh", "-c", "until [ -e ../../woken ]; do sleep 0.1; done"),
    environment={"PATH": "/usr/bin:/bin"}, stdin=False, working_directory=None, prompt="", task_json=b"{}",
    timeout_ms=3_600_000, idle_timeout_ms=20_000, grace_ms=100, cgroup_parent=None)
prepare(plan)
run = start(plan)
time.sleep(0.5)
with open("uptime", "r+") as uptime:
    uptime.write("29800.00 1.00\\n")
# Twice as long as the timer takes to look again.
time.sleep(5)
Path("woken").touch()
sys.exit(run.children[0].wait())
"""


def test_suspended_time_counts_against_no_limit(bench: Bench) -> None:
    """As a suspend shows it: /proc/uptime, which is CLOCK_BOOTTIME, has jumped, and CLOCK_MONOTONIC has not."""
    command = ["unshare", "--mount", sys.executable, "-c", SLEEPS]
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody make a mount namespace")
    subprocess.run(command, cwd=bench.directory, check=True, timeout=PATIENCE_S)
    assert read_timed_out(bench.directory / "run") is None
    assert read_exit(bench.directory / "run") is not None
