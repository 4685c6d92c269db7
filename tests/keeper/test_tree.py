"""Which processes belong to a run, and how they are ended without losing the record."""

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from operations_center.identity import Process, Stat, is_stopped
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import (
    RUN_ID_VARIABLE,
    ProcessTable,
    TreeQuery,
    find_trees,
    read_exit,
    tree_of,
)
from operations_center.keeper.launch import prepare, start
from operations_center.keeper.stop import kill, kill_keeper, signal_processes, terminate
from operations_center.locks import is_locked
from tests.fleet import PATIENCE_S, wait_until

from .conftest import DAEMON, Bench, exit_code, is_gone, python, wait_for_end


def names(processes: tuple[Process, ...]) -> list[str]:
    return sorted(Path(f"/proc/{process.pid}/comm").read_text().strip() for process in processes)


def query_of(bench: Bench, number: int = 0) -> TreeQuery:
    plan, run = bench.plans[number], bench.runs[number]
    return TreeQuery(plan.run_id, run.keeper, cgroup.of_run(plan.run_id, None))


def look(query: TreeQuery) -> list[str]:
    try:
        return names(tree_of(ProcessTable.scan(), query).members)
    except FileNotFoundError:
        return ["something that just ended"]


def a_run_id() -> str:
    """One that no other test has: several may run at once."""
    return f"run_{secrets.token_hex(6)}"


def start_daemon(bench: Bench) -> None:
    """A run whose executor has ended and left a daemon behind."""
    plan, _ = bench.launch(*python(DAEMON))
    wait_until(lambda: read_exit(plan.run_directory), "the exit record")
    wait_until(lambda: "sleep" in look(query_of(bench)), "the daemon")


def test_the_tree_of_a_run_is_its_executor_and_what_that_started(bench_both_ways: Bench) -> None:
    bench_both_ways.launch("sh", "-c", "sleep 300 & setsid sleep 301 & wait")
    wait_until(lambda: look(query_of(bench_both_ways)) == ["sh", "sleep", "sleep"], "the tree")
    tree = tree_of(ProcessTable.scan(), query_of(bench_both_ways))
    assert tree.keeper_alive
    assert tree.populated is (True if bench_both_ways.cgroup_parent else None)


def test_a_daemon_without_environment_and_session_of_the_run_stays_in_its_tree(bench_both_ways: Bench) -> None:
    start_daemon(bench_both_ways)
    assert exit_code(bench_both_ways.plans[0]) == 0
    tree = find_trees([query_of(bench_both_ways)])[bench_both_ways.plans[0].run_id]
    assert tree.keeper_alive
    kill(tree)
    assert bench_both_ways.runs[0].children[0].wait(timeout=PATIENCE_S) == 0
    assert find_trees([query_of(bench_both_ways)])[tree.query.run_id].is_empty


def test_the_tree_is_found_when_the_keeper_was_killed(bench_both_ways: Bench) -> None:
    bench_both_ways.launch("sh", "-c", "sleep 300 & setsid sleep 301 & wait")
    wait_until(lambda: look(query_of(bench_both_ways)) == ["sh", "sleep", "sleep"], "the tree")
    assert kill_keeper(bench_both_ways.runs[0].keeper)
    bench_both_ways.runs[0].children[0].wait()
    tree = tree_of(ProcessTable.scan(), query_of(bench_both_ways))
    assert (tree.keeper_alive, names(tree.members)) == (False, ["sh", "sleep", "sleep"])
    kill(tree)
    wait_until(lambda: find_trees([tree.query])[tree.query.run_id].is_empty, "an empty tree")
    assert read_exit(bench_both_ways.plans[0].run_directory) is None


def test_a_daemon_without_environment_is_found_by_its_cgroup_when_the_keeper_was_killed(
    bench: Bench, cgroup_parent: Path
) -> None:
    bench.cgroup_parent = cgroup_parent
    start_daemon(bench)
    kill_keeper(bench.runs[0].keeper)
    bench.runs[0].children[0].wait()
    tree = tree_of(ProcessTable.scan(), query_of(bench))
    assert (tree.populated, tree.is_empty) == (True, False)
    kill(tree)
    wait_until(lambda: find_trees([tree.query])[tree.query.run_id].is_empty, "an empty tree")


def test_our_kill_leaves_the_exit_record(bench_both_ways: Bench) -> None:
    plan, run = bench_both_ways.launch(
        "sh", "-c", "trap '' TERM; sleep 300 & setsid sleep 301 & while :; do wait; done"
    )
    wait_until(lambda: look(query_of(bench_both_ways)) == ["sh", "sleep", "sleep"], "the tree")
    kill(tree_of(ProcessTable.scan(), query_of(bench_both_ways)))
    assert run.children[0].wait(timeout=PATIENCE_S) == 0
    assert exit_code(plan) == 137


def test_terminate_asks_every_member_also_the_stopped_ones(bench: Bench) -> None:
    plan, run = bench.launch("sh", "-c", "kill -STOP $$")
    wait_until(lambda: any(map(is_stopped, tree_of(ProcessTable.scan(), query_of(bench)).members)), "the executor")
    os.kill(run.keeper.pid, signal.SIGSTOP)
    assert terminate(tree_of(ProcessTable.scan(), query_of(bench))) == 1
    assert run.children[0].wait(timeout=PATIENCE_S) == 0
    assert exit_code(plan) == 143


BOMB = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # else zombies would use up the pids of the whole machine
for _ in range(3): os.fork()
while True:
    os.fork() or os._exit(0)
    time.sleep(.01)
"""


def test_a_tree_that_forks_all_the_time_is_killed(bench_both_ways: Bench) -> None:
    bench_both_ways.launch(*python(BOMB))
    wait_until(lambda: len(tree_of(ProcessTable.scan(), query_of(bench_both_ways)).members) >= 8, "the bomb")

    def kill_again() -> bool:
        kill(tree_of(ProcessTable.scan(), query_of(bench_both_ways)))
        return is_gone(bench_both_ways.runs[0].keeper)

    wait_until(kill_again, "the end of the bomb")
    assert find_trees([query_of(bench_both_ways)])[bench_both_ways.plans[0].run_id].is_empty


def test_a_run_inside_a_run_belongs_to_the_outer_tree(bench: Bench) -> None:
    inner = a_run_id()
    bench.launch("sh", "-c", f"{RUN_ID_VARIABLE}={inner} setsid sh -c 'sleep 300; :' & wait")
    wait_until(lambda: look(query_of(bench)) == ["sh", "sh", "sleep"], "the outer tree")
    assert look(TreeQuery(inner)) == ["sh", "sleep"]


def test_the_run_id_is_matched_exactly(bench: Bench) -> None:
    def carry(**environment: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["sleep", "300"], env=environment)

    run_id = a_run_id()
    carriers = {
        "exact": carry(**{RUN_ID_VARIABLE: run_id}),
        "longer": carry(**{RUN_ID_VARIABLE: run_id + "2"}),
        "prefixed": carry(**{f"X{RUN_ID_VARIABLE}": run_id}),
        "quoted": carry(OTHER=f"{RUN_ID_VARIABLE}={run_id}"),
        "large": carry(**{f"A{number}": "x" * 100_000 for number in range(12)}, **{RUN_ID_VARIABLE: run_id}),
    }
    try:
        wait_until(lambda: len(ProcessTable.scan().pids_of_run(run_id)) == 2, "the carriers")
        assert ProcessTable.scan().pids_of_run(run_id) == {carriers["exact"].pid, carriers["large"].pid}
    finally:
        for carrier in carriers.values():
            carrier.kill()
            carrier.wait()


def test_a_process_with_other_start_ticks_is_gone_and_gets_no_signal(bench: Bench) -> None:
    _, run = bench.launch("sleep", "300")
    stranger = run.keeper._replace(start_ticks=run.keeper.start_ticks - 1)
    table = ProcessTable.scan()
    assert table.is_alive(run.keeper)
    assert not table.is_alive(stranger)
    assert signal_processes([stranger], signal.SIGKILL) == 0
    assert not kill_keeper(stranger)
    assert tree_of(table, TreeQuery("no-such-run", stranger)).is_empty


def test_a_zombie_is_gone() -> None:
    run_id = a_run_id()
    child = subprocess.Popen(["sleep", "300"], env={RUN_ID_VARIABLE: run_id})
    facts = ProcessTable.scan().processes[child.pid]
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not ProcessTable.scan().is_alive(Process(child.pid, facts.start_ticks))
    assert tree_of(ProcessTable.scan(), TreeQuery(run_id)).is_empty
    child.wait()


LEADERLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(300,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_whose_main_thread_has_ended_is_no_zombie(bench: Bench) -> None:
    _, run = bench.launch(sys.executable, "-I", "-c", LEADERLESS)
    query = query_of(bench)

    def executor_looks_like_a_zombie() -> bool:
        children = Path(f"/proc/{run.keeper.pid}/task/{run.keeper.pid}/children").read_text().split()
        return bool(children) and ") Z " in Path(f"/proc/{children[0]}/stat").read_text()

    wait_until(executor_looks_like_a_zombie, "the main thread's end")
    tree = tree_of(ProcessTable.scan(), query)
    assert len(tree.members) == 1
    kill(tree)
    assert run.children[0].wait(timeout=PATIENCE_S) == 0
    assert exit_code(bench.plans[0]) == 137


def test_a_process_that_is_dying_is_outlasted_before_its_tree_counts_as_empty(tmp_path: Path) -> None:
    """Its environment is gone before it gives back what it holds: here a lock, after much memory."""
    run_id, lock = a_run_id(), tmp_path / "lock"
    program = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); b = b'x' * (256 << 20); input()"
    with subprocess.Popen(
        [sys.executable, "-c", f"{program}", str(lock)], stdin=subprocess.PIPE, env={RUN_ID_VARIABLE: run_id}
    ) as dying:
        wait_until(lambda: is_locked(str(lock)), "the lock")
        dying.kill()
        while not find_trees([TreeQuery(run_id)])[run_id].is_empty:
            pass
        assert not is_locked(str(lock))


def test_neither_we_nor_the_first_process_are_ever_in_a_tree(bench: Bench) -> None:
    ours = Process.current()
    child = subprocess.Popen(["sleep", "300"])
    try:
        table = ProcessTable(ProcessTable.scan().processes, {"run_1": frozenset({1, ours.pid})})
        members = tree_of(table, TreeQuery("run_1", ours._replace(start_ticks=0))).members
    finally:
        child.kill()
        child.wait()
    assert ours.pid not in {process.pid for process in members}
    assert 1 not in {process.pid for process in members}


def table_of(*rows: tuple[int, int, int, int]) -> ProcessTable:
    """Rows of pid, parent, session, start ticks."""
    return ProcessTable({pid: Stat("S", parent, sid, sid, ticks) for pid, parent, sid, ticks in rows}, {})


def test_a_session_of_a_keeper_that_is_gone_is_still_the_runs() -> None:
    table = table_of((700, 1, 600, 50), (701, 700, 701, 60))
    assert tree_of(table, TreeQuery("r", Process(600, 40))).members == (Process(700, 50), Process(701, 60))


def test_a_session_whose_number_was_given_away_is_a_strangers() -> None:
    table = table_of((600, 1, 600, 90), (700, 600, 600, 95))
    assert tree_of(table, TreeQuery("r", Process(600, 40))).is_empty


def test_processes_older_than_the_keeper_are_not_of_its_session() -> None:
    assert tree_of(table_of((700, 1, 600, 30)), TreeQuery("r", Process(600, 40))).is_empty


def test_only_two_empty_passes_are_taken_for_gone() -> None:
    tables = [table_of(), table_of((700, 1, 600, 50))]
    query = TreeQuery("r", Process(600, 40))
    assert not find_trees([query], lambda: tables.pop(0))["r"].is_empty
    assert tables == []


def test_one_scan_serves_all_runs_and_a_second_only_those_found_empty() -> None:
    scans = []

    def scan() -> ProcessTable:
        scans.append(1)
        return table_of((700, 1, 600, 50))

    alive, gone = TreeQuery("alive", Process(600, 40)), TreeQuery("gone", Process(900, 40))
    trees = find_trees([alive, gone], scan)
    assert (len(scans), trees["alive"].is_empty, trees["gone"].is_empty) == (2, False, True)
    assert find_trees([], scan) == {}


def test_a_scan_is_fast(capsys: pytest.CaptureFixture[str]) -> None:
    times = []
    for _ in range(20):
        # Of the processor, not of the clock: that shows what else the machine has to do.
        began = time.process_time()
        table = ProcessTable.scan()
        times.append(time.process_time() - began)
    with capsys.disabled():
        print(f" [scan of {len(table.processes)} processes: {min(times) * 1000:.1f} ms]", end="")
    assert min(times) < 0.0005 * (len(table.processes) + 100)


def test_a_cgroup_holds_the_keeper_and_all_that_comes_of_it(bench: Bench, cgroup_parent: Path) -> None:
    bench.cgroup_parent = cgroup_parent
    plan, run = bench.launch("sleep", "300")
    path = cgroup.of_run(plan.run_id, None)
    assert path == cgroup_parent / f"operations_center-{plan.run_id}"
    wait_until(lambda: cgroup.members(path / "executor"), "the executor in its cgroup")
    assert run.keeper.pid in cgroup.members(path)
    assert run.keeper.pid not in cgroup.members(path / "executor")
    assert cgroup.is_populated(path) is True
    assert cgroup.remove(path) is False
    kill(tree_of(ProcessTable.scan(), query_of(bench)))
    run.children[0].wait(timeout=PATIENCE_S)
    wait_until(lambda: cgroup.is_populated(path) is False, "an empty cgroup")
    assert cgroup.remove(path) is True
    assert cgroup.is_populated(path) is None


def test_probing_for_a_cgroup_leaves_none(cgroup_parent: Path) -> None:
    assert list(cgroup_parent.glob(f"operations_center-probe-{os.getpid()}-*")) == []


def test_a_probe_that_was_killed_is_removed_by_the_next_one(cgroup_parent: Path) -> None:
    killed_at_step = (
        "import os, signal, sys; from pathlib import Path; from operations_center.keeper import cgroup\n"
        "cgroup.is_populated = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cgroup.usable_cgroup_parent()"
    )
    done = subprocess.Popen([sys.executable, "-c", killed_at_step])
    assert done.wait(timeout=PATIENCE_S) == -signal.SIGKILL
    # The child that it had put into its cgroup reads the end of its input, and ends. The next one may be any
    # process of this machine that probes.
    wait_until(lambda: not populated(cgroup_parent, done.pid), "an empty probe")
    cgroup.usable_cgroup_parent()
    assert probes_of(cgroup_parent, done.pid) == []


def probes_of(parent: Path, pid: int) -> list[Path]:
    return list(parent.glob(f"operations_center-probe-{pid}-*"))


def populated(parent: Path, pid: int) -> bool:
    return any(cgroup.is_populated(path) for path in probes_of(parent, pid))


def test_cgroup_of_a_launch_that_was_killed_when_it_made_it_is_found(
    bench: Bench, cgroup_parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cgroup.create

    def die(parent: Path, run_id: str) -> Path:
        made(parent, run_id)
        raise InterruptedHere

    monkeypatch.setattr(cgroup, "create", die)
    plan = bench.plan("true", cgroup_parent=cgroup_parent)
    with pytest.raises(InterruptedHere):
        prepare(plan)
    path = cgroup.of_run(plan.run_id, None)
    assert path == cgroup_parent / f"operations_center-{plan.run_id}"
    assert cgroup.remove(path)


class InterruptedHere(BaseException):
    pass


def test_a_run_whose_cgroup_cannot_be_made_runs_without_one(bench: Bench) -> None:
    plan = bench.finish("true", cgroup_parent=bench.directory / "missing")
    assert (exit_code(plan), cgroup.of_run(plan.run_id, None)) == (0, None)


def test_a_cgroup_that_disappears_before_the_start_does_not_stop_the_run(bench: Bench) -> None:
    plan = bench.plan("true")
    prepare(plan)
    (plan.run_directory / "cgroup").write_text("/nowhere/operations_center-x")
    run = start(plan)
    bench.runs.append(run)
    wait_for_end(run.keeper)
    assert exit_code(plan) == 0
    (plan.run_directory / "cgroup").unlink()
