"""The embedded board: tasks in the ledger's own database, so a change of both is one transaction."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from operations_center.boards import PAGE, Claim, ReadyTask
from operations_center.bounds import MOST_IN_A_LINEAGE, check_texts
from operations_center.errors import NotFound, OperationsCenterError
from operations_center.model import Attempts, Finish, FollowUp, Priority, Task, TaskState, in_one_reason, urgency_of
from operations_center.store import Store, as_json, load_queries

BACKOFFS_AT_ONCE = 1_000
"""So many ended backoffs are written in one transaction; the others follow with the next page."""

_FIRST = -(2**63)
_SQL = load_queries(Path(__file__).with_name("local.sql"))


@dataclass(frozen=True, slots=True)
class NewTask:
    title: str
    kind: str
    body: str = ""
    priority: Priority = Priority.NORMAL
    backend: str | None = None
    parent: str | None = None
    depth: int | None = None
    lineage: str | None = None


class ListedTask(msgspec.Struct, frozen=True, gc=False):
    """A ready task as a list shows it."""

    task_id: str
    title: str
    kind: str
    backend: str | None
    urgency: int


class LocalBoard:
    """See ``Board`` for what the shared methods promise; the others serve ``operations-center task``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # What watchers and reconcilers ask of any board

    def ready(
        self, kinds: Collection[str], backends: Collection[str | None], after: ReadyTask | None = None
    ) -> Sequence[ReadyTask]:
        self._end_backoffs(kinds)
        urgency, number = (after.urgency, _number_of(after.task_id)) if after else (_FIRST, 0)
        page = {"urgency": urgency, "number": number, "limit": PAGE}
        found = [
            ReadyTask(*row)
            for kind in kinds
            for backend in backends
            for row in self._store.rows(_SQL["ready"], {"kind": kind, "backend": backend, **page})
        ]
        return sorted(found, key=lambda task: task.place)[:PAGE]

    def _end_backoffs(self, kinds: Collection[str]) -> None:
        """Have those whose backoff is over, or began in the future of a clock that was set back, stand in the order."""
        over = {"kinds": as_json(list(kinds)), "now": self._store.clock.now().wall, "limit": BACKOFFS_AT_ONCE}
        if ended := [row["task_id"] for row in self._store.rows(_SQL["ended_backoffs"], over)]:
            with self._store.transaction():
                self._store.execute(_SQL["end_backoffs"], {"task_ids": as_json(ended)})

    def next_ready_at(self, kinds: Collection[str]) -> int | None:
        row = self._store.row(_SQL["next_ready_at"], {"kinds": as_json(list(kinds))})
        return row["waits_until"] if row else None

    def states(self, task_ids: Collection[str]) -> Mapping[str, TaskState | None]:
        rows = self._store.rows(_SQL["states"], {"task_ids": as_json(list(task_ids))})
        known = {row["task_id"]: TaskState(row["state"]) for row in rows}
        return {task_id: known.get(task_id) for task_id in task_ids}

    def task(self, task_id: str) -> Task | None:
        row = self._store.row(_SQL["task"], {"task_id": task_id})
        return self._task(row) if row else None

    def running(self) -> Sequence[Claim]:
        return [Claim(*row) for row in self._store.rows(_SQL["running"])]

    def claim(self, task_id: str, run_id: str) -> Task | None:
        with self._store.transaction():
            row = self._row(task_id)
            if row is None:
                return None
            if row["state"] == TaskState.READY:
                self._change(row, "task.claimed", run_id, state=TaskState.RUNNING, claimed_by=run_id, reason=None)
            elif (row["state"], row["claimed_by"]) != (TaskState.RUNNING, run_id):
                return None
            # Only now its text is read.
            return self.task(task_id)

    def finish(self, finishes: Mapping[str, tuple[str, Finish]]) -> Mapping[str, str]:
        with self._store.transaction():
            now = self._store.clock.now().wall
            told = {
                run_id: (task_id, finish)
                for run_id, (task_id, finish) in finishes.items()
                if self._store.execute(_SQL["finish_task"], (str(finish.state), finish.reason, now, task_id, run_id))
            }
            self._store.append_events(
                "task.finished",
                [
                    (
                        run_id,
                        task_id,
                        {
                            "task": {
                                "state": finish.state,
                                "reason": finish.reason,
                                "claimed_by": None,
                                "updated_at": now,
                            }
                        },
                    )
                    for run_id, (task_id, finish) in told.items()
                ],
            )
            refused = {
                run_id: self._follow_up(run_id, task_id, finish)
                for run_id, (task_id, finish) in told.items()
                if finish.follow_ups
            }
            return {run_id: why for run_id, why in refused.items() if why is not None}

    def _follow_up(self, run_id: str, task_id: str, finish: Finish) -> str | None:
        """Make the follow-ups of a run; why some are not made, which the task and the log then say."""
        parent = self._known_row(task_id, "finish") | self._texts(task_id)
        made, why = self._within_bounds(parent, finish)
        for number, new in made.items():
            self._add(new, origin=f"{run_id}/{number}")
        if why is None:
            return None
        refused = f"{len(finish.follow_ups) - len(made)} of {len(finish.follow_ups)} follow-ups not made: {why}"
        self._change(parent, "task.follow_ups_refused", run_id, reason=in_one_reason(parent["reason"], refused))
        return refused

    def _within_bounds(self, parent: Mapping[str, Any], finish: Finish) -> tuple[dict[int, NewTask], str | None]:
        """The follow-ups that may be made, by their number in the finish, and why the first of the others may not."""
        depth, limit = (parent["depth"] or 0) + 1, finish.max_follow_ups
        if limit is not None and depth > limit:
            return {}, f"the task is itself follow-up {depth - 1} in a row, and max_follow_ups is {limit}"
        lineage = parent["lineage"] or parent["task_id"]
        (in_lineage,) = self._store.rows(_SQL["tasks_of_lineage"], {"lineage": lineage})[0]
        made: dict[int, NewTask] = {}
        why = None
        for number, follow_up in enumerate(finish.follow_ups):
            if in_lineage + len(made) >= MOST_IN_A_LINEAGE:
                return made, why or f"{MOST_IN_A_LINEAGE} tasks descend from {lineage}, and more may not"
            new = _follow_up_of(parent, follow_up, depth=depth, lineage=lineage)
            try:
                check_texts({"title": new.title, "kind": new.kind, "body": new.body})
                made[number] = new
            except ValueError as error:
                why = why or str(error)
        return made, why

    def block(self, task_id: str, run_id: str, finish: Finish) -> None:
        with self._store.transaction():
            row = self._row(task_id)
            if row is not None and (row["state"], row["claimed_by"]) == (TaskState.RUNNING, run_id):
                self._change(row, "task.blocked", run_id, state=finish.state, reason=finish.reason)

    def hold(self, task_id: str, run_id: str) -> bool:
        with self._store.transaction():
            row = self._row(task_id)
            if row is None or row["state"] != TaskState.BLOCKED:
                return False
            self._change(row, "task.held", run_id, claimed_by=run_id)
            return True

    def requeue(self, claim: Claim) -> bool:
        with self._store.transaction():
            row = self._row(claim.task_id)
            if row is None or (row["state"], row["claimed_by"]) != (TaskState.RUNNING, claim.run_id):
                return False
            self._change(row, "task.requeued", claim.run_id, state=TaskState.READY, claimed_by=None)
            return True

    # What a person does

    def add(self, tasks: Sequence[NewTask]) -> list[str]:
        """Add tasks, all or none; their ids. Raises OperationsCenterError for one that is out of bounds."""
        for task in tasks:
            _refuse_out_of_bounds("add the task", {"title": task.title, "kind": task.kind, "body": task.body})
        with self._store.transaction():
            return [self._add(task, origin=None) for task in tasks]

    def tasks(self, state: TaskState | None = None) -> list[Task]:
        return [self._task(row) for row in self._store.rows(_SQL["tasks"], {"state": state})]

    def waiting(self, kinds: Collection[str] | None, limit: int) -> tuple[list[ListedTask], int]:
        """List the first ready tasks of these kinds, or of all, in their order, and count all; some may back off."""
        asked = {"kinds": None if kinds is None else as_json(list(kinds)), "limit": limit}
        ((count,),) = self._store.rows(_SQL["count_waiting"], asked)
        return [ListedTask(*row) for row in self._store.rows(_SQL["waiting"], asked)], count

    def counts(self) -> dict[str, int]:
        found = {row["state"]: row["tasks"] for row in self._store.rows(_SQL["counts"])}
        return {state.value: found.get(state.value, 0) for state in TaskState}

    def edit(self, task_id: str, **changes: Any) -> None:
        """Change title, kind, body, priority, backend or state. Raises NotFound, OperationsCenterError."""
        texts: dict[str, Any] = {name: changes[name] for name in ("title", "kind", "body") if name in changes}
        _refuse_out_of_bounds(f"edit task {task_id}", texts)
        with self._store.transaction():
            row = self._known_row(task_id, "edit") | self._texts(task_id)
            if row["state"] == TaskState.RUNNING:
                raise OperationsCenterError(
                    f"cannot edit task {task_id}: it is running; wait for it, or cancel it first"
                )
            self._change(row, "task.edited", None, **changes)

    def cancel(self, task_id: str) -> None:
        """Raises NotFound, and OperationsCenterError for a task that is done."""
        with self._store.transaction():
            row = self._known_row(task_id, "cancel")
            if row["state"] == TaskState.CANCELLED:
                return
            if row["state"] == TaskState.DONE:
                raise OperationsCenterError(f"cannot cancel task {task_id}: it is done; nothing is left to cancel")
            self._change(row, "task.cancelled", None, state=TaskState.CANCELLED, claimed_by=None, reason="cancelled")

    def retry(self, task_id: str) -> None:
        """Make a task ready again, whatever ended it. Raises NotFound, OperationsCenterError while it runs."""
        with self._store.transaction():
            row = self._known_row(task_id, "retry")
            if row["state"] == TaskState.RUNNING:
                raise OperationsCenterError(f"cannot retry task {task_id}: it is running; stop its run first")
            self._change(row, "task.retried", None, state=TaskState.READY, reason=None)

    def _add(self, task: NewTask, *, origin: str | None) -> str:
        if origin is not None:
            known = self._store.row(_SQL["by_origin"], {"origin": origin})
            if known:
                return str(known["task_id"])
        now = self._store.clock.now().wall
        number = self._store.next_number("task")
        row = {
            "task_id": f"t{number}",
            "number": number,
            "title": task.title,
            "kind": task.kind,
            "body": task.body,
            "state": TaskState.READY,
            "priority": task.priority,
            "backend": task.backend,
            "parent": task.parent,
            "depth": task.depth,
            "lineage": task.lineage,
            "reason": None,
            "claimed_by": None,
            "origin": origin,
            "created_at": now,
            "updated_at": now,
        }
        self._store.execute(_SQL["insert_task"], row | _order(task.priority, now))
        self._store.append_event("task.added", task_id=str(row["task_id"]), data={"task": row})
        return str(row["task_id"])

    def _task(self, row: Any) -> Task:
        with self._store.damage_told(f"task {row['task_id']!r}"):
            remembered = msgspec.convert(dict(row), Attempts)
            backs_off_until = remembered.backs_off_until(self._store.clock.now().wall)
            return msgspec.convert(dict(row) | {"not_before": backs_off_until, "depth": row["depth"] or 0}, Task)

    def _row(self, task_id: str) -> dict[str, Any] | None:
        row = self._store.row(_SQL["task_row"], {"task_id": task_id})
        return dict(row) if row else None

    def _texts(self, task_id: str) -> dict[str, Any]:
        (row,) = self._store.rows(_SQL["task_texts"], {"task_id": task_id})
        return dict(row)

    def _known_row(self, task_id: str, verb: str) -> dict[str, Any]:
        row = self._row(task_id)
        if row is None:
            raise NotFound(f"cannot {verb} task {task_id}: there is no such task; see `operations-center task list`")
        return row

    def _change(self, row: dict[str, Any], kind: str, run_id: str | None, /, **changes: Any) -> None:
        new = changes | {"updated_at": self._store.clock.now().wall}
        changed = {name: value for name, value in new.items() if row[name] != value}
        stored = new | _order(Priority(new["priority"]), row["created_at"]) if "priority" in new else new
        statement = _SQL["write_task"].format(columns=", ".join(stored), values=", ".join("?" * len(stored)))
        self._store.execute(statement, (*stored.values(), row["task_id"]))
        self._store.append_event(kind, run_id=run_id, task_id=row["task_id"], data={"task": changed})


def _follow_up_of(parent: Mapping[str, Any], wanted: FollowUp, *, depth: int, lineage: str) -> NewTask:
    return NewTask(
        title=parent["title"] if wanted.title is None else wanted.title,
        kind=wanted.kind or parent["kind"],
        body=parent["body"] if wanted.title is None else wanted.body,
        priority=Priority(parent["priority"]),
        parent=parent["task_id"],
        depth=depth,
        lineage=lineage,
    )


def _refuse_out_of_bounds(what: str, texts: Mapping[str, Any]) -> None:
    try:
        check_texts(texts)
    except ValueError as error:
        raise OperationsCenterError(f"cannot {what}: {error}") from None


def _order(priority: Priority, created_at: int) -> dict[str, int]:
    """What is derived for the order, beside what the log keeps."""
    return {"urgency": urgency_of(priority, created_at)}


def _number_of(task_id: str) -> int:
    return int(task_id.removeprefix("t"))
