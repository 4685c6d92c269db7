"""``ledger verify``."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.store import Access


@click.command("verify")
@config_option
@json_option
def verify(config_file: Path | None, as_json: bool) -> int:
    """Compare the ledger with the fold of its own log; exit code 1 where they differ."""
    with opened(config_file, Access.READ) as center:
        found = center.ledger.verify()
    if as_json:
        print_json({"ok": not found, "differences": found})
    else:
        for difference in found:
            say(difference)
        say(f"{len(found)} differences" if found else "the ledger agrees with its log")
    return 1 if found else 0
