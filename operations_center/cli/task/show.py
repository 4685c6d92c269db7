"""``task show ID``."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.errors import NotFound
from operations_center.model import Task
from operations_center.presentation import task_as_json
from operations_center.store import Access
from operations_center.wiring import Center


@click.command("show")
@click.argument("task_id", metavar="ID")
@config_option
@json_option
def show(task_id: str, config_file: Path | None, as_json: bool) -> None:
    """Show one task and its last runs."""
    with opened(config_file, Access.READ) as center:
        task = known_task(center, task_id)
        runs = center.ledger.recent_runs(task_id=task_id, backend=None, limit=10)
    if as_json:
        print_json(task_as_json(task))
        return
    for name, value in task_as_json(task).items():
        if value is not None and name != "body":
            say(f"{name:<14}{value}")
    for run in runs:
        say(f"{'run':<14}{run.run_id} {run.state} {run.outcome or ''}".rstrip())
    if task.body:
        say()
        say(task.body, keep="\n\t")


def known_task(center: Center, task_id: str) -> Task:
    """Raises NotFound."""
    task = center.board.task(task_id)
    if task is None:
        raise NotFound(f"cannot find task {task_id}: the board has no such task; see `operations-center task list`")
    return task
