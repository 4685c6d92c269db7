"""``ledger restore SRC``."""

from pathlib import Path

import click

from operations_center.care.restore import restore as restore_ledger
from operations_center.cli.common import config_option, json_option, print_json, read_config


@click.command("restore")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@config_option
@json_option
def restore(source: Path, config_file: Path | None, as_json: bool) -> None:
    """Put a backup in the ledger's place; the fleet must be down. What was there is kept beside it."""
    restored = restore_ledger(read_config(config_file), source.absolute())
    if as_json:
        print_json(
            {
                "path": str(restored.ledger),
                "replaced": str(restored.replaced) if restored.replaced else None,
                "fence": restored.fence,
                "runs": restored.runs,
                "events": restored.events,
            }
        )
        return
    click.echo(f"restored {restored.ledger}: {restored.runs} runs, {restored.events} events")
    if restored.replaced:
        click.echo(f"what was there is kept as {restored.replaced}")
