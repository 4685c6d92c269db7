"""What every board promises to watchers and reconcilers: each of them is asked the same."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from operations_center.boards import PAGE, Board, Claim, ReadyTask
from operations_center.boards.local import LocalBoard, NewTask
from operations_center.bounds import LARGEST_BODY
from operations_center.errors import OperationsCenterError
from operations_center.ledger.sqlite import SqliteLedger
from operations_center.model import LEVEL_MS, Attempts, Finish, FollowUp, Priority, Task, TaskState
from operations_center.store import Store
from tests.contract.clock import HandClock

DONE = Finish(TaskState.DONE)


@dataclass
class LocalService:
    """The local board, and the hands of the people who use it."""

    path: Path
    stores: list[Store] = field(default_factory=list)
    clock: HandClock = field(default_factory=HandClock)

    def connect(self) -> LocalBoard:
        self.stores.append(Store(self.path, self.clock, write_within_s=1.0))
        return LocalBoard(self.stores[-1])

    def add(
        self,
        title: str = "Do it",
        kind: str = "goal",
        priority: Priority = Priority.NORMAL,
        backend: str | None = None,
    ) -> str:
        (task_id,) = self.hand.add([NewTask(title, kind, "body", priority, backend)])
        return task_id

    def cancel(self, task_id: str) -> None:
        self.hand.cancel(task_id)

    def task(self, task_id: str) -> Task:
        task = self.hand.task(task_id)
        assert task is not None
        return task

    def tasks(self) -> list[Task]:
        return self.hand.tasks()

    @property
    def hand(self) -> LocalBoard:
        return LocalBoard(self.stores[0]) if self.stores else self.connect()

    def faults(self) -> list[str]:
        return SqliteLedger(self.stores[0]).verify()

    def close(self) -> None:
        for store in self.stores:
            store.close()


SERVICES: dict[str, Callable[[Path], LocalService]] = {"local": lambda directory: LocalService(directory / "ledger.db")}


@pytest.fixture(params=list(SERVICES))
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalService]:
    service = SERVICES[request.param](tmp_path)
    yield service
    assert not service.faults()
    service.close()


@pytest.fixture
def board(service: LocalService) -> Board:
    return service.connect()


def test_a_new_task_is_ready_for_those_who_take_its_kind(board: Board, service: LocalService) -> None:
    task_id = service.add()
    assert [task.task_id for task in board.ready(["goal"], [None])] == [task_id]
    assert list(board.ready(["test"], [None])) == list(board.ready([], [None])) == []
    assert board.states([task_id, "unknown"]) == {task_id: TaskState.READY, "unknown": None}


def test_the_most_urgent_comes_first_and_then_the_oldest(board: Board, service: LocalService) -> None:
    wanted = [Priority.LOW, Priority.NORMAL, Priority.URGENT, Priority.HIGH, Priority.URGENT]
    ids = [service.add(priority=priority) for priority in wanted]
    assert [task.task_id for task in board.ready(["goal"], [None])] == [ids[2], ids[4], ids[3], ids[1], ids[0]]


def test_a_claimed_task_is_shown_as_running_in_the_name_of_its_run(board: Board, service: LocalService) -> None:
    task_id = service.add()
    assert board.claim(task_id, "r1")
    assert board.running() == [Claim(task_id, "r1")]
    assert list(board.ready(["goal"], [None])) == []
    assert board.states([task_id]) == {task_id: TaskState.RUNNING}


def test_a_claim_is_idempotent_and_only_the_first_has_it(board: Board, service: LocalService) -> None:
    task_id = service.add()
    claims = [board.claim(task_id, run_id) for run_id in ("r1", "r1", "r2", "r1")]
    assert [claim.state if claim else None for claim in claims] == ["running", "running", None, "running"]
    assert service.connect().claim(task_id, "r2") is None
    assert board.running() == [Claim(task_id, "r1")]


def test_what_is_not_ready_or_not_there_cannot_be_claimed(board: Board, service: LocalService) -> None:
    task_id = service.add()
    service.cancel(task_id)
    assert not board.claim(task_id, "r1")
    assert not board.claim("unknown", "r1")


def test_a_finish_is_idempotent(board: Board, service: LocalService) -> None:
    task_id = service.add()
    board.claim(task_id, "r1")
    told = {"r1": (task_id, Finish(TaskState.BLOCKED, "no bricks"))}
    board.finish(told)
    first = service.task(task_id)
    board.finish(told)
    assert service.task(task_id) == first
    assert (first.state, first.reason) == (TaskState.BLOCKED, "no bricks")
    assert list(board.running()) == []


def test_a_finish_that_is_told_again_late_changes_nothing(board: Board, service: LocalService) -> None:
    task_id = service.add()
    board.claim(task_id, "r1")
    board.finish({"r1": (task_id, Finish(TaskState.READY, "lost"))})
    board.claim(task_id, "r2")
    board.finish({"r1": (task_id, DONE)})
    assert board.running() == [Claim(task_id, "r2")]


def test_many_finishes_are_told_at_once(board: Board, service: LocalService) -> None:
    ids = [service.add() for _ in range(20)]
    for task_id in ids:
        board.claim(task_id, f"run of {task_id}")
    board.finish({f"run of {task_id}": (task_id, DONE) for task_id in ids} | {"r0": ("unknown", DONE)})
    assert set(board.states(ids).values()) == {TaskState.DONE}


def test_follow_ups_are_made_once_for_each_run_with_parent_kind_and_priority(
    board: Board, service: LocalService
) -> None:
    task_id = service.add(priority=Priority.HIGH)
    follow_ups = (FollowUp("Test it", "test", "well"), FollowUp("Test it", "test", "well"))
    told = {"r1": (task_id, Finish(TaskState.DONE, None, follow_ups))}
    board.claim(task_id, "r1")
    for _ in range(3):
        board.finish(told)
    made = [task for task in service.tasks() if task.task_id != task_id]
    assert [(task.title, task.kind, task.body, task.parent, task.state) for task in made] == [
        ("Test it", "test", "well", task_id, TaskState.READY)
    ] * 2
    assert {task.priority for task in made} == {Priority.HIGH}


def test_another_run_of_the_same_task_makes_its_own_follow_ups(board: Board, service: LocalService) -> None:
    task_id = service.add()
    for run_id in ("r1", "r2"):
        board.claim(task_id, run_id)
        board.finish({run_id: (task_id, Finish(TaskState.READY, None, (FollowUp("Test it", "test"),)))})
    assert len([task for task in service.tasks() if task.parent == task_id]) == 2


def follow(board: Board, service: LocalService, task_id: str, finish: Finish) -> tuple[Mapping[str, str], list[Task]]:
    """Claim and finish a task: what the board says of follow-ups that it did not make, and those that it made."""
    board.claim(task_id, f"run of {task_id}")
    refused = board.finish({f"run of {task_id}": (task_id, finish)})
    return refused, [task for task in service.tasks() if task.parent == task_id]


def test_a_follow_up_without_a_text_has_that_of_its_task(board: Board, service: LocalService) -> None:
    finish = Finish(TaskState.DONE, None, (FollowUp(None, "test"), FollowUp("Else")))
    _, made = follow(board, service, service.add("Build it"), finish)
    assert [(task.title, task.kind, task.body) for task in made] == [("Build it", "test", "body"), ("Else", "goal", "")]


def test_a_lineage_ends_at_its_depth_and_its_last_task_says_so(board: Board, service: LocalService) -> None:
    task_id, finish = service.add(), Finish(TaskState.DONE, "built", (FollowUp(None, "test"),), max_follow_ups=3)
    for depth in range(3):
        assert service.task(task_id).depth == depth
        refused, (task,) = follow(board, service, task_id, finish)
        assert not refused
        task_id = task.task_id
    refused, made = follow(board, service, task_id, finish)
    why = "1 of 1 follow-ups not made: the task is itself follow-up 3 in a row, and max_follow_ups is 3"
    assert (refused, made) == ({f"run of {task_id}": why}, [])
    last = service.task(task_id)
    assert (last.state, last.depth, last.reason) == (TaskState.DONE, 3, f"built; {why}")


def test_a_lineage_has_a_number_of_tasks_that_it_cannot_exceed(
    board: Board, service: LocalService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{LocalBoard.__module__}.MOST_IN_A_LINEAGE", 5)
    first = service.add()
    finish = Finish(TaskState.DONE, None, (FollowUp("One"), FollowUp("Two"), FollowUp("Three")))
    _, made = follow(board, service, first, finish)
    refused, more = follow(board, service, made[0].task_id, finish)
    assert [task.title for task in more] == ["One", "Two"]
    assert list(refused.values()) == [f"1 of 3 follow-ups not made: 5 tasks descend from {first}, and more may not"]
    assert len(service.tasks()) == 6


def test_a_follow_up_that_is_out_of_bounds_is_not_made_and_its_task_says_so(
    board: Board, service: LocalService
) -> None:
    finish = Finish(TaskState.DONE, None, (FollowUp("t" * 20_000), FollowUp("Else")))
    refused, made = follow(board, service, task_id := service.add(), finish)
    assert [task.title for task in made] == ["Else"]
    assert service.task(task_id).reason == refused[f"run of {task_id}"]
    assert "its title has 20000 characters" in refused[f"run of {task_id}"]


def test_a_task_out_of_bounds_can_neither_be_added_nor_made_by_an_edit(service: LocalService) -> None:
    task_id = service.add()
    with pytest.raises(OperationsCenterError, match="its title has 10001 characters"):
        service.add("t" * 10_001)
    with pytest.raises(OperationsCenterError, match="its body has"):
        service.hand.edit(task_id, body="b" * (LARGEST_BODY + 1))
    assert [task.body for task in service.tasks()] == ["body"]


def test_a_requeue_is_idempotent_and_only_for_the_run_that_has_it(board: Board, service: LocalService) -> None:
    task_id = service.add()
    board.claim(task_id, "r1")
    assert not board.requeue(Claim(task_id, "r2"))
    assert board.requeue(Claim(task_id, "r1"))
    assert not board.requeue(Claim(task_id, "r1"))
    assert not board.requeue(Claim("unknown", "r1"))
    assert service.task(task_id).state is TaskState.READY
    assert board.claim(task_id, "r2")
    assert not board.requeue(Claim(task_id, "r1"))
    assert board.running() == [Claim(task_id, "r2")]


def test_a_blocked_task_can_be_finished_once_more_by_its_run(board: Board, service: LocalService) -> None:
    task_id = service.add()
    assert not board.hold(task_id, "r1")
    board.claim(task_id, "r1")
    board.finish({"r1": (task_id, Finish(TaskState.BLOCKED, "nobody knows"))})
    board.finish({"r1": (task_id, DONE)})
    assert service.task(task_id).state is TaskState.BLOCKED
    assert board.hold(task_id, "r1")
    assert service.task(task_id).state is TaskState.BLOCKED
    board.finish({"r1": (task_id, DONE)})
    assert service.task(task_id).state is TaskState.DONE
    assert not board.hold(task_id, "r1")


def test_a_cancelled_task_stays_cancelled_whatever_its_run_does(board: Board, service: LocalService) -> None:
    task_id = service.add()
    board.claim(task_id, "r1")
    service.cancel(task_id)
    assert list(board.running()) == []
    board.finish({"r1": (task_id, DONE)})
    assert not board.requeue(Claim(task_id, "r1"))
    assert not board.claim(task_id, "r1")
    assert service.task(task_id).state is TaskState.CANCELLED
    service.cancel(task_id)
    assert service.task(task_id).state is TaskState.CANCELLED


def test_a_task_that_is_done_cannot_be_cancelled(board: Board, service: LocalService) -> None:
    task_id = service.add()
    board.claim(task_id, "r1")
    board.finish({"r1": (task_id, DONE)})
    with pytest.raises(OperationsCenterError, match="it is done"):
        service.cancel(task_id)


def back_off(board: Board, service: LocalService, until: int, since: int) -> str:
    """Have a run of a new task ended so that it is to be run again, but not before that."""
    board.claim(task_id := service.add(), "r1")
    SqliteLedger(service.stores[0]).set_attempts(task_id, Attempts(2, 1, not_before=until, since=since))
    board.finish({"r1": (task_id, Finish(TaskState.READY))})
    return task_id


def test_a_task_that_backs_off_is_not_among_those_that_could_be_claimed_until_it_does_not(
    service: LocalService,
) -> None:
    board, now = service.connect(), service.clock.now().wall
    task_id = back_off(board, service, now + 60_000, now)
    task = service.task(task_id)
    assert (task.attempts, task.retries, task.not_before) == (2, 1, now + 60_000)
    assert (list(board.ready(["goal"], [None])), board.next_ready_at(["goal"])) == ([], now + 60_000)
    assert board.next_ready_at(["test"]) is None
    service.clock.advance(60_000)
    assert [task.task_id for task in board.ready(["goal"], [None])] == [task_id]
    assert board.next_ready_at(["goal"]) is None


def test_a_backoff_that_began_before_the_clock_was_set_back_is_over(service: LocalService) -> None:
    board, now = service.connect(), service.clock.now().wall
    task_id = back_off(board, service, now + 86_400_000, now + 86_000_000)
    assert [task.task_id for task in board.ready(["goal"], [None])] == [task_id]
    assert service.task(task_id).not_before is None


def test_a_task_that_is_retried_by_a_person_does_not_back_off(service: LocalService) -> None:
    board, now = service.connect(), service.clock.now().wall
    task_id = back_off(board, service, now + 60_000, now)
    with (ledger := SqliteLedger(service.stores[0])).transaction():
        ledger.set_attempts(task_id, Attempts())
        service.hand.retry(task_id)
    assert [task.task_id for task in board.ready(["goal"], [None])] == [task_id]


def test_pages_follow_each_other_until_one_is_not_full(board: Board, service: LocalService) -> None:
    ids = [service.add(kind=("goal", "test")[number % 2]) for number in range(2 * PAGE + 1)]
    seen: list[str] = []
    page: Sequence[ReadyTask] = ()
    while not seen or len(page) == PAGE:
        page = board.ready(["goal", "test"], [None], page[-1] if page else None)
        seen += [task.task_id for task in page]
    assert seen == ids


def test_tasks_that_name_a_backend_are_asked_for_by_its_name(board: Board, service: LocalService) -> None:
    plain, named = service.add(), service.add(backend="agent")
    assert [task.task_id for task in board.ready(["goal"], [None])] == [plain]
    assert [(task.task_id, task.backend) for task in board.ready(["goal"], ["agent", "other"])] == [(named, "agent")]
    assert [task.task_id for task in board.ready(["goal"], [None, "agent"])] == [plain, named]


def test_a_task_gains_a_level_for_each_day_that_it_waits(board: Board, service: LocalService) -> None:
    old = service.add(priority=Priority.LOW)
    service.clock.advance(2 * LEVEL_MS)
    normal, high = service.add(), service.add(priority=Priority.HIGH)
    assert [task.task_id for task in board.ready(["goal"], [None])] == [old, high, normal]
    assert [task.urgency for task in board.ready(["goal"], [None])] == [
        service.task(task_id).urgency for task_id in (old, high, normal)
    ]
