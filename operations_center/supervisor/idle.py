"""Whether a fleet that ends when it is idle may end."""

from collections.abc import Sequence

from operations_center.config import Config
from operations_center.model import TaskState
from operations_center.wiring import Center


def is_idle(center: Center, roles: Sequence[str]) -> bool:
    """Whether these roles have nothing to run now and nothing that they will retry by themselves."""
    kinds = [kind for role in roles for kind in center.config.roles[role].task_kinds]
    with center.ledger.snapshot():
        runnable = [task for task in center.board.ready(kinds) if _could_run(center.config, task.backend)]
        open_runs = [run for run in center.ledger.open_runs() if run.role in roles and run.doubt is None]
        running = [task for task in center.board.tasks(TaskState.RUNNING) if task.kind in kinds]
    return not runnable and not open_runs and not running


def _could_run(config: Config, backend: str | None) -> bool:
    return backend is None or backend in config.backends
