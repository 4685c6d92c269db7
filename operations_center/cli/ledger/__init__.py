"""``ledger``: care of the ledger, one file per verb."""

import click

from operations_center.cli.ledger.backup import backup
from operations_center.cli.ledger.new import new
from operations_center.cli.ledger.prune import prune
from operations_center.cli.ledger.restore import restore
from operations_center.cli.ledger.verify import verify


@click.group("ledger")
def command() -> None:
    """Verify, back up, restore and prune the ledger, or begin a new one."""


for verb in (verify, backup, restore, prune, new):
    command.add_command(verb)
