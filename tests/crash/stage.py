"""A small fleet for one story: a copy of a template, executors that begin and end as the test wants, its processes.

One backend that takes one run at once. An executor takes a lock for its task and one for its slot, which stay with
whatever it leaves behind: so two that run beside each other are found by the kernel, however they end. Then it
says that it has begun, waits until it is let go, and says that it ends.
"""

import os
import select
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from operations_center.boards.local import NewTask
from operations_center.clock import Clock, Now, SystemClock
from operations_center.identity import Process, read_stat
from operations_center.in_flight_reconcile import Report, Trigger, Verdict, clear_orphaned_in_flight
from operations_center.pidfds import opened_pidfds
from operations_center.state_directory import SUPERVISOR
from operations_center.stopping.ends import wait_for_change
from operations_center.wakeups import WakeUp
from operations_center.watcher import Watcher
from operations_center.wiring import Center
from tests.fleet import PATIENCE_S, Fleet
from tests.points import IsStep, Stepped, effects
from tests.promises import broken_promises, broken_witness, living_runs
from tests.runs import run_of_a_dead_watcher, with_clock

CONFIG = """
[center]
cgroup = "off"
[roles.goal]
backend = "agent"
poll_interval = "10s"
retry_backoff = { initial = "0s" }
on_success = { state = "done", follow_up = "after" }
[roles.after]
backend = "agent"
[backends.agent]
kind = "command"
argv = ["/bin/sh", "executor.sh"]
working_directory = "."
stdin = "none"
max_concurrent = 1
grace = "100ms"
"""

EXECUTOR = """
say() { echo "$1 $OPERATIONS_CENTER_TASK_ID $OPERATIONS_CENTER_RUN_ID" >>"$HOME/witness"; }
exec 7>"$HOME/$OPERATIONS_CENTER_TASK_ID.lock" 8>"$HOME/slot.lock"
flock -n 7 || say twice
flock -n 8 || say over
say begin
echo >"$HOME/begun"
read -r _ <"$HOME/go"
say end
"""

STOPS = frozenset({Verdict.STOP, Verdict.CANCEL, Verdict.REAP})


@dataclass(frozen=True)
class LaterClock(SystemClock):
    """Ahead on both clocks: what was young just now is not young any more. The default does it for reservations."""

    ahead_ms: int = 11_000

    def now(self) -> Now:
        now = super().now()
        return Now(now.wall + self.ahead_ms, now.monotonic + self.ahead_ms)


@dataclass(frozen=True)
class Template:
    """A state directory to begin with; ``make`` writes it once."""

    fleet: Fleet

    @classmethod
    def make(cls, root: Path, tasks: int = 1, config: str = CONFIG, executor: str = EXECUTOR) -> Self:
        fleet = Fleet(root)
        fleet.configure(config)
        (root / "executor.sh").write_text(executor)
        with fleet.center() as center:
            center.board.add([NewTask(f"task {number}", "goal") for number in range(tasks)])
            os.mkfifo(center.state.wake / SUPERVISOR)
        for name in ("begun", "go"):
            os.mkfifo(root / name)
        return cls(fleet)

    @contextmanager
    def staged(self, root: Path, clock: Clock | None = None) -> "Iterator[Stage]":
        """A stage in a copy. It is left as it is where the story fails, but for its processes."""
        shutil.copytree(self.fleet.root, root, copy_function=_copy)
        stage = Stage(Fleet(root), clock or SystemClock())
        try:
            yield stage
        finally:
            stage.close()
        shutil.rmtree(root)


def _copy(source: str, target: str) -> None:
    """FIFOs are made anew."""
    if Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copy2(source, target)


@dataclass
class Stage:
    fleet: Fleet
    clock: Clock = field(default_factory=SystemClock)
    """Of whoever is started on it."""
    was_let_go: bool = field(default=False, init=False)
    _processes: list[Stepped] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.begun, self._go = (os.open(self.fleet.root / name, os.O_RDWR) for name in ("begun", "go"))
        self.ready = WakeUp(self.fleet.state.wake, SUPERVISOR)

    def close(self) -> None:
        os.close(self.begun)
        os.close(self._go)
        self.ready.close()
        for process in self._processes:
            process.kill()
        # Killed until none is left: what was about to fork is seen the next time.
        while living := self.living():
            self.kill({pid for pids in living.values() for pid in pids})

    # What happens on it

    def watch(self, role: str = "goal") -> None:
        """A watcher until it has nothing more to do. In a process of its own."""
        os.environ["HOME"] = str(self.fleet.root)
        with self.center() as center:
            Watcher(center, center.config.roles[role], once=True).run()

    def stepped(
        self,
        body: Callable[[], object],
        step: int,
        *,
        meanwhile: tuple[int, Callable[[Stepped], object]] | None = None,
        is_step: IsStep = effects,
    ) -> Stepped:
        """A process that runs a body and stands still before its n-th step."""
        self._processes.append(Stepped(body, step, signal.SIGSTOP, is_step, meanwhile))
        return self._processes[-1]

    def leave_a_run(self) -> str:
        """A run of the first task whose executor has begun and whose watcher is dead."""
        run_id, _ = run_of_a_dead_watcher(self.fleet, "t1")
        os.read(self.begun, 100)
        return run_id

    def in_a_process(self, body: Callable[[], object]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                body()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0

    def let_go(self) -> None:
        """Whoever waits ends, and whoever begins later does at once."""
        self.was_let_go = True
        os.write(self._go, b"\n" * 100)

    def terminate(self, watcher: Stepped) -> None:
        """For ``meanwhile`` of an executor's beginning: its watcher is told to stop."""
        os.read(self.begun, 100)
        os.kill(watcher.pid, signal.SIGTERM)

    def let_go_when_ready(self, _watcher: Stepped) -> None:
        """For ``meanwhile`` of a watcher that says that it is ready."""
        self.ready.drain()
        self.let_go()

    # Who is on it

    def living(self) -> dict[str, set[int]]:
        """Processes of this stage's runs."""
        ours = {path.name for path in self.fleet.state.runs.iterdir()}
        return {run_id: pids for run_id, pids in living_runs().items() if run_id in ours}

    def kill(self, pids: Collection[int]) -> None:
        """And wait until they are gone."""
        with opened_pidfds(_processes(pids)) as pidfds:
            for pidfd in pidfds:
                # It may have ended meanwhile by itself, as a keeper whose executor is gone does.
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            for pidfd in pidfds:
                assert select.select([pidfd], [], [], PATIENCE_S)[0]

    # What is true of it

    @property
    def witness(self) -> list[str]:
        path = self.fleet.root / "witness"
        return path.read_text().splitlines() if path.exists() else []

    def begun_runs(self) -> list[str]:
        return [line.split()[2] for line in self.witness if line.startswith("begin ")]

    def come_to_rest(self) -> dict[str, set[int]]:
        """Until each run that lives has an executor that has begun, and until all have ended that were let go."""
        deadline = time.monotonic() + PATIENCE_S
        while restless := self._restless(living := self.living()):
            assert time.monotonic() < deadline, f"still waiting for {restless}"
            with opened_pidfds(_processes(restless)) as pidfds:
                if self.begun in select.select([*pidfds, self.begun], [], [], 1)[0]:
                    os.read(self.begun, 100)
        return living

    def _restless(self, living: Mapping[str, set[int]]) -> set[int]:
        """Who is about to begin or to end."""
        begun = set() if self.was_let_go else set(self.begun_runs())
        return {pid for run_id, pids in living.items() if run_id not in begun or not executors(pids) for pid in pids}

    @contextmanager
    def center(self) -> Iterator[Center]:
        with self.fleet.center() as center:
            yield with_clock(center, self.clock)

    def reconcile_until_no_stop_is_in_progress(self) -> Report:
        """Once; and where it stops something, until grace has run out and that is gone."""
        with self.center() as center:
            while True:
                report = clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
                if not STOPS & dict(report.verdicts).keys():
                    return report
                wait_for_change(center, center.ledger.open_runs(), None)

    def broken(self) -> list[str]:
        with self.fleet.center() as center:
            return [*broken_promises(center), *broken_witness(self.witness)]

    def assert_promises_are_kept(self) -> None:
        """After one reconciliation; after another where something ended by itself while it looked."""
        before = self.living()
        self.reconcile_until_no_stop_is_in_progress()
        if self.come_to_rest() != before:
            self.reconcile_until_no_stop_is_in_progress()
        assert self.broken() == []
        self.assert_a_further_reconcile_does_nothing()

    def assert_a_further_reconcile_does_nothing(self) -> None:
        with self.center() as center:
            before = center.ledger.last_event()
            report = clear_orphaned_in_flight(center.surroundings, trigger=Trigger.CLI)
            assert report.actions == ()
            assert center.ledger.last_event() == before

    def go_on_to_the_end(self) -> None:
        """Watchers, one after the other, until no task is left to run."""
        self.let_go()
        for _ in range(10):
            self.in_a_process(self.watch)
            with self.fleet.center() as center:
                tasks = {task.task_id for task in center.board.ready(["goal"], [None])}
                if not tasks and not center.ledger.open_runs():
                    return
        raise AssertionError("there is always something left to run")


def keepers(pids: Collection[int]) -> set[int]:
    """Those of a run's processes that run our script and lead a session; all others are its executor's."""
    return {pid for pid in pids if (stat := read_stat(pid)) is not None and stat.session == pid and is_script(pid)}


def is_script(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"\0keeper\0")
    except OSError:
        return False


def executors(pids: Collection[int]) -> set[int]:
    return set(pids) - keepers(pids)


def _processes(pids: Collection[int]) -> list[Process]:
    return [Process(pid, stat.start_ticks) for pid in pids if (stat := read_stat(pid)) is not None]
