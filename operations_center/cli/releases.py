"""``releases``: what is known of commits that were pulled."""

from pathlib import Path
from typing import Any

import click

from operations_center.cli.common import config_option, json_option, opened, print_json, print_table
from operations_center.cli.output import say
from operations_center.clock import rfc3339
from operations_center.releases.deployment import Step
from operations_center.releases.records import Release
from operations_center.store import Access

EXCHANGED = {
    Step.CANARY: "one watcher, on trial",
    Step.REST: "the other watchers and the watchdog",
    Step.SUPERVISOR: "the supervisor, then all on trial",
}
"""In each step of a rollout."""


@click.command("releases")
@config_option
@json_option
def command(config_file: Path | None, as_json: bool) -> None:
    """List releases, the one that changed last first."""
    with opened(config_file, Access.READ) as center:
        deployment = center.deployments.read()
        current = deployment.current.commit if deployment else None
        releases = [release_as_json(release, current) for release in center.releases.all()]
        target = deployment.target if deployment else None
    if as_json:
        print_json({"releases": releases})
        return
    columns = ("commit", "state", "at", "reason")
    print_table([name.upper() for name in columns], [[release[name] for name in columns] for release in releases])
    if deployment and deployment.step:
        say(f"\nthe fleet {rollout_in_words(current, target.commit if target else None, deployment.step)}")


def release_as_json(release: Release, current: str | None) -> dict[str, Any]:
    """``current``: the commit that the fleet runs."""
    state = "current" if release.commit == current else str(release.state)
    return {"commit": release.commit, "state": state, "reason": release.reason, "at": rfc3339(release.at)}


def rollout_in_words(current: str | None, target: str | None, step: Step) -> str:
    """``current`` and ``target`` are the commits of what the fleet runs, and of what is rolled out or taken back."""
    what = "the changed configuration" if target == current else shortened(target) or "the installed code"
    if step is Step.BACK:
        return f"goes back from {what}"
    return f"rolls {what} out, step {step}: {EXCHANGED[step]}"


def shortened(commit: str | None) -> str | None:
    """A commit for people; None: no release."""
    return commit and commit[:12]
