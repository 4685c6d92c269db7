"""Wall and idle limits, enforced while no launcher and no watcher lives."""

import os
import signal
import subprocess
import sys
import time

import pytest

from operations_center.identity import Process
from operations_center.keeper.inspect import ProcessTable, TreeQuery, read_timed_out, tree_of
from tests.fleet import PATIENCE_S, kill_if_there, wait_until

from .conftest import DAEMON, Bench, exit_code, output, python, wait_for_end

IGNORES_TERM = "trap '' TERM; echo ready; while :; do sleep 1; done"
ENDS_WELL_ON_TERM = "trap 'echo ending; exit 0' TERM; echo ready; while :; do sleep 0.05; done"


def run_to_its_limit(bench: Bench, *argv: str, **limits: object) -> float:
    """How many seconds it ran. That it ends at all is the limit's doing, and how late tells of the machine."""
    began = time.monotonic()
    _, run = bench.launch(*argv, **limits)
    run.children[0].wait(timeout=PATIENCE_S)
    took = time.monotonic() - began
    run.children[1].wait(timeout=PATIENCE_S)
    return took


def test_the_wall_limit_ends_a_run_and_its_record_says_so(bench_both_ways: Bench) -> None:
    took = run_to_its_limit(bench_both_ways, "sleep", "300", timeout_ms=1_000)
    plan = bench_both_ways.plans[0]
    assert (exit_code(plan), read_timed_out(plan.run_directory)) == (143, "wall")
    assert took > 0.95


def test_an_executor_that_ignores_term_is_killed_after_the_grace(bench: Bench) -> None:
    took = run_to_its_limit(bench, "sh", "-c", IGNORES_TERM, timeout_ms=1_000, grace_ms=300)
    assert (exit_code(bench.plans[0]), read_timed_out(bench.plans[0].run_directory)) == (137, "wall")
    assert took > 1.25


def test_an_executor_that_ends_well_on_term_is_recorded_with_its_own_code(bench: Bench) -> None:
    run_to_its_limit(bench, "sh", "-c", ENDS_WELL_ON_TERM, timeout_ms=1_000, grace_ms=60_000)
    plan = bench.plans[0]
    assert (exit_code(plan), read_timed_out(plan.run_directory)) == (0, "wall")
    assert output(plan) == "ready\nending\n"


def test_a_stopped_executor_is_ended_all_the_same(bench: Bench) -> None:
    run_to_its_limit(bench, "sh", "-c", "kill -STOP $$", timeout_ms=1_000)
    assert exit_code(bench.plans[0]) == 143


def test_the_idle_limit_ends_a_silent_run(bench: Bench) -> None:
    took = run_to_its_limit(bench, "sleep", "300", idle_timeout_ms=1_000)
    assert (exit_code(bench.plans[0]), read_timed_out(bench.plans[0].run_directory)) == (143, "idle")
    assert took > 0.95


@pytest.mark.parametrize("stream", ["1", "2"])
def test_output_keeps_a_run_from_being_idle(bench: Bench, stream: str) -> None:
    # For longer than the limit, and with pauses that are far shorter.
    talk = f"i=0; while [ $i -lt 40 ]; do echo $i >&{stream}; sleep 0.1; i=$((i + 1)); done"
    plan = bench.finish("sh", "-c", talk, idle_timeout_ms=3_000)
    assert (exit_code(plan), read_timed_out(plan.run_directory)) == (0, None)


def test_a_run_that_stood_still_together_with_its_timer_was_not_idle(bench: Bench) -> None:
    go = bench.directory / "go"
    script = f"echo word; until [ -e '{go}' ]; do sleep 0.1; done"
    plan, run = bench.launch("sh", "-c", script, idle_timeout_ms=3_000)
    wait_until(lambda: (plan.run_directory / "stdout").exists() and output(plan), "it begins")
    # Longer than its timer takes to look again.
    signal.sigtimedwait([], 0.8)
    timer, executor = run.children[1].pid, [process.pid for process in bench.tree(plan, run.keeper).members]
    for pid in (timer, *executor):
        kill_if_there(pid, signal.SIGSTOP)
    signal.sigtimedwait([], 3)
    # The timer is the first that goes on.
    kill_if_there(timer, signal.SIGCONT)
    signal.sigtimedwait([], 0.3)
    for pid in executor:
        kill_if_there(pid, signal.SIGCONT)
    go.touch()
    run.children[0].wait(timeout=PATIENCE_S)
    assert (exit_code(plan), read_timed_out(plan.run_directory)) == (0, None)


def test_a_run_within_its_limits_is_left_alone(bench: Bench) -> None:
    plan, run = bench.launch("sleep", "0.2", timeout_ms=60_000, idle_timeout_ms=60_000)
    assert [child.wait(timeout=PATIENCE_S) for child in run.children] == [0, 0]
    assert (exit_code(plan), read_timed_out(plan.run_directory)) == (0, None)


def test_a_daemon_left_behind_is_ended_by_the_limit_and_the_finish_stands(bench: Bench) -> None:
    run_to_its_limit(bench, *python(DAEMON), timeout_ms=2_000)
    assert (exit_code(bench.plans[0]), read_timed_out(bench.plans[0].run_directory)) == (0, None)


def test_without_limits_there_is_no_timer(bench: Bench) -> None:
    assert len(bench.launch("true")[1].children) == 1


def test_the_timer_ends_with_the_keeper_however_that_ends(bench: Bench) -> None:
    _, run = bench.launch("sleep", "300", timeout_ms=600_000, idle_timeout_ms=600_000)
    os.kill(run.keeper.pid, signal.SIGKILL)
    assert run.children[1].wait(timeout=PATIENCE_S) == 0


def test_the_timer_is_no_part_of_the_tree(bench_both_ways: Bench) -> None:
    plan, run = bench_both_ways.launch("sleep", "300", timeout_ms=600_000, idle_timeout_ms=600_000)
    wait_until(lambda: len(bench_both_ways.tree(plan, run.keeper).members) == 1, "the executor")
    table = ProcessTable.scan()
    timer = table.with_descendants([run.children[1].pid])
    tree = bench_both_ways.tree(plan, run.keeper)
    assert timer.isdisjoint(process.pid for process in tree.members)


LAUNCH_AND_DIE = """
import os, signal, sys
from pathlib import Path
from operations_center.keeper.launch import LaunchPlan, prepare, start
plan = LaunchPlan(
    run_id=sys.argv[1], run_directory=Path(sys.argv[2]), argv=("sh", "-c", "trap '' TERM; while :; do sleep 9; done"),
    environment={"PATH": "/usr/bin:/bin"}, stdin=False, working_directory=None, prompt="", task_json=b"{}",
    timeout_ms=None, idle_timeout_ms=None, grace_ms=200, cgroup_parent=None)
import dataclasses
plan = dataclasses.replace(plan, **{sys.argv[3]: 1_000})
prepare(plan)
print(*start(plan).keeper, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("limit", "said"), [("timeout_ms", "wall"), ("idle_timeout_ms", "idle")])
def test_limits_hold_when_the_launcher_is_dead(bench: Bench, limit: str, said: str) -> None:
    plan = bench.plan()
    launcher = subprocess.run(
        [sys.executable, "-c", LAUNCH_AND_DIE, plan.run_id, str(plan.run_directory), limit],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert launcher.returncode == -signal.SIGKILL
    keeper = Process(*map(int, launcher.stdout.split()))
    wait_for_end(keeper)
    assert (exit_code(plan), read_timed_out(plan.run_directory)) == (137, said)
    assert tree_of(ProcessTable.scan(), TreeQuery(plan.run_id, keeper)).is_empty


CALLS_ITSELF = """
import ctypes, time
ctypes.CDLL(None).prctl(15, {name!r})
time.sleep(300)
"""


@pytest.mark.parametrize("name", [b"a\nb", b"a) S 1 1 1", b"\xff) Z 0\n0) X", b"(("])
def test_no_name_hides_a_process_from_its_limit(bench: Bench, name: bytes) -> None:
    run_to_its_limit(bench, *python(CALLS_ITSELF.format(name=name)), timeout_ms=300)
    assert (exit_code(bench.plans[0]), read_timed_out(bench.plans[0].run_directory)) == (143, "wall")
