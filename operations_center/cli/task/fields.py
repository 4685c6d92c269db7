"""What a task may consist of, however it is given: as options or as a line of a file.

A kind that no role takes is accepted, with a warning: roles come and go, and ``why`` names such a task. A
backend that is not configured is refused.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

from operations_center.bounds import check_texts
from operations_center.cli.output import say
from operations_center.config import Config
from operations_center.config.wording import spell_nearest
from operations_center.errors import OperationsCenterError
from operations_center.model import Priority, Task, TaskState
from operations_center.wiring import Center

PRIORITIES = tuple(priority.value for priority in Priority)


def check_fields(fields: Mapping[str, Any], config: Config) -> None:
    """Raises ValueError that says what is wrong with a title, kind, body, priority or backend."""
    check_texts({name: value for name, value in fields.items() if (name, value) != ("backend", None)})
    if fields.get("priority", "normal") not in PRIORITIES:
        raise ValueError(f"its priority is {fields['priority'][:40]!r}; give one of {', '.join(PRIORITIES)}")
    backend = fields.get("backend")
    if backend is not None and backend not in config.backends:
        raise ValueError(f'no backend is named "{backend[:60]}"; {spell_nearest(backend[:60], config.backends)}')


def default_kind(config: Config) -> str:
    return next(iter(config.roles.values())).task_kinds[0]


def warn_of_kinds(kinds: Iterable[str], config: Config) -> None:
    """On stderr: these tasks wait until a role takes their kind."""
    taken = [kind for role in config.roles.values() for kind in role.task_kinds]
    for kind in sorted(set(kinds) - set(taken)):
        nearest = spell_nearest(kind[:60], taken)
        say(f'warning: no role takes the kind "{kind[:60]}", so nothing runs it ({nearest})', err=True)


def refuse_while_a_run_is_open(center: Center, task_id: str, verb: str) -> None:
    """To be called in the transaction of the change: a run that still ends would have the task run twice."""
    for run in center.ledger.open_runs():
        if run.task_id == task_id:
            raise OperationsCenterError(
                f"cannot {verb} task {task_id}: its run {run.run_id} is still open; "
                f"wait for it, or end it with `operations-center stop {run.run_id}`"
            )


def describe(task: Task) -> str:
    """One line after a change."""
    waits = " and is waiting for its next run" if task.state is TaskState.READY else ""
    return f"task {task.task_id} is {task.state}{waits}"


def stdin_bytes() -> BinaryIO:
    """Raises ValueError when the process was started without a stdin."""
    stdin: Any = sys.stdin
    if stdin is None:
        raise ValueError("there is no stdin")
    stream: BinaryIO = stdin.buffer
    return stream
