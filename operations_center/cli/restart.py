"""``restart [ROLE]…``: replace watchers one by one; without a role, the supervisor first."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from operations_center.care.following import let_rollout_end
from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.errors import NotFound
from operations_center.fleet import called, children_of, look_at, survivors
from operations_center.running import difference_in_words, file_facts
from operations_center.state_directory import SUPERVISOR, WATCHDOG
from operations_center.stopping.restart import Restarted, present_config, renew_supervisor, restart_watchers
from operations_center.wiring import Center


@click.command("restart")
@click.argument("roles", nargs=-1, metavar="[ROLE]...")
@config_option
@json_option
def command(roles: Sequence[str], config_file: Path | None, as_json: bool) -> int:
    """Restart watchers one after the other; without ROLE the whole fleet, with the code that is installed now.

    Without ROLE the configuration is checked, and taken up as it is now; with a mistake in it nothing is changed. With
    ROLE the configuration that the fleet runs stays. Executors run on: the new watcher adopts them. The supervisor
    keeps its process. A rollout on its way is waited for.
    """
    with opened(config_file) as center:
        old = {member.name: member for member in survivors(center.state)}
        names = _named(center, roles) if roles else _renew(center, tell=None if as_json else say)
        restarted = restart_watchers(
            center,
            names,
            old,
            before=lambda: let_rollout_end(center),
            tell=lambda each: None if as_json else _tell(each),
        )
        difference = difference_in_words(center.config, file_facts(center.config, os.environ)) if roles else None
    if difference:
        say(f"note: {difference}", err=True)
    if as_json:
        print_json({"restarted": [asdict(each) for each in restarted]})
    return 0


def _renew(center: Center, tell: Callable[[str], object] | None) -> Sequence[str]:
    """Renew the supervisor, with the configuration as it is in the file now; those that it looks after then."""
    config = present_config(center)
    let_rollout_end(center)
    pid = renew_supervisor(center)
    if tell is not None:
        tell(f"the supervisor has started anew: process {pid}")
    supervised = children_of(look_at(center.state, SUPERVISOR))
    return [name for name in (*config.roles, WATCHDOG) if name in supervised]


def _named(center: Center, roles: Sequence[str]) -> Sequence[str]:
    supervised = children_of(look_at(center.state, SUPERVISOR))
    for role in roles:
        if role not in (*center.config.roles, WATCHDOG):
            known = ", ".join(center.config.roles)
            raise NotFound(f"cannot restart role {role}: the configuration has no such role; it has {known}")
        if supervised and role not in supervised:
            raise NotFound(f"cannot restart role {role}: the supervisor that runs was told to leave it out")
    return roles


def _tell(restarted: Restarted) -> None:
    before = "" if restarted.old_pid is None else f" (was {restarted.old_pid})"
    say(f"{called(restarted.role)} is ready again: process {restarted.pid}{before}")
