"""``releases``: what is known of commits that were pulled."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json, print_table
from operations_center.clock import rfc3339
from operations_center.store import Access


@click.command("releases")
@config_option
@json_option
def command(config_file: Path | None, as_json: bool) -> None:
    """List releases, the one that changed last first."""
    with opened(config_file, Access.READ) as center:
        releases = center.releases.all()
    if as_json:
        print_json({"releases": [release.as_json() for release in releases]})
        return
    print_table(
        ("COMMIT", "STATE", "AT", "REASON"),
        [(release.commit, release.state, rfc3339(release.at), release.reason) for release in releases],
    )
