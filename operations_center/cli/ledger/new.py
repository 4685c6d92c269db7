"""``ledger new``."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, print_json, read_config
from operations_center.cli.output import say
from operations_center.wiring import begin_again


@click.command("new")
@config_option
@json_option
def new(config_file: Path | None, as_json: bool) -> None:
    """Begin with an empty ledger and board where the earlier ones are gone for good.

    No other command does that where a state directory has vanished: it could have been stashed, cleaned away or moved,
    and an empty board in its place would silently forget every task.
    """
    state = begin_again(read_config(config_file))
    if as_json:
        print_json({"path": str(state.ledger)})
    else:
        say(f"{state.ledger} is new and empty")
