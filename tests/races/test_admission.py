"""Processes that admit against one cap at once, and writers that are stopped or killed inside a transaction."""

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from operations_center.admission import Limits
from operations_center.clock import SystemClock
from operations_center.identity import Host, Process
from operations_center.ledger import Admission
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.locks import lock_holder
from operations_center.model import Outcome, Proof, Run, RunState
from operations_center.store import Store
from tests.fleet import wait_until

CAP = 2
PROCESSES = 4
LIMITS = Limits(CAP)
HOST = Host("h", "b", 1, "here")
SHORT_S = 0.2


class Child:
    """A forked process; ``start`` lets it go, so that several begin at once."""

    def __init__(self, body: Callable[[], Any]) -> None:
        self._gate_read, self._gate = os.pipe()
        self._answer, answer_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._gate)
                os.read(self._gate_read, 1)
                os.write(answer_write, json.dumps(body()).encode())
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(self._gate_read)
        os.close(answer_write)

    def start(self) -> None:
        # Written, not closed: children that were forked later have this end open, too.
        os.write(self._gate, b"!")
        os.close(self._gate)

    def answer(self) -> Any:
        """What its body returned; fails if it raised or was killed."""
        with os.fdopen(self._answer, "rb") as pipe:
            told = pipe.read()
        os.waitpid(self.pid, 0)
        assert told, "a child raised"
        return json.loads(told)

    def wait_until_stopped(self) -> None:
        assert os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1])

    def end_signal(self) -> int:
        """The signal that it died of."""
        os.close(self._answer)
        return os.WTERMSIG(os.waitpid(self.pid, 0)[1])


def at_once(*bodies: Callable[[], Any]) -> list[Any]:
    children = [Child(body) for body in bodies]
    for child in children:
        child.start()
    return [child.answer() for child in children]


@contextmanager
def opened(directory: Path) -> Iterator[SqliteLedger]:
    store = Store(directory / "ledger.db", SystemClock())
    try:
        yield SqliteLedger(store)
    finally:
        store.close()


def admit(ledger: SqliteLedger, task_id: str, limits: Limits = LIMITS) -> Run | None:
    me = Process.current()
    answer = ledger.admit(Admission(task_id, "goal", "agent", limits, HOST, me, grace_ms=0, timeout_ms=None))
    return answer if isinstance(answer, Run) else None


def free(ledger: SqliteLedger, run: Run) -> None:
    settled = ledger.change_run(
        run, "run.settled", state=RunState.SETTLING, outcome=Outcome.SUCCEEDED, proof=Proof.PROCESS_GONE
    )
    assert settled is not None
    assert ledger.change_run(settled, "run.closed", state=RunState.CLOSED, closed_at=1) is not None


def contend(directory: Path, name: int, seconds: float, at_least: int) -> dict[str, int]:
    """Admit, look, tell and free for so long and so often; how often, and the most that were ever seen open."""
    witness = os.open(directory / "witness", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    turns = admitted = most = 0
    with opened(directory) as ledger:
        until = time.monotonic() + seconds
        while time.monotonic() < until or admitted < at_least:
            turns += 1
            run = admit(ledger, f"t{name}-{turns}")
            if run is not None:
                os.write(witness, b"+")
                admitted += 1
                most = max(most, ledger.slots_held().get("agent", 0))
                os.write(witness, b"-")
                free(ledger, run)
    return {"admitted": admitted, "most": most}


def most_witnessed(directory: Path) -> int:
    now = most = 0
    for sign in (directory / "witness").read_text():
        now += 1 if sign == "+" else -1
        most = max(most, now)
    return most


def most_recorded(ledger: SqliteLedger) -> int:
    """The most slots that the log ever knew to be held at once."""
    holding: set[str | None] = set()
    most = 0
    for event in ledger.events():
        if event.kind == "run.reserved":
            holding.add(event.run_id)
        elif event.kind == "run.settled":
            holding.discard(event.run_id)
        most = max(most, len(holding))
    return most


def contention(directory: Path, seconds: float, at_least: int = 1) -> list[dict[str, int]]:
    found = at_once(*(partial(contend, directory, name, seconds, at_least) for name in range(PROCESSES)))
    assert max(each["most"] for each in found) <= CAP
    assert most_witnessed(directory) <= CAP
    with opened(directory) as ledger:
        assert most_recorded(ledger) <= CAP
        assert ledger.slots_held() == {}
    return found


def test_four_processes_never_admit_past_a_cap_of_two_and_none_of_them_starves(tmp_path: Path) -> None:
    # So many that a slot is what they wait for, where a loaded machine lets one of them run later than the others.
    found = contention(tmp_path, seconds=2.0, at_least=50)

    admitted = [each["admitted"] for each in found]
    assert min(admitted) >= 0.5 * sum(admitted) / PROCESSES, admitted
    with opened(tmp_path) as ledger:
        assert most_recorded(ledger) == CAP
        assert ledger.verify() == []


@pytest.mark.parametrize("repetition", range(20))
def test_a_short_contention_never_passes_the_cap(tmp_path: Path, repetition: int) -> None:
    contention(tmp_path, SHORT_S)


@pytest.mark.parametrize("repetition", range(20))
def test_of_many_that_admit_one_task_at_once_exactly_one_has_it(tmp_path: Path, repetition: int) -> None:
    admitted = at_once(*[partial(admit_alone, tmp_path, "t1")] * PROCESSES)
    assert sorted(admitted) == [False, False, False, True]


def admit_alone(directory: Path, task_id: str) -> bool:
    with opened(directory) as ledger:
        return admit(ledger, task_id, Limits(100)) is not None


def write_and_signal(directory: Path, number: signal.Signals) -> None:
    with opened(directory) as ledger, ledger.transaction():
        assert admit(ledger, "never committed") is not None
        os.kill(os.getpid(), number)
        raise AssertionError("a transaction that was interrupted must not go on")


def assert_all_can_admit(directory: Path) -> None:
    """None of them waits for so long that it gives up with LedgerBusy."""
    assert all(at_once(*(partial(admit_alone, directory, f"t{number}") for number in range(PROCESSES))))


def assert_nothing_of_it_is_left(directory: Path) -> None:
    with opened(directory) as ledger:
        assert sorted(run.task_id for run in ledger.open_runs()) == ["t0", "t1", "t2", "t3"]
        assert ledger.verify() == []


def test_a_writer_that_is_stopped_inside_a_transaction_is_ended_by_those_who_wait(tmp_path: Path) -> None:
    writer = Child(partial(write_and_signal, tmp_path, signal.SIGSTOP))
    writer.start()
    writer.wait_until_stopped()

    assert_all_can_admit(tmp_path)

    assert writer.end_signal() == signal.SIGKILL
    assert_nothing_of_it_is_left(tmp_path)


@pytest.mark.parametrize("repetition", range(20))
def test_a_stopped_writer_freezes_nobody_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repetition: int
) -> None:
    monkeypatch.setattr("operations_center.store.turnstile.STOPPED_FOR_S", 0.02)
    writer = Child(partial(write_and_signal, tmp_path, signal.SIGSTOP))
    writer.start()
    writer.wait_until_stopped()

    assert_all_can_admit(tmp_path)

    assert writer.end_signal() == signal.SIGKILL
    assert_nothing_of_it_is_left(tmp_path)


@pytest.mark.parametrize("repetition", range(20))
def test_a_writer_that_is_killed_inside_a_transaction_leaves_nothing(tmp_path: Path, repetition: int) -> None:
    writer = Child(partial(write_and_signal, tmp_path, signal.SIGKILL))
    writer.start()
    assert writer.end_signal() == signal.SIGKILL

    assert_all_can_admit(tmp_path)

    assert_nothing_of_it_is_left(tmp_path)


def test_one_that_is_stopped_while_it_waits_for_its_turn_freezes_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the turn, but not yet the write lock, stands in the way of everybody else."""
    monkeypatch.setattr("operations_center.store.turnstile.STOPPED_FOR_S", 0.05)
    with opened(tmp_path) as ledger, ledger.transaction():
        waiting = Child(partial(admit_alone, tmp_path, "never committed"))
        waiting.start()
        wait_for_a_holder(tmp_path / "ledger.turn", waiting.pid)
        os.kill(waiting.pid, signal.SIGSTOP)
        waiting.wait_until_stopped()

    assert_all_can_admit(tmp_path)

    assert waiting.end_signal() == signal.SIGKILL
    assert_nothing_of_it_is_left(tmp_path)


def wait_for_a_holder(path: Path, pid: int) -> None:
    wait_until(lambda: lock_holder(path) == pid, "the lock to be held")


def test_all_that_open_a_new_ledger_at_once_can_use_it(tmp_path: Path) -> None:
    for repetition in range(50):
        directory = tmp_path / str(repetition)
        directory.mkdir()
        assert all(at_once(*(partial(admit_alone, directory, f"t{number}") for number in range(PROCESSES))))
