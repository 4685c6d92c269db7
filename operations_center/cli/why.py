"""``why [ROLE]``: why each ready task is not running right now."""

import os
from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import fit, paint, say
from operations_center.errors import NotFound
from operations_center.running import config_as_json, difference_in_words, file_facts
from operations_center.store import Access
from operations_center.views.waiting_tasks import WaitingTask, waiting_tasks

LONGEST_TITLE = 80


@click.command("why")
@click.argument("role", required=False)
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000_000), default=100, show_default=True, help="List at most so many."
)
@config_option
@json_option
def command(role: str | None, limit: int, config_file: Path | None, as_json: bool) -> int:
    """Say for each ready task, of one role or of all, what it is waiting for; the most urgent come first."""
    with opened(config_file, Access.READ) as center:
        if role is not None and role not in center.config.roles:
            known = ", ".join(center.config.roles)
            raise NotFound(f"cannot explain role {role}: the configuration has no such role; it has {known}")
        tasks, count = waiting_tasks(center, role, limit)
        facts = file_facts(center.config, os.environ)
    if as_json:
        shown = [task.as_json() for task in tasks]
        print_json({"tasks": shown, "count": count, "config": config_as_json(center.config, facts)})
    else:
        _print(tasks, count)
        if difference := difference_in_words(center.config, facts):
            say(f"judged by what the fleet runs: {difference}")
    return 0


def _print(tasks: list[WaitingTask], count: int) -> None:
    if not tasks:
        say("no task is waiting")
    for waiting in tasks:
        say(paint(waiting.task.task_id, bold=True), f"  {fit(waiting.task.title, LONGEST_TITLE)}")
        for refusal in waiting.reasons:
            say(f"    {refusal.obstacle}: {refusal.reason}")
    if count > len(tasks):
        say(f"{count - len(tasks)} more are ready; `--limit` lists more of them")
