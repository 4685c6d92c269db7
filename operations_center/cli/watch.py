"""``watch --role ROLE``: one watcher in the foreground, without a supervisor."""

from dataclasses import replace
from pathlib import Path

import click

from operations_center.cli.common import config_option, opened, refuse_to_start, with_copy
from operations_center.errors import NotFound
from operations_center.logs import log_to
from operations_center.releases.deployment import Version
from operations_center.watcher import Watcher
from operations_center.wiring import Center


@click.command("watch")
@click.option("--role", required=True, help="The role to watch for.")
@click.option("--once", is_flag=True, help="One turn: start what can start now, wait for it, end.")
@config_option
def command(role: str, once: bool, config_file: Path | None) -> int:
    """Run one watcher in the foreground; exit code 75 if the role has one on this host."""
    with opened(config_file) as opened_center:
        center = _with_release(opened_center)
        refuse_to_start(center, f"a watcher of role {role}")
        if role not in center.config.roles:
            known = ", ".join(center.config.roles)
            raise NotFound(f"cannot watch for role {role}: the configuration has no such role; it has {known}")
        log_to(None)
        return Watcher(center, center.config.roles[role], once=once).run()


def _with_release(center: Center) -> Center:
    """It runs the code that is installed, and lends its runs the release that the fleet runs."""
    deployment = center.deployments.read() if center.config.code_pull else None
    commit = deployment.current.commit if deployment is not None else None
    return with_copy(replace(center, version=Version(commit, "")))
