"""``init [DIR]``: write a configuration that runs as it stands."""

import os
from pathlib import Path

import click

from operations_center.cli.common import json_option, print_json
from operations_center.cli.output import say
from operations_center.config import load_config, warning_of_named, write_template
from operations_center.places import state_directory_outside


@click.command("init")
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path), default=Path())
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Write a commented operations_center.toml into DIR (default: here).

    In a git work tree the state directory is put outside of it, where no `git clean` and no `git stash` takes it.
    """
    outside = state_directory_outside(directory.absolute(), os.environ)
    path = write_template(directory.absolute(), outside)
    if as_json:
        print_json({"config_file": str(path), "state_dir": str(load_config(path, os.environ).center.state_dir)})
        return
    say(f"wrote {path}")
    if outside is not None:
        say(f"its state is kept outside of the git work tree, in {outside}")
    if warning := warning_of_named(path):
        say(warning, err=True)
    if directory != Path():
        say(f"next: cd {directory}")
    say("then: operations-center up                      start the fleet")
    say('      operations-center task add "Say hello"    in another terminal')
    say("      operations-center status")
