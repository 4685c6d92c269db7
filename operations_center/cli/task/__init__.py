"""``task``: the tasks of the local board, one file per verb."""

import click

from operations_center.cli.task.add import add
from operations_center.cli.task.cancel import cancel
from operations_center.cli.task.edit import edit
from operations_center.cli.task.import_ import import_
from operations_center.cli.task.list_ import list_
from operations_center.cli.task.retry import retry
from operations_center.cli.task.show import show


@click.group("task")
def command() -> None:
    """Add, list and change the tasks of the local board."""


for verb in (add, import_, list_, show, edit, cancel, retry):
    command.add_command(verb)
