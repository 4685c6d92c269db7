"""``watch --role ROLE``: one watcher in the foreground, without a supervisor."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, opened, refuse_to_start
from operations_center.errors import NotFound
from operations_center.logs import log_to
from operations_center.watcher import Watcher


@click.command("watch")
@click.option("--role", required=True, help="The role to watch for.")
@click.option("--once", is_flag=True, help="One turn: start what can start now, wait for it, end.")
@config_option
def command(role: str, once: bool, config_file: Path | None) -> int:
    """Run one watcher in the foreground; exit code 75 if the role has one on this host."""
    with opened(config_file) as center:
        refuse_to_start(center, f"a watcher of role {role}")
        if role not in center.config.roles:
            known = ", ".join(center.config.roles)
            raise NotFound(f"cannot watch for role {role}: the configuration has no such role; it has {known}")
        log_to(None)
        return Watcher(center, center.config.roles[role], once=once).run()
