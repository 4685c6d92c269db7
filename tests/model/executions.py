"""A run's keeper and executor in a virtual namespace, step by step as ``keeper.sh`` and ``timer.sh`` take them.

Each step may be the last. What is written is written into the real run directory.
"""

import fcntl
import os
import shutil
import signal
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path

from operations_center.keeper import cgroup
from operations_center.keeper.inspect import read_exit
from operations_center.keeper.launch import LaunchPlan
from tests.model.kernel import Namespace, VirtualProcess


class Phase(IntEnum):
    """How far a keeper has come."""

    BORN = 0
    GATE_CREATED = 1
    GATE_WRITTEN = 2
    EXECUTING = 3
    RECORD_TORN = 4
    RECORDED = 5


class Daemon(StrEnum):
    """What an executor may leave behind."""

    IN_SESSION = "in the keeper's session"
    IN_OWN_SESSION = "in a session of its own"
    WITHOUT_ENVIRONMENT = "in a session of its own, with an empty environment"
    SLIPPERY = "forking and exiting all the time"


@dataclass(eq=False)
class Execution:
    """What became of one launch. ``passed_gate``: the keeper created the gate; ``hangs``: it takes no more steps."""

    plan: LaunchPlan
    namespace: Namespace
    keeper: VirtualProcess
    phase: Phase = Phase.BORN
    executor: VirtualProcess | None = None
    passed_gate: bool = False
    begun: bool = False
    hangs: bool = False
    gated_mono: int = 0

    @classmethod
    def launch(cls, plan: LaunchPlan, namespace: Namespace, spawner: int) -> "Execution":
        """Lock and keeper; the gate is the keeper's own first step."""
        descriptor = _take_lock(plan.run_directory)
        keeper = namespace.spawn(parent=spawner, leads_session=True)
        namespace.locks[keeper.identity] = descriptor
        keeper.run_id, keeper.shows_run, keeper.is_keeper, keeper.unreaped = plan.run_id, True, True, True
        keeper.cgroup = cgroup.of_run(plan.run_id, None)
        namespace.show_cgroup(keeper.cgroup)
        return cls(plan, namespace, keeper)

    @property
    def directory(self) -> Path:
        return self.plan.run_directory

    @property
    def keeper_lives(self) -> bool:
        return self.namespace.is_alive(self.keeper.identity)

    @property
    def executor_lives(self) -> bool:
        return self.executor is not None and self.namespace.is_alive(self.executor.identity)

    @property
    def processes(self) -> list[VirtualProcess]:
        """Whatever of it lives, whether or not anything ties it to the run any more."""
        return self.namespace.of_run(self.plan.run_id)

    @property
    def tree(self) -> list[VirtualProcess]:
        """What may be executing and can be tied to the run."""
        if not self.passed_gate:
            return []
        return [each for each in self.processes if self.namespace.is_within_reach(each)]

    # The keeper

    def go_on(self) -> None:
        """The keeper's next step, if it can take one."""
        if not self.keeper_lives or self.keeper.stopped or self.hangs:
            return
        match self.phase:
            case Phase.BORN:
                self._create_gate()
            case Phase.GATE_CREATED:
                self._write_gate()
            case Phase.GATE_WRITTEN:
                self._start_executor()
            case Phase.EXECUTING if not self.executor_lives:
                self._record(f"exit {self._code} e")
                self.phase = Phase.RECORD_TORN
            case Phase.RECORD_TORN:
                self._record(f"exit {self._code} end")
                self.phase = Phase.RECORDED
            case Phase.RECORDED if not self._has_children():
                self.namespace.kill(self.keeper)

    @property
    def _code(self) -> int:
        """126 where the executor could not be started."""
        return self.executor.exit_code if self.executor is not None else 126

    def _create_gate(self) -> None:
        try:
            os.close(os.open(self.directory / "gate", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError:
            self.namespace.kill(self.keeper)
            return
        self.passed_gate, self.phase, self.gated_mono = True, Phase.GATE_CREATED, self.namespace.machine.monotonic

    def _write_gate(self) -> None:
        gate = self.directory / "gate"
        if gate.exists():
            gate.write_text("{} {} end\n".format(*self.keeper.identity))
        self.phase = Phase.GATE_WRITTEN

    def _start_executor(self) -> None:
        self.phase = Phase.EXECUTING
        if not self.directory.is_dir():
            return
        (self.directory / "stdout").touch()
        self.begun = True
        self.executor = self._spawn(self.keeper, leads_session=True)

    def _record(self, text: str) -> None:
        record = self.directory / "exit"
        if record.exists():
            record.write_text(f"{text:<63}\n")
            seconds = self.namespace.machine.wall / 1000
            os.utime(record, (seconds, seconds))

    def _has_children(self) -> bool:
        return any(each.parent == self.keeper.pid for each in self.namespace.processes.values())

    def _spawn(self, parent: VirtualProcess, *, leads_session: bool = False) -> VirtualProcess:
        process = self.namespace.spawn(parent=parent.pid, leads_session=leads_session)
        process.run_id, process.shows_run, process.cgroup = self.plan.run_id, True, self.keeper.cgroup
        self.namespace.show_cgroup(process.cgroup)
        return process

    # The timer, which lives as long as the keeper

    def enforce_timeout(self, *, kills: bool) -> None:
        limit = self.plan.timeout_ms
        late = limit is not None and self.namespace.machine.monotonic - self.gated_mono >= limit
        if not self.keeper_lives or self.phase < Phase.EXECUTING or not late:
            return
        limit_record = self.directory / "timed_out"
        if limit_record.exists() and read_exit(self.directory) is None:
            limit_record.write_text(f"{'wall end':<63}\n")
        children = {each.pid for each in self.processes if each.parent == self.keeper.pid}
        for process in self.processes:
            if process.pid in children or process.session in children:
                self.namespace.send(process.identity, signal.SIGKILL if kills else signal.SIGTERM)

    # The executor

    def end_executor(self, code: int) -> None:
        if self.executor is not None and self.executor_lives:
            self.namespace.kill(self.executor, code)

    def leave_daemon(self, kind: Daemon) -> None:
        if self.executor is None or not self.executor_lives:
            return
        daemon = self._spawn(self.executor, leads_session=kind is not Daemon.IN_SESSION)
        daemon.shows_run = kind is not Daemon.WITHOUT_ENVIRONMENT
        daemon.slippery = kind is Daemon.SLIPPERY
        daemon.ignores_term = True

    def write_result(self, text: str) -> None:
        if self.executor_lives and self.directory.is_dir():
            draft = self.directory / ".result"
            draft.write_text(text)
            draft.rename(self.directory / "result.json")

    def delete_directory(self) -> None:
        """An executor may."""
        if self.executor_lives:
            shutil.rmtree(self.directory, ignore_errors=True)


def _take_lock(directory: Path) -> int:
    """Renamed into place when it is locked, as ``launch`` does."""
    draft = directory / ".lock"
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    draft.rename(directory / "lock")
    return descriptor
