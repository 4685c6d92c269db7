"""``task cancel ID``: cancel a task and end its run."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.cli.stop import how_it_ended
from operations_center.presentation import run_as_json, task_as_json
from operations_center.stopping.runs import cancel_task
from operations_center.store import Access


@click.command("cancel")
@click.argument("task_id", metavar="ID")
@click.option("--no-wait", is_flag=True, help="Return when its executor was told, not when it has ended.")
@config_option
@json_option
def cancel(task_id: str, no_wait: bool, config_file: Path | None, as_json: bool) -> int:
    """Cancel a task; its run, if it has one, is ended."""
    with opened(config_file, Access.END) as center:
        run = cancel_task(center, task_id, wait=not no_wait)
        task = center.board.task(task_id)
    if as_json:
        print_json({**(task_as_json(task) if task else {}), "run": run_as_json(run) if run else None})
    else:
        say(f"task {task_id} is cancelled" + (f"; {how_it_ended(run)}" if run else ""))
    return 0
