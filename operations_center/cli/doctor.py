"""``doctor``: what is wrong with this set-up."""

import os
from pathlib import Path

import click

from operations_center.care.doctor import Check, Status, examine_fleet, examine_machine
from operations_center.cli.common import config_of_running, config_option, json_option, print_json, read_config
from operations_center.cli.output import paint, say
from operations_center.config import Config
from operations_center.errors import ConfigError
from operations_center.running import difference_in_words, file_facts

_COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.FAULT: "red"}


@click.command("doctor")
@config_option
@json_option
def command(config_file: Path | None, as_json: bool) -> int:
    """Look at everything that a fleet needs; exit code 0 if one could start. Changes nothing."""
    config, checks = _read(config_file)
    checks += [*_running(config_file), *examine_machine()]
    if config is not None:
        checks += examine_fleet(config, os.environ)
    faults = sum(check.status is Status.FAULT for check in checks)
    if as_json:
        print_json(
            {
                "ok": not faults,
                "config_file": str(config.file) if config else None,
                "checks": [
                    {"name": check.name, "status": check.status.value, "detail": check.detail} for check in checks
                ],
            }
        )
    else:
        _print(checks, faults)
    if config is None:
        return ConfigError.exit_code
    return 1 if faults else 0


def _read(config_file: Path | None) -> tuple[Config | None, list[Check]]:
    try:
        config = read_config(config_file)
    except ConfigError as error:
        return None, [Check("config", Status.FAULT, line) for line in error.lines]
    return config, [Check("config", Status.OK, str(config.file))]


def _running(config_file: Path | None) -> list[Check]:
    """How the file differs from what a fleet of it runs, which may go on without it."""
    try:
        running = config_of_running(config_file)
    except ConfigError:
        return []
    difference = difference_in_words(running, file_facts(running, os.environ))
    return [Check("fleet", Status.WARNING, difference)] if difference else []


def _print(checks: list[Check], faults: int) -> None:
    for check in checks:
        say(paint(f"{check.status:<8}", fg=_COLOURS[check.status]), f"{check.name:<18}{check.detail}")
    say(f"{faults} faults: a fleet cannot start" if faults else "a fleet can start")
