"""``task list``."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json, print_table
from operations_center.cli.output import fit
from operations_center.model import TaskState
from operations_center.presentation import task_as_json
from operations_center.store import Access

LONGEST_TITLE = 80


@click.command("list")
@click.option("--state", type=click.Choice([state.value for state in TaskState]), help="Only tasks in this state.")
@config_option
@json_option
def list_(state: str | None, config_file: Path | None, as_json: bool) -> None:
    """List tasks of all states, oldest first."""
    with opened(config_file, Access.READ) as center:
        tasks = center.board.tasks(TaskState(state) if state else None)
    if as_json:
        print_json({"tasks": [task_as_json(task) for task in tasks]})
        return
    print_table(
        ("ID", "STATE", "KIND", "PRIORITY", "ATTEMPTS", "TITLE"),
        [
            (task.task_id, task.state, task.kind, task.priority, task.attempts, fit(task.title, LONGEST_TITLE))
            for task in tasks
        ],
    )
