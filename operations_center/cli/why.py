"""``why [ROLE]``: why each ready task is not running right now."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import fit, paint, say
from operations_center.errors import NotFound
from operations_center.store import Access
from operations_center.views.waiting_tasks import WaitingTask, waiting_tasks

LONGEST_TITLE = 80


@click.command("why")
@click.argument("role", required=False)
@config_option
@json_option
def command(role: str | None, config_file: Path | None, as_json: bool) -> int:
    """Say for each ready task, of one role or of all, what it is waiting for."""
    with opened(config_file, Access.READ) as center:
        if role is not None and role not in center.config.roles:
            known = ", ".join(center.config.roles)
            raise NotFound(f"cannot explain role {role}: the configuration has no such role; it has {known}")
        tasks = waiting_tasks(center, role)
    if as_json:
        print_json({"tasks": [task.as_json() for task in tasks]})
    else:
        _print(tasks)
    return 0


def _print(tasks: list[WaitingTask]) -> None:
    if not tasks:
        say("no task is waiting")
    for waiting in tasks:
        say(paint(waiting.task.task_id, bold=True), f"  {fit(waiting.task.title, LONGEST_TITLE)}")
        for refusal in waiting.reasons:
            say(f"    {refusal.obstacle}: {refusal.reason}")
