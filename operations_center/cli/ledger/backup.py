"""``ledger backup DEST``."""

from pathlib import Path

import click

from operations_center.care.backup import back_up
from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.store import Access


@click.command("backup")
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@config_option
@json_option
def backup(destination: Path, config_file: Path | None, as_json: bool) -> None:
    """Copy the ledger to DEST, a new file or a directory, also while the fleet runs; print the copy's path."""
    with opened(config_file, Access.READ) as center:
        made = back_up(center.ledger, destination.absolute(), center.clock.now().wall)
    if as_json:
        print_json({"path": str(made.path), "bytes": made.size, "runs": made.runs, "events": made.events})
    else:
        click.echo(made.path)
