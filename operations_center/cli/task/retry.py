"""``task retry ID``."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.cli.task.fields import describe, refuse_while_a_run_is_open
from operations_center.cli.task.show import known_task
from operations_center.model import Attempts
from operations_center.presentation import task_as_json


@click.command("retry")
@click.argument("task_id", metavar="ID")
@config_option
@json_option
def retry(task_id: str, config_file: Path | None, as_json: bool) -> None:
    """Make a task ready again, whatever ended it; its attempts and its backoff are forgotten."""
    with opened(config_file) as center:
        with center.ledger.transaction():
            refuse_while_a_run_is_open(center, task_id, "retry")
            center.ledger.set_attempts(task_id, Attempts())
            center.board.retry(task_id)
        center.wake_everybody()
        task = known_task(center, task_id)
    if as_json:
        print_json(task_as_json(task))
    else:
        say(describe(task))
