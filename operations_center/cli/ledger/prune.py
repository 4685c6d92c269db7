"""``ledger prune --older-than D``."""

from pathlib import Path

import click

from operations_center.care.retention import prune_closed_runs
from operations_center.cli.common import DURATION, config_option, json_option, opened, print_json
from operations_center.cli.output import say


@click.command("prune")
@click.option("--older-than", "older_than_ms", type=DURATION, required=True, metavar="D", help="Such as 30d.")
@config_option
@json_option
def prune(older_than_ms: int, config_file: Path | None, as_json: bool) -> None:
    """Forget runs that were closed longer ago, with their directories and events; open runs are kept."""
    with opened(config_file) as center:
        now, pruned = center.clock.now().wall, 0
        while forgotten := prune_closed_runs(center.ledger, center.state.runs, older_than_ms, now):
            pruned += forgotten
    if as_json:
        print_json({"pruned": pruned})
    else:
        say(f"{pruned} runs forgotten")
