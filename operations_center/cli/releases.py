"""``releases``: what is known of commits that were pulled."""

from pathlib import Path
from typing import Any

import click

from operations_center.cli.common import config_option, json_option, opened, print_json, print_table
from operations_center.clock import rfc3339
from operations_center.releases.records import Release
from operations_center.store import Access


@click.command("releases")
@config_option
@json_option
def command(config_file: Path | None, as_json: bool) -> None:
    """List releases, the one that changed last first."""
    with opened(config_file, Access.READ) as center:
        deployment = center.deployments.read()
        current = deployment.current.commit if deployment else None
        releases = [release_as_json(release, current) for release in center.releases.all()]
    if as_json:
        print_json({"releases": releases})
        return
    columns = ("commit", "state", "at", "reason")
    print_table([name.upper() for name in columns], [[release[name] for name in columns] for release in releases])


def release_as_json(release: Release, current: str | None) -> dict[str, Any]:
    """``current``: the commit that the fleet runs."""
    state = "current" if release.commit == current else str(release.state)
    return {"commit": release.commit, "state": state, "reason": release.reason, "at": rfc3339(release.at)}
