"""Tasks, runs and events as the contract's JSON shows them: RFC 3339 times, null for what is not there."""

from typing import Any

from operations_center.clock import rfc3339
from operations_center.model import Event, Run, Task


def task_as_json(task: Task) -> dict[str, Any]:
    return {
        "id": task.task_id,
        "title": task.title,
        "kind": task.kind,
        "body": task.body,
        "state": task.state,
        "priority": task.priority,
        "backend": task.backend,
        "attempts": task.attempts,
        "retries": task.retries,
        "interruptions": task.interruptions,
        "parent": task.parent,
        "depth": task.depth,
        "reason": task.reason,
        "not_before": rfc3339(task.not_before),
        "created_at": rfc3339(task.created_at),
        "updated_at": rfc3339(task.updated_at),
    }


def run_as_json(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "task_id": run.task_id,
        "role": run.role,
        "backend": run.backend,
        "attempt": run.attempt,
        "fence": run.fence,
        "holder": run.holder,
        "state": run.state,
        "outcome": run.outcome,
        "proof": run.proof,
        "host": run.host,
        "watcher_pid": run.watcher_pid,
        "keeper_pid": run.keeper_pid,
        "provider_job_id": run.provider_job_id,
        "reserved_at": rfc3339(run.reserved_at),
        "started_at": rfc3339(run.started_at),
        "settled_at": rfc3339(run.settled_at),
        "closed_at": rfc3339(run.closed_at),
        "deadline_at": rfc3339(run.deadline_at),
        "exit_code": run.exit_code,
        "reason": run.reason or run.doubt,
        "stop_reason": run.stop_reason,
        "release": run.release,
    }


def event_as_json(event: Event) -> dict[str, Any]:
    return {
        "seq": event.seq,
        "at": rfc3339(event.at),
        "kind": event.kind,
        "run_id": event.run_id,
        "task_id": event.task_id,
        "data": event.data,
    }
