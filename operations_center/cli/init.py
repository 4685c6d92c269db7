"""``init [DIR]``: write a configuration that runs as it stands."""

from pathlib import Path

import click

from operations_center.cli.common import json_option, print_json
from operations_center.cli.output import say
from operations_center.config import write_template


@click.command("init")
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path), default=Path())
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Write a commented operations_center.toml into DIR (default: here)."""
    path = write_template(directory.absolute())
    if as_json:
        print_json({"config_file": str(path)})
        return
    say(f"wrote {path}")
    if directory != Path():
        say(f"next: cd {directory}")
    say("then: operations-center up                      start the fleet")
    say('      operations-center task add "Say hello"    in another terminal')
    say("      operations-center status")
