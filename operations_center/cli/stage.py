"""``stage``: what the supervisor's timer runs; as ``pull``, without following what comes of it."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened
from operations_center.cli.output import say
from operations_center.cli.pull import ended_like_ctrl_c, show_staged, stage
from operations_center.releases.staging import BadRelease


@click.command("stage", hidden=True)
@click.option("--config-copy", type=click.Path(path_type=Path), hidden=True, help="Read this in its place.")
@config_option
@json_option
def command(config_copy: Path | None, config_file: Path | None, as_json: bool) -> int:
    """Make a release of the newest commit of the branch of [code_pull], for the fleet to roll out.

    Exit code 0 also for a bad commit: that pull has not failed, and the commit that mends it is looked for as soon.
    """
    with opened(config_file, copy=config_copy) as center, ended_like_ctrl_c():
        try:
            show_staged(center, stage(center, again=False, quiet=True, copy=config_copy), as_json)
        except BadRelease as bad:
            say(str(bad), err=True)
    return 0
