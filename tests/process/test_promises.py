"""Schedules that once lost or doubled a run, hung a sweep or spun a watcher."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest

from operations_center.admission import Limits
from operations_center.boards.local import NewTask
from operations_center.clock import Now, SystemClock
from operations_center.dispatch import Dispatcher, Started
from operations_center.identity import Process
from operations_center.in_flight_reconcile import StopOrder, Trigger, clear_orphaned_in_flight, request_stop
from operations_center.keeper.inspect import ProcessTable, read_exit
from operations_center.keeper.launch import revoke
from operations_center.ledger import Admission
from operations_center.model import HOLDS_SLOT, Outcome, Run, RunState, TaskState
from operations_center.wiring import Center
from tests.fleet import PATIENCE_S, Fleet, is_dead, wait_until
from tests.points import Stepped
from tests.runs import run_of_a_dead_watcher

CONFIG = """
[roles.goal]
backend = "agent"
retry_backoff = {{ initial = "0s" }}
on_success = {{ state = "done", follow_up = "test" }}
[roles.test]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["sh", "-c", '''echo ran >>"$HOME/ran"; {command}''']
stdin = "none"
max_concurrent = 1
timeout = "{timeout}"
grace = "300ms"
[watchdog]
every = "300ms"
"""

UNTIL_LET_GO = 'until [ -e "$HOME/go" ]; do sleep 0.02; done'
LEAVE_A_DAEMON = f"{UNTIL_LET_GO}; setsid sleep 300 & exit 0"


@pytest.fixture
def fleet(fleet: Fleet) -> Fleet:
    configure(fleet, "exit 0")
    return fleet


def configure(fleet: Fleet, command: str, timeout: str = "1h") -> None:
    fleet.configure(CONFIG.format(command=command, timeout=timeout))


def times_run(fleet: Fleet) -> int:
    path = fleet.root / "ran"
    return len(path.read_text().split()) if path.exists() else 0


def run_without_a_watcher(fleet: Fleet, kind: str = "goal") -> str:
    """The run of a task whose executor runs; its watcher was killed."""
    fleet.add(1, kind)
    watcher = fleet.popen("watch", "--role", kind)
    wait_until(lambda: times_run(fleet), "the executor")
    watcher.kill()
    watcher.wait()
    (directory,) = fleet.state.runs.iterdir()
    return directory.name


def left_with_a_daemon(fleet: Fleet) -> str:
    """A run whose executor has ended with 0 and left a daemon; its watcher is dead."""
    run_id = run_without_a_watcher(fleet)
    fleet.let_go()
    wait_until(lambda: read_exit(fleet.state.run(run_id)), "the exit record")
    return run_id


def test_a_recorded_finish_is_not_undone_by_a_limit_that_passes_while_a_daemon_is_left(fleet: Fleet) -> None:
    configure(fleet, "setsid sleep 300 & exit 0", timeout="4s")
    (task_id,) = fleet.add(1, "goal")
    run_id, _ = run_of_a_dead_watcher(fleet, task_id)
    wait_until(lambda: not ProcessTable.scan().pids_of_run(run_id), "the timer ends what is left")
    fleet.run("reconcile")
    (run,) = fleet.json("runs")["runs"]
    assert (run["outcome"], run["exit_code"]) == ("succeeded", 0)


def test_a_recorded_finish_is_not_undone_by_a_stop_that_was_stored_and_never_signalled(fleet: Fleet) -> None:
    configure(fleet, LEAVE_A_DAEMON)
    run_without_a_watcher(fleet)
    with fleet.center() as center:
        (run,) = center.ledger.open_runs()
        stored = center.ledger.change_run(
            run,
            "run.stop_requested",
            holder=run.holder + 1,
            stop_outcome=Outcome.STOPPED,
            stop_reason="down --now",
            stop_then=TaskState.READY,
            kill_mono=0,
        )
        assert stored is not None
        fleet.let_go()
        wait_until(lambda: read_exit(fleet.state.run(run.run_id)), "the exit record")
        wait_until(lambda: reconciled(center, run.run_id).state is RunState.CLOSED, "the end of the run")
        assert reconciled(center, run.run_id).outcome is Outcome.SUCCEEDED
        assert center.board.states([run.task_id]) == {run.task_id: TaskState.DONE}


def begins_to_stop(frame: FrameType, event: str, _argument: object) -> str | None:
    return event if event in ("call", "return") and frame.f_code.co_qualname == "request_stop" else None


@pytest.mark.parametrize("step", [1, 2])
def test_a_recorded_finish_is_not_undone_by_who_stood_still_before_the_first_signal(fleet: Fleet, step: int) -> None:
    configure(fleet, UNTIL_LET_GO)
    run_id = run_without_a_watcher(fleet)
    with fleet.center() as center:
        (run,) = center.ledger.open_runs()
        assert request_stop(center.ledger, center.clock, run, StopOrder(Outcome.STOPPED, "down", TaskState.READY))

    def reconcile() -> None:
        with fleet.center() as center:
            clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)

    reconciler = Stepped(reconcile, step, signal.SIGSTOP, begins_to_stop)
    fleet.let_go()
    wait_until(lambda: read_exit(fleet.state.run(run_id)), "the exit record")
    reconciler.go_on()
    assert reconciler.wait() == 0
    with fleet.center() as center:
        wait_until(lambda: reconciled(center, run_id).state is RunState.CLOSED, "the end of the run")
        assert reconciled(center, run_id).outcome is Outcome.SUCCEEDED
        assert center.board.states([run.task_id]) == {run.task_id: TaskState.DONE}
    assert times_run(fleet) == 1


def reconciled(center: Center, run_id: str) -> Run:
    clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
    run = center.ledger.run(run_id)
    assert run is not None
    return run


@pytest.mark.parametrize("name", ["task.json", "lock", "gate", "exit", "result.json", "cgroup", "timed_out"])
@pytest.mark.parametrize("what", ["fifo", "link", "directory", "rubbish"])
def test_whatever_an_executor_puts_into_its_run_directory_hurts_no_other_run(
    fleet: Fleet, name: str, what: str
) -> None:
    make = {
        "fifo": "mkfifo",
        "link": "ln -s /dev/zero",
        "directory": "mkdir",
        "rubbish": 'printf "{\\"title\\": \\"\\\\ud800\\", \\"kind\\": 7}" >',
    }[what]
    fleet.configure(
        CONFIG.format(command="", timeout="1h").replace(
            "''']",
            f"""[ -e "$HOME/done" ] || {{ : >"$HOME/done"; rm -f "{{0}}"; {make} "{{0}}"; }}''']""".replace(
                "{0}", f"$OPERATIONS_CENTER_RUN_DIR/{name}"
            ),
        )
    )
    fleet.add(2, "goal")
    fleet.run("watch", "--role", "goal", "--once")
    fleet.run("reconcile")
    tasks = [task for task in fleet.json("task", "list")["tasks"] if task["kind"] == "goal"]
    assert tasks[1]["state"] == "done"
    assert tasks[0]["state"] in ("done", "blocked", "ready")
    assert not fleet.json("runs", "--open")["runs"]


def test_a_run_that_cannot_be_revoked_keeps_no_other_slot(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = dead_process()
    with fleet.center() as center:
        runs = []
        for task_id in center.board.add([NewTask(f"task {number}", "goal") for number in range(3)]):
            admission = Admission(task_id, "goal", "agent", Limits(9), center.host, dead, 300, None)
            run = center.ledger.admit(admission)
            assert isinstance(run, Run)
            runs.append(run)
        # Else nothing of it could start: a dead spawner has made no directory.
        center.state.run(runs[0].run_id).mkdir()

        def refuse_the_first(directory: Path) -> bool:
            if directory.name == runs[0].run_id:
                raise PermissionError("the directory is not ours")
            return revoke(directory)

        monkeypatch.setattr("operations_center.in_flight_reconcile.freeing.revoke", refuse_the_first)
        report = clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
        assert sorted(action.done for action in report.actions) == ["applied", "applied", "error"]
        assert [run.run_id for run in center.ledger.open_runs()] == [runs[0].run_id]


def dead_process() -> Process:
    child = subprocess.Popen(["true"])
    child.wait()
    return Process(child.pid, 1)


def test_a_watcher_that_meets_a_full_backend_and_a_run_that_is_not_its_own_does_not_spin(fleet: Fleet) -> None:
    configure(fleet, "exec sleep 300")
    run_without_a_watcher(fleet)
    with fleet.center() as center:
        center.board.add([NewTask("waits", "test")])
    watcher = fleet.popen("watch", "--role", "test")
    wait_until(lambda: fleet.state.pulse("test").exists() and fleet.pulse("test").state == "ready", "the watcher")
    before = cpu_ms(watcher.pid)
    time.sleep(2)  # what is measured is a stretch of time
    assert cpu_ms(watcher.pid) - before < 500


def cpu_ms(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def test_a_fleet_is_not_started_from_inside_one_of_its_own_runs(fleet: Fleet) -> None:
    fleet.add(1, "goal")
    fleet.run("watch", "--role", "goal", "--once")
    (run,) = fleet.json("runs")["runs"]
    refused = subprocess.run(
        fleet.argv("up"),
        env=fleet.environment | {"OPERATIONS_CENTER_RUN_ID": run["run_id"]},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"cannot start the supervisor: this process belongs to run {run['run_id']}")


def test_pruning_gives_no_budget_back(fleet: Fleet) -> None:
    fleet.configure(
        CONFIG.format(command="exit 0", timeout="1h").replace("max_concurrent", "max_per_day = 2\nmax_concurrent")
    )
    fleet.add(4, "test")
    fleet.run("watch", "--role", "test", "--once")
    assert times_run(fleet) == 2
    fleet.run("ledger", "prune", "--older-than", "1ms")
    assert fleet.json("runs")["runs"] == []
    fleet.run("watch", "--role", "test", "--once")
    assert times_run(fleet) == 2
    assert not fleet.broken_promises()


def test_a_task_that_is_edited_after_it_was_read_runs_as_it_is_now(fleet: Fleet) -> None:
    configure(fleet, 'cat "$OPERATIONS_CENTER_RUN_DIR/prompt" >"$HOME/prompt"')
    with fleet.center() as center:
        (task_id,) = center.board.add([NewTask("old", "test")])
        (task,) = center.board.ready(["test"], [None])
        center.board.edit(task_id, title="new")
        environment = os.environ | {"HOME": str(fleet.root)}
        started = Dispatcher(center.surroundings, center.config.roles["test"], center.backends(environment)).dispatch(
            task
        )
        assert isinstance(started, Started)
        for child in started.children:
            child.wait()
        assert (fleet.root / "prompt").read_text() == "new"
        wait_until(lambda: reconciled(center, started.run.run_id).state is RunState.CLOSED, "the end of the run")


def test_a_task_is_not_made_ready_while_a_run_of_it_is_still_open(fleet: Fleet) -> None:
    """Else a run that ends well after its task was cancelled and retried would have it done twice."""
    configure(fleet, "exec sleep 300")
    run_id = run_without_a_watcher(fleet)
    with fleet.center() as center:
        run = center.ledger.run(run_id)
        assert run is not None
        task_id = run.task_id
        center.board.cancel(task_id)  # as a `task cancel` that was killed in the middle leaves it
    assert "is still open" in fleet.run("task", "retry", task_id, expect=1).stderr
    assert "is still open" in fleet.run("task", "edit", task_id, "--state", "ready", expect=1).stderr
    fleet.run("reconcile")
    wait_until(lambda: fleet.run("reconcile") and not fleet.json("runs", "--open")["runs"], "the run is ended")
    assert fleet.json("task", "show", task_id)["state"] == "cancelled"


def test_a_drain_that_is_killed_holds_nobody_up(fleet: Fleet) -> None:
    configure(fleet, UNTIL_LET_GO)
    fleet.add(2, "test")
    fleet.up()
    wait_until(lambda: times_run(fleet) == 1, "the first executor")
    drain = fleet.popen("down", "--drain")
    wait_until(lambda: fleet.json("status")["pauses"], "the pause")
    drain.kill()
    drain.wait()
    wait_until(lambda: not fleet.json("status")["pauses"], "the watchdog ends the pause")
    fleet.let_go()
    wait_until(lambda: times_run(fleet) == 2, "the second executor")


def test_a_watcher_that_runs_once_stays_for_a_run_whose_keeper_is_about_to_record_its_end(fleet: Fleet) -> None:
    configure(fleet, UNTIL_LET_GO)
    (task_id,) = fleet.add(1, "goal")
    run_id, (keeper, *_) = run_of_a_dead_watcher(fleet, task_id)
    wait_until(lambda: times_run(fleet), "the executor")
    os.kill(keeper, signal.SIGSTOP)
    fleet.let_go()
    wait_until(lambda: ProcessTable.scan().pids_of_run(run_id) == {keeper}, "the executor's end")
    fleet.run("watch", "--role", "goal", "--once")
    (run,) = fleet.json("runs")["runs"]
    assert (run["state"], run["outcome"]) == ("closed", "succeeded")
    assert fleet.json("task", "show", task_id)["state"] == "done"


def test_a_stranger_who_reads_a_lock_is_nobodys_watcher(fleet: Fleet) -> None:
    fleet.state.create()
    lock = fleet.state.watcher_lock("goal")
    lock.touch()
    stranger = subprocess.Popen(["flock", "--no-fork", "-s", str(lock), "sleep", "300"])
    try:
        wait_until(lambda: is_read_locked(lock), "the stranger's lock")
        (watcher,) = [each for each in fleet.json("status", expect=3)["watchers"] if each["role"] == "goal"]
        assert watcher["pid"] is None
        fleet.run("down")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def is_read_locked(path: Path) -> bool:
    inode = f":{path.stat().st_ino}"
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(fields[3] == "READ" and fields[5].endswith(inode) for fields in locks)


def test_a_ledger_that_somebody_else_locks_does_not_keep_a_watcher_from_coming_up(fleet: Fleet) -> None:
    with fleet.center():
        pass  # makes the ledger
    blocker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sqlite3, sys, time\n"
            "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "connection.execute('BEGIN IMMEDIATE')\n"
            "print('held', flush=True)\n"
            "time.sleep(300)",
            str(fleet.state.ledger),
        ],
        stdout=subprocess.PIPE,
    )
    assert blocker.stdout is not None
    try:
        assert blocker.stdout.readline() == b"held\n"
        fleet.popen("watch", "--role", "goal")
        wait_until(lambda: fleet.state.pulse("goal").exists() and fleet.pulse("goal").state == "ready", "ready")
        pulse = fleet.pulse("goal")
        # Its budgets add up to 4 s, and a single write that waited for the blocker without one would take 10 s.
        assert pulse.heartbeat_at - pulse.started_at < 9_000
    finally:
        blocker.kill()
        blocker.communicate()


def test_a_clock_that_is_set_back_keeps_no_leftover_alive(fleet: Fleet) -> None:
    configure(fleet, LEAVE_A_DAEMON)
    run_id = left_with_a_daemon(fleet)
    tomorrow = time.time() + 86_400
    os.utime(fleet.state.run(run_id) / "exit", (tomorrow, tomorrow))
    with fleet.center() as center:
        wait_until(lambda: reconciled(center, run_id).state is RunState.CLOSED, "the end of the run")
        assert reconciled(center, run_id).outcome is Outcome.SUCCEEDED


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_fleet_outlives_a_full_disk_and_works_on_when_there_is_room(fleet: Fleet) -> None:
    fleet.state.root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "mode=0700,size=4m", "tmpfs", str(fleet.state.root)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        fleet.configure(
            CONFIG.format(command="sleep 0.2", timeout="1h") + 'min_free_disk = "100KiB"\nstalled_after = "30s"\n'
        )
        supervisor = fleet.up()
        names = ("goal", "test", "@watchdog")
        before = {name: fleet.pulse(name).pid for name in names}
        ballast = fleet.state.root / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(b"x" * 4096)
        fleet.run("task", "add", "refused on a full disk", "--kind", "test", expect=None)
        for _ in range(2):
            beats = {name: fleet.pulse(name).heartbeat_at for name in names}
            wait_until(
                lambda beats=beats: all(fleet.pulse(name).heartbeat_at > beats[name] for name in names), "a beat"
            )
        assert supervisor.poll() is None
        assert {name: fleet.pulse(name).pid for name in before} == before
        ballast.unlink()
        fleet.run("task", "add", "accepted again", "--kind", "test")
        wait_until(lambda: times_run(fleet) >= 1, "the executor")
        wait_until(lambda: all_done(fleet), "every task is done")
        supervisor.terminate()
        assert supervisor.wait(PATIENCE_S) == 0
    finally:
        fleet.clean_up()
        subprocess.run(["umount", "-l", str(fleet.state.root)], check=True)


def all_done(fleet: Fleet) -> bool:
    return {task["state"] for task in fleet.json("task", "list")["tasks"]} == {"done"}


def test_a_run_whose_start_is_not_recorded_keeps_its_slot_though_its_executor_empties_the_run_directory(
    fleet: Fleet,
) -> None:
    configure(fleet, 'rm -rf "$OPERATIONS_CENTER_RUN_DIR"/*; exec sleep 300')
    (task_id,) = fleet.add(1, "test")
    with fleet.center() as center:
        dispatcher = Dispatcher(
            center.surroundings, center.config.roles["test"], center.backends(os.environ | {"HOME": str(fleet.root)})
        )
        task = center.board.task(task_id)
        assert task is not None
        started = dispatcher.dispatch(task)
        assert isinstance(started, Started)
        wait_until(lambda: times_run(fleet), "the executor")
        wait_until(lambda: not (fleet.state.run(started.run.run_id) / "gate").exists(), "the empty directory")
        forget_the_start(center, started.run)
        for _ in range(3):
            run = reconciled(replace(center, clock=LaterClock()), started.run.run_id)
            alive = ProcessTable.scan().pids_of_run(run.run_id)
            assert not alive or run.state in HOLDS_SLOT
        wait_until(lambda: reconciled(center, started.run.run_id).state is RunState.CLOSED, "the end of the run")
        assert not ProcessTable.scan().pids_of_run(started.run.run_id)
        for child in started.children:
            child.wait()


def forget_the_start(center: Center, run: Run) -> None:
    """As a watcher leaves it that was killed before it could record the start."""
    with center.store.transaction():
        center.store.execute(
            "UPDATE runs SET state = 'reserved', keeper_pid = NULL, keeper_ticks = NULL, cgroup = NULL,"
            " watcher_ticks = 1 WHERE run_id = :run_id",
            {"run_id": run.run_id},
        )


class LaterClock(SystemClock):
    """Eleven seconds ahead on both clocks: a reservation that was made just now is not young any more."""

    def now(self) -> Now:
        now = super().now()
        return Now(now.wall + 11_000, now.monotonic + 11_000)


def test_a_fleet_whose_lock_files_were_removed_makes_way_for_the_next(fleet: Fleet) -> None:
    supervisor = fleet.up()
    before = {name: fleet.pulse(name) for name in ("goal", "test", "@watchdog")}
    fleet.state.supervisor_lock.unlink()
    for name in before:
        fleet.state.watcher_lock(name).unlink()
    assert supervisor.wait(PATIENCE_S) == 0
    wait_until(lambda: all(is_dead(pulse) for pulse in before.values()), "the watchers end")


def test_an_executor_cannot_switch_its_limit_off(fleet: Fleet) -> None:
    configure(fleet, 'cd "$OPERATIONS_CENTER_RUN_DIR"; rm exit; mkfifo exit; exec sleep 300', timeout="2s")
    run_id = run_without_a_watcher(fleet, "test")
    wait_until(lambda: not ProcessTable.scan().pids_of_run(run_id), "the timer ends it")


def test_a_term_that_was_recorded_and_never_sent_is_sent_by_the_next_pass(fleet: Fleet) -> None:
    configure(
        fleet, 'trap \'echo termed >"$HOME/termed"; exit 0\' TERM; : >"$HOME/listens"; while :; do sleep 0.05; done'
    )
    fleet.configure((fleet.root / "operations_center.toml").read_text().replace('"300ms"\n[watch', '"60s"\n[watch'))
    run_without_a_watcher(fleet, "test")
    wait_until((fleet.root / "listens").exists, "the executor listens")
    with fleet.center() as center:
        (run,) = center.ledger.open_runs()
        stop = StopOrder(Outcome.STOPPED, "stopped", TaskState.BLOCKED)
        stored = request_stop(center.ledger, center.clock, run, stop)
        assert stored is not None
        long_ago = center.clock.now().wall - 5_000
        center.ledger.change_run(stored, "run.signalled", holder=stored.holder + 1, signalled_at=long_ago)
        wait_until(lambda: reconciled(center, run.run_id).state is RunState.CLOSED, "the end of the run")
        assert (fleet.root / "termed").exists()
        assert reconciled(center, run.run_id).outcome is Outcome.STOPPED
