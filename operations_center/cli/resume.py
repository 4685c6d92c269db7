"""``resume [ROLE|BACKEND]``: admit again what a person paused, or what a breaker keeps from being tried."""

from pathlib import Path

import click

from operations_center.cli.common import config_option, json_option, opened, print_json
from operations_center.cli.output import say
from operations_center.cli.pause import EVERYTHING, pause_as_json, refuse_unknown, spell
from operations_center.ledger import Ledger, Pause
from operations_center.providers.health import closed_by_person


@click.command("resume")
@click.argument("name", metavar="[ROLE|BACKEND]", required=False)
@config_option
@json_option
def command(name: str | None, config_file: Path | None, as_json: bool) -> None:
    """End the pause of a role or a backend, or every pause that a person began or a drain left behind.

    A backend that is left alone because its runs have failed is tried at once.
    """
    with opened(config_file) as center:
        if not any(pause.name == name for pause in center.ledger.pauses()):
            refuse_unknown(center.config, name, "resume")
        ended = _end(center.ledger, name)
        closed = _close_breakers(center.ledger, name)
        center.wake_everybody()
        left = center.ledger.pauses()
    if as_json:
        print_json({"ended": ended, "breakers_closed": closed, "pauses": [pause_as_json(pause) for pause in left]})
        return
    for backend in closed:
        say(f"backend {backend} is tried again")
    if ended or not closed:
        say(f"{_what(name)} is resumed" if ended else f"{_what(name)} was not paused by a person")
    for pause in _in_force(left, name):
        say(f"{spell(pause.name)} is still paused by {pause.source}: {pause.reason}", err=True)


def _end(ledger: Ledger, name: str | None) -> int:
    if name is not None:
        return ledger.resume(name, "person")
    with ledger.transaction():
        return ledger.resume(None, "person") + ledger.resume(None, "drain")


def _close_breakers(ledger: Ledger, name: str | None) -> list[str]:
    with ledger.transaction():
        broken = {
            backend: health
            for backend, health in ledger.health().items()
            if health.broken_until is not None and name in (None, backend)
        }
        for backend, health in broken.items():
            ledger.set_health(backend, closed_by_person(health))
            ledger.note("breaker.closed", {"backend": backend, "by": "person"})
    return list(broken)


def _what(name: str | None) -> str:
    return name or "everything"


def _in_force(pauses: list[Pause], name: str | None) -> list[Pause]:
    return [pause for pause in pauses if name is None or pause.name in (name, EVERYTHING)]
