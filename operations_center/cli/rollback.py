"""``rollback [COMMIT]``: go back to a release that was proven."""

from pathlib import Path

import click

from operations_center.care.following import is_supervised, wait_for_rest
from operations_center.care.rollback import roll_back
from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say


@click.command("rollback")
@click.argument("commit", required=False)
@config_option
@json_option
def command(commit: str | None, config_file: Path | None, as_json: bool) -> int:
    """Go back to the last good release, or to COMMIT; what is left is marked bad and not pulled again.

    Executors run on. Without a fleet the next `up` begins with it.
    """
    with opened(config_file) as center:
        wanted = roll_back(center, commit).current
        supervised = is_supervised(center)
        if supervised:
            wanted = wait_for_rest(center).current
    if as_json:
        print_json({"commit": wanted.commit, "supervised": supervised})
    else:
        name = wanted.commit or "the code that it was started with"
        say(f"the fleet is back at {name}" if supervised else f"the next `up` begins with {name}")
    return 0
