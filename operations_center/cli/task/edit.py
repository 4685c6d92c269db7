"""``task edit ID``."""

from pathlib import Path
from typing import Any

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.cli.task.fields import (
    PRIORITIES,
    check_fields,
    describe,
    refuse_while_a_run_is_open,
    warn_of_kinds,
)
from operations_center.cli.task.show import known_task
from operations_center.errors import NotFound, OperationsCenterError, UsageError
from operations_center.model import Priority, TaskState
from operations_center.presentation import task_as_json

STATES = ("backlog", "ready", "review", "done", "blocked")
"""``running`` belongs to a run, and ``cancelled`` has to end one: ``task cancel``."""


@click.command("edit")
@click.argument("task_id", metavar="ID")
@click.option("--title")
@click.option("--body")
@click.option("--kind")
@click.option("--priority", type=click.Choice(PRIORITIES))
@click.option("--backend", help='"" goes back to the role\'s.')
@click.option("--state", type=click.Choice(STATES))
@config_option
@json_option
def edit(task_id: str, config_file: Path | None, as_json: bool, **options: str | None) -> None:
    """Change a task that is not running."""
    changes: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if not changes:
        raise UsageError(f"cannot edit task {task_id}: no change is given; see `operations-center task edit -h`")
    if changes.get("backend") == "":
        changes["backend"] = None
    with opened(config_file) as center:
        try:
            check_fields({name: value for name, value in changes.items() if name != "state"}, center.config)
        except ValueError as error:
            unknown = changes.get("backend") not in (None, *center.config.backends)
            raise (NotFound if unknown else OperationsCenterError)(f"cannot edit task {task_id}: {error}") from None
        with center.ledger.transaction():
            if changes.get("state") == TaskState.READY:
                refuse_while_a_run_is_open(center, task_id, "make ready")
            center.board.edit(task_id, **_columns(changes))
        center.wake_everybody()
        warn_of_kinds([changes["kind"]] if "kind" in changes else [], center.config)
        task = known_task(center, task_id)
    if as_json:
        print_json(task_as_json(task))
    else:
        say(describe(task))


def _columns(changes: dict[str, Any]) -> dict[str, Any]:
    columns = dict(changes)
    if "priority" in columns:
        columns["priority"] = Priority(columns["priority"])
    if "state" in columns:
        columns["state"] = TaskState(columns["state"])
        # What was the reason for the old state is none for the new one.
        columns["reason"] = "blocked by a person" if columns["state"] is TaskState.BLOCKED else None
    return columns
