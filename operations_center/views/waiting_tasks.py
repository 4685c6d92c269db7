"""Why a ready task is not running right now: the question of admission, asked without recording anything."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from operations_center import config
from operations_center.admission import Obstacle, Refusal, refusals
from operations_center.boards.local import ListedTask
from operations_center.fleet import look_at
from operations_center.wiring import Center


@dataclass(frozen=True, slots=True)
class WaitingTask:
    """A ready task, the role and backend that it is for, and what stands in its way: never empty."""

    task: ListedTask
    role: str | None
    backend: str | None
    reasons: list[Refusal]

    def as_json(self) -> dict[str, Any]:
        return {
            "task_id": self.task.task_id,
            "title": self.task.title,
            "kind": self.task.kind,
            "role": self.role,
            "backend": self.backend,
            "reasons": [{"reason": each.obstacle, "detail": each.reason} for each in self.reasons],
        }


def waiting_tasks(center: Center, role: str | None, limit: int) -> tuple[list[WaitingTask], int]:
    """List the first ready tasks of a role, or of all and of none, in their order, and count all of them."""
    kinds = None if role is None else center.config.roles[role].task_kinds
    with center.ledger.snapshot():
        tasks, count = center.board.waiting(kinds, limit)
        # What holds for a whole role is read once, however many of its tasks wait.
        of_role = cache(partial(_refused_by_role, center))
        return [_waiting(center, task, of_role) for task in tasks], count


def _waiting(center: Center, task: ListedTask, of_role: Callable[[str], Sequence[Refusal]]) -> WaitingTask:
    role = center.config.role_for_kind(task.kind)
    if role is None:
        reason = Refusal(Obstacle.NO_ROLE, f"no role of the configuration takes tasks of kind {task.kind}")
        return WaitingTask(task, None, task.backend, [reason])
    backend = task.backend or role.backend
    found = [*_refused(center, task, role, backend), *of_role(role.name)]
    next_turn = Refusal(Obstacle.WAITING, "nothing stands in its way: it starts at the next turn of its watcher")
    return WaitingTask(task, role.name, backend, found or [next_turn])


def _refused(center: Center, task: ListedTask, role: config.Role, backend: str) -> list[Refusal]:
    settings = center.config.backends.get(backend)
    if settings is None:
        return [Refusal(Obstacle.NO_BACKEND, f"there is no backend {backend} in the configuration")]
    facts = center.ledger.admission_facts(task.task_id, role.name, backend, settings.limits, task.urgency)
    return refusals(facts, settings.limits, backend)


def _refused_by_role(center: Center, name: str) -> Sequence[Refusal]:
    role = center.config.roles[name]
    return [*_concurrency(center, role), *_watcher(center, role)]


def _concurrency(center: Center, role: config.Role) -> list[Refusal]:
    open_runs = len(center.ledger.open_runs(role=role.name))
    if open_runs < role.concurrency:
        return []
    detail = f"the watcher of {role.name} has {open_runs} open runs and starts at most {role.concurrency} at once"
    return [Refusal(Obstacle.CONCURRENCY, detail)]


def _watcher(center: Center, role: config.Role) -> list[Refusal]:
    watcher = look_at(center.state, role.name)
    if watcher.process is None:
        detail = f"no watcher of {role.name} runs; start one with `operations-center up`"
    elif watcher.state != "ready":
        detail = f"the watcher of {role.name} is {watcher.state}"
    else:
        return []
    return [Refusal(Obstacle.WAITING, detail)]
