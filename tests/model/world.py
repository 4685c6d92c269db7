"""Hosts, our processes on them, what they run; and the promises, checked against what is true there."""

import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from operations_center.boards.local import LocalBoard
from operations_center.care.backup import back_up
from operations_center.care.restore import restore
from operations_center.config import load_config
from operations_center.in_flight_reconcile import Report
from operations_center.in_flight_reconcile.evidence import LEASE_MARGIN_MS
from operations_center.in_flight_reconcile.orphans import RESERVATION_YOUNG_MS
from operations_center.in_flight_reconcile.report import Done
from operations_center.keeper import cgroup
from operations_center.keeper.inspect import ExitRecord, read_exit
from operations_center.keeper.result import Result, read_result
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.model import HOLDS_SLOT, TRANSITIONS, Event, Outcome, Proof, Run, RunState, TaskState, Transition
from operations_center.store import Store
from tests.model import operations
from tests.model.actors import Actor, Stage
from tests.model.executions import Execution
from tests.model.kernel import Machine, Namespace

CONFIG = """
[center]
state_dir = "state"
cgroup = "off"

[roles.goal]
backend = "agent"
on_success = { state = "done", follow_up = "test" }

[roles.test]
backend = "agent"
on_failure = { state = "ready" }

[backends.agent]
kind = "command"
argv = ["true"]
max_concurrent = 2
grace = "10s"

[backends.render]
kind = "command"
argv = ["true"]
max_concurrent = 1
max_per_hour = 2
timeout = "30s"
grace = "2s"
"""
HOUR_MS = 3_600_000
LONG_ENOUGH = 120
"""Steps of whatever does not wait for a run to end."""
DAY_MS = 24 * HOUR_MS
ENDED = frozenset({TaskState.DONE, TaskState.BLOCKED, TaskState.CANCELLED, TaskState.REVIEW, TaskState.BACKLOG})


@dataclass
class Known:
    """A run as its events tell of it, kept beside the ledger: also after the ledger has forgotten it."""

    task_id: str
    backend: str
    namespace: Namespace
    admitted_at: int
    state: RunState = RunState.RESERVED
    holder: int = 1
    outcome: Outcome | None = None


@dataclass
class Backup:
    path: Path
    known: dict[str, Known] = field(default_factory=dict)


class World:
    """Two pid namespaces of one machine that share a state directory, and another machine with run directories of its
    own; all of them use one ledger."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self.root = Path(tempfile.mkdtemp(prefix="oc-model-", dir=memory if memory.is_dir() else None))
        config_file = self.root / "operations_center.toml"
        config_file.write_text(CONFIG)
        self.config = load_config(config_file, {})
        self.here, self.there = Machine("here", "host-1"), Machine("there", "host-2")
        self.here.namespaces = [Namespace(self.here, number, self._runs("state")) for number in (1, 2)]
        self.there.namespaces = [Namespace(self.there, 1, self._runs("elsewhere"))]
        self.namespaces = [*self.here.namespaces, *self.there.namespaces]
        self.cgroups = self.root / "cgroups"
        self.cgroups.mkdir()
        # Directories stand for cgroups here.
        self._patches = ExitStack()
        self._patches.enter_context(patch.object(cgroup, "_is_cgroup", Path.is_dir))
        self._patches.enter_context(patch.object(cgroup, "_own_cgroup", lambda: self.cgroups))
        self.stage = Stage()
        self.actors: list[Actor] = []
        self.known: dict[str, Known] = {}
        self.written_off: set[str] = set()
        self.tasks: set[str] = set()
        self.claims: dict[str, str | None] = {}
        self.highest_fence = 0
        self.latest_wall = 0
        self.backups: list[Backup] = []
        self.rules: Counter[str] = Counter()
        self._seen = 0
        self._open_witness()
        self.stage.check = self.check
        (self.root / "state" / "host-id").write_text("host-1\n")

    def _runs(self, name: str) -> Path:
        runs = self.root / name / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        return runs

    def _open_witness(self) -> None:
        """A connection of the model's own, by which it reads, and by which people work on the board."""
        self.store = Store(self.ledger_path, self.here)
        self.ledger, self.board = SqliteLedger(self.store), LocalBoard(self.store)

    @property
    def ledger_path(self) -> Path:
        return self.root / "state" / "ledger.db"

    def close(self) -> None:
        self._patches.close()
        for actor in self.actors:
            actor.die()
        for namespace in self.namespaces:
            namespace.end()
        self.store.close()
        shutil.rmtree(self.root)

    @property
    def acted_last(self) -> Actor:
        assert self.stage.acted_last is not None
        return self.stage.acted_last

    @property
    def executions(self) -> dict[str, Execution]:
        return self.stage.executions

    def nothing_goes_wrong(self) -> None:
        self.stage.board_is_away = self.stage.board_is_deaf = self.stage.cannot_fork = False
        self.stage.ledger_is_busy, self.stage.forks_and_fails = 0, False

    # Our processes

    def actor(self, namespace: Namespace, name: str) -> Actor:
        """The living one of a name in a namespace, started if need be."""
        for actor in self.living_actors:
            if actor.namespace is namespace and actor.name == name:
                return actor
        actor = Actor(namespace, name, self.config, self.ledger_path, self.stage)
        self.actors.append(actor)
        return actor

    @property
    def living_actors(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.lives]

    def finish(self, actor: Actor) -> None:
        """Let it end what it was at, if anything. A command that waits for a run that goes on is interrupted."""
        if actor.is_busy and not actor.go_on(LONG_ENOUGH):
            actor.die()

    def end_actors(self, namespaces: list[Namespace]) -> None:
        for actor in self.living_actors:
            if actor.namespace in namespaces:
                actor.die()
        self.actors = self.living_actors

    def end_namespace(self, namespace: Namespace) -> None:
        self.end_actors([namespace])
        namespace.end()

    def reboot(self, machine: Machine) -> None:
        self.end_actors(machine.namespaces)
        machine.reboot()

    # Time

    def jump(self, machine: Machine, milliseconds: int) -> None:
        self.latest_wall = self._latest()
        machine.wall += milliseconds
        for actor in self.living_actors:
            actor.clock_was_set = actor.clock_was_set or actor.is_busy

    def _latest(self) -> int:
        """What any clock has ever shown."""
        return max(self.latest_wall, self.here.wall, self.there.wall)

    def advance(self, milliseconds: int) -> None:
        """Watchers that are neither stopped nor busy renew their host's lease meanwhile, as they do twice a second."""
        for machine in (self.here, self.there):
            machine.advance(milliseconds)
        for actor in self.living_actors:
            if actor.is_ready and not actor.is_busy:
                actor.begin(operations.keep_lease)

    # Care of the ledger

    def back_up(self) -> None:
        path = self.root / f"backup-{len(self.backups)}.db"
        back_up(self.ledger, self.config.center.state_dir / "runs", path, self.here.wall)
        self.backups.append(Backup(path))

    def restore(self, backup: Backup) -> None:
        """With everything stopped: the ledger then knows nothing of what came after the backup."""
        for namespace in self.namespaces:
            self.end_namespace(namespace)
        self.store.close()
        restore(self.config, backup.path)
        self._open_witness()
        self._seen = 0
        self.known.clear()
        for event in self._new_events():
            self._learn(event)
        self.tasks = {task.task_id for task in self.board.tasks()}

    # The promises

    def check(self) -> None:
        """What holds at every moment."""
        assert self.stage.breaches == []
        for event in self._new_events():
            self._check_event(event)
            self._learn(event)
        self._check_slots_of_living_trees()
        self._check_one_tree_per_task()
        self._check_caps()
        self._check_tasks()

    def _new_events(self) -> Iterator[Event]:
        for event in self.ledger.events(after=self._seen):
            self._seen = event.seq
            yield event

    def _learn(self, event: Event) -> None:
        run_id, changed = event.run_id, event.data.get("run", {})
        if event.kind == "run.reserved":
            assert run_id is not None
            self.known[run_id] = Known(
                changed["task_id"], changed["backend"], self._namespace_of(changed), changed["reserved_at"]
            )
            self.highest_fence = max(self.highest_fence, changed["fence"])
        elif changed and run_id is not None:
            known = self.known[run_id]
            known.state = RunState(changed.get("state", known.state))
            known.holder = changed.get("holder", known.holder)
            known.outcome = changed.get("outcome", known.outcome)
        elif event.kind == "task.added":
            assert event.task_id is not None
            self.tasks.add(event.task_id)
        if event.task_id is not None and "claimed_by" in event.data.get("task", {}):
            self.claims[event.task_id] = event.data["task"]["claimed_by"]

    def _namespace_of(self, changed: dict[str, object]) -> Namespace:
        return next(
            each
            for each in self.namespaces
            if each.machine.host_id == changed["host_id"] and each.number == int(str(changed["pid_namespace"])) % 100
        )

    def _check_event(self, event: Event) -> None:
        """I5: each change is one of the table, made by whoever held the run; fences grow."""
        changed = event.data.get("run", {})
        if event.kind == "task.finished":
            assert self.claims[event.task_id or ""] == event.run_id, (
                f"{event.run_id} finished what was not its any more"
            )
        if event.kind == "run.reserved":
            assert changed["fence"] > self.highest_fence, f"the fence of {event.run_id} was given before"
            self._check_admission(event.run_id, changed)
        elif changed:
            known = self.known[event.run_id or ""]
            after = RunState(changed.get("state", known.state))
            assert Transition(event.kind, known.state, after) in TRANSITIONS, f"{event.kind} from {known.state}"
            assert known.outcome is None or "outcome" not in changed, f"{event.run_id} was settled twice"
            if "holder" in changed:
                assert changed["holder"] == known.holder + 1, f"{event.kind} of {event.run_id} by a stale holder"
            if event.kind == "run.closed":
                self._check_board_was_told(event.run_id or "")
            if event.kind == "run.settled":
                self._check_proof(event.run_id or "", Proof(changed["proof"]), event.at)

    def _check_board_was_told(self, run_id: str) -> None:
        """I4: what has begun and is closed is not running for the board. (A late spawner may still claim for one that
        has not; that is given back by the next reconciliation.)"""
        execution = self.executions.get(run_id)
        if execution is not None and execution.begun:
            assert run_id not in {claim.run_id for claim in self.board.running()}, f"the board was not told of {run_id}"

    def _check_admission(self, run_id: str | None, changed: dict[str, object]) -> None:
        """I2, and I3 in the ledger: counted from what the events told before.

        A day after an admission it may be forgotten, also if the clock is set back then.
        """
        backend, now = changed["backend"], int(str(changed["reserved_at"]))
        others = [known for other, known in self.known.items() if other != run_id]
        limits = self.config.backends[str(backend)]
        held = [known for known in others if known.backend == backend and known.state in HOLDS_SLOT]
        assert len(held) < limits.max_concurrent, f"{run_id} was admitted past the cap"
        same_task = [known for known in others if known.task_id == changed["task_id"]]
        assert all(known.state is RunState.CLOSED for known in same_task), f"{run_id}: its task has an open run"
        if limits.max_per_hour is not None:
            in_last_hour = [
                known
                for known in others
                if known.backend == backend
                and known.outcome != Outcome.NEVER_STARTED
                and max(now - HOUR_MS, self._latest() - DAY_MS) < known.admitted_at <= now
            ]
            assert len(in_last_hour) < limits.max_per_hour, f"{run_id} was admitted past the budget"

    def _check_proof(self, run_id: str, proof: Proof, at: int) -> None:
        """I6: what the proof says is so."""
        run, execution = self.ledger.run(run_id), self.executions.get(run_id)
        assert run is not None
        namespace = self.known[run_id].namespace
        if proof is Proof.LEASE_EXPIRED:
            lease = self.ledger.leases()[run.host_id, run.pid_namespace]
            machine = self.acted_last.namespace.machine
            if lease.boot_id == machine.boot_id and lease.renewed_mono is not None:
                # Of this very boot: however the wall clock was set, the other one tells how long that is ago.
                at, until = machine.monotonic, lease.renewed_mono + lease.lease_until - lease.renewed_at
            else:
                until = lease.lease_until
            over = at > until + run.grace_ms + LEASE_MARGIN_MS
            assert over or self.acted_last.clock_was_set, f"{run_id} was freed within its host's lease"
            self._write_off(run_id)
            return
        assert not (execution and execution.tree), f"{run_id} was freed by {proof}, and its tree lives"
        match proof:
            case Proof.BOOT_CHANGED:
                assert run.boot_id != namespace.machine.boot_id, f"{run_id}: its host was not rebooted"
            case Proof.NEVER_STARTED:
                assert not (execution and execution.begun), f"{run_id} has begun"
            case Proof.EXIT_RECORDED:
                assert isinstance(read_exit(namespace.runs / run_id), ExitRecord)
            case Proof.RESULT_WRITTEN:
                assert isinstance(read_result(namespace.runs / run_id), Result)
            case Proof.PROCESS_GONE:
                assert execution is not None, f"{run_id} never had a process"

    def _write_off(self, run_id: str) -> None:
        """Its host was silent past its lease: what lives there is outside of the promise.

        But where whoever freed it sees the run directory, nothing may begin there any more.
        """
        execution, freed_by = self.executions.get(run_id), self.acted_last.namespace
        if self.known[run_id].namespace.machine is not freed_by.machine or (execution and execution.tree):
            self.written_off.add(run_id)

    def _check_slots_of_living_trees(self) -> None:
        """I1: no slot is free while something of its run lives."""
        for run_id, execution in self.executions.items():
            if run_id not in self.written_off and execution.tree:
                known = self.known.get(run_id)
                assert known is not None and known.state in HOLDS_SLOT, f"{run_id} lives, and holds no slot"

    def _check_one_tree_per_task(self) -> None:
        """I3: no task has two executors."""
        alive = defaultdict(set)
        for run_id, execution in self.executions.items():
            if run_id not in self.written_off and any(not each.is_keeper for each in execution.tree):
                alive[self.known[run_id].task_id].add(run_id)
        assert all(len(runs) == 1 for runs in alive.values()), f"two at once: {dict(alive)}"

    def _check_caps(self) -> None:
        for backend, held in self.ledger.slots_held().items():
            assert held <= self.config.backends[backend].max_concurrent

    def _check_tasks(self) -> None:
        """I4: no task has vanished."""
        assert self.tasks <= {task.task_id for task in self.board.tasks()}

    def check_after_whole_pass(self, namespace: Namespace, report: Report) -> None:
        """I1, the other way: after a reconciliation that nobody disturbed, each slot here is held for something."""
        undone = {each.action.task_id for each in report.actions if each.done is not Done.APPLIED}
        for run in self.ledger.open_runs():
            if not self._is_of(run, namespace) or run.task_id in undone:
                continue
            if run.state in HOLDS_SLOT and run.stop_reason is None:
                assert self._may_live(run, namespace), f"{run.run_id} holds a slot, and nothing of it lives"

    def _is_of(self, run: Run, namespace: Namespace) -> bool:
        host = namespace.host
        return (run.host_id, run.boot_id, run.pid_namespace) == (host.host_id, host.boot_id, host.pid_namespace)

    def _may_live(self, run: Run, namespace: Namespace) -> bool:
        young = namespace.machine.monotonic - run.reserved_mono < RESERVATION_YOUNG_MS
        about_to_start = young and namespace.is_alive(run.watcher) and run.keeper is None
        return about_to_start or bool(namespace.of_run(run.run_id))

    def check_whole(self) -> None:
        """I8 and I5, from the whole log."""
        assert self.ledger.verify() == []
        settled = Counter(event.run_id for event in self.ledger.events() if event.kind == "run.settled")
        assert all(count == 1 for count in settled.values())

    # The end

    def end_everything_here(self) -> None:
        """Whatever ignores TERM, was stopped or was left behind: told to end, it is gone after some graces."""
        self.nothing_goes_wrong()
        here = self.namespaces[0]
        commander = self.actor(here, "the last command")
        for _ in range(6):
            for execution in self.executions.values():
                for _ in range(4):
                    execution.go_on()
            commander.begin(operations.down_now)
            self.advance(11_000)
        left = [run.run_id for run in self.ledger.open_runs() if self._is_of(run, here) and run.state in HOLDS_SLOT]
        assert not left, f"{left} cannot be ended"

    def come_to_rest(self) -> None:
        """Everything dies, strangers take its pids, and time passes: in a few passes each orphan is freed."""
        self.nothing_goes_wrong()
        here, *others = self.namespaces
        self.end_actors([here])
        here.kill_everybody()
        for namespace in others:
            self.end_namespace(namespace)
        self._give_pids_to_strangers(here)
        # Also a lease, a backoff and a budget that somebody's clock has put into the future are over then.
        self.advance(self._latest() - self.here.wall + 2 * DAY_MS)
        self.check()
        survivor = self.actor(here, "the watchdog")
        for _ in range(3):
            report = self.reconcile(survivor)
            if not report.actions:
                break
        assert not report.actions, f"still at work after three passes: {report.summary}"
        self.check()
        assert [run.run_id for run in self.ledger.open_runs()] == [], "an orphan was not freed"
        before = self.ledger.last_event()
        assert not self.reconcile(survivor).actions
        assert self.ledger.last_event() == before
        states = {task.state for task in self.board.tasks()}
        assert states <= ENDED | {TaskState.READY}, states
        self.check_whole()

    def _give_pids_to_strangers(self, namespace: Namespace) -> None:
        for run in self.ledger.open_runs():
            for dead in (run.keeper, run.watcher):
                if dead is not None and namespace.is_free(dead.pid):
                    namespace.reuse(dead.pid)

    def reconcile(self, actor: Actor) -> Report:
        actor.begin(operations.watch_over)
        assert isinstance(actor.answer, Report), actor.answer
        return actor.answer
