"""``watchdog``: the watchdog's cycle in the foreground."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, opened, refuse_to_start, with_copy
from operations_center.logs import log_to
from operations_center.watchdog import Watchdog


@click.command("watchdog")
@click.option("--once", is_flag=True, help="One cycle, then end.")
@config_option
def command(once: bool, config_file: Path | None) -> int:
    """Reconcile on a timer and look after the watchers; exit code 75 if one does already."""
    with opened(config_file) as center:
        refuse_to_start(center, "the watchdog")
        log_to(None)
        return Watchdog(with_copy(center), once=once).run()
