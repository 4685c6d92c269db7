"""Whether a fleet that ends when it is idle may end."""

from collections.abc import Sequence

from operations_center.model import TaskState
from operations_center.wiring import Center


def is_idle(center: Center, roles: Sequence[str]) -> bool:
    """Whether these roles have nothing to run now and nothing that they will retry by themselves."""
    kinds = [kind for role in roles for kind in center.config.roles[role].task_kinds]
    with center.ledger.snapshot():
        is_ready = bool(center.board.ready(kinds, {*center.config.backends, None}))
        will_be_ready = center.board.next_ready_at(kinds) is not None
        open_runs = [run for run in center.ledger.open_runs() if run.role in roles and run.doubt is None]
        running = [task for task in center.board.tasks(TaskState.RUNNING) if task.kind in kinds]
    return not is_ready and not will_be_ready and not open_runs and not running
